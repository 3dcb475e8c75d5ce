//! Tests of idempotency with both stores.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use campanile::{
    Client, Failure, Message, Redis, Router, RpcCode, RpcError,
    transport::{Page, Selection, Settings, memory::Memory},
};
use campanile_middleware::{
    IdempotencyLayer,
    idempotency::{Claim, MemoryStore, RedisStore, Store, Token},
};
use tokio::sync::Notify;

use super::{
    MILLI, Transport, settings,
    support::{Options, RedisServer, Signal, worker::Worker},
    until,
};

/// Makes tests of scenarios, which are functions of a transport and a store: with both in memory,
/// and with both on Redis.
macro_rules! with_both {
    ($($scenario:ident($settings:expr);)*) => {
        mod in_memory {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $scenario() {
                    let memory = Memory::new().with_settings($settings);
                    super::$scenario(memory, MemoryStore::new()).await;
                }
            )*
        }

        mod on_redis {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $scenario() {
                    let server = RedisServer::start().await;
                    let redis = Redis::connect(&server.url()).await;
                    let redis = redis.expect("the server is reachable");
                    let store = RedisStore::new(&redis, "g:once:");
                    super::$scenario(redis.with_settings($settings), store).await;
                }
            )*
        }
    };
}

with_both! {
    a_message_sent_twice_runs_once(once());
    a_duplicate_during_the_run_waits_for_the_outcome_and_is_no_attempt(once());
    repeated_requests_get_the_same_answer(once());
    a_worker_that_dies_in_the_middle_leaves_the_message_to_another({
        let mut settings = settings();
        settings.lease = 500 * MILLI;
        settings
    });
    a_dead_letter_that_is_replayed_runs_again(once());
}

/// Allows one attempt, so that a redelivery that counts makes a dead letter.
fn once() -> Settings {
    let mut settings = settings();
    settings.max_deliveries = 1;
    settings
}

/// A layer whose key is the payload.
fn layer<St: Store>(
    store: &St,
) -> IdempotencyLayer<St, impl Fn(&Message) -> Option<String> + Clone + use<St>> {
    IdempotencyLayer::new(store.clone())
        .key(|message: &Message| String::from_utf8(message.payload().to_vec()).ok())
        .retry_after(50 * MILLI)
}

/// Counts the runs of a handler.
#[derive(Clone, Default)]
struct Runs(Arc<AtomicU32>);

impl Runs {
    fn one(&self) -> u32 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// An application whose handler only counts.
    fn app(&self) -> Router {
        let counted = self.clone();
        Router::new().task("a", async move |_: Bytes| {
            counted.one();
        })
    }

