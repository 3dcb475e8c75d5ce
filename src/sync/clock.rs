//! A timer for timeouts that rarely fire.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

/// A timer for timeouts that rarely fire: a later deadline does not touch the runtime's timer. The
/// runtime's timer is set again only after it has fired. To set it for each wait would cost more,
/// and would wake the thread that waits for I/O if the deadline is near.
///
/// Each deadline should be later than the one before: for an earlier one the timer may fire late.
#[derive(Debug)]
pub(crate) struct Clock(Pin<Box<Sleep>>);

impl Clock {
    /// A timer that fires no earlier than after this time.
    pub(crate) fn new(first: Duration) -> Self {
        Self(Box::pin(sleep(first)))
    }

    /// Returns `Ready` at this time or later.
    pub(crate) fn poll_until(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<()> {
        loop {
            ready!(self.0.as_mut().poll(cx));
            if until <= Instant::now() {
                return Poll::Ready(());
            }
            self.0.as_mut().reset(until);
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
        let mut clock = Clock::new(Duration::ZERO);
        for seconds in [1, 5, 5, 9] {
            let until = started + Duration::from_secs(seconds);
            poll_fn(|cx| clock.poll_until(cx, until)).await;
            assert_eq!(started.elapsed().as_secs(), seconds);
        }
    }
}
