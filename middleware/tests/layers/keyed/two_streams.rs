//! One layer around the workers of two streams.
//!
//! An entry's id is unique in its stream only: two busy streams give the same ids to different
//! messages.

use std::sync::{Arc, Mutex};

use campanile::{
    Attempt, Client, Failure, Message, MessageId, Name, Redis, Router, transport::memory::Memory,
};
use campanile_middleware::{
    IdempotencyLayer, OrderedByKeyLayer,
    idempotency::{MemoryStore, RedisStore, Store},
    key,
};

use super::{
    SECOND, Transport, settings,
    support::{RedisServer, worker::Worker},
    until,
};

/// The payload and the id of each message that a handler ran.
type Ran = Arc<Mutex<Vec<(String, String)>>>;

fn app(ran: &Ran) -> Router {
    let ran = ran.clone();
    Router::new().task("a", async move |id: MessageId, payload: String| {
        ran.lock().unwrap().push((payload, id.to_string()));
    })
}

/// A handle on a stream with a separate connection, since the counts belong to a connection.
async fn redis(server: &RedisServer, stream: &str) -> Redis {
    let mut settings = settings();
    settings.stream = stream.into();
    let redis = Redis::connect(&server.url()).await;
    redis
        .expect("the server is reachable")
        .with_settings(settings)
}

/// Two brokers that assign the same ids while the clock is paused, each with its own stream.
async fn memories() -> (Memory, Memory) {
    let handle = |stream: &str| {
        let mut settings = settings();
        settings.stream = stream.into();
        Memory::new().with_settings(settings)
    };
    loop {
        let (one, two) = (handle("x"), handle("y"));
        // The ids are equal if both brokers were created in the same millisecond.
        let probe = async |memory: &Memory| {
            let client = Client::new(memory.clone().stream("probe"));
            client
                .enqueue("a", "")
                .await
                .expect("the message is accepted")
        };
        if probe(&one).await == probe(&two).await {
            return (one, two);
        }
    }
}

/// Serves both transports with one layer until ten messages are done on each, and asserts that all
/// of them ran.
async fn all_run<St: Store>(one: impl Transport, two: impl Transport, store: St) {
    let ran = Ran::default();
    let layer = IdempotencyLayer::new(store);
    let workers = (
        Worker::start(one.clone(), app(&ran).layer(layer.clone())),
        Worker::start(two.clone(), app(&ran).layer(layer.clone())),
    );
    until(async || one.counts().done == 10 && two.counts().done == 10).await;
    workers.0.stop().await.expect("the worker stops");
    workers.1.stop().await.expect("the worker stops");
    let mut ran = ran.lock().unwrap().clone();
    ran.sort();
    let payloads: Vec<_> = ran.iter().map(|(payload, _)| payload.clone()).collect();
    let expected: Vec<_> = ["x", "y"]
        .iter()
        .flat_map(|stream| (0..10).map(move |n| format!("{stream}{n}")))
        .collect();
    assert_eq!(payloads, expected);
    let ids = |stream: &str| -> Vec<_> {
        let of_stream = ran
            .iter()
            .filter(|(payload, _)| payload.starts_with(stream));
        of_stream.map(|(_, id)| id.clone()).collect()
    };
    assert_eq!(ids("x"), ids("y"), "the test needs equal ids");
    assert_eq!(layer.suppressed(), 0);
}

