//! The baseline: each workload by hand with bare redis-rs, for this purpose and no other.
//!
//! It has what a careful author would give it: one multiplexed connection for all senders, another
//! for the one reader, `COUNT 256`, answers read as raw values, one `XACK` per read, the replies of
//! a read in the same pipeline as its `XACK`, one shared reply subscription. It has nothing that
//! only a framework needs: no names to route by, no redelivery, no leases, no reconnecting, no
//! back-pressure, no shutdown.

use std::{
    borrow::Cow,
    collections::HashMap,
    hint::black_box,
    sync::{Arc, Mutex},
    time::Instant,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::StreamExt;
use redis::{AsyncConnectionConfig, Value, aio::MultiplexedConnection};
use serde::{Deserialize, Serialize};
use tokio::{sync::oneshot, task::JoinHandle};
use uuid::Uuid;

use crate::{
    GROUP, NAME, PAYLOAD, STREAM,
    clock::Clock,
    support::RedisServer,
    workload::{Round, Work, Workload, concurrently},
};

pub(crate) async fn round(server: &RedisServer, workload: Workload, count: usize) -> Round {
    match workload.work {
        Work::Task { senders } => task(server, senders, count).await,
        Work::Drain => drain(server, count).await,
        Work::Event { senders } => event(server, senders, count).await,
        Work::Rpc { in_flight, .. } => rpc(server, in_flight, count).await,
    }
}

async fn task(server: &RedisServer, senders: usize, count: usize) -> Round {
    let connection = connect(server).await;
    let worker = connect(server).await;
    let clock = Clock::start(server).await;
    let worker = tokio::spawn(handle(worker, count));
    concurrently(senders, count, move || {
        let mut connection = connection.clone();
        async move {
            let id: Value = add_task().query_async(&mut connection).await.expect("XADD");
            black_box(id);
        }
    })
    .await;
    worker.await.expect("the worker ends well");
    clock.stop(count, Vec::new()).await
}

async fn drain(server: &RedisServer, count: usize) -> Round {
    preload(server, count).await;
    let worker = connect(server).await;
    let clock = Clock::start(server).await;
    tokio::spawn(handle(worker, count))
        .await
        .expect("the worker ends well");
    clock.stop(count, Vec::new()).await
}

async fn event(server: &RedisServer, senders: usize, count: usize) -> Round {
    let mut subscription = server
        .client()
        .get_async_pubsub()
        .await
        .expect("a subscription");
    subscription.subscribe(NAME).await.expect("SUBSCRIBE");
    let connection = connect(server).await;
    let clock = Clock::start(server).await;
    let subscriber: JoinHandle<()> = tokio::spawn(async move {
        let mut events = subscription.into_on_message().take(count);
        while let Some(event) = events.next().await {
            black_box(event.get_payload_bytes());
        }
    });
    concurrently(senders, count, move || {
        let mut connection = connection.clone();
        async move {
            let mut publish = redis::cmd("PUBLISH");
            publish.arg(NAME).arg(PAYLOAD);
            let receivers: usize = publish.query_async(&mut connection).await.expect("PUBLISH");
            assert_eq!(receivers, 1);
        }
    })
    .await;
    subscriber.await.expect("the subscriber ends well");
    clock.stop(count, Vec::new()).await
}

/// Fills the stream.
pub(crate) async fn preload(server: &RedisServer, count: usize) {
    let mut connection = connect(server).await;
    let mut left = count;
    while left > 0 {
        let mut pipeline = redis::pipe();
        for _ in 0..left.min(1000) {
            pipeline.add_command(add_task()).ignore();
            left -= 1;
        }
        let () = pipeline.query_async(&mut connection).await.expect("XADDs");
    }
}

async fn connect(server: &RedisServer) -> MultiplexedConnection {
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    server
        .client()
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .expect("a connection")
}

fn add_task() -> redis::Cmd {
    let mut add = redis::cmd("XADD");
    add.arg(STREAM).arg("*").arg("type").arg("task");
    add.arg("name").arg(NAME).arg("payload").arg(PAYLOAD);
    add
}

/// Reads and acknowledges `count` entries.
async fn handle(mut connection: MultiplexedConnection, count: usize) {
    let mut done = 0;
    while done < count {
        let read = read(&mut connection).await;
        let mut acknowledge = acknowledgement();
        for entry in &read {
            black_box(entry.payload());
            acknowledge.arg(&entry.id);
        }
        let acknowledged: usize = acknowledge
            .query_async(&mut connection)
            .await
            .expect("XACK");
        assert_eq!(acknowledged, read.len());
        done += acknowledged;
    }
}

fn acknowledgement() -> redis::Cmd {
    let mut acknowledge = redis::cmd("XACK");
    acknowledge.arg(STREAM).arg(GROUP);
    acknowledge
}

struct Entry {
    id: Vec<u8>,
    fields: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    fn field(&self, name: &str) -> &[u8] {
        let found = self.fields.iter().find(|(key, _)| key == name.as_bytes());
        &found.expect("the field is there").1
    }

    fn payload(&self) -> &[u8] {
        self.field("payload")
    }
}

async fn read(connection: &mut MultiplexedConnection) -> Vec<Entry> {
    let mut read = redis::cmd("XREADGROUP");
    read.arg("GROUP").arg(GROUP).arg("raw");
    read.arg("COUNT").arg(256).arg("BLOCK").arg(1000);
    read.arg("STREAMS").arg(STREAM).arg(">");
    match read.query_async(connection).await.expect("XREADGROUP") {
        Value::Nil => Vec::new(),
        streams => {
            // [[stream, [[id, [field, value, …]], …]]]
            let [_, entries] = list(list(streams).pop().expect("the stream"))
                .try_into()
                .expect("a stream and its entries");
            list(entries)
                .into_iter()
                .map(|entry| {
                    let [id, fields] = list(entry).try_into().expect("an id and its fields");
                    let mut words = list(fields).into_iter().map(bytes);
                    let fields =
                        std::iter::from_fn(|| Some((words.next()?, words.next()?))).collect();
                    Entry {
                        id: bytes(id),
                        fields,
                    }
                })
                .collect()
        }
    }
}

fn list(value: Value) -> Vec<Value> {
    match value {
        Value::Array(values) => values,
        other => panic!("no list: {other:?}"),
    }
}

fn bytes(value: Value) -> Vec<u8> {
    match value {
        Value::BulkString(bytes) => bytes,
        other => panic!("no string: {other:?}"),
    }
}

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    correlation_id: Cow<'a, str>,
    body: Cow<'a, str>,
    error: Cow<'a, str>,
}

