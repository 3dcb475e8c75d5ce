//! The protocol under simulation.
//!
//! Real workers and real senders (all of this transport's code, under [`serve`](crate::serve())) work
//! against a model of the server that runs the real scripts, in a world whose clocks, network
//! and dice all follow from a seed. Processes are killed, frozen and replaced, connections are
//! reset, cut off and slow, the server stands still and is started again, its clock steps both ways,
//! and after each command the book checks what the protocol promises:
//!
//! - a job that was accepted is in one place at a time, and comes to one end;
//! - nothing is taken from a worker that is alive and has reached the server for a whole lease;
//! - a job does not run at two workers unless the first is gone, out of reach, or was told;
//! - an attempt counts when its handler has failed, or when its worker was lost, and no other;
//! - the verdict of a worker that has lost a job changes nothing, unless it is that it is done;
//! - nothing is acknowledged before it is done, nor delivered after it was acknowledged;
//! - nothing starts before it is due, nor more often than it may;
//! - a request that was handled in time has its own reply;
//! - nothing is left on the server when all is over.
//!
//! ```text
//! cargo test --lib simulation                            # 200 seeds
//! CAMPANILE_SEEDS=5000 cargo test --lib simulation       # more
//! CAMPANILE_SEED=17 cargo test --lib simulation -- --nocapture   # one, with all that happens
//! ```
//!
//! # What is real and what is not
//! Real are the sending half, sources, links, settlements, upkeeps, RPC and `serve`, each process
//! on two paused runtimes of its own (the upkeep has a thread in reality), and the Lua scripts, in Lua
//! 5.1 as the server has it. Modelled are the network and the commands of Redis 7. Not there are
//! events, fast requests, a server that loses data, clusters, and consumers of other libraries.

mod book;
mod host;
mod network;
mod places;
mod plan;
mod process;
mod rules;
mod server;
mod world;

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;

use self::{server::Change, world::run};
use super::connection::Stream;

/// What takes the place of the network.
pub(super) trait Dial: Send + Sync + 'static {
    /// Makes a connection.
    fn dial(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>>;

    /// Where the upkeep runs, in place of a thread.
    fn upkeep_runtime(&self) -> Handle;
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is no number: {value}")),
    )
}

/// Runs the seeds on all processors, and returns the first one that fails.
fn first_failure(seeds: u64, change: Option<Change>) -> Option<(u64, String)> {
    let next = AtomicU64::new(0);
    let failed = AtomicU64::new(u64::MAX);
    let search = || {
        let mut found = None;
        loop {
            let seed = next.fetch_add(1, Ordering::SeqCst);
            if seed >= seeds || seed > failed.load(Ordering::SeqCst) {
                return found;
            }
            if let Some(violation) = run(seed, change, false).violation {
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
fn the_protocol_keeps_its_promises_whatever_fails() {
    if let Some(seed) = number("CAMPANILE_SEED") {
        let outcome = run(seed, None, true);
        outcome.trace.iter().for_each(|line| println!("{line}"));
        assert_eq!(outcome.violation, None, "seed {seed}");
        return;
    }
    let seeds = number("CAMPANILE_SEEDS").unwrap_or(200);
    if let Some((seed, violation)) = first_failure(seeds, None) {
        panic!(
            "seed {seed}: {violation}\n\
             CAMPANILE_SEED={seed} cargo test --lib simulation -- --nocapture"
        );
    }
}

/// The server's clock steps back while it stands still, and the first thing after that is a request.
#[test]
fn a_request_that_was_just_sent_is_not_too_old_after_a_step_of_the_clock_in_a_stall() {
    assert_eq!(run(608, None, false).violation, None);
}

#[test]
fn a_seed_repeats_itself() {
    for seed in [1, 2, 3] {
        let [first, second] = [(); 2].map(|()| run(seed, None, true).trace);
        for (at, (first, second)) in first.iter().zip(&second).enumerate() {
            assert_eq!(first, second, "line {at} of seed {seed}");
        }
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}

/// Each is a protocol with a mistake, and the simulation says so.
#[test]
fn a_protocol_with_a_mistake_does_not_get_through() {
    let mistakes = [
        ("no fence", "return #found == 1", "return true"),
        (
            "taking over from whoever lives",
            "elseif idle >= patience and (not ours or healthy >= patience) then",
            "elseif true then",
        ),
        (
            "taking over after a stall",
            "clock() > tonumber(ARGV[13])",
            "false",
        ),
        (
            "taking over without counting",
            "'RETRYCOUNT', count + 1",
            "'RETRYCOUNT', count",
        ),
        (
            "counting what did not arrive",
            "'RETRYCOUNT', pending[4]",
            "'RETRYCOUNT', pending[4] + 1",
        ),
        (
            "renewing nothing",
            "0, ARGV[i], 'JUSTID'",
            "1e15, ARGV[i], 'JUSTID'",
        ),
        ("telling nobody", "lost[#lost + 1] = ARGV[i]", ""),
        (
            "redelivering and keeping",
            "finish(src, group, id, retry)\nreturn 1",
            "return 1",
        ),
        (
            "delivering too early",
            "string.format('%.0f', now)",
            "'+inf'",
        ),
        (
            "trimming what is pending",
            "if group.pending > 0 then",
            "if false then",
        ),
        ("forgetting a key", "if known then return known end", ""),
    ];
    for (mistake, from, to) in mistakes {
        // Some show in few histories; the search ends with the first.
        let found = first_failure(1000, Some(Change { from, to }));
        let (seed, violation) = found.unwrap_or_else(|| panic!("{mistake} got through"));
        println!("{mistake}: seed {seed}: {violation}");
    }
}
