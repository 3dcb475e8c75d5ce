//! Prints the report, and writes it to a file.

use std::{fs, path::Path};

use serde::Serialize;

use crate::{
    figures::{Figures, Row},
    machine::Machine,
    probe::Probe,
    setup::Setup,
};

/// The machine, the server and the setup of the measurements.
#[derive(Debug, Serialize)]
pub(crate) struct Environment {
    machine: Machine,
    redis_version: String,
    /// False under `cargo test`, where the figures mean nothing.
    measured: bool,
    setup: Setup,
}

impl Environment {
    pub(crate) async fn of(probe: &Probe, setup: Setup, measured: bool) -> Self {
        let info: String = probe.query(&["INFO", "server"]).await;
        let version = info
            .lines()
            .find_map(|line| line.strip_prefix("redis_version:"));
        Self {
            machine: Machine::here(),
            redis_version: version.unwrap_or("unknown").to_owned(),
            measured,
            setup,
        }
    }

    pub(crate) fn print(&self) {
        let setup = &self.setup;
        let persistence = match setup.aof {
            true => "an append-only file, synced every second",
            false => "no persistence",
        };
        let worker = match setup.processes {
            0 => "senders and worker in one".to_owned(),
            processes => format!("senders in one, the worker in {processes} others"),
        };
        println!("machine: {}", self.machine);
        println!(
            "server:  Redis {} beside the bench, {persistence}",
            self.redis_version
        );
        if setup.delay_us > 0 {
            println!(
                "network: a proxy that adds a round trip of {} µs",
                setup.delay_us
            );
        }
        if setup.tls {
            println!("network: TLS between the server and the rest");
        }
        println!("process: {worker}, a runtime of 2 threads each");
        let handlers = match setup.handlers_wait {
            true => "handlers that wait once",
            false => "handlers that do nothing",
        };
        println!(
            "setup:   payloads of {} bytes, {} in flight, {} routes, {} streams, {handlers}\n",
            setup.payload, setup.max_in_flight, setup.routes, setup.streams
        );
        if !self.measured {
            println!("built as a test: it runs, and the figures mean nothing\n");
        }
    }
}

/// The table, printed as it grows.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new() -> Self {
        print_heading();
        Self { rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, row: Row) {
        print_lines(&row, ["raw", "ours"]);
        self.rows.push(row);
    }

    /// Prints the ratios of the workloads without a fixed rate.
    pub(crate) fn print_ratios(&self) {
        println!();
        for row in self.rows.iter().filter(|row| row.rate.is_none()) {
            if let Some(ratio) = row.ratio {
                println!("ratio {} {ratio:.2}", row.workload);
            }
        }
    }
}

/// Prints the heading of the table.
pub(crate) fn print_heading() {
    println!(
        "{:<16} {:>8} {:>4} {:>9} {:>6} {:>7} {:>7} {:>6} {:>7}  latency in µs",
        "", "sent", "", "", "", "client", "Redis", "comm-", "peak"
    );
    println!(
        "{:<16} {:>8} {:>4} {:>9} {:>6} {:>7} {:>7} {:>6} {:>7} {:>8} {:>8} {:>8} {:>8}",
        "workload",
        "per s",
        "",
        "per s",
        "ratio",
        "µs CPU",
        "µs CPU",
        "ands",
        "MiB",
        "p50",
        "p90",
        "p99",
        "p99.9"
    );
}

/// Prints the two lines of a row, one for each of the named sides.
pub(crate) fn print_lines(row: &Row, [raw, ours]: [&str; 2]) {
    let sent = row.rate.map_or("at will".into(), |rate| rate.to_string());
    if let Some(figures) = &row.raw {
        print_line([row.workload, &sent, raw], figures, None);
    }
    print_line([row.workload, &sent, ours], &row.ours, row.ratio);
}

fn print_line([workload, sent, side]: [&str; 3], figures: &Figures, ratio: Option<f64>) {
    let latency = figures.latency_us.map_or(String::new(), |it| {
        let values = [it.p50, it.p90, it.p99, it.p99_9];
        values.map(|value| format!(" {value:>8.0}")).concat()
    });
    println!(
        "{workload:<16} {sent:>8} {side:>4} {:>9.0} {:>6} {:>7.1} {:>7.1} {:>6.2} {:>7.1}{latency}",
        figures.per_second,
        ratio.map_or(String::new(), |ratio| format!("{ratio:.2}")),
        figures.client_cpu_us,
        figures.redis_cpu_us,
        figures.commands,
        figures.peak_kib as f64 / 1024.0,
    );
}

/// The content of a JSON file: the environment and the measurements.
#[derive(Serialize)]
struct JsonFile<'a, T> {
    #[serde(flatten)]
    environment: &'a Environment,
    rows: &'a [T],
}

pub(crate) fn write_json(path: &Path, environment: &Environment, rows: &[impl Serialize]) {
    let text = serde_json::to_string_pretty(&JsonFile { environment, rows });
    if let Err(error) = fs::write(path, text.expect("valid JSON") + "\n") {
        panic!("{} is not written: {error}", path.display());
    }
}
