//! Campanile compared with a raw loop, on a real Redis: the same work, in alternating rounds of one
//! run.
//!
//! ```sh
//! cargo bench --bench redis                                # every workload
//! cargo bench --bench redis -- --quick                     # the same within a minute
//! cargo bench --bench redis -- --workload task-64 --rounds 9 --json task.json
//! cargo bench --bench redis -- --in-flight 4096 --handler nothing
//! cargo bench --bench redis -- --workload drain --ours-only  # for a profiler
//! cargo bench --bench redis -- --rate 20000                # sent at a fixed rate
//! cargo bench --bench redis -- --workload task-64 --rates 5000,20000,50000,100000 --plot latency.svg
//! cargo bench --bench redis -- --curves curves.json        # the cost of a message against six quantities
//! cargo bench --bench redis --features ablation -- --ablation  # what each mechanism is worth
//! cargo bench --bench redis -- --soak 1000000              # memory while a million tasks pass
//! cargo bench --bench redis -- --shutdown                  # with 10,000 deliveries held
//! cargo bench --bench redis -- --idle                      # 100 workers that have nothing to do
//! cargo bench --bench redis -- --cluster                   # clusters and partitions, and a model of both
//! ```
//!
//! All commands take `--quick`, and these options for the messages and the worker:
//!
//! ```text
//! --payload <bytes>     7 by default
//! --in-flight <n>       the worker's `max_in_flight`, 64 by default, as for applications; also the
//!                       limit of COUNT on the raw side
//! --handler <which>     wait-once (the default): each handler waits once for a spawned task, on
//!                       both sides; or nothing: handlers do nothing
//! --routes <n>          the number of names, used in turn
//! --streams <n>         the number of streams, used in turn, all served by the worker
//! --partitions <n>      the number of partitions of one stream, instead of --streams
//! --bound <n>           the maximum number of messages that wait on a stream: our senders wait for
//!                       room; compare with a run without this option
//! --processes <1 to 4>  run the worker in this number of child processes; for tasks and drains
//! --delay-us <n>        a network with this round trip, by a proxy in a separate process
//! --senders <n>         the number of senders, or of requests in flight
//! --backlog <n>         the number of messages that a drain begins with
//! --json <file>         write the figures to this file, too
//! --tls                 use TLS to the server; needs --features redis-rustls
//! --aof                 the server has an append-only file, synced every second
//! ```
//!
//! The *raw* side is a loop over bare redis-rs, written by hand for the workload, in
//! `redis/raw.rs`. *Ours* is a client, and a served router with one layer and a task per handler,
//! in `redis/ours.rs`. Senders and worker share one process and one runtime of two threads. Redis
//! runs beside them, and payloads are 7 bytes. A round ends when every acknowledgement is
//! confirmed; then the bench asserts that the group has nothing pending. Figures are medians of
//! rounds that alternate raw, ours, raw, ours, so that changes of the machine affect both. Under
//! `cargo test` the bench only checks that everything runs.
//!
//! CPU times have steps of 10 ms. The server counts the commands, including those of scripts. The
//! bench subtracts its own queries. The memory peak is that of all processes except the server,
//! within the round. It includes memory that the allocator kept from earlier rounds, so measure
//! memory with `--ours-only --rounds 1` and one workload.

mod machine;
#[path = "../tests/support/mod.rs"]
mod support;

#[cfg(feature = "ablation")]
#[path = "redis/ablation.rs"]
mod ablation;
#[path = "redis/address.rs"]
mod address;
#[path = "redis/args.rs"]
mod args;
#[path = "redis/clock.rs"]
mod clock;
#[path = "redis/cluster.rs"]
mod cluster;
#[path = "redis/curves.rs"]
mod curves;
#[path = "redis/delay.rs"]
mod delay;
#[path = "redis/distant.rs"]
mod distant;
#[path = "redis/figures.rs"]
mod figures;
#[path = "redis/idle.rs"]
mod idle;
#[path = "redis/model.rs"]
mod model;
#[path = "redis/open.rs"]
mod open;
#[path = "redis/ours.rs"]
mod ours;
#[path = "redis/plot.rs"]
mod plot;
#[path = "redis/probe.rs"]
mod probe;
#[path = "redis/process.rs"]
mod process;
#[path = "redis/raw.rs"]
mod raw;
#[path = "redis/raw_rpc.rs"]
mod raw_rpc;
#[path = "redis/raw_stream.rs"]
mod raw_stream;
#[path = "redis/report.rs"]
mod report;
#[path = "redis/setup.rs"]
mod setup;
#[path = "redis/shutdown.rs"]
mod shutdown;
#[path = "redis/soak.rs"]
mod soak;
#[path = "redis/worker.rs"]
mod worker;
#[path = "redis/workload.rs"]
mod workload;

use std::{process::exit, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    args::{Args, Mode},
    delay::Proxy,
    figures::Row,
    probe::Probe,
    report::{Environment, Report},
    workload::{Job, Round, Work},
};

const STREAM: &str = "app_stream";
const GROUP: &str = "app_group";
const NAME: &str = "bench.work";

