//! The printed report.

use std::{fs, time::Duration};

use crate::{
    nats_server::NatsServer,
    peer::Peer,
    probe::Probe,
    workload::{Job, Round},
};

/// The crates whose versions matter, as they were compiled.
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

/// The machine, the servers, the crates and the process.
pub(crate) async fn machine(redis: &Probe, nats: &NatsServer) {
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
        .map(|name| format!("{name} {}", locked(name)))
        .collect();
    println!("machine: {cores} cores, {model}");
    println!("servers: Redis {redis} without persistence, NATS {nats} with its streams in memory");
    println!("crates:  {}", crates.join(", "));
    println!("process: senders and worker in one, a runtime of 2 threads, payloads of 7 bytes");
}

/// The version of a crate in the lock file of this build.
fn locked(name: &str) -> &'static str {
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
    rate: f64,
    /// Microseconds of CPU time per message.
    client: f64,
    server: f64,
}

impl Row {
    pub(crate) fn new(peer: Peer, job: &Job, rounds: &[Round]) -> Self {
        let each = |time: Duration, round: &Round| time.as_secs_f64() * 1e6 / round.count as f64;
        Self {
            peer,
            workload: job.name,
            rate: median(
                (rounds.iter()).map(|round| round.count as f64 / round.elapsed.as_secs_f64()),
            ),
            client: median(rounds.iter().map(|round| each(round.client, round))),
            server: median(rounds.iter().map(|round| each(round.redis, round))),
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
    begun: bool,
}

impl Report {
    /// Adds the figures of all peers for one workload.
    pub(crate) fn add(&mut self, rows: Vec<Row>) {
        if !self.begun {
            self.begun = true;
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
            let ratio = raw.map_or(String::new(), |raw| format!("{:.2}", row.rate / raw.rate));
            println!(
                "{:<22} {:<9} {:>9.0} {:>7} {:>10.1} {:>10.1}",
                row.peer.name(),
                row.workload,
                row.rate,
                ratio,
                row.client,
                row.server
            );
        }
    }
}
