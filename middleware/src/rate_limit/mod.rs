//! At most so many in a time for each key.
//!
//! The crate `governor` counts (a leaky bucket for each key, in this process).
//!
//! ```
//! use campanile::Router;
//! use campanile_middleware::{RateLimitByKeyLayer, key};
//! use std::time::Duration;
//!
//! async fn mail() {}
//!
//! // Ten a second for each tenant.
//! let app: Router = Router::new()
//!     .task("mail", mail)
//!     .layer(RateLimitByKeyLayer::new(10, Duration::from_secs(1), key::header("x-tenant")));
//! ```
//!
//! With small bursts, and a short wait before a message is put off:
//!
//! ```
//! use campanile::Router;
//! use campanile_middleware::{RateLimitByKeyLayer, key};
//! use std::time::Duration;
//!
//! # async fn mail() {}
//! let app: Router = Router::new().task("mail", mail).layer(
//!     RateLimitByKeyLayer::new(10, Duration::from_secs(1), key::name())
//!         .burst(2)
//!         .max_wait(Duration::from_millis(500)),
//! );
//! ```
//!
//! # Ordering
//! Those who [wait](RateLimitByKeyLayer::max_wait) are let in in the order in which their futures
//! were first polled. What is put off comes back in about the order in which it was put off, and
//! newcomers may be faster.
//!
//! # Back-pressure
//! The key is not known before the message is, so this layer is ready whenever the inner service
//! is. What is over the rate is put off: no worker is held by it, and each message has a time of
//! its own to come back at, so that a long backlog is delivered twice and not again and again. With
//! [`max_wait`](RateLimitByKeyLayer::max_wait), what would be let in within that time waits in its
//! own delivery instead, under its lease, and takes one of the source's `max_in_flight`.
//!
//! The count is this process's: the rate of a fleet is that of one worker times the workers. All
//! services that one layer (or a clone of it) makes share it. Keys whose whole burst has come back
//! are forgotten from time to time, so memory is bounded by the keys of that time.
//!
//! # Cancel safety
//! A future that is dropped while it waits has used nothing of the rate.
//!
//! # Errors
//! A message without a key is rejected, unless [`missing_key`](RateLimitByKeyLayer::missing_key)
//! lets it pass. One that is over the rate fails with [`RateLimited`]:
//!
//! - a task is delivered again after the time that it says, and loses no attempt (around a
//!   transport, it is the sender that gets the error);
//! - a request is answered `unavailable`, at once: its caller decides whether to wait;
//! - an event is logged and counted, and lost: let events [wait](RateLimitByKeyLayer::max_wait).

mod admission;
mod limiter;
#[cfg(test)]
mod tests;

use std::{
    error::Error,
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use campanile::{BoxError, Failure, Kind, Message, Reply, RpcError};
use tower::{Layer, Service};

use self::{admission::Waiting, limiter::Limiter};
use crate::{
    gated::{Gated, gated_future, take_ready},
    key::{KeyOf, Keys, MissingKey},
    places::Places,
};

/// How much later what is put off comes back: a transport counts in milliseconds, on another clock,
/// and who comes too early has to go to the end of the line.
const SLACK: Duration = Duration::from_millis(10);

/// Makes [`RateLimitByKey`] services. See the [module](self).
#[derive(Debug, Clone)]
pub struct RateLimitByKeyLayer<K> {
    keys: Keys<K>,
    period: Duration,
    limiter: Arc<Limiter>,
    /// The line of those who wait: one at a time looks whether it may go.
    line: Arc<Places>,
    max_wait: Duration,
}

impl<K: KeyOf> RateLimitByKeyLayer<K> {
    /// `messages` in each `per`, for each key, as one burst or spread.
    ///
    /// # Panics
    /// When either is zero, `per` is less than a nanosecond for each message, or longer than a
    /// century.
    #[track_caller]
    pub fn new(messages: u32, per: Duration, key: K) -> Self {
        assert!(
            messages > 0,
            "with a rate of no messages nothing would ever run"
        );
        let period = per / messages;
        assert!(
            !period.is_zero(),
            "the time of the rate is too short for its messages"
        );
        Self {
            keys: Keys::new(key),
            period,
            limiter: limiter(period, messages),
            line: Places::new(1),
            max_wait: Duration::ZERO,
        }
    }

    /// How many may come at once after a pause: as many as [`new`](Self::new) was given unless set.
    ///
    /// What was counted until now is forgotten, and not shared with layers cloned before.
    ///
    /// # Panics
    /// When it is zero, or would take longer than a century to come back.
    #[must_use]
    #[track_caller]
    pub fn burst(mut self, messages: u32) -> Self {
        assert!(
            messages > 0,
            "with a burst of no messages nothing would ever run"
        );
        self.limiter = limiter(self.period, messages);
        self
    }

    /// How long a message may wait in its own delivery before it is put off. Zero unless set: none
    /// waits.
    #[must_use]
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.max_wait = wait;
        self
    }

    /// What becomes of a message without a key. It is rejected unless set.
    #[must_use]
    pub fn missing_key(mut self, missing: MissingKey) -> Self {
        self.keys.missing = missing;
        self
    }

    /// How many keys are counted.
    pub fn keys_in_use(&self) -> usize {
        self.limiter.keys()
    }
}

