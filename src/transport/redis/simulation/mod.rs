//! The protocol under simulation.
//!
//! Real workers and real senders (all of this transport's code, under [`serve`](crate::serve()))
//! run against a model of the server that runs the real scripts. The workers serve one stream, or
//! up to four, which they read in turn, by priority or by weight. The clocks, the network and all
//! random numbers follow from a seed. Processes are killed, frozen and replaced; connections are
//! reset, cut off and slowed down; the server stalls and restarts; its clock steps both ways; one
//! of several streams is unreadable for a while; and a replica that lacks the last writes, and
//! whose clock differs, is promoted. After each command the [`Ledger`](ledger::Ledger) checks the
//! protocol's invariants, for each stream and group:
//!
//! - a confirmed job is in one location at a time, and ends once;
//! - no job is claimed from a worker that was alive and reached the server for a whole lease;
//! - a job does not run at two workers unless the first is dead, cut off, or has reported a lost
//!   lease;
//! - an attempt counts if and only if its handler failed or its worker was lost;
//! - the verdict of a worker that has lost a job has no effect, unless it is an acknowledgement;
//! - no job is acknowledged before its handler succeeded, nor delivered after it was acknowledged;
//! - no job starts before it is due, nor more often than the limit of deliveries;
//! - a read of several streams delivers no more entries than the worker has room for, and the
//!   entries that are pending for a worker exceed `max_in_flight` by at most one read;
//! - no worker is idle for a whole lease while a stream that can be read has a job for it, even if
//!   notices are lost;
//! - a follow-up is stored with the success of its job, and once for each success;
//! - the record of a tracked job says where the job is, and how it ended;
//! - no job stays parked while the permits are free;
//! - a request that was handled in time gets its own reply;
//! - a failover loses nothing but the writes that the replica lacks: each job goes on from where it
//!   was on the replica, and ends;
//! - nothing is left on the server at the end.
//!
//! ```text
//! cargo test --lib simulation                            # 40 seeds
//! CAMPANILE_SEEDS=5000 cargo test --lib simulation       # more
//! CAMPANILE_SEED=17 cargo test --lib simulation -- --nocapture   # one, with its trace
//! ```
//!
//! Some of the runs with several streams have a cluster of one node. There, workers that serve the
//! streams with a priority or weights read over one connection, on which the server says which
//! streams were written. Some of these notices are lost, late or doubled.
//!
//! # Scope
//! Senders, sources, pipelines, settlements, upkeep, RPC and `serve` are the real code. Each
//! process has two runtimes with paused clocks: one for the application, and one for the upkeep.
//! Outside a simulation, the upkeep has a separate thread. The Lua scripts run in Lua 5.1, as on
//! the server. The network and the commands of Redis 7 are models. The simulation leaves out
//! events, fast requests, sets of registered streams, a server that is emptied, clusters of several
//! nodes, and other libraries' consumers.
//!
//! # Place
//! This folder stays inside `src/`. It uses private items: the connector, the stream trait of
//! connections and the MessagePack codec. A test program outside would need hidden exports of
//! these.

mod ledger;
mod locations;
mod network;
mod node;
mod process;
mod rules;
mod run;
mod scenario;
mod server;

use std::{
    io,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;

use self::{run::run, server::Mutation};
use super::{connection::ByteStream, scripts};

/// Makes the connections of a simulated process.
pub(super) trait Dial: Send + Sync + 'static {
    /// Makes a connection.
    fn dial(&self) -> BoxFuture<'_, io::Result<Box<dyn ByteStream>>>;

    /// Returns the runtime of the upkeep, which has no separate thread in a simulation.
    fn upkeep_runtime(&self) -> Handle;
}

fn number_from_env(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is no number: {value}")),
    )
}

