//! The workloads with RustStream and its broker for Redis Streams: a service with one handler, and
//! a publisher of the same service.

use std::{
    hint::black_box,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use ruststream::runtime::RunningApp;
use ruststream_fred::{RedisPublisher, stream::prelude::*};

use crate::{
    GROUP, PAYLOAD, STREAM,
    clock::Clock,
    support::{RedisServer, raw as server},
    workload::{Round, Work, Workload, concurrently},
};

/// What handlers of the current round saw.
static HANDLED: AtomicUsize = AtomicUsize::new(0);

/// A task as it is read: its bytes, past any codec.
#[derive(Deserialized)]
struct Task<'a>(&'a [u8]);

/// A task as it is sent.
#[derive(Outgoing, Serialized)]
#[outgoing(name = "app_stream")]
struct NewTask(Vec<u8>);

/// Which handler a service has.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Handler {
    /// None: it only sends.
    None,
    /// One that is called for each message, 64 at once.
    One,
    /// One that is called for all messages of a read.
    Batch,
}

#[subscriber(RedisStream::new(STREAM).group(GROUP), workers(64))]
async fn handle(task: &Task<'_>) -> HandlerOutcome {
    black_box(task.0);
    HANDLED.fetch_add(1, Ordering::Relaxed);
    HandlerOutcome::ack()
}

#[subscriber(RedisStream::new(STREAM).group(GROUP))]
async fn handle_batch(tasks: &[Task<'_>]) -> HandlerOutcome {
    for task in tasks {
        black_box(task.0);
    }
    HANDLED.fetch_add(tasks.len(), Ordering::Relaxed);
    HandlerOutcome::ack()
}

pub(crate) async fn round(
    server: &RedisServer,
    handler: Handler,
    workload: Workload,
    count: usize,
) -> Round {
    HANDLED.store(0, Ordering::Relaxed);
    match workload.work {
        Work::Task { senders } => task(server, handler, senders, count).await,
        Work::Drain => drain(server, handler, count).await,
        Work::Event { .. } | Work::Rpc { .. } => unreachable!("they are not measured"),
    }
}

async fn task(server: &RedisServer, handler: Handler, senders: usize, count: usize) -> Round {
    let (service, publisher) = start(server, handler).await;
    add(&publisher).await;
    done(server, 1).await;
    let clock = Clock::start(server).await;
    concurrently(senders, count, move || {
        let publisher = publisher.clone();
        async move { add(&publisher).await }
    })
    .await;
    done(server, 1 + count).await;
    let round = clock.stop(count, Vec::new()).await;
    service.shutdown().await.expect("the service ends well");
    round
}

async fn drain(server: &RedisServer, handler: Handler, count: usize) -> Round {
    let (sender, publisher) = start(server, Handler::None).await;
    concurrently(512, count, move || {
        let publisher = publisher.clone();
        async move { add(&publisher).await }
    })
    .await;
    sender.shutdown().await.expect("the sender ends well");
    let clock = Clock::start(server).await;
    let (service, _publisher) = start(server, handler).await;
    done(server, count).await;
    let round = clock.stop(count, Vec::new()).await;
    service.shutdown().await.expect("the service ends well");
    round
}

async fn start(server: &RedisServer, handler: Handler) -> (RunningApp, RedisPublisher) {
    let broker = RedisBroker::standalone(server.url()).bindable();
    let publish = broker.bind(Publish);
    let service = RustStream::new(AppInfo::new("bench", "0.0.0"))
        .with_broker(broker, |broker| {
            // The acknowledgements of a read leave together.
            match handler {
                Handler::None => {}
                Handler::One => {
                    broker.include(handle.pipeline());
                }
                Handler::Batch => {
                    broker.include(handle_batch.batch(nonzero!(256)).pipeline());
                }
            }
        })
        .start()
        .await
        .expect("the service starts");
    let publisher = service.publisher(publish).await.expect("a publisher");
    (service, publisher)
}

async fn add(publisher: &RedisPublisher) {
    publisher
        .message(&NewTask(PAYLOAD.as_bytes().to_vec()))
        .publish()
        .await
        .expect("a task");
}

/// Waits until Redis has every acknowledgement.
async fn done(server: &RedisServer, count: usize) {
    while HANDLED.load(Ordering::Relaxed) < count || !server::drained(server, STREAM, GROUP).await {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
