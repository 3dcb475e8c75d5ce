//! Ways to yield to other tasks.
//!
//! After `tokio::task::yield_now`, tokio wakes the task when its thread next polls for I/O events.
//! If another task blocks this thread, the wake-up is delayed, although another thread could run
//! the task that yielded.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use tokio::time::Instant;

use super::LazyTimer;

/// Lets the ready tasks of this thread run first. The calling task wakes itself, so another thread
/// can run it if one of those tasks blocks this thread.
///
/// # Cancel safety
/// Dropping the future has no effect.
pub(crate) async fn next_turn() {
    let mut has_yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Lets the ready tasks of this thread run first, and the tasks that new I/O events make ready. If
/// one of those tasks blocks this thread, the timer wakes the calling task after 5 ms, and another
/// thread can run it.
///
/// # Cancel safety
/// Dropping the future has no effect.
pub(crate) async fn yield_to_all(timer: &mut LazyTimer) {
    const MAX_WAIT: Duration = Duration::from_millis(5);
    let wakes_at = Instant::now() + MAX_WAIT;
    let mut yielded = pin!(tokio::task::yield_now());
    poll_fn(|cx| match yielded.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => timer.poll_until(cx, wakes_at),
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_task_that_yields_goes_on_beside_one_that_blocks_its_thread() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_time()
            .build()
            .unwrap();
        for to_all in [false, true] {
            let (unblock, blocked) = mpsc::channel::<()>();
            let (resumed, has_resumed) = mpsc::channel();
            runtime.spawn(async move {
                // The spawned task runs on this thread as soon as this task yields, and blocks the
                // thread.
                tokio::spawn(async move { blocked.recv() });
                match to_all {
                    true => yield_to_all(&mut LazyTimer::new(Duration::ZERO)).await,
                    false => next_turn().await,
                }
                resumed.send(()).unwrap();
            });
            let resumed = has_resumed.recv_timeout(Duration::from_secs(10));
            resumed.expect("another thread did not resume the task");
            unblock.send(()).unwrap();
        }
    }
}
