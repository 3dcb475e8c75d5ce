//! Real Redis Clusters and Sentinels, made of `redis-server`s on free ports. They fail over, lose
//! nodes and move slots while applications use them.
//!
//! ```text
//! cargo test --all-features --test topology                               # a minute or two
//! cargo test --all-features --test topology -- --nocapture | grep ledger: # with the figures
//! CAMPANILE_LONG=1 cargo test --all-features --test topology -- --nocapture --test-threads 1  # the long versions
//! ```
//!
//! | module | contents |
//! |---|---|
//! | `servers` | the clusters and Sentinels of the other tests |
//! | `connecting` | connections to a cluster: seeds that are down, logins, TLS |
//! | `features` | every feature on all nodes of a cluster, and the program |
//! | `cluster` | a cluster that fails over, and that moves slots |
//! | `sharded` | sharded events on a cluster that fails over, and that moves slots |
//! | `sentinel` | a primary that Sentinels name, and that changes |
//! | `clock` | a new primary whose clock is ahead of that of the old one |
//! | `names` | a host name that leads to another server after a failover |
//! | `outbox` | follow-ups for other nodes, over failovers |
//! | `partitions` | partitioned streams over all nodes, served in turn and owned |
//! | `many_slots` | more slots than a worker has connections for |
//! | `records` | recorded tasks of partitions on all nodes, over a failover |
//! | `replicas` | tasks that replicas confirm, and failovers to replicas that lag |
//! | `rights` | users with the documented rights, and the events of two databases |
//! | `bad_input` | URLs of another topology than the server's |
//!
//! During a fault, `load` sends tasks at a steady rate and keeps the ledger, as in `tests/faults`.
//! Here *recovered* is the longest time after the fault in which no task of a stream finished.
#![cfg(feature = "redis")]

mod bad_input;
mod calls;
mod clock;
mod cluster;
mod connecting;
mod features;
mod load;
mod many_slots;
mod names;
mod outbox;
mod partitions;
#[cfg(feature = "cli")]
#[path = "../support/program.rs"]
mod program;
mod records;
mod replicas;
mod rights;
mod sentinel;
mod servers;
mod sharded;
#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;

use campanile::Redis;

const SECOND: Duration = Duration::from_secs(1);

/// The longest time until work goes on after a fault. The servers notice the fault after two
/// seconds and promote a replica, and clients find the new primary. The rest is slack for a loaded
/// machine.
const FOUND: Duration = Duration::from_secs(20);

/// The amount for a short run, or for a long one if `CAMPANILE_LONG` is set.
fn scaled<T>(short: T, long: T) -> T {
    match std::env::var_os("CAMPANILE_LONG") {
        Some(_) => long,
        None => short,
    }
}

/// Connects, within a limit.
async fn connect(url: &str) -> Redis {
    let connected = tokio::time::timeout(FOUND, Redis::connect(url)).await;
    connected
        .expect("connected in time")
        .expect("the servers are there")
}
