//! Limits how many messages with the same key run in a period.
//!
//! The crate `governor` counts the messages of this process, with a leaky bucket for each key. A
//! message over the rate is *put off*: it fails, and is delivered again later.
//!
//! ```
//! use campanile::Router;
//! use campanile_middleware::{RateLimitByKeyLayer, key};
//! use std::time::Duration;
//!
//! async fn mail() {}
//!
//! // Ten per second for each tenant.
//! let app: Router = Router::new()
//!     .task("mail", mail)
//!     .layer(RateLimitByKeyLayer::new(10, Duration::from_secs(1), key::header("x-tenant")));
//! ```
//!
//! The next layer allows small bursts, and lets a message wait for a short time before it is put
//! off:
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
//! # The rate in a period
//! The limit has no sliding window. After a pause, a burst starts at once, and further messages
//! follow at the rate. So up to `messages + burst - 1` messages start in the period that begins
//! with the burst. That is almost twice the rate unless [`burst`](RateLimitByKeyLayer::burst) is
//! set. With `.burst(1)` no period has more than `messages`. For a rate that is exact in every
//! period, with bursts, and over all processes, use `SharedLimitLayer::rate`.
//!
//! # Ordering
//! Messages that [wait](RateLimitByKeyLayer::max_wait) start in the order in which their futures
//! were first polled. Messages that are put off return approximately in the order in which they
//! were put off, but new messages may run before them.
//!
//! # Back-pressure
//! `poll_ready` does not know the message, so this layer is ready whenever the inner service is. A
//! message that is put off occupies no slot of `max_in_flight` until it returns. The messages of a
//! long backlog return at different times, so most of them are delivered only twice.
//!
//! With [`max_wait`](RateLimitByKeyLayer::max_wait), a message that will be admitted within that
//! time waits in the worker instead: the worker renews its lease, and the message occupies one of
//! the source's `max_in_flight` slots.
//!
//! Each process counts separately, so the rate of all workers together is the sum of their rates.
//! All services that a layer and its clones make share the count. A clean-up removes a key whose
//! whole burst is available again.
//!
//! # Cancel safety
//! A message whose future is dropped while it waits does not count against the rate.
//!
//! # Errors
//! A message without a key fails as [`MissingKey::Reject`] says, unless
//! [`missing_key`](RateLimitByKeyLayer::missing_key) lets it pass. A message over the rate fails with
//! [`RateLimited`]:
//!
//! - a task is delivered again after [`retry_after`](RateLimited::retry_after), and the attempt
//!   does not count. If the layer is around a client's transport, the sender gets the error;
//! - a request is answered with `unavailable` immediately, and its caller may try again;
//! - an event is logged, counted and lost. To avoid this, let events
//!   [wait](RateLimitByKeyLayer::max_wait).

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

use campanile::{BoxError, Failure, Kind, Message, MessageService, Reply, RpcError};
use tower::{Layer, Service};

use self::{admission::WaitingMessage, limiter::Limiter};
use crate::{
    gated::{Gated, gated_future, take_ready},
    key::{KeyExtractor, KeyOf, MissingKey},
    keyed_permits::KeyedPermits,
};

/// Added to the delay of a redelivery. The transport counts whole milliseconds on another clock.
/// Without this slack, a message could return too early, and would be put off again behind all
/// others.
const SLACK: Duration = Duration::from_millis(10);

/// Makes [`RateLimitByKey`] services. See the [module](self).
#[derive(Debug, Clone)]
pub struct RateLimitByKeyLayer<K> {
    keys: KeyExtractor<K>,
    /// The time between two messages of a key after a burst.
    interval: Duration,
    limiter: Arc<Limiter>,
    /// One permit for each key. The message with the permit waits for the rate. Further messages
    /// with the same key wait for the permit.
    key_permits: Arc<KeyedPermits>,
    max_wait: Duration,
}

impl<K: KeyOf> RateLimitByKeyLayer<K> {
    /// Creates a layer that admits `messages` messages in each period `per` for each key, as one
    /// burst or spread over the period.
    ///
    /// # Panics
    /// If `messages` or `per` is zero, or if `per` is shorter than a nanosecond for each message,
    /// or longer than a century.
    #[track_caller]
    pub fn new(messages: u32, per: Duration, key: K) -> Self {
        assert!(messages > 0, "a rate limit needs at least one message");
        let interval = per / messages;
        assert!(
            !interval.is_zero(),
            "the period of a rate limit is shorter than a nanosecond for each message"
        );
        Self {
            keys: KeyExtractor::new(key),
            interval,
            limiter: new_limiter(interval, messages),
            key_permits: KeyedPermits::new(1),
            max_wait: Duration::ZERO,
        }
    }

