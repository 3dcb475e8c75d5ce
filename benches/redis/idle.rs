//! The cost of idle workers, and the time until an idle worker handles a task.

use std::time::{Duration, Instant};

use campanile::Client;
use serde::Serialize;

use crate::{
    Side,
    clock::Clock,
    figures::median,
    open::Arrivals,
    probe::Probe,
    raw_stream::{Adds, Reader},
    setup::{self, Setup},
    worker::{NUMBERED, Worker, connect},
    workload::Handler,
};

/// The number of measured idle times. A task ends each of them.
const WAKES: usize = 5;

/// The time between two tasks of a light load.
const APART: Duration = Duration::from_millis(10);

#[derive(Serialize)]
pub(crate) struct Idle {
    side: Side,
    workers: usize,
    rest_s: f64,
    worker_percent_of_core: f64,
    redis_percent_of_core: f64,
    commands_per_worker_and_s: f64,
    first_task_us: f64,
    light_load_us: f64,
}

pub(crate) async fn run(
    probe: &Probe,
    setup: &Setup,
    workers: usize,
    rest: Duration,
    light: usize,
) -> Vec<Idle> {
    println!(
        "{workers} workers of one group that rest for {:.1} s; then the first task, and one every {APART:?}",
        rest.as_secs_f64()
    );
    println!(
        "{:<5} {:>15} {:>12} {:>14} {:>15} {:>14}",
        "", "% of a core", "% of a core", "commands per", "first task", "light load"
    );
    println!(
        "{:<5} {:>15} {:>12} {:>14} {:>15} {:>14}",
        "", "each worker", "Redis", "worker and s", "p50 µs", "p50 µs"
    );
    let mut rows = Vec::new();
    for side in [Side::Raw, Side::Ours] {
        probe.clear(setup).await;
        let arrivals = Arrivals::new(WAKES * (1 + light));
        let row = match side {
            Side::Raw => raw(probe, setup, workers, rest, arrivals).await,
            Side::Ours => ours(probe, setup, workers, rest, arrivals).await,
        };
        println!(
            "{:<5} {:>15.3} {:>12.2} {:>14.2} {:>15.0} {:>14.0}",
            format!("{side:?}").to_lowercase(),
            row.worker_percent_of_core,
            row.redis_percent_of_core,
            row.commands_per_worker_and_s,
            row.first_task_us,
            row.light_load_us,
        );
        rows.push(row);
    }
    rows
}

async fn ours(
    probe: &Probe,
    setup: &Setup,
    workers: usize,
    rest: Duration,
    arrivals: Arrivals,
) -> Idle {
    let address = probe.address();
    let mut crowd = Vec::new();
    for _ in 0..workers {
        crowd.push(Worker::with(address, setup, Handler::Single, arrivals.clone()).await);
    }
    let client = Client::new(connect(address).await);
    let send = async |message| {
        let call = client.enqueue(NUMBERED, setup.numbered(message));
        call.await.expect("a task");
    };
    let row = row(probe, Side::Ours, workers, rest, &arrivals, send).await;
    for worker in crowd {
        worker.stop().await;
    }
    row
}

async fn raw(
    probe: &Probe,
    setup: &Setup,
    workers: usize,
    rest: Duration,
    arrivals: Arrivals,
) -> Idle {
    let address = probe.address();
    let mut crowd = tokio::task::JoinSet::new();
    for _ in 0..workers {
        let mut reader = Reader::connect(address, setup).await;
        let arrivals = arrivals.clone();
        crowd.spawn(async move {
            let mark = |payload: &[u8]| arrivals.mark(setup::number(payload));
            reader.handle(Handler::Single, usize::MAX, mark).await;
        });
    }
    let adds = Adds::connect(probe, setup).await;
    let send = async |message| adds.clone().send(message, setup.numbered(message)).await;
    let row = row(probe, Side::Raw, workers, rest, &arrivals, send).await;
    crowd.shutdown().await;
    row
}

async fn row(
    probe: &Probe,
    side: Side,
    workers: usize,
    rest: Duration,
    arrivals: &Arrivals,
    send: impl AsyncFn(usize),
) -> Idle {
    // The cost of the start is not measured.
    tokio::time::sleep(rest / 5).await;
    let clock = Clock::start(probe, &[]).await;
    tokio::time::sleep(rest).await;
    let round = clock.stop(workers, Vec::new()).await;

    let latency = async |message| {
        let sent = Instant::now();
        send(message).await;
        let arrived = arrivals.wait(message).await;
        arrived.duration_since(sent).as_secs_f64() * 1e6
    };
    // Sends one task after each idle time, and then further tasks as a light load.
    let each = arrivals.count() / WAKES;
    let (mut first, mut light) = (Vec::new(), Vec::new());
    for message in (0..arrivals.count()).step_by(each) {
        if message > 0 {
            tokio::time::sleep(rest / 5).await;
        }
        first.push(latency(message).await);
        for message in message + 1..message + each {
            tokio::time::sleep(APART).await;
            light.push(latency(message).await);
        }
    }
    let of = |values: Vec<f64>| median(values.into_iter()).expect("a task");
    let seconds = round.elapsed.as_secs_f64();
    let commands: u64 = round.commands.values().sum();
    Idle {
        side,
        workers,
        rest_s: seconds,
        worker_percent_of_core: 100.0 * round.client.as_secs_f64() / seconds / workers as f64,
        redis_percent_of_core: 100.0 * round.redis.as_secs_f64() / seconds,
        commands_per_worker_and_s: commands as f64 / seconds / workers as f64,
        first_task_us: of(first),
        light_load_us: of(light),
    }
}
