//! Yields to other tasks.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use tokio::time::Instant;

use super::Clock;

/// Lets other ready tasks run first.
///
/// If one of these tasks blocks the thread, another thread can run this task.
/// `tokio::task::yield_now` does not allow that: tokio wakes a task that yielded only when its
/// thread polls for I/O events.
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

/// Lets ready tasks run first, and the tasks that new I/O events make ready.
///
/// tokio wakes a task that yielded when its thread polls for I/O events. A task that blocks the
/// thread delays the poll, so a timer wakes this task for another thread.
///
/// # Cancel safety
/// Dropping the future loses nothing.
pub(crate) async fn yield_to_all(timer: &mut Clock) {
    const MAX_WAIT: Duration = Duration::from_millis(5);
    let until = Instant::now() + MAX_WAIT;
    let mut yielded = pin!(tokio::task::yield_now());
    poll_fn(|cx| match yielded.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => timer.poll_until(cx, until),
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
                // This thread runs the spawned task as soon as this task yields.
                tokio::spawn(async move { blocked.recv() });
                match to_all {
                    true => yield_to_all(&mut Clock::new(Duration::ZERO)).await,
                    false => next_turn().await,
                }
                resumed.send(()).unwrap();
            });
            let resumed = has_resumed.recv_timeout(Duration::from_secs(10));
            resumed.expect("another thread resumes it");
            unblock.send(()).unwrap();
        }
    }
}
