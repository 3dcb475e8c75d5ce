//! Takes the pictures of the guide: `cargo test -p dashboard-tests -- --ignored`.

use std::{
    fs,
    future::pending,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::Router as Web;
use campanile::{Client, Json, Redis, Router, dashboard::Dashboard, serve, transport::PauseTarget};
use serde_json::json;
use tokio::net::TcpListener;

use crate::{
    browser::Browser,
    support::{RedisServer, raw::eventually},
};

/// A stream: its name, its group, its messages that run and wait, and its rate.
const STREAMS: [(&str, &str, usize, usize, u64); 6] = [
    ("imports", "loader", 4, 37, 40),
    ("mails", "sender", 8, 1_204, 900),
    ("orders", "billing", 2, 0, 260),
    ("reports", "renderer", 1, 12, 9),
    ("search", "indexer", 6, 310, 1_500),
    ("webhooks", "caller", 3, 85, 320),
];

/// Dead letters: the name, the payload, the reason, and the minutes since their death.
const LETTERS: [(&str, &str, &str, u64); 9] = [
    (
        "mail.send",
        r#"{"to":"emma@example.com","template":"invoice"}"#,
        "given up by the worker after attempt 10 of 10: the mail server refuses the recipient: 550 no such user",
        52,
    ),
    (
        "mail.send",
        r#"{"to":"noah@example.com","template":"invoice"}"#,
        "given up by the worker after attempt 10 of 10: connection reset by peer",
        47,
    ),
    (
        "mail.digest",
        r#"{"user":4711,"week":48}"#,
        "given up by the worker as permanent: missing field `week_start` at line 1 column 23",
        41,
    ),
    (
        "mail.digest",
        r#"{"user":4712,"week":48}"#,
        "given up by the worker as permanent: missing field `week_start` at line 1 column 23",
        41,
    ),
    (
        "mail.send",
        r#"{"to":"mia@example.com","template":"welcome"}"#,
        "given up by the worker after attempt 10 of 10: the mail server refuses the recipient: 552 mailbox full",
        33,
    ),
    (
        "mail.export",
        r#"{"account":92}"#,
        "delivered 10 times and never settled",
        26,
    ),
    (
        "mail.send",
        r#"{"to":"liam@example.com","template":"invoice"}"#,
        "given up by the worker after attempt 10 of 10: timed out after 30 s",
        12,
    ),
    (
        "mail.send",
        r#"{"to":"ida@example.com","template":"reset"}"#,
        "given up by the worker after attempt 10 of 10: connection reset by peer",
        8,
    ),
    (
        "mail.digest",
        r#"{"user":4720,"week":48}"#,
        "given up by the worker as permanent: missing field `week_start` at line 1 column 23",
        2,
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it writes pictures into docs/images"]
async fn pictures_of_the_guide() {
    let server = RedisServer::start().await;
    let redis = Redis::connect(&server.url())
        .await
        .expect("the server answers");
    for (stream, group, running, waiting, rate) in STREAMS {
        let redis = redis
            .clone()
            .stream(stream)
            .group(group)
            .max_in_flight(running.max(1));
        let app: Router = Router::new().task("work", pending::<()>);
        let worker = serve(redis.clone(), app).service(group, "2.4.1");
        tokio::spawn(worker.into_future());
        let tasks = (0..running + waiting).map(|number| Json(json!({ "number": number })));
        let sent = Client::new(redis.clone()).enqueue_all("work", tasks).await;
        assert!(sent.iter().all(Result::is_ok), "they are sent");
        write_history(&server, stream, group, rate).await;
    }
    for (index, (name, payload, reason, minutes)) in LETTERS.into_iter().enumerate() {
        let at = (now() - Duration::from_secs(60 * minutes)).as_millis();
        let id = format!("{at}-{index}");
        let at = at.to_string();
        let fields = [
            "XADD",
            "{mails}:dead:sender",
            &id,
            "~g",
            "sender",
            "~o",
            &id,
            "~r",
            reason,
            "~a",
            "10",
            "~d",
            &at,
            "type",
            "task",
            "name",
            name,
            "payload",
            payload,
        ];
        server.command(&fields).await;
    }
    let reports = redis.clone().stream("reports").group("renderer");
    let paused = reports
        .control()
        .pause(PauseTarget::Group, "the printer moves")
        .await;
    paused.expect("it is paused");
    eventually(
        || async {
            let mails = redis.clone().stream("mails").stats().await.ok()?;
            (mails.groups.first()?.pending == 8).then_some(())
        },
        Duration::from_secs(20),
    )
    .await;

    let mails = redis.clone().stream("mails").group("sender");
    let streams = STREAMS.iter().map(|(stream, ..)| *stream);
    let dashboard = Dashboard::new(redis.stream("imports")).at("/ops");
    let dashboard = streams.skip(1).fold(dashboard, Dashboard::stream);
    let web = Web::new().nest_service("/ops", dashboard);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/ops", listener.local_addr().expect("it is bound"));
    tokio::spawn(async move { axum::serve(listener, web).await });

    let browser = Browser::start().await;
    let phone = json!({ "width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": true });
    let dark = json!({ "features": [{ "name": "prefers-color-scheme", "value": "dark" }] });
    let letters = mails.dead_letters().list(Default::default()).await;
    let first = &letters.expect("the server answers").letters[0].id;
    let pages = [
        ("overview", "/".to_owned()),
        ("dead-letters", "/dead?stream=mails&group=sender".to_owned()),
        (
            "other-stream",
            "/stream?stream=mails&group=sender".to_owned(),
        ),
        (
            "other-letter",
            format!("/letter?stream=mails&group=sender&id={first}"),
        ),
        (
            "other-workers",
            "/workers?stream=mails&group=sender".to_owned(),
        ),
        (
            "other-running",
            "/running?stream=mails&group=sender".to_owned(),
        ),
        (
            "other-confirm",
            "/confirm?do=purge&all=1&stream=mails&group=sender".to_owned(),
        ),
    ];
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/images");
    let other = env!("CARGO_TARGET_TMPDIR");
    for (name, path) in &pages {
        let directory = if name.starts_with("other") {
            other
        } else {
            docs
        };
        fs::create_dir_all(directory).expect("the directory can be made");
        browser
            .devtools(
                "Emulation.setDeviceMetricsOverride",
                json!({ "width": 1200, "height": 760, "deviceScaleFactor": 1, "mobile": false }),
            )
            .await;
        browser.open(&format!("{url}{path}")).await;
        take(&browser, directory, name).await;
        browser
            .devtools("Emulation.setEmulatedMedia", dark.clone())
            .await;
        take(&browser, other, &format!("{name}-dark")).await;
        browser
            .devtools("Emulation.setEmulatedMedia", json!({ "features": [] }))
            .await;
        browser
            .devtools("Emulation.setDeviceMetricsOverride", phone.clone())
            .await;
        take(&browser, other, &format!("{name}-phone")).await;
    }
}

async fn take(browser: &Browser, directory: &str, name: &str) {
    let picture = browser.client.screenshot().await.expect("a picture");
    let file = format!("{directory}/{name}.png");
    fs::write(&file, picture).expect("the picture can be written");
    println!("{file}");
}

fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("it is after 1970")
}

/// Writes the counts of an hour as the workers of a group do.
async fn write_history(server: &RedisServer, stream: &str, group: &str, rate: u64) {
    let minute = now().as_secs() / 60;
    for back in 0..60 {
        let key = format!("{{{stream}}}:minute:{}:{group}", minute - back);
        let wave =
            100 + (back * 7 % 23) - (back * 3 % 17) - if (30..36).contains(&back) { 40 } else { 0 };
        let failed = if (30..36).contains(&back) {
            rate / 8
        } else {
            rate / 90
        };
        let slow = if (30..36).contains(&back) {
            "l88"
        } else {
            "l72"
        };
        let dead = u64::from(stream == "mails" && back % 9 == 2);
        let fields = [
            ("done", rate * wave / 100),
            ("failed", failed),
            ("dead", dead),
            (if back % 5 == 0 { "l76" } else { slow }, 10),
        ];
        for (field, count) in fields.into_iter().filter(|(_, count)| *count > 0) {
            server
                .command(&["HINCRBY", &key, field, &count.to_string()])
                .await;
        }
    }
}
