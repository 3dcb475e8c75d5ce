//! Memory while many tasks pass: the process's and the server's, ten times on the way.

use crate::{STREAM, ours, probe::Probe, process, setup::Setup, support::raw, worker::Worker};

pub(crate) async fn run(probe: &Probe, setup: &Setup, tasks: usize) {
    probe.clear(setup).await;
    process::reset_peak(std::process::id());
    let worker = Worker::start(&probe.server.url(), setup).await;
    println!(
        "{:>10} {:>14} {:>14} {:>14} {:>12}",
        "tasks", "process KiB", "peak KiB", "redis KiB", "entries"
    );
    let mut passed = 0;
    row(probe, passed).await;
    for step in 1..=10 {
        let count = tasks * step / 10 - passed;
        ours::send(worker.sender(), 64, count).await;
        passed += count;
        worker.done(passed).await;
        row(probe, passed).await;
    }
    worker.stop().await;
}

async fn row(probe: &Probe, passed: usize) {
    let pid = std::process::id();
    let info: String = probe.query(&["INFO", "memory"]).await;
    let used = info
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:")?.parse::<u64>().ok())
        .unwrap_or_default();
    let entries = raw::len(&probe.server, STREAM).await;
    println!(
        "{passed:>10} {:>14} {:>14} {:>14} {entries:>12}",
        process::resident(pid),
        process::peak(pid),
        used / 1024
    );
}
