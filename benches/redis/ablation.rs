//! Measures each mechanism that exists for speed alone, and the cost of the counters that each
//! worker keeps. Each workload runs with and without the mechanism.

use campanile::ablation::Mechanism;
use serde::Serialize;

use crate::{
    Side,
    args::Args,
    figures::{Figures, Row},
    probe::Probe,
    report, round,
    workload::find_workload,
};

/// The mechanisms, each with the workloads whose speed it should change.
const MECHANISMS: [(Mechanism, &str, &[&str]); 5] = [
    (
        Mechanism::AcknowledgeWithRead,
        "acknowledge with the read",
        &["task-1", "rpc-fast-1", "rpc-reliable-1"],
    ),
    (Mechanism::ReadAhead, "read ahead", &["task-64", "drain"]),
    // Plain reads have an effect only with `--streams`.
    (Mechanism::PlainReads, "plain reads", &["task-64"]),
    (
        Mechanism::KeptTasks,
        "kept tasks",
        &["task-64", "drain", "rpc-fast-64"],
    ),
    (
        Mechanism::WorkerCounts,
        "counts of workers",
        &["task-1", "task-64", "drain"],
    ),
];

#[derive(Serialize)]
pub(crate) struct MechanismRow {
    mechanism: &'static str,
    workload: &'static str,
    /// The number of messages in a round.
    count: usize,
    /// The messages per second with the mechanism, divided by those without it.
    ratio: Option<f64>,
    off: Option<Figures>,
    on: Figures,
}

/// Measures every mechanism in rounds that alternate off, on, off, on.
pub(crate) async fn run(probe: &Probe, args: &Args) -> Vec<MechanismRow> {
    report::print_heading();
    let mut rows = Vec::new();
    for (mechanism, name, workloads) in MECHANISMS {
        println!("{name}");
        for workload in workloads {
            let workload = find_workload(workload).expect("a workload of this bench");
            for job in args.jobs_of(&workload) {
                let (mut off, mut on) = (Vec::new(), Vec::new());
                for _ in 0..args.rounds {
                    mechanism.turn_off_alone();
                    off.push(round(probe, Side::Ours, &job).await);
                    Mechanism::turn_all_on();
                    on.push(round(probe, Side::Ours, &job).await);
                }
                let row = Row::new(&job, off, on);
                report::print_lines(&row, ["off", "on"]);
                rows.push(MechanismRow {
                    mechanism: name,
                    workload: row.workload,
                    count: row.count,
                    ratio: row.ratio,
                    off: row.raw,
                    on: row.ours,
                });
            }
        }
    }
    rows
}