type Waiting = Arc<Mutex<HashMap<Uuid, oneshot::Sender<Vec<u8>>>>>;

async fn rpc(server: &RedisServer, in_flight: usize, count: usize) -> Round {
    let reply_to = format!("reply:{}", Uuid::new_v4());
    let waiting = Waiting::default();
    let mut subscription = server
        .client()
        .get_async_pubsub()
        .await
        .expect("a subscription");
    subscription.subscribe(&reply_to).await.expect("SUBSCRIBE");
    let replies = tokio::spawn({
        let waiting = waiting.clone();
        async move {
            let mut replies = subscription.into_on_message().take(count);
            while let Some(reply) = replies.next().await {
                resolve(&waiting, reply.get_payload_bytes());
            }
        }
    });

    let connection = connect(server).await;
    let worker = connect(server).await;
    let clock = Clock::start(server).await;
    let worker = tokio::spawn(answer(worker, count));
    let reply_to: Arc<str> = reply_to.into();
    let latencies = concurrently(in_flight, count, move || {
        let (connection, waiting, reply_to) =
            (connection.clone(), waiting.clone(), reply_to.clone());
        async move {
            let asked = Instant::now();
            let reply = request(connection, &waiting, &reply_to).await;
            assert_eq!(reply, PAYLOAD.as_bytes());
            asked.elapsed()
        }
    })
    .await;
    worker.await.expect("the worker ends well");
    let round = clock.stop(count, latencies).await;
    replies.await.expect("the subscription ends well");
    round
}

async fn request(
    mut connection: MultiplexedConnection,
    waiting: &Waiting,
    reply_to: &str,
) -> Vec<u8> {
    let id = Uuid::new_v4();
    let (sender, receiver) = oneshot::channel();
    waiting.lock().unwrap().insert(id, sender);
    let mut add = redis::cmd("XADD");
    add.arg(STREAM).arg("*").arg("type").arg("rpc");
    add.arg("name").arg(NAME).arg("payload").arg(PAYLOAD);
    add.arg("reply_to").arg(reply_to);
    add.arg("correlation_id")
        .arg(id.hyphenated().encode_lower(&mut Uuid::encode_buffer()) as &str);
    let added: Value = add.query_async(&mut connection).await.expect("XADD");
    black_box(added);
    receiver.await.expect("a reply")
}

fn resolve(waiting: &Waiting, reply: &[u8]) {
    let envelope: Envelope<'_> = serde_json::from_slice(reply).expect("the envelope");
    assert!(envelope.error.is_empty());
    let body = BASE64_STANDARD
        .decode(envelope.body.as_bytes())
        .expect("base64");
    let id = Uuid::try_parse(&envelope.correlation_id).expect("our id");
    let sender = waiting.lock().unwrap().remove(&id).expect("it was asked");
    let _ = sender.send(body);
}

/// Reads and answers `count` requests with their own payloads.
async fn answer(mut connection: MultiplexedConnection, count: usize) {
    let mut done = 0;
    while done < count {
        let read = read(&mut connection).await;
        if read.is_empty() {
            continue;
        }
        let mut pipeline = redis::pipe();
        let mut acknowledge = acknowledgement();
        for entry in &read {
            let envelope = Envelope {
                correlation_id: String::from_utf8_lossy(entry.field("correlation_id")),
                body: BASE64_STANDARD.encode(entry.payload()).into(),
                error: "".into(),
            };
            pipeline
                .publish(
                    entry.field("reply_to"),
                    serde_json::to_vec(&envelope).expect("the envelope"),
                )
                .ignore();
            acknowledge.arg(&entry.id);
        }
        pipeline.add_command(acknowledge);
        let (acknowledged,): (usize,) = pipeline
            .query_async(&mut connection)
            .await
            .expect("PUBLISHes and XACK");
        assert_eq!(acknowledged, read.len());
        done += acknowledged;
    }
}
