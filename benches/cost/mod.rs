//! The cost of handling a message, in time and in allocations.

use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

/// The cost of one message.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) nanoseconds: f64,
    pub(crate) allocations: f64,
}

/// A runtime of one thread, so that only the allocations of the measured work are counted.
pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the runtime starts")
}

/// The number of measured rounds, and the number of messages in each round. `cargo test` does not
/// pass `--bench`, and gets small numbers that only check that the bench runs.
pub(crate) fn extent() -> (usize, usize) {
    if std::env::args().any(|word| word == "--bench") {
        (15, 20_000)
    } else {
        (1, 1_000)
    }
}

/// Measures the handling of these messages. The caller has made them already, so their creation is
/// not measured.
pub(crate) fn measure<T>(runtime: &Runtime, messages: Vec<T>, handle: impl AsyncFn(T)) -> Cost {
    let count = messages.len() as f64;
    let mut elapsed = Duration::ZERO;
    let allocations = allocation_counter::measure(|| {
        let started = Instant::now();
        runtime.block_on(async {
            for message in messages {
                handle(message).await;
            }
        });
        elapsed = started.elapsed();
    });
    Cost {
        nanoseconds: elapsed.as_nanos() as f64 / count,
        allocations: allocations.count_total as f64 / count,
    }
}

pub(crate) fn median(mut costs: Vec<Cost>) -> Cost {
    costs.sort_unstable_by(|one, other| one.nanoseconds.total_cmp(&other.nanoseconds));
    costs[costs.len() / 2]
}
