//! The workloads with Oxana: its own `enqueue`, and one runtime that serves one queue.

use std::{hint::black_box, time::Duration};

use oxana::{JobContext, OxanaError, QueueConfig, RunStats, Storage, StorageBuilderTimeouts};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    PAYLOAD, STREAM,
    clock::Clock,
    probe::Probe,
    workload::{Job, Round, Work, concurrently},
};

/// The longest time that a call waits for a connection of the pool. The default is 300 ms, which a
/// loaded machine exceeds while the pool opens its connections.
const POOL_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Serialize, Deserialize)]
struct BenchJob {
    payload: String,
}

impl oxana::Job for BenchJob {}

impl BenchJob {
    fn new() -> Self {
        Self {
            payload: PAYLOAD.to_owned(),
        }
    }
}

struct BenchQueue;

impl oxana::Queue for BenchQueue {
    fn to_config() -> QueueConfig {
        QueueConfig::as_static(STREAM)
    }
}

#[derive(Debug, Clone)]
struct Context;

#[derive(oxana::Worker)]
#[oxana(job = BenchJob, context = Context, error = OxanaError, registry = None)]
struct BenchWorker;

impl BenchWorker {
    async fn process(&self, job: BenchJob, _: &JobContext) -> Result<(), OxanaError> {
        black_box(job);
        Ok(())
    }
}

/// One round. Without a `concurrency` the queue has its default.
pub(crate) async fn round(probe: &Probe, concurrency: Option<usize>, job: &Job) -> Round {
    match job.work {
        Work::Task { senders } => task(probe, concurrency, senders, job.count).await,
        Work::Drain { .. } => drain(probe, concurrency, job.count).await,
        _ => unreachable!("this peer has no such workload"),
    }
}

async fn task(probe: &Probe, concurrency: Option<usize>, senders: usize, count: usize) -> Round {
    let storage = storage(probe);
    let worker = Worker::start(&storage, concurrency);
    let warm = storage.enqueue(BenchQueue, BenchJob::new()).await;
    warm.expect("a job");
    worker.wait_until_done(probe, &storage).await;
    let clock = Clock::start(probe, &[]).await;
    let sending = storage.clone();
    concurrently(senders, count, move |_| {
        let storage = sending.clone();
        async move {
            let sent = storage.enqueue(BenchQueue, BenchJob::new()).await;
            black_box(sent.expect("a job"));
        }
    })
    .await;
    worker.wait_until_done(probe, &storage).await;
    let round = clock.stop(count, Vec::new()).await;
    worker.stop(1 + count).await;
    round
}

async fn drain(probe: &Probe, concurrency: Option<usize>, count: usize) -> Round {
    let storage = storage(probe);
    for first in (0..count).step_by(1000) {
        let jobs = (first..count.min(first + 1000)).map(|_| BenchJob::new());
        let sent = storage.enqueue_list(BenchQueue, jobs).await;
        sent.expect("jobs");
    }
    let clock = Clock::start(probe, &[]).await;
    let worker = Worker::start(&storage, concurrency);
    worker.wait_until_done(probe, &storage).await;
    let round = clock.stop(count, Vec::new()).await;
    worker.stop(count).await;
    round
}

fn storage(probe: &Probe) -> Storage {
    Storage::builder()
        .timeouts(StorageBuilderTimeouts::new(POOL_TIMEOUT))
        .build_from_redis_url(probe.server().url())
        .expect("the URL is valid")
}

/// A running runtime.
struct Worker {
    stop: CancellationToken,
    served: JoinHandle<Result<RunStats, OxanaError>>,
}

impl Worker {
    fn start(storage: &Storage, concurrency: Option<usize>) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let runtime = storage.runtime(Context);
        let runtime = match concurrency {
            None => runtime.queue::<BenchQueue>(),
            Some(concurrency) => runtime.queue_with_concurrency::<BenchQueue>(concurrency),
        };
        let runtime = runtime
            .worker::<BenchWorker, BenchJob>()
            .shutdown_on(async move {
                stopped.cancelled().await;
                Ok(())
            });
        Self {
            stop,
            served: tokio::spawn(runtime.run()),
        }
    }

    /// Waits until Redis has no job left: an acknowledgement deletes its job.
    async fn wait_until_done(&self, probe: &Probe, storage: &Storage) {
        let jobs = format!("{}:jobs", storage.namespace());
        while probe.query::<usize>(&["HLEN", &jobs]).await > 0 {
            assert!(!self.served.is_finished(), "the worker ended early");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn stop(self, count: usize) {
        self.stop.cancel();
        let ended = self.served.await.expect("the worker does not panic");
        let stats = ended.expect("the worker ends well");
        assert_eq!(stats.succeeded, count as u64);
    }
}
