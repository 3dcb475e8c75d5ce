//! The dashboard in a real browser, nested in an axum application, with a real Redis server.
//!
//! One browser does all the steps, since its start takes longer than most of them. They need
//! `chromium`, `chromedriver` and `npm`, which `scripts/test` installs on Debian.

mod axe;
mod browser;
mod pictures;
#[path = "../support/mod.rs"]
mod support;

use std::{future::pending, time::Duration};

use axum::{Extension, Router as Web};
use browser::Browser;
use campanile::{
    Client, Failure, Json, Redis, Router,
    dashboard::Dashboard,
    schedule::{Schedule, ScheduledTask},
    serve,
    transport::{PauseTarget, WorkerState},
};
use fantoccini::key::Key;
use serde_json::{Value, json};
use support::{RedisServer, raw::eventually, within};
use tokio::net::TcpListener;

const EVIL: &str = "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>";

#[derive(Clone)]
struct User(&'static str);

/// The scene of the steps: a shop with workers, dead letters, schedules and a backlog.
struct Scene {
    server: RedisServer,
    redis: Redis,
    url: String,
}

impl Scene {
    async fn start() -> Self {
        let server = RedisServer::start().await;
        let redis = Redis::connect(&server.url())
            .await
            .expect("the server answers");
        let redis = redis.stream("orders").group("mail");
        let app: Router = Router::new()
            .task("mail.send", async || {
                Err::<(), _>(Failure::dead_letter().because("the mail server refuses <everyone>"))
            })
            .task("mail.slow", pending::<()>)
            .task("mail.fine", async || {});
        let serving = serve(redis.clone(), app).service("mailer", "2.1.0");
        tokio::spawn(serving.into_future());
        let client = Client::new(redis.clone());
        for number in 0..7 {
            let task = json!({ "to": format!("customer-{number}@example.com"), "number": number });
            client
                .enqueue("mail.send", Json(task))
                .await
                .expect("it is sent");
        }
        let hostile = client.enqueue("mail.send", EVIL).header("x-evil", EVIL);
        hostile.await.expect("it is sent");
        client.enqueue("mail.slow", "1").await.expect("it is sent");
        let later = client
            .enqueue("mail.fine", "2")
            .delay(Duration::from_secs(3600));
        later.await.expect("it is sent");
        let nightly = ScheduledTask::new("nightly", Schedule::cron("0 3 * * *"), "mail.fine", ());
        redis.schedules().put(&nightly).await.expect("it is stored");
        eventually(
            || async { (redis.dead_letters().count().await.ok()? == 8).then_some(()) },
            Duration::from_secs(20),
        )
        .await;

        let dashboard = Dashboard::new(redis.clone())
            .stream("orders.eu")
            .at("/ops")
            .user(|request| {
                request
                    .extensions
                    .get::<User>()
                    .map(|user| user.0.to_owned())
            });
        let web = Web::new()
            .nest_service("/ops", dashboard)
            .layer(Extension(User("ada")));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/ops", listener.local_addr().expect("it is bound"));
        tokio::spawn(async move { axum::serve(listener, web).await });
        Self { server, redis, url }
    }

    fn page(&self, path: &str) -> String {
        let separator = if path.contains('?') { '&' } else { '?' };
        format!("{}{path}{separator}stream=orders&group=mail", self.url)
    }

    async fn dead(&self) -> u64 {
        self.redis
            .dead_letters()
            .count()
            .await
            .expect("the server answers")
    }

    async fn a_letter(&self) -> String {
        let letters = self.redis.dead_letters().list(Default::default()).await;
        letters.expect("the server answers").letters[0]
            .id
            .to_string()
    }
}

const PAGES: [&str; 12] = [
    "/",
    "/stream",
    "/waiting",
    "/running",
    "/delayed",
    "/dead",
    "/tasks",
    "/workers",
    "/schedules",
    "/pauses",
    "/limits",
    "/actions",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dashboard_works_in_a_browser() {
    let scene = Scene::start().await;
    let browser = Browser::start().await;
    macro_rules! steps {
        ($($step:ident)+) => {$(
            println!("{}", stringify!($step));
            within(Duration::from_secs(60), $step(&scene, &browser)).await;
        )+};
    }
    steps! {
        each_page_opens_without_errors_and_is_accessible
        each_page_fits_a_phone
        a_hostile_payload_runs_nowhere
        a_page_follows_what_happens
        letters_are_replayed_and_deleted
        a_letter_is_edited_and_replayed
        a_group_is_paused_and_resumed
        one_worker_gets_orders
        everything_works_by_keyboard
        everything_works_without_script
        an_outage_is_shown_and_ends
    }
}

async fn each_page_opens_without_errors_and_is_accessible(scene: &Scene, browser: &Browser) {
    let letter = format!("/letter?id={}", scene.a_letter().await);
    let confirm = "/confirm?do=purge&all=1";
    let mut faults = Vec::new();
    for path in PAGES
        .iter()
        .copied()
        .chain([&*letter, confirm, "/task?id=1-1", "/nothing"])
    {
        browser.open(&scene.page(path)).await;
        faults.extend(axe::check(browser, path).await);
        let style = "return getComputedStyle(document.querySelector('header')).display";
        assert_eq!(
            browser.run(style).await,
            "flex",
            "the style of {path} is loaded"
        );
    }
    for scheme in ["dark", "light"] {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        browser
            .devtools(
                "Emulation.setEmulatedMedia",
                json!({ "features": features }),
            )
            .await;
        browser.open(&scene.page("/stream")).await;
        faults.extend(axe::check(browser, scheme).await);
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

async fn each_page_fits_a_phone(scene: &Scene, browser: &Browser) {
    let phone = json!({ "width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": true });
    browser
        .devtools("Emulation.setDeviceMetricsOverride", phone)
        .await;
    let letter = format!("/letter?id={}", scene.a_letter().await);
    for path in PAGES
        .iter()
        .copied()
        .chain([&*letter, "/confirm?do=purge&all=1"])
    {
        browser.open(&scene.page(path)).await;
        let widths = "return [document.documentElement.scrollWidth, window.innerWidth]";
        let widths = browser.run(widths).await;
        assert_eq!(widths, json!([360, 360]), "{path} scrolls to the side");
    }
    browser
        .devtools("Emulation.clearDeviceMetricsOverride", json!({}))
        .await;
}

async fn a_hostile_payload_runs_nowhere(scene: &Scene, browser: &Browser) {
    let letters = scene.redis.dead_letters().list(Default::default()).await;
    let letters = letters.expect("the server answers").letters;
    let payload = |letter: &&campanile::transport::DeadLetter| {
        letter
            .message()
            .is_ok_and(|message| message.payload() == EVIL)
    };
    let hostile = letters.iter().find(payload).expect("it is dead");
    browser
        .open(&scene.page(&format!("/letter?id={}", hostile.id)))
        .await;
    assert!(browser.text("pre.payload").await.contains("<script>"));
    browser.open(&scene.page("/dead")).await;
    assert_eq!(browser.run("return typeof window.pwned").await, "undefined");
    // Even markup that gets into a page runs no script.
    browser.open(&scene.page("/")).await;
    let inject = format!(
        "document.getElementById('live').innerHTML = {}",
        Value::from(EVIL)
    );
    browser.run(&inject).await;
    browser
        .run("document.body.setAttribute('onclick', 'window.pwned = 1')")
        .await;
    browser.click("h1").await;
    assert_eq!(browser.run("return typeof window.pwned").await, "undefined");
}

async fn a_page_follows_what_happens(scene: &Scene, browser: &Browser) {
    browser.open(&scene.page("/pauses")).await;
    browser.sees("Nothing is paused.").await;
    let control = scene.redis.control();
    let name = PauseTarget::Name("mail.bulk".into());
    control
        .pause(name.clone(), "seen live")
        .await
        .expect("it is paused");
    browser.sees("seen live").await;
    // While it does not follow, it stays.
    browser.click("#toggle").await;
    control.resume(name).await.expect("it is resumed");
    browser.sees("seen live").await;
    browser.click("#toggle").await;
    browser.sees("Nothing is paused.").await;
}

async fn letters_are_replayed_and_deleted(scene: &Scene, browser: &Browser) {
    let before = scene.dead().await;
    browser.open(&scene.page("/dead?name=mail")).await;
    let first = scene.a_letter().await;
    browser.click(&format!("input[value='{first}']")).await;
    browser.press("Replay selected").await;
    browser.sees("Replay the dead letter").await;
    assert_eq!(
        scene.dead().await,
        before,
        "nothing happens before the confirmation"
    );
    browser.click("form[action$='/act'] button").await;
    browser.sees("done: 1 replayed").await;
    browser.sees("ada").await;
    // It dies again.
    eventually(
        || async {
            (scene.dead().await == before && scene.a_letter().await != first).then_some(())
        },
        Duration::from_secs(20),
    )
    .await;
    browser.open(&scene.page("/dead")).await;
    browser
        .click(&format!("input[value='{}']", scene.a_letter().await))
        .await;
    browser.press("Delete selected").await;
    browser.click("form[action$='/act'] button").await;
    browser.sees("done: 1 deleted").await;
    assert_eq!(scene.dead().await, before - 1);
    browser.press("Back").await;
    browser.sees("Dead letters").await;
}

async fn a_letter_is_edited_and_replayed(scene: &Scene, browser: &Browser) {
    let id = scene.a_letter().await;
    let before = scene.dead().await;
    browser.open(&scene.page(&format!("/letter?id={id}"))).await;
    browser.press("Edit and replay").await;
    let name = browser.find("input[name=name]").await;
    name.clear().await.expect("it is cleared");
    name.send_keys("mail.fine").await.expect("it is written");
    let payload = browser.find("textarea[name=payload]").await;
    payload.clear().await.expect("it is cleared");
    payload
        .send_keys("{\n\"to\": \"ä\"}")
        .await
        .expect("it is written");
    browser.press("Look at the change").await;
    browser.sees("new payload").await;
    browser.click("form[action$='/act'] button").await;
    browser.sees("done: replayed as edited").await;
    assert_eq!(scene.dead().await, before - 1);
}

async fn a_group_is_paused_and_resumed(scene: &Scene, browser: &Browser) {
    browser.open(&scene.page("/pauses")).await;
    let reason = browser.find("input[name=reason]").await;
    reason
        .send_keys("the database moves")
        .await
        .expect("it is written");
    browser.click("form.filter button").await;
    browser.sees("Pause the group?").await;
    browser.click("form[action$='/act'] button").await;
    browser.sees("done: paused").await;
    let pauses = scene
        .redis
        .control()
        .pauses()
        .await
        .expect("the server answers");
    assert_eq!(pauses[0].reason, "the database moves");
    browser.open(&scene.page("/stream")).await;
    browser.sees("Paused: the group").await;
    browser.open(&scene.page("/pauses")).await;
    browser.press("Resume").await;
    browser.click("form[action$='/act'] button").await;
    browser.sees("done: resumed").await;
    let pauses = scene
        .redis
        .control()
        .pauses()
        .await
        .expect("the server answers");
    assert!(pauses.is_empty());
}

async fn one_worker_gets_orders(scene: &Scene, browser: &Browser) {
    let worker = async || {
        let workers = scene.redis.workers().list().await;
        workers.expect("the server answers").remove(0)
    };
    for (order, to) in [
        ("limit", "3"),
        ("pause-name", "mail.send"),
        ("resume-name", "mail.send"),
    ] {
        browser.open(&scene.page("/workers")).await;
        let select = browser.find("select[name=order]").await;
        select.select_by_value(order).await.expect("it is chosen");
        let argument = browser.find("input[name=to]").await;
        argument.send_keys(to).await.expect("it is written");
        browser.press("Give the order").await;
        browser.sees("the worker").await;
        assert_ne!(
            worker().await.orders.last().map(|it| &*it.order),
            Some(order)
        );
        browser.click("form[action$='/act'] button").await;
        browser.sees("done: the worker has the order").await;
        browser.open(&scene.page("/workers")).await;
        browser.sees(&format!("{order} {to} by ada")).await;
    }
    assert_eq!(
        (worker().await.limit, worker().await.paused.len()),
        (Some(3), 0)
    );
    for (button, state) in [
        ("Pause", WorkerState::Paused),
        ("Resume", WorkerState::Running),
    ] {
        browser.open(&scene.page("/workers")).await;
        browser.press(&format!("{button}…")).await;
        browser.click("form[action$='/act'] button").await;
        browser.sees("done: the worker has the order").await;
        let follows = async || (worker().await.state == state).then_some(());
        eventually(follows, Duration::from_secs(10)).await;
    }
}

/// Presses a key where the focus is.
async fn key(browser: &Browser, key: &str) {
    let focused = browser
        .client
        .active_element()
        .await
        .expect("something has the focus");
    focused.send_keys(key).await.expect("the key is pressed");
}

/// Moves the focus until it is on an element with this text.
async fn tab_to(browser: &Browser, text: &str) {
    let tab = char::from(Key::Tab).to_string();
    for _ in 0..80 {
        key(browser, &tab).await;
        let focused = "const it = document.activeElement; return (it.textContent || '') + (it.getAttribute('aria-label') || '')";
        let focused = browser.run(focused).await;
        if focused.as_str().is_some_and(|it| it.contains(text)) {
            let outline = "return getComputedStyle(document.activeElement).outlineStyle";
            assert_eq!(
                browser.run(outline).await,
                "solid",
                "the focus on {text} is seen"
            );
            return;
        }
    }
    panic!("the focus does not reach {text}");
}

async fn everything_works_by_keyboard(scene: &Scene, browser: &Browser) {
    let enter = char::from(Key::Enter).to_string();
    let before = scene.dead().await;
    browser.open(&scene.page("/dead")).await;
    tab_to(browser, "Skip to the content").await;
    key(browser, &enter).await;
    tab_to(browser, &format!("Select {}", scene.a_letter().await)).await;
    key(browser, " ").await;
    tab_to(browser, "Delete selected").await;
    key(browser, &enter).await;
    browser.sees("for good?").await;
    tab_to(browser, "for good").await;
    key(browser, &enter).await;
    browser.sees("done: 1 deleted").await;
    assert_eq!(scene.dead().await, before - 1);
}

async fn everything_works_without_script(scene: &Scene, browser: &Browser) {
    let disabled = |value: bool| json!({ "value": value });
    browser
        .devtools("Emulation.setScriptExecutionDisabled", disabled(true))
        .await;
    let before = scene.dead().await;
    browser.open(&scene.page("/")).await;
    browser.press("Refresh").await;
    browser.sees("Overview").await;
    browser.open(&scene.page("/dead")).await;
    browser
        .click(&format!("input[value='{}']", scene.a_letter().await))
        .await;
    browser.press("Delete selected").await;
    browser.click("form[action$='/act'] button").await;
    browser.sees("done: 1 deleted").await;
    assert_eq!(scene.dead().await, before - 1);
    browser
        .devtools("Emulation.setScriptExecutionDisabled", disabled(false))
        .await;
}

async fn an_outage_is_shown_and_ends(scene: &Scene, browser: &Browser) {
    browser.open(&scene.page("/stream")).await;
    scene.server.signal(support::Signal::Stop);
    browser
        .client
        .goto(&scene.page("/dead"))
        .await
        .expect("the page opens");
    let title = browser.text("h1").await;
    let titles = [
        "Redis cannot be reached",
        "This takes too long",
        "Redis does not answer in time",
    ];
    assert!(titles.contains(&&*title), "{title}");
    let faults = axe::check(browser, "an error").await;
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    scene.server.signal(support::Signal::Cont);
    eventually(
        || async {
            browser.client.goto(&scene.page("/dead")).await.ok()?;
            (browser.text("h1").await == "Dead letters").then_some(())
        },
        Duration::from_secs(30),
    )
    .await;
}