#[tokio::test(start_paused = true)]
async fn messages_of_two_memory_streams_with_equal_ids_all_run() {
    let (one, two) = memories().await;
    for n in 0..10 {
        for (transport, stream) in [(&one, "x"), (&two, "y")] {
            let client = Client::new(transport.clone());
            client
                .enqueue("a", format!("{stream}{n}"))
                .await
                .expect("the message is accepted");
        }
    }
    all_run(one, two, MemoryStore::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_two_redis_streams_with_equal_ids_all_run() {
    let server = RedisServer::start().await;
    for n in 0..10 {
        for stream in ["x", "y"] {
            let (id, payload) = (format!("7-{}", n + 1), format!("{stream}{n}"));
            let entry = ["type", "task", "name", "a", "payload", &payload];
            let command = [&["XADD", stream, &id], &entry[..]].concat();
            server.command(&command).await;
        }
    }
    let (one, two) = (redis(&server, "x").await, redis(&server, "y").await);
    let store = RedisStore::new(&one, "g:once:");
    all_run(one, two, store).await;
}

/// Serves both transports with one layer. Each transport has one message, with the same id and key.
/// The message of the first fails once and keeps its turn, so the message of the second runs last.
async fn ordered(one: impl Transport, two: impl Transport) {
    let ran = Ran::default();
    let settings = settings();
    let layer = OrderedByKeyLayer::new(key::name()).backoff(settings.backoff);
    let app = || {
        let noted = ran.clone();
        let handler = async move |id: MessageId, attempt: Attempt, payload: String| {
            let fails = payload == "x" && !attempt.is_retry();
            noted.lock().unwrap().push((payload, id.to_string()));
            match fails {
                true => Err(Failure::redeliver_after(2 * SECOND)),
                false => Ok(()),
            }
        };
        Router::new().task("a", handler).layer(layer.clone())
    };
    let first = Worker::start(one.clone(), app());
    until(async || one.counts().redelivered == 1).await;
    let second = Worker::start(two.clone(), app());
    until(async || one.counts().done == 1 && two.counts().done == 1).await;
    first.stop().await.expect("the worker stops");
    second.stop().await.expect("the worker stops");
    let (payloads, ids): (Vec<_>, Vec<_>) = ran.lock().unwrap().iter().cloned().unzip();
    assert_eq!(payloads, ["x", "x", "y"]);
    assert!(
        ids.iter().all(|id| *id == ids[0]),
        "the test needs equal ids"
    );
    assert_eq!(layer.keys_in_use(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_turn_is_not_taken_by_the_same_id_of_another_memory_stream() {
    let (one, two) = memories().await;
    for (transport, payload) in [(&one, "x"), (&two, "y")] {
        let client = Client::new(transport.clone());
        client
            .enqueue("a", payload)
            .await
            .expect("the message is accepted");
    }
    ordered(one, two).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_is_not_taken_by_the_same_id_of_another_redis_stream() {
    let server = RedisServer::start().await;
    for stream in ["x", "y"] {
        let entry = ["type", "task", "name", "a", "payload", stream];
        let command = [&["XADD", stream, "7-1"], &entry[..]].concat();
        server.command(&command).await;
    }
    ordered(redis(&server, "x").await, redis(&server, "y").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliveries_name_their_stream_and_group_on_both_transports() {
    let server = RedisServer::start().await;
    let redis = Redis::connect(&server.url())
        .await
        .expect("the server is reachable");
    let mut settings = settings();
    (settings.stream, settings.group) = ("x:1".into(), "h".into());
    named(redis.with_settings(settings.clone())).await;
    named(Memory::new().with_settings(settings)).await;
}

async fn named(transport: impl Transport) {
    type Origin = (Option<Name>, Option<Name>);
    let seen: Arc<Mutex<Vec<Origin>>> = Arc::default();
    let noted = seen.clone();
    let app = Router::new().task("a", async move |message: Message| {
        let parts = message.parts();
        noted
            .lock()
            .unwrap()
            .push((parts.stream.clone(), parts.group.clone()));
    });
    let worker = Worker::start(transport.clone(), app);
    let client = Client::new(transport.clone());
    client
        .enqueue("a", "")
        .await
        .expect("the message is accepted");
    until(async || transport.counts().done == 1).await;
    worker.stop().await.expect("the worker stops");
    assert_eq!(
        *seen.lock().unwrap(),
        [(Some("x:1".into()), Some("h".into()))]
    );
}
