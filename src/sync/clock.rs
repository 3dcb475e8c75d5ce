//! A clock for those who nearly always get what they wait for before it rings.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

/// It is set only when it has run out. To set a clock anew for each wait costs more than to look at it
/// now and then, and to set one that rings soon wakes the thread that waits for the network.
///
/// Each wait should end later than the one before: for an earlier time it may ring late.
#[derive(Debug)]
pub(crate) struct Clock(Pin<Box<Sleep>>);

impl Clock {
    /// It is looked at after so long for the first time.
    pub(crate) fn new(first: Duration) -> Self {
        Self(Box::pin(sleep(first)))
    }

    /// Ready at this time, or later.
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
    async fn it_rings_when_it_is_asked_to_however_often_it_was_asked_before() {
        let started = Instant::now();
        let mut clock = Clock::new(Duration::ZERO);
        for seconds in [1, 5, 5, 9] {
            let until = started + Duration::from_secs(seconds);
            poll_fn(|cx| clock.poll_until(cx, until)).await;
            assert_eq!(started.elapsed().as_secs(), seconds);
        }
    }
}
