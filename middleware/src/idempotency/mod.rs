//! Runs each message once, and answers its duplicates with the stored outcome.
//!
//! Tasks and requests are delivered at least once: if a worker dies after its work and before its
//! acknowledgement, the message is delivered again. With this layer the first delivery runs, and
//! its outcome is stored. Later messages with the same key get the stored outcome, and do not run.
//!
//! ```
//! use campanile::Router;
//! use campanile_middleware::idempotency::{IdempotencyLayer, MemoryStore};
//!
//! async fn charge() {}
//!
//! // Recognises duplicates by their ids, in this process.
//! let app: Router = Router::new()
//!     .task("charge", charge)
//!     .layer(IdempotencyLayer::new(MemoryStore::new()));
//! ```
//! The next example has a store for all workers of a group, and a key that senders choose:
//!
#![cfg_attr(feature = "idempotency-redis", doc = "```no_run")]
#![cfg_attr(not(feature = "idempotency-redis"), doc = "```ignore")]
//! use campanile::{Redis, Router};
//! use campanile_middleware::{
//!     idempotency::{IdempotencyLayer, RedisStore, StoreDown},
//!     key::{self, MissingKey},
//! };
//! use std::time::Duration;
//!
//! # async fn charge() {}
//! # async fn app() -> Result<Router, campanile::Error> {
//! let redis = Redis::connect("redis://127.0.0.1/").await?;
//! let store = RedisStore::new(&redis, "app_group:once:");
//! let app: Router = Router::new().task("charge", charge).layer(
//!     IdempotencyLayer::new(store)
//!         .key(key::header("idempotency-key"))
//!         .missing_key(MissingKey::Pass)
//!         .keep_for(Duration::from_secs(3600))
//!         .store_down(StoreDown::Run),
//! );
//! # Ok(app)
//! # }
//! ```
//!
//! # Key
//! The key is the message's id with its stream and its group, unless [`key`](IdempotencyLayer::key)
//! sets another key. A message keeps its id when it is delivered again, also to another worker. For
//! a message without an id the layer stores nothing, because such a message is never delivered
//! again. Examples are an event, and a message of a client that calls the router without a
//! transport. If another key is set, a message without this key is rejected, unless
//! [`missing_key`](IdempotencyLayer::missing_key) allows it.
//!
//! The layer adds the kind and the name of the message to the key. So messages with different
//! names, such as `orders.create` and `orders.cancel`, may have the same key, and are still no
//! duplicates of each other.
//!
//! **With a custom key, each consumer group needs its own store**: a custom key does not contain
//! the group, and every group has to handle every message. A custom key does not contain the
//! stream either. So if workers of several streams have the same store, they share its keys. To
//! separate the streams, add [`Parts::stream`](campanile::Parts::stream) to the key. Two nested layers also need
//! two stores: with one store, the inner layer would find every key claimed by the outer layer.
//!
//! A message that gets a stored outcome is logged at debug level, and counted by
//! [`suppressed`](IdempotencyLayer::suppressed).
//!
//! # Delivery guarantee
//! | event | consequence |
//! |---|---|
//! | a message arrives whose key has a stored outcome | it is not run, and gets the stored outcome. Exception: if the stored outcome is the message's own [failure](#errors), the message was replayed from the dead letters, and is run again |
//! | a message arrives while another message with its key runs | it fails with [`InProgress`] and is delivered again after [`retry_after`](IdempotencyLayer::retry_after). The attempt does not count, and the message occupies no slot until then |
//! | the worker of a running message dies | the claim expires within [`claim_for`](IdempotencyLayer::claim_for). Then another message with the key runs |
//! | a running message stalls for longer than its claim | another message with the key runs at the same time. Each claim has a token, so the stalled message cannot renew or release the other claim. The outcome of the stalled message is not stored if the key has another claim or another outcome |
//! | the future is dropped, or panics | the claim is released, and another message with the key may run |
//! | the store fails before the inner service was called | the message fails with [`StoreFailed`] and is delivered again, and the attempt does not count. With [`StoreDown::Run`] it runs without a claim |
//! | the servers of the store fail over | replicated outcomes are kept. A duplicate of a message whose outcome was not replicated runs again |
//! | the store fails after the call | the message gets its outcome, and a warning is logged that the outcome was not stored. A duplicate runs again |
//!
//! So the effect of a handler happens once while the workers and the store are alive, and at least
//! once in any case. If the effect must happen exactly once, write the effect and the key in one
//! transaction.
//!
//! # Errors
//! [`remember`](IdempotencyLayer::remember) decides which failures are stored. By default these are
//! the permanent failures: those that make the message a dead letter or discard it, and for
//! requests a permanent [`Rejection`](campanile::Rejection) or an [`RpcError`](campanile::RpcError)
//! other than `unavailable`, `deadline` and `internal`. After any other failure the claim is
//! released.
//!
//! Only *other* messages with the same key get a stored failure. If the message that failed is
//! replayed from the dead letters, it is run again. If several dead letters have the same key,
//! replay the message that failed first: the other messages would only get the stored failure. With
//! the default key no other message has the same key, so no message gets a stored failure.
//!
//! A stored reply keeps its payload and headers. A stored failure is returned as
//! [`RepeatedFailure`].
//!
//! # Cancel safety
//! Dropping the future spawns a short task that releases the claim. If the future is dropped while
//! the outcome is being stored, the outcome may or may not be stored.

mod memory;
mod record;
#[cfg(feature = "idempotency-redis")]
mod redis;
mod service;
mod store;
#[cfg(test)]
mod tests;

