//! The printed report.

use std::{fs, time::Duration};

use crate::{
    nats_server::NatsServer,
    peer::Peer,
    probe::Probe,
    workload::{Job, Round},
};

/// The crates whose versions are printed.
const CRATES: [&str; 10] = [
    "campanile",
    "redis",
    "apalis",
    "apalis-redis",
    "ruststream",
    "ruststream-fred",
    "fred",
    "oxana",
    "bullmq-official",
    "async-nats",
];

/// Prints the machine, the servers, the crates and the process.
pub(crate) async fn print_machine(redis: &Probe, nats: &NatsServer) {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let info: String = redis.query(&["INFO", "server"]).await;
    let redis = info
        .lines()
        .find_map(|line| line.strip_prefix("redis_version:"))
        .unwrap_or("unknown");
    let client = async_nats::connect(nats.url()).await.expect("a connection");
    let nats = client.server_info().version;
    let crates: Vec<_> = (CRATES.iter())
        .map(|name| format!("{name} {}", locked_version(name)))
        .collect();
    println!("machine: {cores} cores, {model}");
    println!("servers: Redis {redis} without persistence, NATS {nats} with its streams in memory");
    println!("crates:  {}", crates.join(", "));
    println!("process: senders and worker in one, a runtime of 2 threads, payloads of 7 bytes");
}

/// The version of a crate in the lock file of this build.
fn locked_version(name: &str) -> &'static str {
    let lock = include_str!("../Cargo.lock");
    let package = format!("\nname = \"{name}\"\nversion = \"");
    (lock.split_once(&package))
        .and_then(|(_, rest)| rest.split_once('"'))
        .map_or("unknown", |(version, _)| version)
}

/// The medians of a peer's rounds of a workload.
#[derive(Debug)]
pub(crate) struct Row {
    peer: Peer,
    workload: &'static str,
    messages_per_second: f64,
    /// The CPU time of a message in microseconds, in the senders and the worker.
    client_cpu_us: f64,
    /// The CPU time of a message in microseconds, in the server.
    server_cpu_us: f64,
}

impl Row {
    pub(crate) fn new(peer: Peer, job: &Job, rounds: &[Round]) -> Self {
        let per_message_us =
            |time: Duration, round: &Round| time.as_secs_f64() * 1e6 / round.count as f64;
        Self {
            peer,
            workload: job.name,
            messages_per_second: median(
                (rounds.iter()).map(|round| round.count as f64 / round.elapsed.as_secs_f64()),
            ),
            client_cpu_us: median(
                rounds
                    .iter()
                    .map(|round| per_message_us(round.client_cpu, round)),
            ),
            server_cpu_us: median(
                rounds
                    .iter()
                    .map(|round| per_message_us(round.server_cpu, round)),
            ),
        }
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The table, printed as it grows.
#[derive(Debug, Default)]
pub(crate) struct Report {
    has_heading: bool,
}

impl Report {
    /// Adds the figures of all peers for one workload.
    pub(crate) fn add(&mut self, rows: Vec<Row>) {
        if !self.has_heading {
            self.has_heading = true;
            println!(
                "\n{:<22} {:<9} {:>9} {:>7} {:>10} {:>10}",
                "", "", "", "to raw", "client", "server"
            );
            println!(
                "{:<22} {:<9} {:>9} {:>7} {:>10} {:>10}",
                "peer", "workload", "per s", "", "µs CPU", "µs CPU"
            );
        }
        let raw = rows.iter().find(|row| row.peer == Peer::Raw);
        for row in &rows {
            let ratio = raw.map_or(String::new(), |raw| {
                format!("{:.2}", row.messages_per_second / raw.messages_per_second)
            });
            println!(
                "{:<22} {:<9} {:>9.0} {:>7} {:>10.1} {:>10.1}",
                row.peer.name(),
                row.workload,
                row.messages_per_second,
                ratio,
                row.client_cpu_us,
                row.server_cpu_us
            );
        }
    }
}
