//! The same workloads with Campanile, as an application would have them: a client, and a served
//! router with a layer around it; one handle to Redis for both.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use campanile::{Client, Message, Redis, Router, extract::State};
use tokio::{sync::oneshot, task::JoinHandle};
use tower::util::MapRequestLayer;

use crate::{
    GROUP, NAME, PAYLOAD, STREAM, raw,
    support::RedisServer,
    workload::{Round, Work, Workload, concurrently},
};

/// An event that tells that subscriptions stand.
const WARM: &str = "bench.warm";

/// The worker's capacity: where more does not make it faster any more.
const IN_FLIGHT: usize = 1024;

pub(crate) async fn round(server: &RedisServer, workload: Workload, count: usize) -> Round {
    match workload.work {
        Work::Task { senders } => task(server, senders, count).await,
        Work::Drain => drain(server, count).await,
        Work::Event { senders } => event(server, senders, count).await,
        Work::Rpc {
            in_flight,
            reliable,
        } => rpc(server, in_flight, reliable, count).await,
    }
}

async fn task(server: &RedisServer, senders: usize, count: usize) -> Round {
    let worker = Worker::start(server).await;
    let client = worker.client();
    client.enqueue(NAME, PAYLOAD).await.expect("a task");
    worker.done(1).await;
    let started = Instant::now();
    concurrently(senders, count, move || {
        let client = client.clone();
        async move {
            black_box(client.enqueue(NAME, PAYLOAD).await.expect("a task"));
        }
    })
    .await;
    worker.done(1 + count).await;
    let round = Round::since(started, count);
    worker.stop().await;
    round
}

async fn drain(server: &RedisServer, count: usize) -> Round {
    raw::preload(server, count).await;
    let started = Instant::now();
    let worker = Worker::start(server).await;
    worker.done(count).await;
    let round = Round::since(started, count);
    worker.stop().await;
    round
}

async fn event(server: &RedisServer, senders: usize, count: usize) -> Round {
    let worker = Worker::start(server).await;
    let client = worker.client();
    while worker.seen.warm.load(Ordering::Relaxed) == 0 {
        client.publish(WARM, ()).await.expect("an event");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let started = Instant::now();
    concurrently(senders, count, move || {
        let client = client.clone();
        async move { client.publish(NAME, PAYLOAD).await.expect("an event") }
    })
    .await;
    worker
        .until(|worker| worker.seen.events.load(Ordering::Relaxed) >= count)
        .await;
    let round = Round::since(started, count);
    worker.stop().await;
    round
}

async fn rpc(server: &RedisServer, in_flight: usize, reliable: bool, count: usize) -> Round {
    let worker = Worker::start(server).await;
    let client = worker.client();
    let ask = move || {
        let client = client.clone();
        async move {
            let asked = Instant::now();
            let request = if reliable {
                client.request(NAME, PAYLOAD)
            } else {
                client.request_fast(NAME, PAYLOAD)
            };
            let reply: Bytes = request.await.expect("a reply");
            assert_eq!(reply, PAYLOAD);
            asked.elapsed()
        }
    };
    ask().await;
    worker.done(1).await;
    let started = Instant::now();
    let latencies = concurrently(in_flight, count, ask).await;
    worker.done(1 + count).await;
    let elapsed = started.elapsed();
    worker.stop().await;
    Round {
        count,
        elapsed,
        latencies,
    }
}

/// What handlers saw.
#[derive(Debug, Clone, Default)]
struct Seen {
    events: Arc<AtomicUsize>,
    warm: Arc<AtomicUsize>,
}

async fn on_task(payload: Bytes) {
    black_box(payload);
}

async fn on_event(State(seen): State<Seen>, payload: Bytes) {
    black_box(payload);
    seen.events.fetch_add(1, Ordering::Relaxed);
}

async fn on_warm(State(seen): State<Seen>) {
    seen.warm.fetch_add(1, Ordering::Relaxed);
}

async fn on_request(payload: Bytes) -> Bytes {
    payload
}

/// A served router.
pub(crate) struct Worker {
    redis: Redis,
    seen: Seen,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<(), campanile::Error>>,
}

impl Worker {
    pub(crate) async fn start(server: &RedisServer) -> Self {
        let redis = Redis::connect(&server.url())
            .await
            .expect("a connection")
            .stream(STREAM)
            .group(GROUP)
            .max_in_flight(IN_FLIGHT);
        let seen = Seen::default();
        let app = Router::new()
            .task(NAME, on_task)
            .event(NAME, on_event)
            .event(WARM, on_warm)
            .rpc(NAME, on_request)
            .layer(MapRequestLayer::new(|message: Message| message))
            .with_state(seen.clone());
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn({
            let redis = redis.clone();
            async move {
                campanile::serve(redis, app)
                    .with_graceful_shutdown(async {
                        let _ = stopped.await;
                    })
                    .await
            }
        });
        Self {
            redis,
            seen,
            stop,
            served,
        }
    }

    pub(crate) fn client(&self) -> Client<Redis> {
        Client::new(self.redis.clone())
    }

    /// Waits until Redis has confirmed so many acknowledgements.
    pub(crate) async fn done(&self, count: usize) {
        self.until(|worker| worker.redis.counts().done >= count as u64)
            .await;
    }

    async fn until(&self, reached: impl Fn(&Self) -> bool) {
        while !reached(self) {
            assert!(!self.served.is_finished(), "the worker ended early");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        self.served
            .await
            .expect("the worker does not panic")
            .expect("the worker ends well");
    }
}
