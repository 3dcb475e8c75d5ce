//! Tests of `campanile send`.

use std::collections::HashMap;

use campanile::{Redis, Router, RpcError};
use serde_json::json;

use super::{support::worker::Worker, terminal::Terminal, *};

/// The fields of the newest entry.
async fn sent(server: &RedisServer) -> HashMap<String, Vec<u8>> {
    let (_, fields) = raw::entries(server, "app_stream")
        .await
        .pop()
        .expect("a message was sent");
    let text = |field: Vec<u8>| String::from_utf8(field).expect("fields are text");
    fields
        .into_iter()
        .map(|(field, value)| (text(field), value))
        .collect()
}

#[tokio::test]
async fn a_task_is_sent_with_its_payload_and_headers_and_its_id_is_printed() {
    let server = RedisServer::start().await;
    let line = "send task orders.create {\"id\":7} --header x-tenant=acme -H x-tenant=b=c";
    let ran = run(campanile(&server, line)).await.ended_with(0);
    let (id, fields) = raw::entries(&server, "app_stream").await.remove(0);
    assert_eq!(ran.text(), format!("{id}\n"));
    let expected = [
        ("type", "task"),
        ("name", "orders.create"),
        ("payload", r#"{"id":7}"#),
        ("h:x-tenant", "acme"),
        ("h:x-tenant", "b=c"),
    ];
    let expected: Vec<(Vec<u8>, Vec<u8>)> = expected.map(|(f, v)| (f.into(), v.into())).into();
    assert_eq!(fields, expected);
    let ran = run(campanile(&server, "send task n --json --expires 90s"))
        .await
        .ended_with(0);
    let (id, _) = raw::entries(&server, "app_stream").await.remove(1);
    assert_eq!(ran.json(), json!({ "id": id }));
    let sent = sent(&server).await;
    assert_eq!(sent["payload"], b"");
    let life: u64 = std::str::from_utf8(&sent["~t"]).unwrap().parse().unwrap();
    assert!((60_000..=90_000).contains(&life), "{life}");
}

#[tokio::test]
async fn partitions_are_used_as_one_stream() {
    let server = RedisServer::start().await;
    let app = Router::new()
        .task("fail", async || {
            Err::<(), _>(campanile::Failure::dead_letter())
        })
        .task("n", async || {});
    let redis = Redis::connect(&server.url()).await.expect("a handle");
    let streams = campanile::transport::Streams::partitioned("orders", 4);
    let worker = Worker::start(redis.streams(streams), app);
    let orders = "--stream orders --partitions 4";
    for key in ["a", "b", "c"] {
        let line = format!("send task fail --partition-key {key} {orders}");
        run(campanile(&server, &line)).await.ended_with(0);
    }
    let died = async || {
        let line = format!("dead list --json {orders}");
        let ran = run(campanile(&server, &line)).await;
        let letters = serde_json::from_str::<serde_json::Value>(ran.text()).ok()?;
        (letters["dead"] == 3).then_some(letters)
    };
    let letters = raw::eventually(died, std::time::Duration::from_secs(20)).await;
    let ids = letters["letters"].as_array().expect("a list");
    assert!(
        ids.iter()
            .all(|letter| letter["id"].as_str().is_some_and(|id| id.contains('/')))
    );
    let line = format!("dead purge --all --yes {orders}");
    run(campanile(&server, &line)).await.ended_with(0);
    let ran = run(campanile(
        &server,
        "stats --json --stream orders --partitions 4",
    ))
    .await;
    assert_eq!(ran.ended_with(0).json()["stream"], "orders");
    let ran = run(campanile(
        &server,
        "send task n --stream orders --partitions 8",
    ))
    .await;
    ran.ended_with(2).tells(&["4 partitions"]);
    worker.stop().await.expect("it stops");
}

#[tokio::test]
async fn a_payload_comes_from_a_file_or_standard_input_byte_for_byte() {
    let server = RedisServer::start().await;
    let payload = b"\xff\x00 no text\n";
    let file = server.dir().join("payload");
    std::fs::write(&file, payload).unwrap();
    for (line, input) in [
        (format!("send task n --file {}", file.display()), &b""[..]),
        ("send task n -".to_owned(), payload),
        ("send task n --file -".to_owned(), payload),
    ] {
        run_with(campanile(&server, &line), input)
            .await
            .ended_with(0);
        assert_eq!(sent(&server).await["payload"], payload, "{line}");
    }
    assert_eq!(raw::len(&server, "app_stream").await, 3);
    let none = run(campanile(&server, "send task n --file /nowhere"))
        .await
        .ended_with(1);
    none.tells(&["cannot read /nowhere: "]);
    assert_eq!(raw::len(&server, "app_stream").await, 3);
}

#[tokio::test]
async fn a_task_is_sent_at_its_time_and_once_per_key() {
    let server = RedisServer::start().await;
    run(campanile(&server, "send task n --delay 1h30m"))
        .await
        .ended_with(0);
    let waiting: Vec<(String, f64)> = server
        .query(&["ZRANGE", "{app_stream}:due", "0", "-1", "WITHSCORES"])
        .await;
    let now: (f64, f64) = server.query(&["TIME"]).await;
    let wait = waiting[0].1 - now.0 * 1000.0;
    assert!((5_300_000.0..=5_401_000.0).contains(&wait), "{wait}");

    let line = "send task n --idempotency-key order-7";
    let first = run(campanile(&server, line)).await.ended_with(0);
    let second = run(campanile(&server, line)).await.ended_with(0);
    assert_eq!(first.text(), second.text());
    assert_eq!(raw::len(&server, "app_stream").await, 1);
}

#[tokio::test]
async fn a_task_is_sent_with_the_limits_of_its_attempts() {
    let server = RedisServer::start().await;
    let line = "send task n --attempt-timeout 1m30s --max-attempts 3";
    run(campanile(&server, line)).await.ended_with(0);
    let sent = sent(&server).await;
    assert_eq!((&*sent["~l"], &*sent["~n"]), (&b"90000"[..], &b"3"[..]));
    let none = run(campanile(&server, "send task n --max-attempts 0")).await;
    none.ended_with(2).tells(&["at least one attempt"]);
    assert_eq!(raw::len(&server, "app_stream").await, 1);
}

#[tokio::test]
async fn a_request_prints_its_reply_and_leaves_nothing_on_the_server() {
    let server = RedisServer::start().await;
    let redis = Redis::connect(&server.url()).await.unwrap();
    let app = Router::new()
        .rpc("shout", async |text: String| {
            text.to_uppercase() + "\x1b[2J"
        })
        .rpc("bytes", async || vec![0xff_u8, 0])
        .rpc("nobody", async || {
            Err::<(), _>(RpcError::not_found("no such \x1b[2J user"))
        });
    let worker = Worker::start(redis, app);
    for line in ["send rpc shout hello", "send rpc shout hello --fast"] {
        let ran = run(campanile(&server, line)).await.ended_with(0);
        assert_eq!(
            ran.stdout, b"HELLO\x1b[2J",
            "a pipe gets the reply unchanged"
        );
    }
    let json = run(campanile(&server, "send rpc bytes --json"))
        .await
        .ended_with(0)
        .json();
    assert_eq!(
        json,
        json!({ "headers": {}, "reply": { "base64": "/wA=" } })
    );
    let keys: Vec<String> = server.query(&["KEYS", "{app_stream}:rpc:*"]).await;
    assert_eq!(keys, [""; 0]);

    let mut terminal = Terminal::start(&server, "send rpc shout hello");
    assert_eq!(terminal.ends().await.code(), Some(0));
    assert_eq!(terminal.screen(), r"HELLO\u{1b}[2J");
    let mut terminal = Terminal::start(&server, "send rpc shout hello --raw");
    assert_eq!(terminal.ends().await.code(), Some(0));
    assert_eq!(terminal.written, b"HELLO\x1b[2J");

    let refused = run(campanile(&server, "send rpc nobody"))
        .await
        .ended_with(5);
    refused.tells(&[r"error: no such \u{1b}[2J user (not_found)"]);
    let refused = run(campanile(&server, "send rpc nobody --json"))
        .await
        .ended_with(5);
    assert_eq!(refused.json()["error"]["code"], "not_found");
    let unknown = run(campanile(&server, "send rpc unknown --fast"))
        .await
        .ended_with(5);
    unknown.tells(&["(not_found)"]);
    worker.stop().await.unwrap();
    let late = run(campanile(&server, "send rpc shout --timeout 100ms"))
        .await
        .ended_with(1);
    // The call may time out first, or the wait for the reply.
    late.tells(&["error: no "]);
}

#[tokio::test]
async fn an_invalid_message_fails_before_anything_is_sent() {
    let server = RedisServer::start().await;
    for (line, text) in [
        ("send task n p --header x", "a header looks like name=value"),
        (
            "send task n p --header x(y=z",
            "HTTP does not allow this name",
        ),
        (
            "send task n --delay 5",
            "a duration looks like 500ms, 2s or 1h30m",
        ),
        ("send task n --expires 0s", "expires at once"),
        ("send task n --delay 1h --expires 0s", "expires at once"),
        ("send task n p --file f", "cannot be used with"),
        ("send event n --header a=b", "unexpected argument"),
        ("send rpc", "<NAME>"),
        ("send task n --stream a}", "hash tag"),
        ("dead replay", "required"),
    ] {
        let ran = run(campanile(&server, line)).await.ended_with(2);
        ran.tells(&[text]);
    }
    let mut nameless = campanile(&server, "send task");
    nameless.arg("");
    run(nameless)
        .await
        .ended_with(2)
        .tells(&["the name is empty"]);
    let keys: Vec<String> = server.query(&["KEYS", "*"]).await;
    assert_eq!(keys, [""; 0]);
}
