//! The dashboard over a real server: its rights, and its state while the server is away. The pages
//! themselves are tested in memory and in a browser.

use std::time::Duration;

use campanile::{
    Client, Json, Redis, Router,
    dashboard::Dashboard,
    schedule::{Schedule, ScheduledTask},
    serve,
};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{
    Options, RedisServer, Signal,
    proxy::Proxy,
    raw,
    raw::eventually,
    rights::{assert_refused, has_selectors},
};

async fn get(dashboard: &Dashboard, target: &str) -> (StatusCode, String) {
    let request = Request::get(target)
        .body(String::new())
        .expect("it is a request");
    let response = dashboard
        .clone()
        .oneshot(request)
        .await
        .expect("it answers");
    let status = response.status();
    let body = response.into_body().collect().await.expect("it is whole");
    (
        status,
        String::from_utf8_lossy(&body.to_bytes()).into_owned(),
    )
}

/// The rights in a row of the guide, for the stream `app_stream`.
fn documented(row: &str) -> String {
    let docs = include_str!("../../docs/dashboard.md");
    let rights = docs
        .lines()
        .find_map(|line| line.strip_prefix(&format!("| {row} | `")));
    let rights = rights.expect("the row is there").trim_end_matches("` |");
    rights
        .replace("~s ", "~app_stream ")
        .replace("{s}", "{app_stream}")
}

/// A dead letter of the default group, and its id.
async fn letter(server: &RedisServer) -> String {
    let fields = [
        ("~g", "app_group"),
        ("~o", "1-1"),
        ("~r", "it broke"),
        ("~a", "10"),
        ("~d", "1795430237570"),
        ("type", "task"),
        ("name", "mail.send"),
        ("payload", "{}"),
    ];
    raw::add(server, "{app_stream}:dead:app_group", &fields).await
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
    "/task?id=1-1",
];

#[tokio::test]
async fn the_rights_that_the_guide_names_are_enough_to_look_and_for_no_change() {
    let acl = format!(
        "user viewer on >pw {}\nuser default on nopass ~* &* +@all",
        documented("read-only")
    );
    let server = RedisServer::with(Options::new().acl(&acl)).await;
    let redis = Redis::connect(&server.url())
        .await
        .expect("the server answers");
    let app: Router = Router::new().task("mail.send", std::future::pending::<()>);
    let worker = serve(redis.clone(), app).service("mailer", "1");
    let worker = tokio::spawn(worker.into_future());
    let client = Client::new(redis.clone());
    for _ in 0..80 {
        client
            .enqueue("mail.send", Json(7))
            .await
            .expect("it is sent");
    }
    client
        .enqueue("mail.send", "later")
        .delay(Duration::from_secs(3600))
        .await
        .expect("it is sent");
    client
        .enqueue("mail.send", "kept")
        .tracked(Duration::from_secs(60))
        .await
        .expect("it is sent");
    let nightly = ScheduledTask::new("nightly", Schedule::cron("0 3 * * *"), "x", ());
    redis.schedules().put(&nightly).await.expect("it is stored");
    let id = letter(&server).await;
    let running =
        || async { (redis.stats().await.ok()?.groups.first()?.pending > 0).then_some(()) };
    eventually(running, Duration::from_secs(20)).await;

    let url = format!("redis://viewer:pw@127.0.0.1:{}/", server.port());
    let viewer = Redis::connect(&url).await.expect("the user may log in");
    let dashboard = Dashboard::new(viewer).read_only();
    let letter = format!("/letter?id={id}");
    for path in PAGES.iter().copied().chain([&*letter]) {
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}stream=app_stream&group=app_group");
        let (status, text) = get(&dashboard, &path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {text}");
        if path.starts_with("/workers") && has_selectors() {
            assert!(
                text.contains("mailer") && text.contains("cannot be asked"),
                "{text}"
            );
        }
    }
    let changes = [
        "XADD app_stream * a b",
        "XDEL {app_stream}:dead:app_group 1-1",
        "DEL app_stream",
        "HSET {app_stream}:control a b",
    ];
    assert_refused(&url, &changes).await;
    worker.abort();
}

/// Makes a change, and returns its outcome.
async fn act(dashboard: &Dashboard, change: Value) -> String {
    let mut body = json!({ "stream": "app_stream", "group": "app_group" });
    let fields = body.as_object_mut().expect("an object");
    fields.extend(change.as_object().cloned().expect("an object"));
    let request = Request::post("/api/act").header("content-type", "application/json");
    let request = request.body(body.to_string()).expect("it is a request");
    let response = dashboard.clone().oneshot(request).await;
    let body = response.expect("it answers").into_body().collect().await;
    let action: Value =
        serde_json::from_slice(&body.expect("it is whole").to_bytes()).expect("it is JSON");
    assert_eq!(action["state"], "done", "{change}: {action}");
    action["text"].as_str().expect("a text").to_owned()
}

