//! Compatibility with the Go library Go-Broker, in bytes on a real Redis.
//!
//! The commands below are a recording, made with `MONITOR`, of the real Go client and worker on a
//! real Redis 7.0.15: a task, an event, a reliable request, a fast request, a request whose handler
//! fails, and a request without a registered handler.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use campanile::{BoxError, Client, Json, Message, Redis, Router, RpcCode, RpcError, State};
use futures_util::StreamExt;
use redis::aio::PubSub;
use serde_json::{Value as JsonValue, json};
use tokio::{sync::mpsc, task::JoinHandle};

use crate::support::{RedisServer, raw, within, worker::Worker};

const SOON: Duration = Duration::from_secs(30);

/// The input of a handler: kind, name, payload.
type Seen = (&'static str, String, Bytes);

#[derive(Clone)]
struct App(mpsc::UnboundedSender<Seen>);

async fn record(State(app): State<App>, message: Message) {
    let seen = (
        message.kind().as_str(),
        message.name().to_string(),
        message.payload().clone(),
    );
    let _ = app.0.send(seen);
}

async fn get_user(State(app): State<App>, payload: Bytes) -> &'static str {
    let _ = app.0.send(("rpc", "user.get".into(), payload));
    r#"{"id":42,"name":"Alice"}"#
}

async fn fail() -> Result<(), RpcError> {
    Err(RpcError::not_found("no such user"))
}

/// Our worker in a group that the Go library has created.
async fn worker(server: &RedisServer) -> (Worker, mpsc::UnboundedReceiver<Seen>) {
    let create = [
        "XGROUP",
        "CREATE",
        "app_stream",
        "app_group",
        "$",
        "MKSTREAM",
    ];
    server.command(&create).await;
    let (seen, handled) = mpsc::unbounded_channel();
    let app = Router::new()
        .task("orders.create", record)
        .event("orders.events", record)
        .rpc("user.get", get_user)
        .rpc("user.echo", async |payload: Bytes| payload)
        .rpc("user.fail", fail)
        .with_state(App(seen));
    let redis = Redis::connect(&server.url()).await.unwrap();
    let worker = Worker::start(redis, app);
    // The subscription exists once the channel has a listener.
    raw::listened_to(server, "orders.events", SOON).await;
    (worker, handled)
}

async fn subscribed(server: &RedisServer, channels: &[&str]) -> PubSub {
    let mut pubsub = server.client().get_async_pubsub().await.unwrap();
    pubsub.subscribe(channels).await.unwrap();
    pubsub
}

async fn received(pubsub: &mut PubSub) -> (String, Vec<u8>) {
    let message = within(SOON, pubsub.on_message().next()).await;
    let message = message.expect("the connection is open");
    (
        message.get_channel_name().to_owned(),
        message.get_payload_bytes().to_owned(),
    )
}

async fn handled(seen: &mut mpsc::UnboundedReceiver<Seen>) -> Seen {
    within(SOON, seen.recv()).await.unwrap()
}

async fn acknowledged(server: &RedisServer) {
    raw::eventually(
        || async {
            raw::drained(server, "app_stream", "app_group")
                .await
                .then_some(())
        },
        SOON,
    )
    .await;
}

