//! The wait until the rate lets a message in.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use campanile::{BoxError, Kind};
use tokio::time::{Instant, Sleep, sleep_until};

use super::limiter::Limiter;
use crate::{gated::Admission, places::Place};

/// A message that waits in line, or for the rate.
pub(super) struct Waiting {
    limiter: Arc<Limiter>,
    /// Given up as soon as the message is let in.
    place: Option<Place>,
    kind: Kind,
    until: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Waiting {
    pub(super) fn new(limiter: Arc<Limiter>, place: Place, kind: Kind, most: Duration) -> Self {
        let now = Instant::now();
        // A century stands for "for ever".
        let until = now.checked_add(most);
        let until = until.unwrap_or_else(|| now + Duration::from_secs(3_155_760_000));
        Self {
            limiter,
            place: Some(place),
            kind,
            until,
            timer: Box::pin(sleep_until(until)),
        }
    }
}

impl Admission for Waiting {
    fn poll_admitted(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        loop {
            let Some(place) = &mut self.place else {
                return Poll::Ready(Ok(()));
            };
            let key = place.key().clone();
            if place.poll_held(cx).is_pending() {
                // Until its time is over, which the timer was set to.
                ready!(self.timer.as_mut().poll(cx));
                let wait = self.limiter.period();
                return Poll::Ready(Err(self.limiter.refuse(self.kind, &key, wait)));
            }
            let Err(wait) = self.limiter.check(&key) else {
                self.place = None;
                continue;
            };
            let next = Instant::now() + wait;
            if next > self.until {
                return Poll::Ready(Err(self.limiter.refuse(self.kind, &key, wait)));
            }
            self.timer.as_mut().reset(next);
            ready!(self.timer.as_mut().poll(cx));
        }
    }
}
