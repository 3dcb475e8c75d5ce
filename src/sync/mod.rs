//! Locks, completions, a yield, and a timer for timeouts.

mod clock;
// Some methods are used by the Redis transport only.
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

/// Locks a mutex and ignores poisoning. The state must be consistent wherever a panic can happen.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
