//! Locks, completions, a yield, and a timer for timeouts.

// Some methods are used by the Redis transport only.
#[cfg_attr(not(feature = "redis"), allow(dead_code))]
mod completions;
mod lazy_timer;
#[cfg_attr(not(feature = "redis"), allow(dead_code))]
mod turns;

use std::sync::{Mutex, MutexGuard, PoisonError};

#[cfg(feature = "redis")]
pub(crate) use self::turns::yield_to_all;
pub(crate) use self::{
    completions::{Completion, CompletionSlab},
    lazy_timer::LazyTimer,
    turns::next_turn,
};

/// Locks a mutex and ignores poisoning. The state must be consistent wherever a panic can happen.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
