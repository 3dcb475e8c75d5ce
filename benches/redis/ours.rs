//! The workloads with Campanile, as in an application: a client, and a served router with a layer,
//! over one handle to Redis.

use std::{
    hint::black_box,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    NAME,
    clock::Clock,
    open::{self, Arrivals},
    probe::Probe,
    raw_stream::preload,
    worker::{NUMBERED_TASK, Sender, WARM_UP_EVENT, Worker, connect},
    workload::{Handler, Job, Round, Work, concurrently},
};

/// The number of tasks in one call of `enqueue_all`.
const CHUNK: usize = 10_000;

pub(crate) async fn round(probe: &Probe, job: &Job) -> Round {
    match job.work {
        Work::Task { senders } => match job.rate {
            Some(rate) => paced(probe, job, rate).await,
            None => task(probe, job, senders).await,
        },
        Work::EnqueueAll { .. } => enqueue_all(probe, job).await,
        Work::Drain { handler } => drain(probe, job, handler).await,
        Work::Event { senders } => event(probe, job, senders).await,
        Work::Rpc {
            in_flight,
            reliable,
        } => rpc(probe, job, in_flight, reliable).await,
    }
}

async fn task(probe: &Probe, job: &Job, senders: usize) -> Round {
    let worker = Worker::start(probe.address(), &job.setup).await;
    let sender = worker.sender();
    let warm_up_tasks = warm_up(&worker).await;
    let clock = Clock::start(probe, &[]).await;
    send(sender, senders, job.count).await;
    worker.wait_until_done(warm_up_tasks + job.count).await;
    let round = clock.stop(job.count, Vec::new()).await;
    worker.stop().await;
    round
}

async fn paced(probe: &Probe, job: &Job, rate: usize) -> Round {
    let arrivals = Arrivals::new(job.count);
    let worker = Worker::start_with(
        probe.address(),
        &job.setup,
        Handler::Single,
        arrivals.clone(),
    )
    .await;
    let (sender, setup) = (worker.sender(), job.setup);
    let warm_up_tasks = warm_up(&worker).await;
    let clock = Clock::start(probe, &[]).await;
    let latencies = open::send_paced(rate, &arrivals, move |message| {
        let call = (sender.client).enqueue(NUMBERED_TASK, setup.numbered(message));
        let call = sender.on_stream(message, call);
        async {
            call.await.expect("a task");
        }
    })
    .await;
    worker.wait_until_done(warm_up_tasks + job.count).await;
    let round = clock.stop(job.count, latencies).await;
    worker.stop().await;
    round
}

async fn enqueue_all(probe: &Probe, job: &Job) -> Round {
    let redis = connect(probe.address()).await;
    let sender = Sender::new(&redis, &job.setup);
    let clock = Clock::start(probe, &[]).await;
    for first in (0..job.count).step_by(CHUNK) {
        let payloads = (first..job.count.min(first + CHUNK)).map(|_| sender.payload.clone());
        let client = sender.client_of(first / CHUNK);
        let results = client.enqueue_all(NAME, payloads).await;
        for result in results {
            black_box(result.expect("a task"));
        }
    }
    clock.stop(job.count, Vec::new()).await
}

async fn drain(probe: &Probe, job: &Job, handler: Handler) -> Round {
    preload(probe, &job.setup, job.count).await;
    let clock = Clock::start(probe, &[]).await;
    let worker = Worker::start_with(probe.address(), &job.setup, handler, Arrivals::new(0)).await;
    worker.wait_until_done(job.count).await;
    let round = clock.stop(job.count, Vec::new()).await;
    worker.stop().await;
    round
}

/// Enqueues `count` tasks from `senders` concurrent senders.
pub(crate) async fn send(sender: Sender, senders: usize, count: usize) {
    concurrently(senders, count, move |message| {
        let call = sender.enqueue(message);
        async {
            black_box(call.await.expect("a task"));
        }
    })
    .await;
}

/// Sends one task to each stream, and waits until the tasks are done. Returns the number of tasks.
async fn warm_up(worker: &Worker) -> usize {
    let sender = worker.sender();
    let streams = worker.setup.streams;
    send(sender, 1, streams).await;
    worker.wait_until_done(streams).await;
    streams
}

async fn event(probe: &Probe, job: &Job, senders: usize) -> Round {
    let worker = Worker::start(probe.address(), &job.setup).await;
    let sender = worker.sender();
    while worker.seen.warm_up_events.load(Ordering::Relaxed) == 0 {
        let sent = sender.client.publish(WARM_UP_EVENT, ()).await;
        sent.expect("an event");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let clock = Clock::start(probe, &[]).await;
    concurrently(senders, job.count, move |_| {
        let call = sender.client.publish(NAME, sender.payload.clone());
        async { call.await.expect("an event") }
    })
    .await;
    worker
        .wait_until(|worker| worker.seen.events.load(Ordering::Relaxed) >= job.count)
        .await;
    let round = clock.stop(job.count, Vec::new()).await;
    worker.stop().await;
    round
}

async fn rpc(probe: &Probe, job: &Job, in_flight: usize, reliable: bool) -> Round {
    let worker = Worker::start(probe.address(), &job.setup).await;
    let sender = worker.sender();
    let ask = move |message| {
        let (client, name) = (&sender.client, sender.name(message));
        let payload = sender.payload.clone();
        let request = if reliable {
            client.request(name, payload.clone())
        } else {
            client.request_fast(name, payload.clone())
        };
        let request = sender.on_stream(message, request);
        async move {
            let asked = Instant::now();
            let reply: Bytes = request.await.expect("a reply");
            assert_eq!(reply, payload);
            asked.elapsed()
        }
    };
    // Warms up with one request to each stream, as `warm_up` does with tasks.
    let warm_up_requests = job.setup.streams;
    concurrently(1, warm_up_requests, ask.clone()).await;
    worker.wait_until_done(warm_up_requests).await;
    let clock = Clock::start(probe, &[]).await;
    let latencies = match job.rate {
        Some(rate) => {
            let arrivals = Arrivals::new(job.count);
            let replied = arrivals.clone();
            open::send_paced(rate, &arrivals, move |message| {
                let (request, replied) = (ask(message), replied.clone());
                async move {
                    request.await;
                    replied.mark(message);
                }
            })
            .await
        }
        None => concurrently(in_flight, job.count, ask).await,
    };
    worker.wait_until_done(warm_up_requests + job.count).await;
    let round = clock.stop(job.count, latencies).await;
    worker.stop().await;
    round
}