#[tokio::test]
async fn what_the_go_client_sent_is_handled_and_answered_in_its_form() {
    let server = RedisServer::start().await;
    let (worker, mut seen) = worker(&server).await;
    let channels = ["reply:vm-1", "reply:vm-2", "reply:vm-3", "reply:vm-4"];
    let mut replies = subscribed(&server, &channels).await;

    let order = r#"{"id":101,"title":"first","user_id":7}"#;
    server
        .command(&[
            "xadd",
            "app_stream",
            "*",
            "name",
            "orders.create",
            "payload",
            order,
            "type",
            "task",
        ])
        .await;
    let (kind, name, payload) = handled(&mut seen).await;
    assert_eq!(
        (kind, &*name, &payload[..]),
        ("task", "orders.create", order.as_bytes())
    );

    let event = r#"{"id":101,"type":"created"}"#;
    server.command(&["publish", "orders.events", event]).await;
    let (kind, name, payload) = handled(&mut seen).await;
    assert_eq!(
        (kind, &*name, &payload[..]),
        ("event", "orders.events", event.as_bytes())
    );

    let sent = [
        [
            "xadd",
            "app_stream",
            "*",
            "type",
            "rpc",
            "name",
            "user.get",
            "payload",
            r#"{"id":42}"#,
            "reply_to",
            "reply:vm-1",
            "correlation_id",
            "vm-1",
        ],
        [
            "xadd",
            "app_stream",
            "*",
            "payload",
            r#"{"id":43}"#,
            "reply_to",
            "reply:vm-2",
            "correlation_id",
            "vm-2",
            "type",
            "rpc",
            "name",
            "user.get",
        ],
    ];
    for (command, id) in sent.iter().zip(["vm-1", "vm-2"]) {
        server.command(command).await;
        let (channel, reply) = received(&mut replies).await;
        assert_eq!(channel, format!("reply:{id}"));
        let expected = format!(
            r#"{{"correlation_id":"{id}","body":"eyJpZCI6NDIsIm5hbWUiOiJBbGljZSJ9","error":""}}"#
        );
        assert_eq!(String::from_utf8(reply).unwrap(), expected, "to the byte");
    }

    server
        .command(&[
            "xadd",
            "app_stream",
            "*",
            "type",
            "rpc",
            "name",
            "user.fail",
            "payload",
            r#"{"id":43}"#,
            "reply_to",
            "reply:vm-3",
            "correlation_id",
            "vm-3",
        ])
        .await;
    let (_, reply) = received(&mut replies).await;
    let reply: JsonValue = serde_json::from_slice(&reply).unwrap();
    let base = json!({"correlation_id": "vm-3", "body": null, "error": "no such user", "code": "not_found"});
    assert_eq!(reply, base);

    // A Go worker ignores a request for an unknown name, and its caller waits in vain.
    server
        .command(&[
            "xadd",
            "app_stream",
            "*",
            "type",
            "rpc",
            "name",
            "user.missing",
            "payload",
            r#"{"id":43}"#,
            "reply_to",
            "reply:vm-4",
            "correlation_id",
            "vm-4",
        ])
        .await;
    let (_, reply) = received(&mut replies).await;
    let reply: JsonValue = serde_json::from_slice(&reply).unwrap();
    assert_eq!(reply["correlation_id"], "vm-4");
    assert_eq!(reply["code"], "not_found");
    assert_ne!(reply["error"], "");

    acknowledged(&server).await;
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn the_order_of_fields_means_nothing_and_unknown_ones_are_ignored() {
    let server = RedisServer::start().await;
    let (worker, mut seen) = worker(&server).await;
    let fields: [(&str, &[u8]); 5] = [
        ("type", b"task"),
        ("name", b"orders.create"),
        ("payload", b"\x00\xff\r\n"),
        ("trace", b"\xfe"),
        ("", b""),
    ];
    for rotation in 0..fields.len() {
        let mut shuffled = fields;
        shuffled.rotate_left(rotation);
        raw::add(&server, "app_stream", &shuffled).await;
        let (_, _, payload) = handled(&mut seen).await;
        assert_eq!(&payload[..], b"\x00\xff\r\n");
    }
    acknowledged(&server).await;
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn binary_and_empty_payloads_go_through_a_request_of_the_go_client() {
    let server = RedisServer::start().await;
    let (worker, _seen) = worker(&server).await;
    let mut replies = subscribed(&server, &["reply:vm-1"]).await;
    for (payload, body) in [(&b"\x00\xff"[..], "AP8="), (b"", "")] {
        let fields = [
            ("correlation_id", &b"vm-1"[..]),
            ("name", b"user.echo"),
            ("payload", payload),
            ("reply_to", b"reply:vm-1"),
            ("type", b"rpc"),
        ];
        raw::add(&server, "app_stream", &fields).await;
        let (_, reply) = received(&mut replies).await;
        let reply: JsonValue = serde_json::from_slice(&reply).unwrap();
        assert_eq!(
            reply,
            json!({"correlation_id": "vm-1", "body": body, "error": ""})
        );
    }
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn nobody_can_make_a_worker_publish_on_a_channel_of_their_choice() {
    let server = RedisServer::start().await;
    let (worker, _seen) = worker(&server).await;
    let mut forged = subscribed(&server, &["orders.events", "reply:vm-1"]).await;
    for reply_to in ["orders.events", "reply:vm-1"] {
        let fields = [
            ("type", "rpc"),
            ("name", "user.echo"),
            ("payload", "forged"),
            ("reply_to", reply_to),
            ("correlation_id", "vm-1"),
        ];
        raw::add(&server, "app_stream", &fields).await;
    }
    // Only the second request is answered, and its reply is the first message.
    let (channel, _) = received(&mut forged).await;
    assert_eq!(channel, "reply:vm-1");
    acknowledged(&server).await;
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn what_our_client_sends_is_what_the_go_worker_reads() {
    let server = RedisServer::start().await;
    let redis = Redis::connect(&server.url()).await.unwrap();
    let client = Client::new(redis).nest("orders");
    let mut events = subscribed(&server, &["orders.events"]).await;

    client
        .enqueue("create", Json(json!({"id": 101})))
        .await
        .unwrap();
    client.enqueue("create", &b"\x00\xff"[..]).await.unwrap();
    client.enqueue("create", ()).await.unwrap();
    let entries = raw::entries(&server, "app_stream").await;
    let payloads: [&[u8]; 3] = [br#"{"id":101}"#, b"\x00\xff", b""];
    for ((_, fields), payload) in entries.into_iter().zip(payloads) {
        let fields: BTreeMap<_, _> = fields.into_iter().collect();
        let base: [(&[u8], &[u8]); 3] = [
            (b"type", b"task"),
            (b"name", b"orders.create"),
            (b"payload", payload),
        ];
        let base: BTreeMap<_, _> = base.map(|(f, v)| (f.to_vec(), v.to_vec())).into();
        assert_eq!(fields, base, "these three fields and no other");
    }

    client.publish("events", &b"\x00raw\xff"[..]).await.unwrap();
    assert_eq!(
        received(&mut events).await,
        ("orders.events".into(), b"\x00raw\xff".to_vec())
    );
}

/// A worker that sends the commands of the Go worker: it reads, publishes its reply, and
/// acknowledges. It knows only the fields of the base format.
fn go_worker(
    server: &RedisServer,
    answers: Vec<JsonValue>,
) -> JoinHandle<Vec<BTreeMap<String, Vec<u8>>>> {
    let client = server.client();
    let port = server.port();
    tokio::spawn(async move {
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(SOON));
        let connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await;
        let mut connection = connection.unwrap_or_else(|e| panic!("port {port}: {e}"));
        let mut create = redis::cmd("xgroup");
        create.arg(&["create", "app_stream", "app_group", "0", "mkstream"]);
        let _: () = create.query_async(&mut connection).await.unwrap();
        let mut requests = Vec::new();
        for answer in answers {
            let mut read = redis::cmd("xreadgroup");
            read.arg(&["group", "app_group", "vm-29052", "count", "1"]);
            read.arg(&["block", "20000", "streams", "app_stream", ">"]);
            type Entries = Vec<(String, BTreeMap<String, Vec<u8>>)>;
            let read: Vec<(String, Entries)> = read.query_async(&mut connection).await.unwrap();
            let (id, fields) = read[0].1[0].clone();
            let text = |field: &str| String::from_utf8(fields[field].clone()).unwrap();
            let mut answer = answer;
            answer["correlation_id"] = json!(text("correlation_id"));
            let _: i64 = redis::cmd("publish")
                .arg(text("reply_to"))
                .arg(answer.to_string())
                .query_async(&mut connection)
                .await
                .unwrap();
            let _: i64 = redis::cmd("xack")
                .arg(&["app_stream", "app_group", &id])
                .query_async(&mut connection)
                .await
                .unwrap();
            requests.push(fields);
        }
        requests
    })
}

#[tokio::test]
async fn the_go_worker_answers_our_requests_in_both_modes() {
    let server = RedisServer::start().await;
    let client = Client::new(Redis::connect(&server.url()).await.unwrap());
    let user = json!({"body": "eyJpZCI6NDIsIm5hbWUiOiJBbGljZSJ9", "error": ""});
    let failed = json!({"body": null, "error": "no such user"});
    let empty = json!({"body": null, "error": ""});
    let answers = [&user, &user, &failed, &failed, &empty, &empty].map(Clone::clone);
    let worker = go_worker(&server, answers.to_vec());

    let question = || Json(json!({"id": 42}));
    let alice = json!({"id": 42, "name": "Alice"});
    let reply: Json<JsonValue> = client.request("user.get", question()).await.unwrap();
    assert_eq!(reply.0, alice);
    let reply: Json<JsonValue> = client.request_fast("user.get", question()).await.unwrap();
    assert_eq!(reply.0, alice);

    for error in [
        client
            .request::<Bytes>("user.fail", question())
            .await
            .unwrap_err(),
        client
            .request_fast::<Bytes>("user.fail", question())
            .await
            .unwrap_err(),
    ] {
        let answer = error.rpc().expect("an answered error");
        assert_eq!(
            (answer.message(), answer.code()),
            ("no such user", &RpcCode::Internal)
        );
    }
    for reply in [
        client.request::<Bytes>("user.touch", question()).await,
        client.request_fast::<Bytes>("user.touch", question()).await,
    ] {
        assert_eq!(reply.unwrap(), "");
    }

    for request in worker.await.unwrap() {
        assert_eq!(request["type"], b"rpc");
        assert_eq!(request["payload"], br#"{"id":42}"#);
        let reply_to = String::from_utf8(request["reply_to"].clone()).unwrap();
        assert!(
            !reply_to.starts_with("reply:"),
            "the Go client would keep it: {reply_to}"
        );
        let id = String::from_utf8(request["correlation_id"].clone()).unwrap();
        uuid::Uuid::parse_str(&id).expect("unique over processes");
        let ours: Vec<_> = request
            .keys()
            .filter(|f| f.starts_with(['~', 'h']))
            .collect();
        let base = ["type", "name", "payload", "reply_to", "correlation_id"];
        assert_eq!(
            request.len(),
            base.len() + ours.len(),
            "{:?}",
            request.keys()
        );
    }
}

#[tokio::test]
async fn our_client_and_our_worker_understand_each_other_with_headers() -> Result<(), BoxError> {
    let server = RedisServer::start().await;
    let redis = Redis::connect(&server.url()).await?;
    let app = Router::new().rpc("tenant", async |message: Message| {
        let tenants = message.headers().get_all("x-tenant").iter();
        tenants
            .map(|v| v.as_bytes().escape_ascii().to_string())
            .collect::<Vec<_>>()
            .join(",")
    });
    let worker = Worker::start(redis.clone(), app);
    let client = Client::new(redis);
    let request = client.request::<String>("tenant", ());
    let answer = request
        .header("x-tenant", "acme")
        .header("x-tenant", &b"\xff"[..])
        .await?;
    assert_eq!(answer, r"acme,\xff");
    worker.stop().await?;
    Ok(())
}
