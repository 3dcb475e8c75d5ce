//! The workloads with the Rust port of BullMQ: its own `add`, and one worker.

use std::{hint::black_box, sync::Arc, time::Duration};

use bullmq::{
    BulkJob, Job as BullJob, Queue, QueueOptions, Worker, WorkerOptions,
    options::RedisConnectionOptions, worker::CancellationToken,
};

use crate::{
    NAME, PAYLOAD, STREAM,
    clock::Clock,
    probe::Probe,
    workload::{Job, Round, Work, concurrently},
};

/// The maximum duration of a worker's shutdown, in milliseconds.
const CLOSE_TIMEOUT_MS: u64 = 10_000;

/// One round. Without a `concurrency` the worker has its default.
pub(crate) async fn round(probe: &Probe, concurrency: Option<usize>, job: &Job) -> Round {
    match job.work {
        Work::Task { senders } => task(probe, concurrency, senders, job.count).await,
        Work::Drain { .. } => drain(probe, concurrency, job.count).await,
        _ => unreachable!("this peer has no such workload"),
    }
}

async fn task(probe: &Probe, concurrency: Option<usize>, senders: usize, count: usize) -> Round {
    let queue = Arc::new(queue(probe).await);
    let worker = worker(probe, concurrency).await;
    queue.add(NAME, PAYLOAD).await.expect("a job");
    wait_until_completed(probe, &queue, 1).await;
    let clock = Clock::start(probe, &[]).await;
    let sending = queue.clone();
    concurrently(senders, count, move |_| {
        let queue = sending.clone();
        async move {
            black_box(queue.add(NAME, PAYLOAD).await.expect("a job"));
        }
    })
    .await;
    wait_until_completed(probe, &queue, 1 + count).await;
    let round = clock.stop(count, Vec::new()).await;
    worker
        .close(CLOSE_TIMEOUT_MS)
        .await
        .expect("the worker ends");
    round
}

async fn drain(probe: &Probe, concurrency: Option<usize>, count: usize) -> Round {
    let queue = queue(probe).await;
    for first in (0..count).step_by(1000) {
        let jobs = (first..count.min(first + 1000)).map(|_| BulkJob::new(NAME, PAYLOAD));
        queue.add_bulk(jobs.collect()).await.expect("jobs");
    }
    let clock = Clock::start(probe, &[]).await;
    let worker = worker(probe, concurrency).await;
    wait_until_completed(probe, &queue, count).await;
    let round = clock.stop(count, Vec::new()).await;
    worker
        .close(CLOSE_TIMEOUT_MS)
        .await
        .expect("the worker ends");
    round
}

fn connection(probe: &Probe) -> RedisConnectionOptions {
    RedisConnectionOptions::new().url(probe.server().url())
}

async fn queue(probe: &Probe) -> Queue {
    let options = QueueOptions::new().connection(connection(probe));
    let queue = Queue::with_options(STREAM, options).await;
    queue.expect("a connection")
}

async fn worker(probe: &Probe, concurrency: Option<usize>) -> Worker {
    let mut options = WorkerOptions::new().connection(connection(probe));
    if let Some(concurrency) = concurrency {
        options = options.concurrency(concurrency);
    }
    let processor = |job: BullJob, _: CancellationToken| async move {
        black_box(job.data());
        Ok(serde_json::Value::Null)
    };
    let worker = Worker::with_options(STREAM, processor, options).await;
    worker.expect("a connection")
}

/// Waits until Redis lists this number of jobs as completed.
async fn wait_until_completed(probe: &Probe, queue: &Queue, count: usize) {
    let key = queue.keys().completed();
    while probe.query::<usize>(&["ZCARD", &key]).await < count {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
