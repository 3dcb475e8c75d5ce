//! Campanile against a raw loop, on a real Redis: the same work, in the same run, by alternation.
//!
//! ```sh
//! cargo bench --bench redis                                # every workload
//! cargo bench --bench redis -- --quick                     # the same within a minute
//! cargo bench --bench redis -- --workload task-64 --rounds 9 --json task.json
//! cargo bench --bench redis -- --workload drain --ours-only  # for a profiler
//! ```
//!
//! The *raw* side is bare redis-rs as one would write it by hand for this one purpose, in
//! `redis/raw.rs`. *Ours* is a client, and a served router with one layer and a task per handler,
//! in `redis/ours.rs`. Senders and worker share one process and one runtime of two threads, Redis
//! runs beside them, payloads are 7 bytes. A round ends when every acknowledgement is confirmed;
//! that the group has nothing pending then is asserted. Figures are medians of rounds that
//! alternate raw, ours, raw, ours, so that both meet the same weather. Under `cargo test` it only
//! shows that everything runs.

mod machine;
#[path = "../tests/support/mod.rs"]
mod support;

#[path = "redis/args.rs"]
mod args;
#[path = "redis/clock.rs"]
mod clock;
#[path = "redis/distant.rs"]
mod distant;
#[path = "redis/figures.rs"]
mod figures;
#[path = "redis/open.rs"]
mod open;
#[path = "redis/ours.rs"]
mod ours;
#[path = "redis/probe.rs"]
mod probe;
#[path = "redis/process.rs"]
mod process;
#[path = "redis/raw.rs"]
mod raw;
#[path = "redis/raw_rpc.rs"]
mod raw_rpc;
#[path = "redis/raw_stream.rs"]
mod raw_stream;
#[path = "redis/report.rs"]
mod report;
#[path = "redis/setup.rs"]
mod setup;
#[path = "redis/soak.rs"]
mod soak;
#[path = "redis/worker.rs"]
mod worker;
#[path = "redis/workload.rs"]
mod workload;

use std::{process::exit, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    args::{Args, Mode},
    figures::Row,
    probe::Probe,
    report::{Report, Scene},
    workload::{Job, Round, Work},
};

const STREAM: &str = "app_stream";
const GROUP: &str = "app_group";
const NAME: &str = "bench.work";

/// How long one round may take before it counts as stuck.
const STUCK: Duration = Duration::from_secs(300);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("the runtime starts");
    let mut words = std::env::args().skip(1).peekable();
    if words.next_if_eq(distant::WORKER).is_some() {
        let order = words.next().expect("an order");
        runtime.block_on(distant::work(&order));
        // A thread still waits for what nobody will say any more.
        exit(0);
    }
    match Args::parse(words) {
        Ok(args) => runtime.block_on(run(args)),
        Err(wrong) => {
            eprintln!("{wrong}");
            exit(2)
        }
    }
}

async fn run(args: Args) {
    let probe = Probe::start(args.setup.aof).await;
    let scene = Scene::of(&probe, args.setup, args.measured).await;
    scene.print();
    match args.mode {
        Mode::Soak(tasks) => soak::run(&probe, &args.setup, tasks).await,
        _ => workloads(&probe, &args, scene).await,
    }
}

async fn workloads(probe: &Probe, args: &Args, scene: Scene) {
    let mut report = Report::new(scene);
    for job in args.jobs() {
        report.add(measure(probe, &job, args.rounds, args.ours_only).await);
    }
    report.ratios();
    if let Some(path) = &args.json {
        report::write_json(path, &report);
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Side {
    Raw,
    Ours,
}

/// So many rounds of each side, in turn.
async fn measure(probe: &Probe, job: &Job, rounds: usize, ours_only: bool) -> Row {
    let (mut raw, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        if !ours_only {
            raw.push(round(probe, Side::Raw, job).await);
        }
        ours.push(round(probe, Side::Ours, job).await);
    }
    Row::new(job, raw, ours)
}

async fn round(probe: &Probe, side: Side, job: &Job) -> Round {
    probe.clear(&job.setup).await;
    let work = async {
        match side {
            _ if job.setup.processes > 0 => distant::round(probe, side, job).await,
            Side::Raw => raw::round(probe, job).await,
            Side::Ours => ours::round(probe, job).await,
        }
    };
    let Ok(round) = tokio::time::timeout(STUCK, work).await else {
        panic!("{} ({side:?}) is stuck", job.name);
    };
    let complete = match job.work {
        Work::Event { .. } => true,
        Work::EnqueueAll { .. } => probe.entries(&job.setup).await == job.count,
        _ => probe.is_drained(&job.setup).await,
    };
    assert!(
        complete,
        "{} ({side:?}) left something unsent, unread or pending",
        job.name
    );
    round
}