/// The time after which a round counts as stuck.
const STUCK_AFTER: Duration = Duration::from_secs(300);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("the runtime starts");
    let mut words = std::env::args().skip(1).peekable();
    if words.next_if_eq(distant::WORKER_ARG).is_some() {
        let order = words.next().expect("an order");
        runtime.block_on(distant::run_worker(&order));
        // A thread still blocks on standard input, so the process would not end by itself.
        exit(0);
    }
    if words.next_if_eq(delay::PROXY_ARG).is_some() {
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
        let server = number().and_then(|port| port.try_into().ok());
        let round_trip = Duration::from_micros(number().expect("a round trip"));
        return delay::run(server.expect("a port"), round_trip);
    }
    // `cargo bench` passes `--bench`; `cargo test` passes no argument.
    if words.peek().is_none() {
        return runtime.block_on(run_all());
    }
    match Args::parse(words) {
        Ok(args) => runtime.block_on(run(args)),
        Err(wrong) => {
            eprintln!("{wrong}");
            exit(2)
        }
    }
}

/// The run of `cargo test`: one short job of each kind.
async fn run_all() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (json, plot, curves) = (file("rows.json"), file("plot.svg"), file("curves.json"));
    // Together these commands use each mode, and most options.
    for words in [
        vec!["--json", &json],
        vec!["--rates", "500,2000", "--plot", &plot],
        vec![
            "--processes",
            "2",
            "--streams",
            "2",
            "--routes",
            "3",
            "--payload",
            "1024",
        ],
        vec!["--curves", &curves],
        vec!["--workload", "task-64", "--partitions", "3"],
        vec!["--soak", "1000", "--aof"],
        vec![
            "--workload",
            "drain",
            "--handler",
            "nothing",
            "--delay-us",
            "500",
        ],
        #[cfg(feature = "redis-rustls")]
        vec!["--workload", "rpc-fast-64", "--tls", "--streams", "3"],
        #[cfg(feature = "ablation")]
        vec!["--ablation"],
        vec!["--shutdown"],
        vec!["--idle"],
        vec!["--cluster"],
    ] {
        println!("{}", words.join(" "));
        let words = words.into_iter().map(str::to_owned);
        run(Args::parse(words).expect("valid arguments")).await;
        println!();
    }
    for path in [json, plot, curves] {
        assert!(std::fs::metadata(path).expect("the file was written").len() > 0);
    }
}

async fn run(args: Args) {
    // The proxy is between the server and both sides. The probe does not use it.
    let mut probe = Probe::start(&args.setup).await;
    let proxy = match args.setup.delay_us {
        0 => None,
        round_trip => Some(Proxy::start(probe.port(), round_trip).await),
    };
    if let Some(proxy) = &proxy {
        probe.connect_through(proxy.port);
    }
    let environment = Environment::of(&probe, args.setup, args.measured).await;
    environment.print();
    match &args.mode {
        Mode::Workloads => {
            let rows = workloads(&probe, &args).await;
            args.write(&environment, &rows);
            if let Some(path) = &args.plot {
                plot::write(path, &rows);
            }
        }
        Mode::Curves(path) => {
            let points = curves::run(&probe, &args).await;
            report::write_json(path, &environment, &points);
        }
        #[cfg(feature = "ablation")]
        Mode::Ablation => {
            let rows = ablation::run(&probe, &args).await;
            args.write(&environment, &rows);
        }
        Mode::Soak(tasks) => {
            let steps = soak::run(&probe, &args.setup, *tasks).await;
            args.write(&environment, &steps);
        }
        Mode::Shutdown => {
            let held = args.select((10_000, 10_000, 100));
            let shutdown = shutdown::run(&probe, &args.setup, held, args.rounds).await;
            args.write(&environment, &[shutdown]);
        }
        Mode::Idle => {
            let (workers, seconds, light_tasks) =
                args.select(((100, 10.0, 100), (100, 3.0, 100), (5, 0.1, 5)));
            let rest = Duration::from_secs_f64(seconds);
            let sides = idle::run(&probe, &args.setup, workers, rest, light_tasks).await;
            args.write(&environment, &sides);
        }
        Mode::Cluster => {
            let comparison = cluster::run(&probe, &args).await;
            args.write(&environment, &[comparison]);
        }
    }
}

async fn workloads(probe: &Probe, args: &Args) -> Vec<Row> {
    let mut report = Report::new();
    for job in args.jobs() {
        report.add(measure(probe, &job, args.rounds, args.ours_only).await);
    }
    report.print_ratios();
    report.rows
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Side {
    Raw,
    Ours,
}

/// Measures this number of rounds of each side, alternating.
async fn measure(probe: &Probe, job: &Job, rounds: usize, ours_only: bool) -> Row {
    let (mut raw, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        if !ours_only {
            raw.push(round(probe, Side::Raw, job).await);
        }
        ours.push(round(probe, Side::Ours, job).await);
    }
    Row::new(job, raw, ours)
}

async fn round(probe: &Probe, side: Side, job: &Job) -> Round {
    probe.clear(&job.setup).await;
    let work = async {
        match side {
            _ if job.setup.processes > 0 => distant::round(probe, side, job).await,
            Side::Raw => raw::round(probe, job).await,
            Side::Ours => ours::round(probe, job).await,
        }
    };
    let Ok(round) = tokio::time::timeout(STUCK_AFTER, work).await else {
        panic!("{} ({side:?}) is stuck", job.name);
    };
    let is_complete = match job.work {
        Work::Event { .. } => true,
        Work::EnqueueAll { .. } => probe.entry_count(&job.setup).await == job.count,
        _ => probe.is_drained(&job.setup).await,
    };
    assert!(
        is_complete,
        "{} ({side:?}) left something unsent, unread or pending",
        job.name
    );
    round
}
