//! Limits how many messages with the same key run at once, or in a period, over all workers of a
//! group.
//!
//! `ConcurrencyByKeyLayer` and `RateLimitByKeyLayer` count the messages of one process. This layer
//! counts the messages of all processes that serve the same stream in the same group. It uses the
//! transport's [`Limit`].
//!
//! ```
//! use campanile::{Router, transport::memory::Memory};
//! use campanile_middleware::{SharedLimitLayer, key};
//! use std::time::Duration;
//!
//! async fn import() {}
//! async fn mail() {}
//!
//! # fn main() -> Result<(), campanile::Error> {
//! let memory = Memory::new(); // or `Redis`
//! // Four imports of each tenant at once.
//! let imports = SharedLimitLayer::concurrency(memory.limit("imports")?, 4, key::header("x-tenant"));
//! // Ten mails in any second, whoever sends them.
//! let mails = SharedLimitLayer::rate(memory.limit("mails")?, 10, Duration::from_secs(1), key::all());
//!
//! let app: Router = Router::new()
//!     .merge(Router::new().task("import", import).layer(imports))
//!     .merge(Router::new().task("mail", mail).layer(mails));
//! # Ok(())
//! # }
//! ```
//!
//! # Waiting messages
//! A message that gets no permit leaves its worker, and the attempt does not count. With a
//! concurrency limit the message is [parked](campanile::transport::Limit#parking): each returned
//! permit goes to the first parked message of the key. With a rate limit the transport reserves the
//! next free start time of the key for the message, and delivers the message again at that time. So
//! each waiting message leaves its worker once, however long the backlog of its key is, and
//! messages with other keys do not wait for it.
//!
//! The rate is exact: at most `messages` messages of a key start in any period of the length `per`,
//! wherever the period begins.
//!
//! # Failures of workers
//! If a worker dies, its permits end with its lease, and go to the next messages. If a worker
//! stalls for longer than its lease and then goes on, its running messages exceed the limit.
//!
//! # Back-pressure
//! `poll_ready` does not know the message, so this layer is ready whenever the inner service is.
//!
//! # Cancel safety
//! Dropping a future returns its permit.
//!
//! # Errors
//! A message without a key fails as [`MissingKey::Reject`] says, unless
//! [`missing_key`](SharedLimitLayer::missing_key) lets it pass. Events and messages that do not come
//! from a stream pass without a permit. If the store of the limit cannot be reached, the message is
//! delivered again without counting the attempt.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use campanile::{
    BoxError, Failure, Message, MessageService, Parts, Reply,
    transport::{Limit, Permit},
};
use tower::{Layer, Service};

use crate::{
    gated::{Admission, Gated, gated_future, take_ready},
    key::{Key, KeyExtractor, KeyOf, MissingKey},
};

/// Added to the delay of a redelivery, because the transport counts whole milliseconds. Without
/// this slack, a message could return too early, and would be redelivered once more.
const SLACK: Duration = Duration::from_millis(1);

/// Makes [`SharedLimit`] services. See the [module](self).
#[derive(Debug, Clone)]
pub struct SharedLimitLayer<K> {
    keys: KeyExtractor<K>,
    limit: Limit,
    rule: Rule,
}

#[derive(Debug, Clone, Copy)]
enum Rule {
    Concurrency { permits: usize },
    Rate { messages: usize, per: Duration },
}

impl<K: KeyOf> SharedLimitLayer<K> {
    /// Creates a layer that runs at most `permits` messages at once for each key.
    ///
    /// # Panics
    /// If `permits` is zero.
    #[track_caller]
    pub fn concurrency(limit: Limit, permits: usize, key: K) -> Self {
        assert!(permits > 0, "a concurrency limit needs at least one permit");
        Self::with_rule(limit, key, Rule::Concurrency { permits })
    }

    /// Creates a layer that starts at most `messages` messages in any period `per` for each key.
    ///
    /// # Panics
    /// If `messages` is zero, or `per` is shorter than a millisecond or longer than a year.
    #[track_caller]
    pub fn rate(limit: Limit, messages: usize, per: Duration, key: K) -> Self {
        const YEAR: Duration = Duration::from_secs(31_557_600);
        assert!(messages > 0, "a rate limit needs at least one message");
        assert!(
            (Duration::from_millis(1)..=YEAR).contains(&per),
            "the period of a rate limit must be between a millisecond and a year"
        );
        Self::with_rule(limit, key, Rule::Rate { messages, per })
    }

    fn with_rule(limit: Limit, key: K, rule: Rule) -> Self {
        let keys = KeyExtractor::new(key);
        Self { keys, limit, rule }
    }

    /// Sets the handling of messages without a key. [`MissingKey::Reject`] unless set.
    #[must_use]
    pub fn missing_key(mut self, missing: MissingKey) -> Self {
        self.keys.missing = missing;
        self
    }
}

