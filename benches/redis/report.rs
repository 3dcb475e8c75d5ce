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
    /// Microseconds of CPU time per message.
    client: f64,
    redis: f64,
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
            median(values?, Ord::cmp)
        };
        let number = |figure: &dyn Fn(&Round) -> f64| {
            median(rounds.iter().map(figure).collect(), f64::total_cmp).unwrap_or(f64::NAN)
        };
        let each = |time: Duration, round: &Round| time.as_secs_f64() * 1e6 / round.count as f64;
        Self {
            rate: number(&Round::rate),
            client: number(&|round| each(round.client, round)),
            redis: number(&|round| each(round.redis, round)),
            p50: percentile(50),
            p99: percentile(99),
        }
    }
}

fn median<T: Copy>(
    mut values: Vec<T>,
    order: impl FnMut(&T, &T) -> std::cmp::Ordering,
) -> Option<T> {
    values.sort_unstable_by(order);
    values.get(values.len() / 2).copied()
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
                "{:<16} {:>9} {:>9} {:>6}  {:>13}  {:>13}  {:>13}  {:>13}",
                "", "raw", "ours", "", "raw µs CPU", "ours µs CPU", "raw µs", "ours µs"
            );
            println!(
                "{:<16} {:>9} {:>9} {:>6}  {:>13}  {:>13}  {:>13}  {:>13}",
                "workload",
                "per s",
                "per s",
                "ratio",
                "client/Redis",
                "client/Redis",
                "p50/p99",
                "p50/p99"
            );
        }
        println!(
            "{:<16} {:>9.0} {:>9.0} {:>6.2}  {:>13}  {:>13}  {:>13}  {:>13}",
            row.name,
            row.raw.rate,
            row.ours.rate,
            row.ratio(),
            cpu(&row.raw),
            cpu(&row.ours),
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

fn cpu(side: &Side) -> String {
    format!("{:.1} / {:.1}", side.client, side.redis)
}

fn latency(side: &Side) -> String {
    match (side.p50, side.p99) {
        (Some(p50), Some(p99)) => format!("{} / {}", p50.as_micros(), p99.as_micros()),
        _ => String::new(),
    }
}
