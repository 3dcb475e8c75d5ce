//! Locks, those who wait behind them, and for how long.

mod clock;
// Some of it only the Redis transport asks.
#[cfg_attr(not(feature = "redis"), allow(dead_code))]
mod places;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) use self::{
    clock::Clock,
    places::{Places, Waiter},
};

/// Locks a mutex whose state is whole between any two of its operations, so that a panic elsewhere
/// cannot have spoilt it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
