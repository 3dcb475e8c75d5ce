//! The cost of a message, measured while one setting grows. The other settings have their defaults.

use std::time::Instant;

use serde::Serialize;

use crate::{
    args::Args,
    figures::{Figures, Row},
    measure,
    probe::Probe,
    workload::{Handler, Job, Work, drain},
};

/// A setting that varies. Each point is a value of the setting, with the number of messages in a
/// round.
struct Curve {
    name: &'static str,
    work: Work,
    set: fn(&mut Job, usize),
    points: &'static [(usize, usize)],
}

const TASK: Work = Work::Task { senders: 64 };
const DRAIN: Work = drain(Handler::Single);

const CURVES: [Curve; 6] = [
    Curve {
        name: "senders",
        work: TASK,
        set: |job, value| job.work = job.work.with_senders(value),
        points: &[
            (1, 6_000),
            (4, 20_000),
            (16, 60_000),
            (64, 100_000),
            (256, 100_000),
            (1_024, 100_000),
        ],
    },
    Curve {
        name: "in flight",
        work: DRAIN,
        set: |job, value| job.setup.max_in_flight = value,
        points: &[
            (1, 6_000),
            (8, 30_000),
            (64, 100_000),
            (512, 100_000),
            (4_096, 100_000),
        ],
    },
    Curve {
        name: "routes",
        work: TASK,
        set: |job, value| job.setup.routes = value,
        points: &[
            (10, 100_000),
            (100, 100_000),
            (1_000, 100_000),
            (10_000, 100_000),
        ],
    },
    Curve {
        name: "payload",
        work: TASK,
        set: |job, value| job.setup.payload = value,
        points: &[
            (16, 100_000),
            (256, 100_000),
            (4_096, 40_000),
            (65_536, 4_000),
            (1 << 20, 300),
        ],
    },
    Curve {
        name: "streams",
        work: TASK,
        set: |job, value| job.setup.streams = value,
        points: &[(1, 100_000), (4, 100_000), (16, 60_000), (64, 60_000)],
    },
    Curve {
        name: "backlog",
        work: DRAIN,
        set: |job, value| job.count = value,
        points: &[
            (10, 10),
            (100, 100),
            (1_000, 1_000),
            (10_000, 10_000),
            (100_000, 100_000),
            (1_000_000, 1_000_000),
        ],
    },
];

#[derive(Serialize)]
pub(crate) struct Point {
    curve: &'static str,
    value: usize,
    #[serde(flatten)]
    row: Row,
}

pub(crate) async fn run(probe: &Probe, args: &Args) -> Vec<Point> {
    let started = Instant::now();
    println!(
        "{:<10} {:>9}  {:>19}  {:>19}  {:>6}",
        "", "", "raw µs", "ours µs", ""
    );
    println!(
        "{:<10} {:>9}  {:>9} {:>9}  {:>9} {:>9}  {:>6}",
        "curve", "value", "time", "CPU", "time", "CPU", "ratio"
    );
    let mut points = Vec::new();
    for curve in CURVES {
        for &(value, count) in curve.points {
            let mut job = Job {
                name: curve.name,
                work: curve.work,
                count: (count / args.select((1, 4, 100))).max(10),
                rate: None,
                setup: args.setup,
            };
            (curve.set)(&mut job, value);
            // A test run skips the large backlogs.
            if !args.measured && job.count > 1_000 {
                continue;
            }
            // Short jobs vary more from round to round.
            let rounds = match job.count {
                _ if !args.measured => 1,
                0..=1_000 => 9,
                100_001.. => 1,
                _ => 3,
            };
            let row = measure(probe, &job, rounds, args.ours_only).await;
            println!(
                "{:<10} {value:>9}  {}  {}  {:>6}",
                curve.name,
                cost(row.raw.as_ref()),
                cost(Some(&row.ours)),
                row.ratio
                    .map_or(String::new(), |ratio| format!("{ratio:.2}"))
            );
            points.push(Point {
                curve: curve.name,
                value,
                row,
            });
        }
    }
    println!("\nall in {:.0} s", started.elapsed().as_secs_f64());
    points
}

/// The cost of a message: wall time, and CPU time of senders and workers.
fn cost(side: Option<&Figures>) -> String {
    side.map_or(format!("{:>19}", ""), |side| {
        format!("{:>9.2} {:>9.2}", 1e6 / side.per_second, side.client_cpu_us)
    })
}
