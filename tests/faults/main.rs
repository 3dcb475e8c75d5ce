//! Faults that a deployment meets, made for real: servers and workers are killed, frozen, cut off
//! and restarted while they work, and a ledger says what became of each message.
//!
//! ```text
//! cargo test --test faults                                                # a minute or two
//! cargo test --test faults -- --nocapture | grep ledger:                  # with the figures
//! CAMPANILE_LONG=1 cargo test --test faults -- --nocapture --test-threads 1  # the long versions
//! ```
//!
//! Each test has a `redis-server` of its own and worker processes of its own (this binary, started
//! again: see [`worker`]), and prints one line:
//!
//! ```text
//! ledger: <fault>: sent N finished N lost N duplicated N recovered in X s
//! ```
//!
//! | module | fault |
//! |---|---|
//! | `crash` | workers killed, aborted by a message, frozen, terminated |
//! | `stall` | a server frozen or paused, a network that goes silent in either direction |
//! | `bytes` | answers and commands of many bytes: over a slow network, and larger than the server takes |
//! | `many` | more streams and more calls than one process is used to |
//! | `slow` | handlers that outlast their lease, and block their threads |
//! | `server` | a server killed and restarted, or emptied |
//! | `memory` | a server at its `maxmemory` |
//! | `connections` | connections killed one after the other |
//! | `requests` | requests whose worker, connections or callers are gone |
//! | `crowd` | thousands of pending entries, hundreds of workers |
//! | `groups` | a slow group beside a fast one |
//! | `cluster` | a server in cluster mode; a stream on another node, a fail-over |
//! | `signals` | a worker that is told twice to end |
//!
//! The same protocol is simulated with faults by the thousand in `src/transport/redis/simulation/`.
//!
//! *Lost* is what the server took and nobody finished. *Duplicated* is what was started more than
//! once, for whatever reason. *Recovered* is the time from the fault, or from its end where nothing
//! can happen before, until work went on.
#![cfg(feature = "redis")]

mod bytes;
mod cluster;
mod connections;
mod crash;
mod crowd;
mod groups;
mod ledger;
mod many;
mod memory;
mod requests;
mod scene;
mod server;
mod signals;
mod slow;
mod stall;
#[path = "../support/mod.rs"]
mod support;
mod worker;

use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// How long a take-over may take with a lease of a second: the lease, a healthy lease of the worker
/// that takes over, and a scan. The rest is room for a loaded machine.
const TAKE_OVER: Duration = Duration::from_secs(10);

/// How long it may take until work goes on once the server can be reached again: a connection that
/// is silent for 5 s is given up, and the next one is tried after a back-off. The rest is room for a
/// loaded machine.
const RECONNECT: Duration = Duration::from_secs(15);

/// The amount for a short run, or for a long one where the environment asks for it.
fn scaled<T>(short: T, long: T) -> T {
    match std::env::var_os("CAMPANILE_LONG") {
        Some(_) => long,
        None => short,
    }
}
