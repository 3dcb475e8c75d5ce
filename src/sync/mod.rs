//! Locks, completions, turns, and timers for timeouts.

mod clock;
// Some of it only the Redis transport uses.
#[cfg_attr(not(feature = "redis"), allow(dead_code))]
mod completions;

use std::{
    future::poll_fn,
    sync::{Mutex, MutexGuard, PoisonError},
    task::Poll,
};

pub(crate) use self::{
    clock::Clock,
    completions::{Completion, CompletionSlab},
};

/// Lets other tasks run that are ready.
///
/// Unlike after `tokio::task::yield_now` another thread can run this task meanwhile, should one of those
/// tasks block the thread: tokio wakes a task that yielded only when the thread asks for new events.
///
/// # Cancel safety
/// Dropping the future loses nothing.
pub(crate) async fn next_turn() {
    let mut has_waited = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Locks a mutex whose state is whole between any two of its operations, so that a panic elsewhere
/// cannot have spoilt it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
