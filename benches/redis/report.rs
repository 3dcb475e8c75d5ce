//! What is printed.

use std::{fs, time::Duration};

use crate::{
    support::RedisServer,
    workload::{Round, Workload},
};

/// The machine, the server and the process.
pub(crate) async fn machine(server: &RedisServer) {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let info: String = server.query(&["INFO", "server"]).await;
    let version = info
        .lines()
        .find_map(|line| line.strip_prefix("redis_version:"))
        .unwrap_or("unknown");
    println!("machine: {cores} cores, {model}");
    println!("server:  Redis {version} beside the bench, no persistence");
    println!("process: senders and worker in one, a runtime of 2 threads, payloads of 7 bytes\n");
}

/// The medians of a workload's rounds.
#[derive(Debug)]
pub(crate) struct Row {
    name: &'static str,
    raw: Side,
    ours: Side,
}

#[derive(Debug)]
struct Side {
    rate: f64,
    p50: Option<Duration>,
    p99: Option<Duration>,
}

impl Row {
    pub(crate) fn new(workload: Workload, raw: Vec<Round>, ours: Vec<Round>) -> Self {
        Self {
            name: workload.name,
            raw: Side::of(raw),
            ours: Side::of(ours),
        }
    }

    fn ratio(&self) -> f64 {
        self.ours.rate / self.raw.rate
    }
}

impl Side {
    fn of(mut rounds: Vec<Round>) -> Self {
        for round in &mut rounds {
            round.latencies.sort_unstable();
        }
        let percentile = |percent: usize| {
            let at = |round: &Round| {
                let last = round.latencies.len().checked_sub(1)?;
                Some(round.latencies[last * percent / 100])
            };
            let values: Option<Vec<_>> = rounds.iter().map(at).collect();
            let values = values.filter(|values| !values.is_empty());
            values.map(|values| median(values, Ord::cmp))
        };
        Self {
            p50: percentile(50),
            p99: percentile(99),
            rate: match rounds.is_empty() {
                true => f64::NAN,
                false => median(rounds.iter().map(Round::rate).collect(), f64::total_cmp),
            },
        }
    }
}

fn median<T: Copy>(mut values: Vec<T>, order: impl FnMut(&T, &T) -> std::cmp::Ordering) -> T {
    values.sort_unstable_by(order);
    values[values.len() / 2]
}

/// The table, printed as it grows.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn add(&mut self, row: Row) {
        if self.rows.is_empty() {
            println!(
                "{:<16} {:>9} {:>9} {:>6}   {:>17}   {:>17}",
                "workload", "raw/s", "ours/s", "ratio", "raw p50/p99 µs", "ours p50/p99 µs"
            );
        }
        println!(
            "{:<16} {:>9.0} {:>9.0} {:>6.2}   {:>17}   {:>17}",
            row.name,
            row.raw.rate,
            row.ours.rate,
            row.ratio(),
            latency(&row.raw),
            latency(&row.ours),
        );
        self.rows.push(row);
    }

    pub(crate) fn ratios(&self) {
        println!();
        for row in &self.rows {
            println!("ratio {} {:.2}", row.name, row.ratio());
        }
    }
}

fn latency(side: &Side) -> String {
    match (side.p50, side.p99) {
        (Some(p50), Some(p99)) => format!("{} / {}", p50.as_micros(), p99.as_micros()),
        _ => String::new(),
    }
}
