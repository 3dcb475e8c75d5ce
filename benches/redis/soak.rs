//! The memory of this process and of the server while many tasks pass, measured ten times.

use serde::Serialize;

use crate::{STREAM, ours, probe::Probe, process, setup::Setup, support::raw, worker::Worker};

/// The memory in KiB and the numbers of entries after a number of tasks.
#[derive(Serialize)]
pub(crate) struct Step {
    tasks: usize,
    resident_kib: u64,
    peak_kib: u64,
    redis_kib: u64,
    entries: usize,
}

pub(crate) async fn run(probe: &Probe, setup: &Setup, tasks: usize) -> Vec<Step> {
    probe.clear(setup).await;
    process::reset_peak(std::process::id());
    let worker = Worker::start(probe.address(), setup).await;
    println!(
        "{:>10} {:>14} {:>14} {:>14} {:>12}",
        "tasks", "process KiB", "peak KiB", "redis KiB", "entries"
    );
    let mut passed = 0;
    let mut steps = vec![measure_step(probe, passed).await];
    for tenth in 1..=10 {
        let count = tasks * tenth / 10 - passed;
        ours::send(worker.sender(), 64, count).await;
        passed += count;
        worker.wait_until_done(passed).await;
        steps.push(measure_step(probe, passed).await);
    }
    worker.stop().await;
    steps
}

/// Measures and prints the memory after a number of tasks.
async fn measure_step(probe: &Probe, tasks: usize) -> Step {
    let pid = std::process::id();
    let info: String = probe.query(&["INFO", "memory"]).await;
    let used = info
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:")?.parse::<u64>().ok());
    let step = Step {
        tasks,
        resident_kib: process::resident(pid),
        peak_kib: process::peak(pid),
        redis_kib: used.unwrap_or_default() / 1024,
        entries: raw::len(probe.server(), STREAM).await,
    };
    println!(
        "{:>10} {:>14} {:>14} {:>14} {:>12}",
        step.tasks, step.resident_kib, step.peak_kib, step.redis_kib, step.entries
    );
    step
}
