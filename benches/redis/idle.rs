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
    raw_stream::{EntryWriter, Reader},
    setup::{self, Setup},
    worker::{NUMBERED_TASK, Worker, connect},
    workload::Handler,
};

/// The number of measured idle times. A task ends each of them.
const IDLE_TIMES: usize = 5;

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
    light_tasks: usize,
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
        let arrivals = Arrivals::new(IDLE_TIMES * (1 + light_tasks));
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
    let mut running = Vec::new();
    for _ in 0..workers {
        running.push(Worker::start_with(address, setup, Handler::Single, arrivals.clone()).await);
    }
    let client = Client::new(connect(address).await);
    let send = async |message| {
        let call = client.enqueue(NUMBERED_TASK, setup.numbered(message));
        call.await.expect("a task");
    };
    let row = measure(probe, Side::Ours, workers, rest, &arrivals, send).await;
    for worker in running {
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
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..workers {
        let mut reader = Reader::connect(address, setup).await;
        let arrivals = arrivals.clone();
        running.spawn(async move {
            let mark = |payload: &[u8]| arrivals.mark(setup::number(payload));
            reader.handle(Handler::Single, usize::MAX, mark).await;
        });
    }
    let writer = EntryWriter::connect(probe, setup).await;
    let send = async |message| writer.clone().send(message, setup.numbered(message)).await;
    let row = measure(probe, Side::Raw, workers, rest, &arrivals, send).await;
    running.shutdown().await;
    row
}

/// Measures idle workers, and then the latencies of single tasks.
async fn measure(
    probe: &Probe,
    side: Side,
    workers: usize,
    rest: Duration,
    arrivals: &Arrivals,
    send: impl AsyncFn(usize),
) -> Idle {
    // The workers have just started. The cost of their start is not measured.
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
    let tasks_per_idle_time = arrivals.count() / IDLE_TIMES;
    let (mut first, mut light) = (Vec::new(), Vec::new());
    for message in (0..arrivals.count()).step_by(tasks_per_idle_time) {
        if message > 0 {
            tokio::time::sleep(rest / 5).await;
        }
        first.push(latency(message).await);
        for message in message + 1..message + tasks_per_idle_time {
            tokio::time::sleep(APART).await;
            light.push(latency(message).await);
        }
    }
    let median_of = |values: Vec<f64>| median(values.into_iter()).expect("a task");
    let seconds = round.elapsed.as_secs_f64();
    let commands: u64 = round.commands.values().sum();
    Idle {
        side,
        workers,
        rest_s: seconds,
        worker_percent_of_core: 100.0 * round.client_cpu.as_secs_f64() / seconds / workers as f64,
        redis_percent_of_core: 100.0 * round.server_cpu.as_secs_f64() / seconds,
        commands_per_worker_and_s: commands as f64 / seconds / workers as f64,
        first_task_us: median_of(first),
        light_load_us: median_of(light),
    }
}
