//! Campanile against a raw loop, on a real Redis: the same work, in the same run, by alternation.
//!
//! ```sh
//! cargo bench --bench redis                                # every workload
//! cargo bench --bench redis -- --quick                     # the same within a minute
//! cargo bench --bench redis -- --workload task-64 --rounds 9
//! cargo bench --bench redis -- --workload drain --ours-only  # for a profiler
//! cargo bench --bench redis -- --soak 1000000              # memory while so many tasks pass
//! ```
//!
//! The *raw* side is bare redis-rs as one would write it by hand for this one purpose, in
//! `redis/raw.rs`. *Ours* is a client, and a served router with one layer and a task per handler,
//! in `redis/ours.rs`. Senders and worker share one process and one runtime of two threads, Redis
//! runs beside them, payloads are 7 bytes. A round ends when every acknowledgement is confirmed;
//! that the group has nothing pending then is asserted. Figures are medians of rounds that
//! alternate raw, ours, raw, ours, so that both meet the same weather. Under `cargo test` it only
//! shows that everything runs.

#[path = "redis/args.rs"]
mod args;
#[path = "redis/ours.rs"]
mod ours;
#[path = "redis/raw.rs"]
mod raw;
#[path = "redis/report.rs"]
mod report;
#[path = "redis/soak.rs"]
mod soak;
#[path = "../tests/support/mod.rs"]
mod support;
#[path = "redis/workload.rs"]
mod workload;

use std::time::Duration;

use crate::{
    args::Args,
    report::{Report, Row},
    support::{RedisServer, raw as server},
    workload::{Round, Work, Workload},
};

const STREAM: &str = "app_stream";
const GROUP: &str = "app_group";
const NAME: &str = "bench.work";
const PAYLOAD: &str = "payload";

/// How long one round may take before it counts as stuck.
const STUCK: Duration = Duration::from_secs(300);

fn main() {
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(wrong) => {
            eprintln!("{wrong}");
            std::process::exit(2)
        }
    };
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("the runtime starts")
        .block_on(run(args));
}

async fn run(args: Args) {
    let server = RedisServer::start().await;
    report::machine(&server).await;
    if let Some(tasks) = args.soak {
        return soak::run(&server, tasks).await;
    }
    if !args.measured {
        println!("built as a test: it runs, and the figures mean nothing");
    }
    let mut report = Report::default();
    for &workload in &args.workloads {
        let count = args.count(&workload);
        let (mut raw, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..args.rounds {
            if !args.ours_only {
                raw.push(round(&server, Side::Raw, workload, count).await);
            }
            ours.push(round(&server, Side::Ours, workload, count).await);
        }
        report.add(Row::new(workload, raw, ours));
    }
    report.ratios();
}

#[derive(Debug, Clone, Copy)]
enum Side {
    Raw,
    Ours,
}

async fn round(server: &RedisServer, side: Side, workload: Workload, count: usize) -> Round {
    server.command(&["FLUSHALL"]).await;
    server
        .command(&["XGROUP", "CREATE", STREAM, GROUP, "0", "MKSTREAM"])
        .await;
    let work = async {
        match side {
            Side::Raw => raw::round(server, workload, count).await,
            Side::Ours => ours::round(server, workload, count).await,
        }
    };
    let Ok(round) = tokio::time::timeout(STUCK, work).await else {
        panic!("{} ({side:?}) is stuck", workload.name);
    };
    if !matches!(workload.work, Work::Event { .. }) {
        assert!(
            server::drained(server, STREAM, GROUP).await,
            "{} ({side:?}) left something unread or pending",
            workload.name
        );
    }
    round
}
