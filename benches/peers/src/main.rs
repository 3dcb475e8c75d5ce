//! Campanile compared with other libraries (*peers*): the same workloads, in alternating rounds of
//! one run.
//!
//! ```sh
//! cargo run --release -- --quick                        # every peer and workload
//! cargo run --release                                   # longer rounds, and five of each
//! cargo run --release -- --workload drain --peer raw --peer async-nats --rounds 9
//! ```
//!
//! The raw loops, Campanile's side, the workloads and the clock are those of the library's bench,
//! `benches/redis.rs`. The same rules apply: senders and worker share one process and one runtime
//! of two threads. The bench starts the servers as separate processes. Payloads are 7 bytes. A
//! round ends when the server has confirmed every acknowledgement. The README says how each peer is
//! set up, and how their guarantees differ.

mod apalis;
mod args;
mod bullmq;
mod nats;
mod nats_server;
mod oxana;
mod peer;
mod report;
mod ruststream;
#[path = "../../../tests/support/mod.rs"]
mod support;

// These modules belong to the library's bench. Some of them have code that only that bench needs.
#[allow(dead_code)]
#[path = "../../redis/address.rs"]
mod address;
#[path = "../../redis/clock.rs"]
mod clock;
#[path = "../../redis/open.rs"]
mod open;
#[path = "../../redis/ours.rs"]
mod ours;
#[allow(dead_code)]
#[path = "../../redis/probe.rs"]
mod probe;
#[allow(dead_code)]
#[path = "../../redis/process.rs"]
mod process;
#[path = "../../redis/raw.rs"]
mod raw;
#[path = "../../redis/raw_rpc.rs"]
mod raw_rpc;
#[path = "../../redis/raw_stream.rs"]
mod raw_stream;
#[allow(dead_code)]
#[path = "../../redis/setup.rs"]
mod setup;
#[path = "../../redis/worker.rs"]
mod worker;
#[allow(dead_code)]
#[path = "../../redis/workload.rs"]
mod workload;

use std::time::Duration;

use crate::{
    args::Args,
    nats_server::NatsServer,
    peer::Peer,
    probe::Probe,
    report::{Report, Row},
    setup::Setup,
};

const STREAM: &str = "app_stream";
const GROUP: &str = "app_group";
const NAME: &str = "bench.work";
const PAYLOAD: &str = "payload";

/// The time after which a round counts as stuck.
const STUCK_AFTER: Duration = Duration::from_secs(120);

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
    let redis = Probe::start(&Setup::default()).await;
    let nats = NatsServer::start().await;
    report::print_machine(&redis, &nats).await;
    let mut report = Report::default();
    for job in args.jobs() {
        let peers: Vec<Peer> = (args.peers.iter().copied())
            .filter(|peer| peer.supports(job.work))
            .collect();
        let mut rounds: Vec<_> = peers.iter().map(|_| Vec::new()).collect();
        for _ in 0..args.rounds {
            for (peer, rounds) in peers.iter().zip(&mut rounds) {
                let work = peer.round(&redis, &nats, &job);
                let Ok(round) = tokio::time::timeout(STUCK_AFTER, work).await else {
                    panic!("{} of {} is stuck", job.name, peer.name());
                };
                rounds.push(round);
            }
        }
        report.add(
            (peers.iter().zip(&rounds))
                .map(|(&peer, rounds)| Row::new(peer, &job, rounds))
                .collect(),
        );
    }
}