/// Runs the seeds on all processors. Returns the lowest seed that fails, with its violation.
fn first_failure(seeds: Range<u64>, mutation: Option<Mutation>) -> Option<(u64, String)> {
    let next = AtomicU64::new(seeds.start);
    let failed = AtomicU64::new(u64::MAX);
    let search = || {
        let mut found = None;
        loop {
            let seed = next.fetch_add(1, Ordering::SeqCst);
            if seed >= seeds.end || seed > failed.load(Ordering::SeqCst) {
                return found;
            }
            if let Some(violation) = run(seed, mutation, false).violation {
                failed.fetch_min(seed, Ordering::SeqCst);
                found = Some((seed, violation));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let found: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(search)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no seed panics"))
            .collect()
    });
    found.into_iter().flatten().min()
}

#[test]
fn no_fault_breaks_an_invariant_of_the_protocol() {
    if let Some(seed) = number_from_env("CAMPANILE_SEED") {
        let outcome = run(seed, None, true);
        outcome.trace.iter().for_each(|line| println!("{line}"));
        assert_eq!(outcome.violation, None, "seed {seed}");
        return;
    }
    let seeds = number_from_env("CAMPANILE_SEEDS").unwrap_or(40);
    if let Some((seed, violation)) = first_failure(0..seeds, None) {
        panic!(
            "seed {seed}: {violation}\n\
             CAMPANILE_SEED={seed} cargo test --lib simulation -- --nocapture"
        );
    }
}

/// The server's clock steps back during a stall, and the first command after it is a request.
#[test]
fn a_new_request_is_not_expired_after_the_clock_stepped_during_a_stall() {
    assert_eq!(run(608, None, false).violation, None);
}

/// All streams of a set are unreadable at the same time.
#[test]
fn a_worker_waits_while_none_of_its_streams_can_be_read() {
    assert_eq!(run(72, None, false).violation, None);
}

/// The groups of a set of streams were created after the replica's last write.
#[test]
fn a_set_of_streams_is_read_again_after_a_failover_has_lost_its_groups() {
    assert_eq!(run(33, None, false).violation, None);
}

/// The slots of a cluster share one connection for their reads, and one slot has no read in flight.
#[test]
fn an_acknowledgement_that_a_failover_has_lost_counts_no_attempt() {
    assert_eq!(run(170, None, false).violation, None);
}

/// The slot with the lost verdict has no turn until long after the failover.
#[test]
fn a_verdict_that_a_failover_has_lost_is_noticed_without_demand() {
    assert_eq!(run(807, None, false).violation, None);
}

/// The clock of the replica is behind, so that new replies have lower ids than received ones.
#[test]
fn replies_are_received_after_a_failover_to_a_clock_that_is_behind() {
    assert_eq!(run(552, None, false).violation, None);
}

#[test]
fn a_seed_gives_the_same_trace_each_time() {
    for seed in [1, 2, 11] {
        let [first, second] = [(); 2].map(|()| run(seed, None, true).trace);
        for (at, (first, second)) in first.iter().zip(&second).enumerate() {
            assert_eq!(first, second, "line {at} of seed {seed}");
        }
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}

/// Each mutation of the scripts breaks the protocol, and at least one seed detects that. The search
/// begins with the seed that last detected the mutation, since the first such seed may be high.
#[test]
fn every_mutation_of_the_scripts_is_found() {
    let mistakes = [
        (7, "no fence", "return #found == 1", "return true"),
        (
            0,
            "claiming from healthy workers",
            "elseif idle >= patience and (not ours or healthy >= patience) then",
            "elseif true then",
        ),
        (
            26,
            "claiming after a stall",
            "clock() > tonumber(ARGV[13])",
            "false",
        ),
        (
            1,
            "claiming without counting",
            "'RETRYCOUNT', count + 1",
            "'RETRYCOUNT', count",
        ),
        (
            7,
            "counting a delivery that was lost",
            "'RETRYCOUNT', pending[4]",
            "'RETRYCOUNT', pending[4] + 1",
        ),
        (
            0,
            "renewing nothing",
            "0, ARGV[i], 'JUSTID'",
            "1e15, ARGV[i], 'JUSTID'",
        ),
        (
            20,
            "reporting no lost lease",
            "lost[#lost + 1] = ARGV[i]",
            "",
        ),
        (
            0,
            "redelivering without deleting",
            "finish(src, group, id, retry)\ngive_back(base, group, fields, retry)\nreturn 1",
            "return 1",
        ),
        (
            0,
            "delivering too early",
            "string.format('%.0f', now)",
            "'+inf'",
        ),
        (
            0,
            "trimming pending entries",
            "if group.pending > 0 then",
            "if false then",
        ),
        (0, "forgetting a key", "if known then", "if false then"),
        (
            2,
            "reading more than there is room for",
            "'COUNT', max, 'STREAMS'",
            "'COUNT', 100, 'STREAMS'",
        ),
        (
            30,
            "forgetting what all streams but one have brought",
            "found[#found + 1] = stream",
            "found[1] = found[1] or stream",
        ),
        (
            3,
            "completing without the follow-ups",
            "if kind ~= kinds.publish then kind.run(keys, at, last) end",
            "",
        ),
        (
            3,
            "leaving a record as it was",
            "redis.call('HSET', record, 'state', state, ...)",
            "redis.call('HSET', record, 'state', before[1] or state, ...)",
        ),
        (
            4,
            "handing no permit over",
            "if not limit then return 0 end",
            "if true then return 0 end",
        ),
    ];
    for (from_seed, mistake, from, to) in mistakes {
        let applies = scripts::sources().any(|source| source.contains(from));
        assert!(
            applies,
            "no script has the text of the mutation {mistake:?}"
        );
        let found = first_failure(from_seed..1000, Some(Mutation { from, to }))
            .or_else(|| first_failure(0..from_seed, Some(Mutation { from, to })));
        let (seed, violation) =
            found.unwrap_or_else(|| panic!("no seed finds the mutation {mistake:?}"));
        println!("{mistake}: seed {seed}: {violation}");
    }
}
