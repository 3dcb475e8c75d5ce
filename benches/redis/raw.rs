//! The baseline: each workload by hand with bare redis-rs.
//!
//! These are the loops that a careful author would write. All senders share one multiplexed
//! connection, and the reader has another. `COUNT` equals the limit in flight (256 at most), and
//! responses are read as raw values. The handlers of a read run concurrently. Each read has one
//! `XACK`, in the same pipeline as its replies. All requests share one reply subscription. The
//! loops lack everything that only a framework needs: routing by name, redelivery, leases,
//! reconnecting, back-pressure and a shutdown.

use std::hint::black_box;

use futures_util::{StreamExt, future::join_all};
use redis::Value;
use tokio::task::JoinHandle;

use crate::{
    NAME,
    clock::Clock,
    open::{self, Arrivals},
    probe::Probe,
    raw_rpc,
    raw_stream::{EntryWriter, Reader, connect, preload, subscribe},
    setup,
    workload::{Handler, Job, Round, Work, concurrently},
};

pub(crate) async fn round(probe: &Probe, job: &Job) -> Round {
    match job.work {
        Work::Task { senders } => match job.rate {
            Some(rate) => paced(probe, job, rate).await,
            None => task(probe, job, senders).await,
        },
        Work::EnqueueAll { in_flight } => enqueue(probe, job, in_flight).await,
        Work::Drain { handler } => drain(probe, job, handler).await,
        Work::Event { senders } => event(probe, job, senders).await,
        Work::Rpc { in_flight, .. } => raw_rpc::round(probe, job, in_flight).await,
    }
}

async fn task(probe: &Probe, job: &Job, senders: usize) -> Round {
    let writer = EntryWriter::connect(probe, &job.setup).await;
    let mut reader = Reader::connect(probe.address(), &job.setup).await;
    let count = job.count;
    let clock = Clock::start(probe, &[]).await;
    let worker = tokio::spawn(async move { reader.handle(Handler::Single, count, |_| {}).await });
    send(writer, senders, count).await;
    worker.await.expect("the worker ends well");
    clock.stop(count, Vec::new()).await
}

async fn paced(probe: &Probe, job: &Job, rate: usize) -> Round {
    let writer = EntryWriter::connect(probe, &job.setup).await;
    let mut reader = Reader::connect(probe.address(), &job.setup).await;
    let (count, setup) = (job.count, job.setup);
    let arrivals = Arrivals::new(count);
    let seen = arrivals.clone();
    let clock = Clock::start(probe, &[]).await;
    let worker = tokio::spawn(async move {
        let mark = |payload: &[u8]| seen.mark(setup::number(payload));
        reader.handle(Handler::Single, count, mark).await;
    });
    let latencies = open::send_paced(rate, &arrivals, move |message| {
        writer.clone().send(message, setup.numbered(message))
    })
    .await;
    worker.await.expect("the worker ends well");
    clock.stop(count, latencies).await
}

async fn enqueue(probe: &Probe, job: &Job, in_flight: usize) -> Round {
    let writer = EntryWriter::connect(probe, &job.setup).await;
    let clock = Clock::start(probe, &[]).await;
    send(writer, in_flight, job.count).await;
    clock.stop(job.count, Vec::new()).await
}

async fn drain(probe: &Probe, job: &Job, handler: Handler) -> Round {
    preload(probe, &job.setup, job.count).await;
    let mut reader = Reader::connect(probe.address(), &job.setup).await;
    let count = job.count;
    let clock = Clock::start(probe, &[]).await;
    tokio::spawn(async move { reader.handle(handler, count, |_| {}).await })
        .await
        .expect("the worker ends well");
    clock.stop(count, Vec::new()).await
}

/// Enqueues `count` tasks from `senders` concurrent senders.
pub(crate) async fn send(writer: EntryWriter, senders: usize, count: usize) {
    concurrently(senders, count, move |message| {
        let (writer, payload) = (writer.clone(), writer.payload());
        writer.send(message, payload)
    })
    .await;
}

async fn event(probe: &Probe, job: &Job, senders: usize) -> Round {
    let subscription = subscribe(probe, NAME).await;
    let connection = connect(probe.address()).await;
    let (count, setup, payload) = (job.count, job.setup, job.setup.payload());
    let clock = Clock::start(probe, &[]).await;
    let subscriber: JoinHandle<()> = tokio::spawn(async move {
        let events = subscription.into_on_message().take(count);
        let mut events = events.ready_chunks(setup.raw_batch());
        while let Some(events) = events.next().await {
            if setup.handlers_wait {
                join_all(events.iter().map(|_| setup.wait())).await;
            }
            for event in &events {
                black_box(event.get_payload_bytes());
            }
        }
    });
    concurrently(senders, count, move |_| {
        let (mut connection, payload) = (connection.clone(), payload.clone());
        async move {
            let mut publish = redis::cmd("PUBLISH");
            publish.arg(NAME).arg(payload.as_ref());
            let receivers: Value = publish.query_async(&mut connection).await.expect("PUBLISH");
            assert_eq!(receivers, Value::Int(1));
        }
    })
    .await;
    subscriber.await.expect("the subscriber ends well");
    clock.stop(count, Vec::new()).await
}