#[tokio::test]
async fn the_rights_that_the_guide_names_are_enough_for_each_change() {
    let acl = format!(
        "user operator on >pw resetchannels {}\nuser default on nopass ~* &* +@all",
        documented("with changes")
    );
    let server = RedisServer::with(Options::new().acl(&acl)).await;
    let redis = Redis::connect(&server.url())
        .await
        .expect("the server answers");
    let app: Router = Router::new().task("mail.send", std::future::pending::<()>);
    let worker = tokio::spawn(
        serve(redis.clone(), app)
            .service("mailer", "1")
            .into_future(),
    );
    let announced = async || {
        let workers = redis.workers().list().await.ok()?;
        let worker = workers.first().filter(|it| it.fault.is_none())?;
        Some(worker.worker.clone())
    };
    let name = eventually(announced, Duration::from_secs(20)).await;
    let client = Client::new(redis.clone());
    let tracked = async |payload: &'static str| {
        let call = client.enqueue("mail.send", payload);
        let receipt = call.tracked(Duration::from_secs(60)).await;
        let receipt = receipt.expect("it is sent");
        receipt.id().expect("a task has an id").to_string()
    };
    let nightly = ScheduledTask::new("nightly", Schedule::cron("0 3 * * *"), "mail.send", ());
    redis.schedules().put(&nightly).await.expect("it is stored");
    for number in 0..100 {
        let sent = client.enqueue("mail.send", Json(number)).await;
        sent.expect("it is sent");
    }

    let url = format!("redis://operator:pw@127.0.0.1:{}/", server.port());
    let operator = Redis::connect(&url).await.expect("the user may log in");
    let dashboard = Dashboard::new(operator);
    for path in PAGES {
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}stream=app_stream&group=app_group");
        let (status, text) = get(&dashboard, &path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {text}");
        assert!(!text.contains("cannot be asked"), "{text}");
    }
    let edited = json!({
        "do": "replay-edited", "id": letter(&server).await, "name": "mail.send", "headers": "x-a: b",
        "payload": "{}",
    });
    let (replayed, purged) = (letter(&server).await, letter(&server).await);
    let (first, _second) = (tracked("1").await, tracked("2").await);
    for change in [
        json!({ "do": "replay", "id": replayed }),
        json!({ "do": "purge", "id": purged }),
        edited,
        json!({ "do": "cancel", "id": first }),
        json!({ "do": "cancel-all" }),
        json!({ "do": "pause", "target": "name", "name": "mail.send" }),
        json!({ "do": "resume", "target": "name", "name": "mail.send" }),
        json!({ "do": "pause", "target": "stream" }),
        json!({ "do": "resume", "target": "stream" }),
        json!({ "do": "schedule-run", "schedule": "nightly" }),
        json!({ "do": "schedule-pause", "schedule": "nightly" }),
        json!({ "do": "schedule-resume", "schedule": "nightly" }),
        json!({ "do": "schedule-remove", "schedule": "nightly" }),
        json!({ "do": "order", "worker": name, "order": "limit", "to": 3 }),
        json!({ "do": "purge-waiting" }),
    ] {
        act(&dashboard, change).await;
    }
    let follows = async || {
        let workers = redis.workers().list().await.ok()?;
        (workers.first()?.limit == Some(3)).then_some(())
    };
    eventually(follows, Duration::from_secs(20)).await;
    let others = [
        "XREADGROUP GROUP app_group c STREAMS app_stream >",
        "XTRIM app_stream MAXLEN 0",
        "XADD other * a b",
        "GET other",
        "XADD campanile:orders:{other}:g * a b",
        "PUBLISH campanile:reply:x y",
        "FLUSHDB",
        "ACL LIST",
    ];
    assert_refused(&url, &others).await;
    worker.abort();
}

#[tokio::test]
async fn a_worker_that_is_cut_off_is_shown_as_silent_and_then_no_longer() {
    let server = RedisServer::with(Options::new().own_clock()).await;
    let proxy = Proxy::start(server.port()).await;
    let connect = async |url: &str| Redis::connect(url).await.expect("the server answers");
    let redis = connect(&server.url()).await;
    let start = |redis: Redis, service: &str| {
        let app: Router = Router::new().task("mail.send", async || {});
        let redis = redis.lease(Duration::from_secs(1));
        tokio::spawn(serve(redis, app).service(service, "1").into_future())
    };
    let living = start(redis.clone(), "the-living-one");
    let lost = start(connect(&proxy.url()).await, "the-lost-one");
    let dashboard = Dashboard::new(redis);
    let shows = async |shown: &str, gone: &str| {
        let page = "/workers?stream=app_stream&group=app_group";
        let (_, text) = get(&dashboard, page).await;
        (text.contains(shown) && !text.contains(gone)).then_some(())
    };
    let limit = Duration::from_secs(60);
    eventually(|| shows("the-lost-one", ">silent<"), limit).await;
    drop(proxy);
    eventually(|| shows(">silent<", "the group has no workers"), limit).await;
    // The announcement stays until its worker has been silent for a minute, and another one looks,
    // which it does twice a minute.
    server.step_clock(120);
    eventually(|| shows("the-living-one", "the-lost-one"), limit).await;
    lost.abort();
    living.abort();
}

#[tokio::test]
async fn a_server_that_is_away_has_a_page_that_says_so_until_it_is_back() {
    let server = RedisServer::start().await;
    let redis = Redis::connect(&server.url())
        .await
        .expect("the server answers");
    letter(&server).await;
    server
        .command(&[
            "XGROUP",
            "CREATE",
            "app_stream",
            "app_group",
            "0",
            "MKSTREAM",
        ])
        .await;
    let dashboard = Dashboard::new(redis);
    let dead = "/dead?stream=app_stream";
    assert_eq!(get(&dashboard, dead).await.0, StatusCode::OK);
    server.signal(Signal::Stop);
    let (status, text) = get(&dashboard, dead).await;
    assert!(
        status.is_server_error() && text.contains("Try again"),
        "{status}: {text}"
    );
    server.signal(Signal::Cont);
    let back = || async { (get(&dashboard, dead).await.0 == StatusCode::OK).then_some(()) };
    eventually(back, Duration::from_secs(30)).await;
}
