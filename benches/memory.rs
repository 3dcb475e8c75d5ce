//! Tasks over the memory transport, compared with a channel: the same work, in alternating rounds
//! of one run.
//!
//! ```sh
//! cargo bench --bench memory
//! ```
//!
//! 64 senders and one worker share a runtime of two threads. *Ours* is a client and a served
//! router; a round includes all acknowledgements. *Raw* is a tokio channel whose reader spawns a
//! task for each message. The channel encodes nothing, has no groups, and stores nothing. Figures
//! are medians of the rounds.

mod machine;

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use campanile::{Client, Router, transport::memory::Memory};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

const NAME: &str = "bench.work";
const PAYLOAD: &str = "payload";
const SENDERS: usize = 64;
/// The worker's `max_in_flight`. As on Redis, a larger number is not faster.
const MAX_IN_FLIGHT: usize = 1024;

fn main() {
    // `cargo test` does not pass `--bench`, and only checks that the bench runs.
    let measured = std::env::args().any(|word| word == "--bench");
    let (rounds, count) = if measured { (9, 640_000) } else { (1, 640) };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("the runtime starts");

    println!("machine: {}", machine::Machine::here());
    let (mut raw, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        raw.push(count as f64 / runtime.block_on(channel(count)).as_secs_f64());
        ours.push(count as f64 / runtime.block_on(memory(count)).as_secs_f64());
    }
    let (raw, ours) = (median(raw), median(ours));
    println!("{SENDERS} senders, {count} tasks, medians of {rounds} rounds, tasks per second");
    println!("raw  {raw:>10.0}");
    println!("ours {ours:>10.0}");
    println!("\nratio memory-{SENDERS} {:.2}", ours / raw);
}

async fn memory(count: usize) -> Duration {
    let memory = Memory::new().max_in_flight(MAX_IN_FLIGHT);
    let app: Router = Router::new().task(NAME, async |payload: Bytes| drop(black_box(payload)));
    let stop = CancellationToken::new();
    let served = tokio::spawn(
        campanile::serve(memory.clone(), app)
            .with_graceful_shutdown(stop.clone().cancelled_owned())
            .into_future(),
    );
    let client = Client::new(memory.clone());
    let started = Instant::now();
    send(count, move || {
        let call = client.enqueue(NAME, PAYLOAD);
        async { drop(black_box(call.await.expect("a task"))) }
    })
    .await;
    wait_until(|| memory.counts().done >= count as u64).await;
    let elapsed = started.elapsed();
    stop.cancel();
    let ended = served.await.expect("the worker does not panic");
    ended.expect("the worker ends well");
    elapsed
}

async fn channel(count: usize) -> Duration {
    let (sender, mut messages) = mpsc::channel::<Bytes>(MAX_IN_FLIGHT);
    let done = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let worker = tokio::spawn({
        let done = done.clone();
        async move {
            while let Some(payload) = messages.recv().await {
                let done = done.clone();
                tokio::spawn(async move {
                    black_box(payload);
                    done.fetch_add(1, Ordering::Relaxed);
                });
            }
        }
    });
    send(count, move || {
        let sender = sender.clone();
        async move { drop(sender.send(Bytes::from_static(PAYLOAD.as_bytes())).await) }
    })
    .await;
    worker.await.expect("the worker does not panic");
    wait_until(|| done.load(Ordering::Relaxed) >= count).await;
    started.elapsed()
}

/// Sends `count` messages in total from all senders.
async fn send<F>(count: usize, message: impl Fn() -> F + Clone + Send + 'static)
where
    F: Future<Output = ()> + Send,
{
    let mut senders = JoinSet::new();
    for sender in 0..SENDERS {
        let message = message.clone();
        senders.spawn(async move {
            for _ in (sender..count).step_by(SENDERS) {
                message().await;
            }
        });
    }
    senders.join_all().await;
}

async fn wait_until(reached: impl Fn() -> bool) {
    while !reached() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