use std::{
    error::Error,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use campanile::{BoxError, Failure, Reply};

#[cfg(feature = "idempotency-redis")]
pub use self::redis::RedisStore;
pub use self::{
    memory::MemoryStore,
    record::RepeatedFailure,
    service::{Idempotency, IdempotencyFuture},
    store::{Claim, Store, Token},
};
use crate::key::{self, KeyExtractor, KeyOf, MissingKey};

type Outcome = Result<Reply, BoxError>;

/// Makes [`Idempotency`] services. See the [module](self).
#[derive(Debug, Clone)]
pub struct IdempotencyLayer<St, K = key::ById> {
    store: St,
    keys: KeyExtractor<K>,
    config: IdempotencyConfig,
    /// The number of messages that were not run. Shared by all services that the layer and its
    /// clones make.
    suppressed: Arc<AtomicU64>,
}

#[derive(Debug, Clone, Copy)]
struct IdempotencyConfig {
    claim_for: Duration,
    keep_for: Duration,
    retry_after: Duration,
    remember: Remember,
    store_down: StoreDown,
}

/// Decides which outcomes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Remember {
    /// Successes, and failures that another try cannot change.
    #[default]
    Permanent,
    /// Only successes.
    Successes,
}

/// Decides what happens to a message if the store fails before the message is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum StoreDown {
    /// The message fails with [`StoreFailed`]. It is delivered again after the source's back-off,
    /// and the attempt does not count.
    #[default]
    Fail,
    /// The message is run without a claim. It may be a duplicate that runs a second time.
    Run,
}

impl<St: Store> IdempotencyLayer<St> {
    /// Creates a layer that recognises duplicates by the ids of the messages.
    pub fn new(store: St) -> Self {
        Self {
            store,
            keys: KeyExtractor {
                extract: key::ById,
                missing: MissingKey::Pass,
            },
            config: IdempotencyConfig {
                claim_for: Duration::from_secs(30),
                keep_for: Duration::from_secs(24 * 60 * 60),
                retry_after: Duration::from_secs(1),
                remember: Remember::default(),
                store_down: StoreDown::default(),
            },
            suppressed: Arc::default(),
        }
    }
}

impl<St, K> IdempotencyLayer<St, K> {
    /// Sets the key by which duplicates are recognised. A message without this key is rejected,
    /// unless [`missing_key`](Self::missing_key) is called after this method.
    #[must_use]
    pub fn key<NewKey: KeyOf>(self, key: NewKey) -> IdempotencyLayer<St, NewKey> {
        IdempotencyLayer {
            store: self.store,
            keys: KeyExtractor::new(key),
            config: self.config,
            suppressed: self.suppressed,
        }
    }

    /// Returns the number of messages that got a stored outcome, summed over all services of this
    /// layer and of its clones.
    pub fn suppressed(&self) -> u64 {
        self.suppressed.load(Ordering::Relaxed)
    }

    /// Sets the handling of messages without a key. Unless set, these messages run if the layer has
    /// the default key, and are rejected if [`key`](Self::key) has set another key.
    #[must_use]
    pub fn missing_key(mut self, missing: MissingKey) -> Self {
        self.keys.missing = missing;
        self
    }

    /// Sets how long a claim is valid after its last renewal. If a worker dies, its claims end
    /// within this time. A live worker renews each claim three times within this time. 30 s unless
    /// set.
    ///
    /// # Panics
    /// If `claim` is shorter than 100 ms.
    #[must_use]
    #[track_caller]
    pub fn claim_for(mut self, claim: Duration) -> Self {
        assert!(
            claim >= Duration::from_millis(100),
            "a claim must last at least 100 ms"
        );
        self.config.claim_for = claim;
        self
    }

    /// Sets how long an outcome is stored. It should be longer than the time for which senders
    /// retry. 24 h unless set.
    ///
    /// # Panics
    /// If `keep` is shorter than a millisecond.
    #[must_use]
    #[track_caller]
    pub fn keep_for(mut self, keep: Duration) -> Self {
        assert!(
            keep >= Duration::from_millis(1),
            "an outcome must be kept for at least 1 ms"
        );
        self.config.keep_for = keep;
        self
    }

    /// Sets the delay before the redelivery of a message that arrived while another message with
    /// its key was running. 1 s unless set.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.config.retry_after = after;
        self
    }

    /// Sets which outcomes are stored. Successes and permanent failures unless set.
    #[must_use]
    pub fn remember(mut self, remember: Remember) -> Self {
        self.config.remember = remember;
        self
    }

    /// Sets what happens to a message if the store fails before the message is run. Unless set, the
    /// message fails.
    #[must_use]
    pub fn store_down(mut self, store_down: StoreDown) -> Self {
        self.config.store_down = store_down;
        self
    }
}

impl<S, St: Clone, K: Clone> tower::Layer<S> for IdempotencyLayer<St, K> {
    type Service = Idempotency<S, St, K>;

    fn layer(&self, inner: S) -> Self::Service {
        Idempotency::with_layer(inner, self.clone())
    }
}

/// The error of a message that arrived while another message with the same key was running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct InProgress;

impl InProgress {
    fn error(after: Duration) -> BoxError {
        Failure::redeliver_after(after)
            .uncounted()
            .because(Self)
            .into()
    }
}

impl fmt::Display for InProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a message with the same idempotency key is being handled")
    }
}

impl Error for InProgress {}

/// The error of a message if the store fails before the message is run. Its source is the store's
/// error.
#[derive(Debug)]
pub struct StoreFailed(BoxError);

impl StoreFailed {
    fn error(cause: BoxError) -> BoxError {
        Failure::redeliver().uncounted().because(Self(cause)).into()
    }
}

impl fmt::Display for StoreFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the idempotency store failed")
    }
}

impl Error for StoreFailed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}