    fn so_far(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

async fn enqueue(transport: &impl Transport, payload: &str) {
    let client = Client::new(transport.clone());
    client
        .enqueue("a", payload.to_owned())
        .await
        .expect("the message is accepted");
}

async fn a_message_sent_twice_runs_once(transport: impl Transport, store: impl Store) {
    let runs = Runs::default();
    let layer = layer(&store);
    let app = runs.app().layer(layer.clone());
    let worker = Worker::start(transport.clone(), app);
    for _ in 0..5 {
        enqueue(&transport, "order 7").await;
        enqueue(&transport, "order 8").await;
    }
    until(async || transport.counts().done == 10).await;
    worker.stop().await.expect("the worker stops");
    assert_eq!((runs.so_far(), layer.suppressed()), (2, 8));
}

async fn a_duplicate_during_the_run_waits_for_the_outcome_and_is_no_attempt(
    transport: impl Transport,
    store: impl Store,
) {
    let (runs, finish) = (Runs::default(), Arc::new(Notify::new()));
    let (counted, may_finish) = (runs.clone(), finish.clone());
    let app = Router::new()
        .task("a", async move |_: Bytes| {
            counted.one();
            may_finish.notified().await;
        })
        .layer(layer(&store));
    let worker = Worker::start(transport.clone(), app);
    enqueue(&transport, "k").await;
    enqueue(&transport, "k").await;
    until(async || transport.counts().redelivered >= 3).await;
    assert_eq!(transport.counts().done, 0);
    finish.notify_one();
    until(async || transport.counts().done == 2).await;
    worker.stop().await.expect("the worker stops");
    assert_eq!((runs.so_far(), transport.counts().dead), (1, 0));
}

async fn repeated_requests_get_the_same_answer(transport: impl Transport, store: impl Store) {
    let runs = Runs::default();
    let counted = runs.clone();
    let app = Router::new()
        .rpc("a", async move |key: String| match (counted.one(), &*key) {
            (run, "good") => Ok(format!("run {run}")),
            (run, "bad") => Err(RpcError::not_found(format!("run {run}"))),
            (run, _) => Err(RpcError::unavailable(format!("run {run}"))),
        })
        .layer(layer(&store));
    let worker = Worker::start(transport.clone(), app);
    let client = Client::new(transport);
    let mut answers = Vec::new();
    for key in ["good", "bad", "later"] {
        for _ in 0..2 {
            let answer = client.request::<String>("a", key).await;
            answers.push(answer.map_err(|error| error.rpc().expect("an answer").clone()));
        }
    }
    worker.stop().await.expect("the worker stops");
    let bad = || Err(RpcError::not_found("run 2"));
    let later = |run: u32| Err(RpcError::new(RpcCode::Unavailable, format!("run {run}")));
    let good = || Ok("run 1".to_owned());
    assert_eq!(answers, [good(), good(), bad(), bad(), later(3), later(4)]);
}

async fn a_worker_that_dies_in_the_middle_leaves_the_message_to_another(
    transport: impl Transport,
    store: impl Store,
) {
    let runs = Runs::default();
    let counted = runs.clone();
    let app = Router::new()
        .task("a", async move |_: Bytes| {
            counted.one();
            std::future::pending::<()>().await;
        })
        .layer(layer(&store));
    // A process that died leaves a claim that is not renewed.
    let (dead, lasts) = (Token::new(), 500 * MILLI);
    let claimed = Instant::now();
    let claim = store.claim("task:1:a:k", dead, lasts).await;
    assert_eq!(claim.expect("the store works"), Claim::Won);
    enqueue(&transport, "k").await;
    let worker = Worker::start(transport.clone(), app);
    until(async || runs.so_far() == 1).await;
    // Redis counts whole milliseconds.
    assert!(
        claimed.elapsed() >= lasts - MILLI,
        "{:?}",
        claimed.elapsed()
    );
    // The worker dies with its handlers.
    drop(worker);
    let after = Runs::default();
    let app = after.app().layer(layer(&store));
    let worker = Worker::start(transport.clone(), app);
    until(async || after.so_far() == 1).await;
    worker.stop().await.expect("the worker stops");
}

async fn a_dead_letter_that_is_replayed_runs_again(transport: impl Transport, store: impl Store) {
    let runs = Runs::default();
    let counted = runs.clone();
    let app = Router::new()
        .task("a", async move |_: Bytes| match counted.one() {
            1 => Err(Failure::dead_letter()),
            _ => Ok(()),
        })
        .layer(layer(&store));
    let worker = Worker::start(transport.clone(), app);
    enqueue(&transport, "k").await;
    until(async || transport.counts().dead == 1).await;
    // Another message with the key gets the same failure, and is not run.
    enqueue(&transport, "k").await;
    until(async || transport.counts().dead == 2).await;
    assert_eq!(runs.so_far(), 1);
    // The message that failed is run again, and then the other message gets its outcome.
    let letters = transport
        .dead_letters()
        .list(Page::first(10))
        .await
        .expect("the dead letters are listed");
    for (done, letter) in (1..).zip(letters.letters) {
        let replayed = transport
            .dead_letters()
            .replay(Selection::Ids(vec![letter.id]))
            .await;
        assert_eq!(replayed.expect("the dead letter is replayed"), 1);
        until(async || transport.counts().done == done).await;
    }
    worker.stop().await.expect("the worker stops");
    assert_eq!(runs.so_far(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_store_is_down_messages_come_again_and_lose_no_attempt() {
    let server = RedisServer::with(Options::new().persistent()).await;
    let redis = Redis::connect(&server.url()).await;
    let store = RedisStore::new(&redis.expect("the server is reachable"), "g:once:");
    let store = store.timeout(200 * MILLI);
    let memory = Memory::new().with_settings(once());
    let runs = Runs::default();
    let app = runs.app().layer(layer(&store));
    let worker = Worker::start(memory.clone(), app);
    server.signal(Signal::Kill);
    enqueue(&memory, "k").await;
    until(async || memory.counts().redelivered >= 3).await;
    assert_eq!(runs.so_far(), 0);
    server.restart().await;
    until(async || memory.counts().done == 1).await;
    worker.stop().await.expect("the worker stops");
    assert_eq!((runs.so_far(), memory.counts().dead), (1, 0));
}
