//! Memory while many tasks pass: the process's and the server's, ten times on the way.

use std::fs;

use crate::{
    NAME, PAYLOAD, STREAM, ours::Worker, support::RedisServer, support::raw, workload::concurrently,
};

pub(crate) async fn run(server: &RedisServer, tasks: usize) {
    let worker = Worker::start(server).await;
    println!(
        "{:>10} {:>14} {:>14} {:>12}",
        "tasks", "process KiB", "redis KiB", "entries"
    );
    let mut passed = 0;
    row(server, passed).await;
    for step in 1..=10 {
        let count = tasks * step / 10 - passed;
        let client = worker.client();
        concurrently(64, count, move || {
            let client = client.clone();
            async move {
                client.enqueue(NAME, PAYLOAD).await.expect("a task");
            }
        })
        .await;
        passed += count;
        worker.done(passed).await;
        row(server, passed).await;
    }
    worker.stop().await;
}

async fn row(server: &RedisServer, passed: usize) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"))
        .unwrap_or("unknown")
        .trim();
    let info: String = server.query(&["INFO", "memory"]).await;
    let used = info
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:")?.parse::<u64>().ok())
        .unwrap_or_default();
    let entries = raw::len(server, STREAM).await;
    println!(
        "{passed:>10} {resident:>14} {:>14} {entries:>12}",
        used / 1024
    );
}