    /// Sets the burst: the number of messages that are admitted at once after a pause. The
    /// `messages` of [`new`](Self::new) unless set.
    ///
    /// The returned layer counts from zero, and shares no count with earlier clones.
    ///
    /// # Panics
    /// If `messages` is zero, or such a burst would take longer than a century to become available
    /// again.
    #[must_use]
    #[track_caller]
    pub fn burst(mut self, messages: u32) -> Self {
        assert!(messages > 0, "a burst needs at least one message");
        self.limiter = new_limiter(self.interval, messages);
        self
    }

    /// Sets the maximum time that a message waits in this layer. A message that would wait longer
    /// is put off. Zero unless set.
    #[must_use]
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.max_wait = wait;
        self
    }

    /// Sets the handling of messages without a key. [`MissingKey::Reject`] unless set.
    #[must_use]
    pub fn missing_key(mut self, missing: MissingKey) -> Self {
        self.keys.missing = missing;
        self
    }

    /// Returns the number of keys with a count.
    pub fn keys_in_use(&self) -> usize {
        self.limiter.keys()
    }
}

#[track_caller]
fn new_limiter(interval: Duration, burst: u32) -> Arc<Limiter> {
    // `governor` counts nanoseconds in 64 bits, which hold five centuries.
    const CENTURY: Duration = Duration::from_secs(3_155_760_000);
    assert!(
        interval
            .checked_mul(burst)
            .is_some_and(|period| period <= CENTURY),
        "the period of a rate limit is longer than a century"
    );
    Arc::new(Limiter::new(interval, burst))
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

/// A service with a rate limit for each key. See the [module](self).
#[derive(Debug, Clone)]
pub struct RateLimitByKey<S, K> {
    inner: S,
    layer: RateLimitByKeyLayer<K>,
}

impl<S, K: KeyOf> RateLimitByKey<S, K> {
    /// Wraps a service, as [`RateLimitByKeyLayer::new`] does. Clones share the count.
    ///
    /// # Panics
    /// As [`RateLimitByKeyLayer::new`].
    #[track_caller]
    pub fn new(inner: S, messages: u32, per: Duration, key: K) -> Self {
        let layer = RateLimitByKeyLayer::new(messages, per, key);
        Self { inner, layer }
    }
}

inner_accessors!(RateLimitByKey<S, K>);

impl<S, K> Service<Message> for RateLimitByKey<S, K>
where
    S: MessageService + Clone,
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
            Ok(None) => return RateLimitByKeyFuture(Gated::admitted(ready, message)),
            Err(rejection) => return RateLimitByKeyFuture(Gated::refused(rejection)),
        };
        let kind = message.kind();
        if layer.max_wait.is_zero() {
            return RateLimitByKeyFuture(match layer.limiter.try_admit(&key) {
                Ok(()) => Gated::admitted(ready, message),
                Err(wait) => Gated::refused(layer.limiter.refuse(kind, &key, wait)),
            });
        }
        let permit = layer.key_permits.request(key, usize::MAX);
        let permit = permit.expect("the number of waiting requests is unlimited");
        // If the permit is not acquired, other messages wait already, and start before this
        // message.
        if permit.is_acquired() && layer.limiter.try_admit(permit.key()).is_ok() {
            return RateLimitByKeyFuture(Gated::admitted(ready, message));
        }
        let waiting = WaitingMessage::new(layer.limiter.clone(), permit, kind, layer.max_wait);
        // Drops `ready`, so that another message can use its reservation during the wait.
        RateLimitByKeyFuture(Gated::waiting(waiting, self.inner.clone(), message))
    }
}

gated_future! {
    /// The future of [`RateLimitByKey`].
    RateLimitByKeyFuture, WaitingMessage
}

/// The error of a message over the rate of its key.
#[derive(Debug)]
pub struct RateLimited {
    retry_after: Duration,
    /// The error reply, if the message is a request.
    error_reply: Option<RpcError>,
}

impl RateLimited {
    fn error(kind: Kind, retry_after: Duration) -> BoxError {
        let limited = Self {
            retry_after,
            error_reply: (kind == Kind::Rpc).then(|| RpcError::unavailable("over the rate limit")),
        };
        match kind {
            Kind::Rpc => limited.into(),
            Kind::Task | Kind::Event => {
                let failure = Failure::redeliver_after(retry_after + SLACK).uncounted();
                failure.because(limited).into()
            }
        }
    }

    /// Returns the time after which the rate admits the message.
    pub fn retry_after(&self) -> Duration {
        self.retry_after
    }
}

impl fmt::Display for RateLimited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "over the rate limit; retry after {:?}", self.retry_after)
    }
}

impl Error for RateLimited {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error_reply.as_ref().map(|reply| reply as _)
    }
}
