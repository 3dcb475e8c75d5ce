//! A timer for timeouts that rarely fire.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

/// A timer for timeouts that rarely fire. It uses one timer of the runtime, and resets that timer
/// only after it has fired. A reset for each deadline would cost more, and would also wake the
/// thread that waits for I/O if the deadline is near.
///
/// Each deadline should be later than the one before. For an earlier deadline the timer may fire
/// late.
#[derive(Debug)]
pub(crate) struct LazyTimer(Pin<Box<Sleep>>);

impl LazyTimer {
    /// Creates a timer. It does not fire before `min_wait` has passed, even if the first deadline
    /// is earlier.
    pub(crate) fn new(min_wait: Duration) -> Self {
        Self(Box::pin(sleep(min_wait)))
    }

    /// Returns `Ready` when the deadline has passed.
    pub(crate) fn poll_until(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        loop {
            ready!(self.0.as_mut().poll(cx));
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            self.0.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_timer_fires_at_each_of_several_later_deadlines() {
        let started = Instant::now();
        let mut timer = LazyTimer::new(Duration::ZERO);
        for seconds in [1, 5, 5, 9] {
            let deadline = started + Duration::from_secs(seconds);
            poll_fn(|cx| timer.poll_until(cx, deadline)).await;
            assert_eq!(started.elapsed().as_secs(), seconds);
        }
    }
}
