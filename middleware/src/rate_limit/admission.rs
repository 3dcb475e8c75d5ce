//! The wait until the rate admits a message.

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
use crate::{gated::Admission, keyed_permits::KeyedPermit};

/// A message that waits for the earlier messages with its key, and then for the rate.
pub(super) struct WaitingMessage {
    limiter: Arc<Limiter>,
    /// The key's only permit, or the request for it. Only the message with the permit waits for the
    /// rate. `None` once the message is admitted.
    permit: Option<KeyedPermit>,
    kind: Kind,
    /// The time at which the message fails if it was not admitted.
    ends_at: Instant,
    timer: Pin<Box<Sleep>>,
}

impl WaitingMessage {
    pub(super) fn new(
        limiter: Arc<Limiter>,
        permit: KeyedPermit,
        kind: Kind,
        max_wait: Duration,
    ) -> Self {
        let now = Instant::now();
        // If the sum overflows, the message may wait for a century.
        let ends_at = now.checked_add(max_wait);
        let ends_at = ends_at.unwrap_or_else(|| now + Duration::from_secs(3_155_760_000));
        Self {
            limiter,
            permit: Some(permit),
            kind,
            ends_at,
            timer: Box::pin(sleep_until(ends_at)),
        }
    }
}

impl Admission for WaitingMessage {
    fn poll_admitted(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        loop {
            let Some(permit) = &mut self.permit else {
                return Poll::Ready(Ok(()));
            };
            let key = permit.key().clone();
            if permit.poll_acquired(cx).is_pending() {
                // Until the permit is acquired, the timer is set to `ends_at`.
                ready!(self.timer.as_mut().poll(cx));
                let wait = self.limiter.interval();
                return Poll::Ready(Err(self.limiter.refuse(self.kind, &key, wait)));
            }
            let Err(wait) = self.limiter.try_admit(&key) else {
                self.permit = None;
                continue;
            };
            let retry_at = Instant::now() + wait;
            if retry_at > self.ends_at {
                return Poll::Ready(Err(self.limiter.refuse(self.kind, &key, wait)));
            }
            self.timer.as_mut().reset(retry_at);
            ready!(self.timer.as_mut().poll(cx));
        }
    }
}
