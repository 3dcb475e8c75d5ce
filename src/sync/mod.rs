//! Locks, completions, turns, and timers for timeouts.

mod clock;
// Some of it only the Redis transport uses.
#[cfg_attr(not(feature = "redis"), allow(dead_code))]
mod completions;
#[cfg_attr(not(feature = "redis"), allow(dead_code))]
mod turns;

use std::sync::{Mutex, MutexGuard, PoisonError};

#[cfg(feature = "redis")]
pub(crate) use self::turns::yield_to_all;
pub(crate) use self::{
    clock::Clock,
    completions::{Completion, CompletionSlab},
    turns::next_turn,
};

/// Locks a mutex whose state is whole between any two of its operations, so that a panic elsewhere
/// cannot have spoilt it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