impl Rule {
    /// Requests a permit. Returns `None` if the rule admits the message without a permit.
    ///
    /// # Errors
    /// If the message must leave its worker.
    async fn request(
        self,
        limit: Limit,
        parts: Parts,
        key: Key,
    ) -> Result<Option<Permit>, Failure> {
        let store_failed =
            |error: campanile::Error| Failure::redeliver().uncounted().because(error);
        match self {
            Self::Concurrency { permits } => {
                match limit.acquire(&parts, key.as_str(), permits).await {
                    Ok(Ok(permit)) => Ok(Some(permit)),
                    Ok(Err(request)) => Err(Failure::park(request)),
                    Err(error) => Err(store_failed(error)),
                }
            }
            Self::Rate { messages, per } => {
                match limit.book(&parts, key.as_str(), messages, per).await {
                    Ok(wait) if wait.is_zero() => Ok(None),
                    Ok(wait) => Err(Failure::redeliver_after(wait + SLACK)
                        .uncounted()
                        .because(LimitReached)),
                    Err(error) => Err(store_failed(error)),
                }
            }
        }
    }
}

impl<S, K: Clone> Layer<S> for SharedLimitLayer<K> {
    type Service = SharedLimit<S, K>;

    fn layer(&self, inner: S) -> Self::Service {
        let layer = self.clone();
        SharedLimit { inner, layer }
    }
}

/// A service with a limit that workers share. See the [module](self).
#[derive(Debug, Clone)]
pub struct SharedLimit<S, K> {
    inner: S,
    layer: SharedLimitLayer<K>,
}

impl<S, K: KeyOf> SharedLimit<S, K> {
    /// Wraps a service, as [`SharedLimitLayer::concurrency`] does.
    ///
    /// # Panics
    /// As [`SharedLimitLayer::concurrency`].
    #[track_caller]
    pub fn concurrency(inner: S, limit: Limit, permits: usize, key: K) -> Self {
        let layer = SharedLimitLayer::concurrency(limit, permits, key);
        Self { inner, layer }
    }

    /// Wraps a service, as [`SharedLimitLayer::rate`] does.
    ///
    /// # Panics
    /// As [`SharedLimitLayer::rate`].
    #[track_caller]
    pub fn rate(inner: S, limit: Limit, messages: usize, per: Duration, key: K) -> Self {
        let layer = SharedLimitLayer::rate(limit, messages, per, key);
        Self { inner, layer }
    }
}

inner_accessors!(SharedLimit<S, K>);

impl<S, K> Service<Message> for SharedLimit<S, K>
where
    S: MessageService + Clone,
    K: KeyOf,
{
    type Response = Reply;
    type Error = BoxError;
    type Future = SharedLimitFuture<S>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, message: Message) -> Self::Future {
        let ready = take_ready(&mut self.inner);
        let layer = &self.layer;
        if message.parts().stream.is_none() {
            return SharedLimitFuture(Gated::admitted(ready, message));
        }
        SharedLimitFuture(match layer.keys.of(&message) {
            Err(rejection) => Gated::refused(rejection),
            Ok(None) => Gated::admitted(ready, message),
            Ok(Some(key)) => {
                let request = layer
                    .rule
                    .request(layer.limit.clone(), holder_parts(&message), key);
                // Drops `ready`, so that another message can use its reservation during the wait.
                Gated::waiting(
                    PermitState::Requesting(Box::pin(request)),
                    self.inner.clone(),
                    message,
                )
            }
        })
    }
}

/// Returns the parts of a message that identify it as the holder of a permit.
fn holder_parts(message: &Message) -> Parts {
    let original = message.parts();
    let mut parts = Parts::new(original.kind, original.name.clone());
    parts.stream = original.stream.clone();
    parts.id = original.id.clone();
    parts.attempt = original.attempt;
    parts
}

/// The request for a permit, and then the permit that was granted.
enum PermitState {
    Requesting(Pin<Box<dyn Future<Output = Result<Option<Permit>, Failure>> + Send>>),
    Admitted { _permit: Option<Permit> },
}

impl Admission for PermitState {
    fn poll_admitted(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let Self::Requesting(request) = self else {
            return Poll::Ready(Ok(()));
        };
        let answer = std::task::ready!(request.as_mut().poll(cx));
        Poll::Ready(match answer {
            Ok(permit) => {
                *self = Self::Admitted { _permit: permit };
                Ok(())
            }
            Err(failure) => Err(failure.into()),
        })
    }
}

gated_future! {
    /// The future of [`SharedLimit`].
    SharedLimitFuture, PermitState
}

/// The reason why a message is delivered again later.
#[derive(Debug)]
struct LimitReached;

impl fmt::Display for LimitReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("over the rate that all workers share")
    }
}

impl std::error::Error for LimitReached {}
