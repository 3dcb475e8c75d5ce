//! Faults of real servers and workers: they are killed, frozen, cut off and restarted while they
//! work, and a ledger records each message.
//!
//! ```text
//! cargo test --test faults                                                # a minute or two
//! cargo test --test faults -- --nocapture | grep ledger:                  # with the figures
//! CAMPANILE_LONG=1 cargo test --test faults -- --nocapture --test-threads 1  # the long versions
//! ```
//!
//! Each test starts a `redis-server` and worker processes (this binary, started again: see
//! [`worker`]), and prints one line:
//!
//! ```text
//! ledger: <fault>: sent N finished N lost N duplicated N recovered in X s
//! ```
//!
//! | module | fault |
//! |---|---|
//! | `crash` | workers killed, aborted by a message, frozen, terminated |
//! | `stall` | a server frozen or paused, a network that goes silent in either direction |
//! | `bytes` | large responses and commands: over a slow network, and beyond the server's limits |
//! | `many` | more streams and more calls than usual in one process |
//! | `slow` | handlers that outlast their lease, and block their threads |
//! | `server` | a server killed and restarted, or emptied |
//! | `memory` | a server at its `maxmemory` |
//! | `connections` | connections killed one after the other |
//! | `requests` | requests whose worker, connections or callers are lost |
//! | `crowd` | thousands of pending entries, hundreds of workers |
//! | `groups` | a slow group beside a fast one |
//! | `outbox` | follow-ups of workers that are killed and frozen |
//! | `owned` | workers that own partitions, killed, terminated and frozen |
//! | `cluster` | a server in cluster mode; a stream on another node, a fail-over |
//! | `schedules` | processes that run a schedule, killed |
//! | `signals` | a worker that gets a second signal |
//!
//! The same protocol is simulated with thousands of faults in `src/transport/redis/simulation/`.
//!
//! *Lost* counts jobs that the server confirmed and that never finished. *Duplicated* counts jobs
//! that were started more than once, for any reason. *Recovered* is the time from the fault until
//! work went on; if no work is possible during the fault, it is the time from its end.
#![cfg(feature = "redis")]

mod bytes;
mod cluster;
mod connections;
mod crash;
mod crowd;
mod groups;
mod many;
mod memory;
mod outbox;
mod owned;
mod requests;
mod scene;
#[cfg(feature = "schedule")]
mod schedules;
mod server;
mod signals;
mod slow;
mod stall;
#[path = "../support/mod.rs"]
mod support;
mod worker;

use std::time::Duration;

use support::ledger;

const SECOND: Duration = Duration::from_secs(1);

/// The longest time until another worker claims a delivery with a lease of 1 s: the lease, one
/// lease for which the claiming worker must be healthy, and a scan. The rest is slack for a loaded
/// machine.
const CLAIM: Duration = Duration::from_secs(10);

/// The longest time until work goes on after the server is reachable again. A connection that is
/// silent for 5 s is closed, and the next attempt follows after a back-off. The rest is slack for a
/// loaded machine.
const RECONNECT: Duration = Duration::from_secs(15);

/// The amount for a short run, or for a long one if `CAMPANILE_LONG` is set.
fn scaled<T>(short: T, long: T) -> T {
    match std::env::var_os("CAMPANILE_LONG") {
        Some(_) => long,
        None => short,
    }
}
