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
    probe::Probe,
    setup::Setup,
    workload::{Job, Round, Work, concurrently},
};

/// The number of messages that handlers have received in the current round.
static HANDLED: AtomicUsize = AtomicUsize::new(0);

/// A received task: its bytes, without a codec.
#[derive(Deserialized)]
struct Task<'a>(&'a [u8]);

/// A task to send.
#[derive(Outgoing, Serialized)]
#[outgoing(name = "app_stream")]
struct NewTask(Vec<u8>);

/// The handler of a service.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Handler {
    /// No handler: the service only sends.
    None,
    /// A handler that is called for each message, with 64 calls at a time.
    One,
    /// A handler that is called with all messages of a read.
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

pub(crate) async fn round(probe: &Probe, handler: Handler, job: &Job) -> Round {
    HANDLED.store(0, Ordering::Relaxed);
    match job.work {
        Work::Task { senders } => task(probe, handler, job, senders).await,
        Work::Drain { .. } => drain(probe, handler, job).await,
        _ => unreachable!("it is not asked to do that"),
    }
}

async fn task(probe: &Probe, handler: Handler, job: &Job, senders: usize) -> Round {
    let (service, publisher) = start(probe, handler).await;
    send_task(&publisher).await;
    wait_until_done(probe, &job.setup, 1).await;
    let clock = Clock::start(probe, &[]).await;
    concurrently(senders, job.count, move |_| {
        let publisher = publisher.clone();
        async move { send_task(&publisher).await }
    })
    .await;
    wait_until_done(probe, &job.setup, 1 + job.count).await;
    let round = clock.stop(job.count, Vec::new()).await;
    service.shutdown().await.expect("the service ends well");
    round
}

async fn drain(probe: &Probe, handler: Handler, job: &Job) -> Round {
    let (sender, publisher) = start(probe, Handler::None).await;
    concurrently(512, job.count, move |_| {
        let publisher = publisher.clone();
        async move { send_task(&publisher).await }
    })
    .await;
    sender.shutdown().await.expect("the sender ends well");
    let clock = Clock::start(probe, &[]).await;
    let (service, _publisher) = start(probe, handler).await;
    wait_until_done(probe, &job.setup, job.count).await;
    let round = clock.stop(job.count, Vec::new()).await;
    service.shutdown().await.expect("the service ends well");
    round
}

async fn start(probe: &Probe, handler: Handler) -> (RunningApp, RedisPublisher) {
    let broker = RedisBroker::standalone(probe.server().url()).bindable();
    let publish = broker.bind(Publish);
    let service = RustStream::new(AppInfo::new("bench", "0.0.0"))
        .with_broker(broker, |broker| {
            // RustStream sends the acknowledgements of a read together.
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

async fn send_task(publisher: &RedisPublisher) {
    publisher
        .message(&NewTask(PAYLOAD.as_bytes().to_vec()))
        .publish()
        .await
        .expect("a task");
}

/// Waits until Redis has every acknowledgement.
async fn wait_until_done(probe: &Probe, setup: &Setup, count: usize) {
    while HANDLED.load(Ordering::Relaxed) < count || !probe.is_drained(setup).await {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