#[track_caller]
fn limiter(period: Duration, burst: u32) -> Arc<Limiter> {
    // Counted in nanoseconds, of which a number of 64 bits holds five of these.
    const CENTURY: Duration = Duration::from_secs(3_155_760_000);
    assert!(
        period
            .checked_mul(burst)
            .is_some_and(|whole| whole <= CENTURY),
        "the time of the rate is longer than a century"
    );
    Arc::new(Limiter::new(period, burst))
}

impl<S, K: Clone> Layer<S> for RateLimitByKeyLayer<K> {
    type Service = RateLimitByKey<S, K>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimitByKey {
            inner,
            layer: self.clone(),
        }
    }
}

/// A service that is called at most so often in a time for each key. See the [module](self).
#[derive(Debug, Clone)]
pub struct RateLimitByKey<S, K> {
    inner: S,
    layer: RateLimitByKeyLayer<K>,
}

impl<S, K> Service<Message> for RateLimitByKey<S, K>
where
    S: Service<Message, Response = Reply, Error: Into<BoxError>> + Clone,
    K: KeyOf,
{
    type Response = Reply;
    type Error = BoxError;
    type Future = RateLimitByKeyFuture<S>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, message: Message) -> Self::Future {
        let ready = take_ready(&mut self.inner);
        let layer = &self.layer;
        let key = match layer.keys.of(&message) {
            Ok(Some(key)) => key,
            Ok(None) => return RateLimitByKeyFuture(Gated::free(ready, message)),
            Err(rejection) => return RateLimitByKeyFuture(Gated::refused(rejection)),
        };
        let kind = message.kind();
        if layer.max_wait.is_zero() {
            return RateLimitByKeyFuture(match layer.limiter.check(&key) {
                Ok(()) => Gated::free(ready, message),
                Err(wait) => Gated::refused(layer.limiter.refuse(kind, &key, wait)),
            });
        }
        let place = layer.line.enter(key, usize::MAX).expect("without a bound");
        // Whoever waits already goes first.
        if place.is_held() && layer.limiter.check(place.key()).is_ok() {
            return RateLimitByKeyFuture(Gated::free(ready, message));
        }
        let waiting = Waiting::new(layer.limiter.clone(), place, kind, layer.max_wait);
        // What is ready may hold what others could use meanwhile.
        RateLimitByKeyFuture(Gated::waiting(waiting, self.inner.clone(), message))
    }
}

gated_future! {
    /// The future of [`RateLimitByKey`].
    RateLimitByKeyFuture, Waiting
}

/// A message is over the rate of its key.
#[derive(Debug)]
pub struct RateLimited {
    retry_after: Duration,
    /// What the caller of a request is told.
    answer: Option<RpcError>,
}

impl RateLimited {
    fn error(kind: Kind, retry_after: Duration) -> BoxError {
        let limited = Self {
            retry_after,
            answer: (kind == Kind::Rpc).then(|| RpcError::unavailable("over the rate limit")),
        };
        match kind {
            Kind::Rpc => limited.into(),
            Kind::Task | Kind::Event => {
                let failure = Failure::redeliver_after(retry_after + SLACK).uncounted();
                failure.because(limited).into()
            }
        }
    }

    /// When the rate will let it in, from when it failed.
    pub fn retry_after(&self) -> Duration {
        self.retry_after
    }
}

impl fmt::Display for RateLimited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "over the rate limit for the next {:?}", self.retry_after)
    }
}

impl Error for RateLimited {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.answer.as_ref().map(|answer| answer as _)
    }
}
