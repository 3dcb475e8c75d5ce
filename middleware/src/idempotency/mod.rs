//! What comes twice runs once, and the outcome is repeated.
//!
//! Tasks and requests are delivered at least once: a worker that dies after its work and before its
//! acknowledgement makes the message come again. Behind this layer the first delivery runs; its
//! outcome is stored, and whatever comes with the same key gets that.
//!
//! ```
//! use campanile::Router;
//! use campanile_middleware::idempotency::{IdempotencyLayer, MemoryStore};
//!
//! async fn charge() {}
//!
//! // By the message's id, in this process.
//! let app: Router = Router::new()
//!     .task("charge", charge)
//!     .layer(IdempotencyLayer::new(MemoryStore::new()));
//! ```
//!
//! For all workers of a group, by a key that senders choose:
//!
#![cfg_attr(feature = "idempotency-redis", doc = "```no_run")]
#![cfg_attr(not(feature = "idempotency-redis"), doc = "```ignore")]
//! use campanile::Router;
//! use campanile_middleware::{
//!     idempotency::{IdempotencyLayer, RedisStore, StoreDown},
//!     key::{self, MissingKey},
//! };
//! use std::time::Duration;
//!
//! # async fn charge() {}
//! # async fn app() -> Result<Router, campanile::Error> {
//! let store = RedisStore::connect("redis://127.0.0.1/", "app_group:once:").await?;
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
//! # Keys
//! The key is the message's id with its stream and its group, unless another is
//! [chosen](IdempotencyLayer::key). The id stays the same through redelivery and take-over, and is
//! unique in its stream only. A message without one (an event, a call in place) passes,
//! since it cannot come again. Of another key a message must have one, unless
//! [`missing_key`](IdempotencyLayer::missing_key) lets it pass without.
//!
//! A key holds for one kind and name of message: `orders.create` and `orders.cancel` may have the
//! same one. **A store belongs to one consumer group**, since every group is to handle every
//! message, and to one layer: of two nested ones the inner would find its key claimed by the outer.
//! A chosen key holds for all streams whose workers share the store: add
//! [`Parts::stream`](campanile::Parts::stream) to it where that is not wanted.
//!
//! A message that is not run is logged at DEBUG and counted by
//! [`suppressed`](IdempotencyLayer::suppressed).
//!
//! # Delivery guarantee
//! | what happens | what follows |
//! |---|---|
//! | a message comes whose outcome is stored | it is not run; its outcome is the stored one. Except for a message that comes again after [its own failure](#errors) was stored: it is run |
//! | a message comes while another with its key runs | it fails with [`InProgress`] and is delivered again after [`retry_after`](IdempotencyLayer::retry_after), uncounted; it takes no slot meanwhile |
//! | the first one dies in the middle | its claim, which it renewed while it ran, runs out within [`claim_for`](IdempotencyLayer::claim_for); then another runs |
//! | the first one stalls for longer than its claim | another runs at the same time. The claim has a token, so that the first cannot give up or renew what the other has; of both outcomes the first is stored |
//! | the future is dropped, or panics | the claim is given up, and another may run |
//! | the store fails before the service was called | the message fails with [`StoreFailed`] and is delivered again, uncounted; or it is run without a guard, as [chosen](IdempotencyLayer::store_down) |
//! | the store fails afterwards | the outcome stands and is logged as not stored: what comes again is run again |
//!
//! So an effect happens once as long as workers and the store live, and at least once in any case.
//! For exactly once the effect itself has to be in one transaction with the key.
//!
//! # Errors
//! What is stored of a failure is chosen by [`remember`](IdempotencyLayer::remember). Unless set it
//! is what is permanent: a dead letter, what is to be discarded, and for requests a permanent
//! [`Rejection`](campanile::Rejection) or an [`RpcError`](campanile::RpcError) other than
//! `unavailable`, `deadline` and `internal`. All else gives the claim up and is run again.
//!
//! A failure is repeated to *other* messages with its key. The message that failed with it is run
//! again if it comes again: it is a dead letter that somebody replays. Where several with one key
//! are replayed, replay that one first. With the default key no other message has the same key, so
//! a stored failure is never repeated.
//!
//! A stored reply has its payload and headers. A stored failure fails with [`Repeated`].
//!
//! # Cancel safety
//! Dropping the future gives the claim up, by a task of its own that ends with the store's answer.
//! An outcome that was being stored may be stored or not.

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
    record::Repeated,
    service::{Idempotency, IdempotencyFuture},
    store::{Claim, Store, Token},
};
use crate::key::{self, KeyOf, Keys, MissingKey};

type Outcome = Result<Reply, BoxError>;

/// Makes [`Idempotency`] services. See the [module](self).
#[derive(Debug, Clone)]
pub struct IdempotencyLayer<St, K = key::ById> {
    store: St,
    keys: Keys<K>,
    rules: Rules,
    /// Shared by all services of the layer and by its clones.
    suppressed: Arc<AtomicU64>,
}

#[derive(Debug, Clone, Copy)]
struct Rules {
    claim_for: Duration,
    keep_for: Duration,
    retry_after: Duration,
    remember: Remember,
    store_down: StoreDown,
}

/// Which outcomes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Remember {
    /// Successes, and failures that another try cannot change.
    #[default]
    Permanent,
    /// Successes only.
    Successes,
}

/// What becomes of a message when the store cannot tell whether it came before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum StoreDown {
    /// It fails with [`StoreFailed`]: it is delivered again after the source's back-off, and loses
    /// no attempt.
    #[default]
    Fail,
    /// It is run without a guard: perhaps for the second time.
    Run,
}

impl<St: Store> IdempotencyLayer<St> {
    /// By the messages' ids.
    pub fn new(store: St) -> Self {
        Self {
            store,
            keys: Keys {
                of: key::ById,
                missing: MissingKey::Pass,
            },
            rules: Rules {
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
    /// By another key. A message that has none is rejected, unless
    /// [`missing_key`](Self::missing_key) says otherwise afterwards.
    #[must_use]
    pub fn key<L: KeyOf>(self, key: L) -> IdempotencyLayer<St, L> {
        IdempotencyLayer {
            store: self.store,
            keys: Keys::new(key),
            rules: self.rules,
            suppressed: self.suppressed,
        }
    }

    /// The number of messages that were not run because the outcome for their key was stored,
    /// over all services of this layer and of its clones.
    pub fn suppressed(&self) -> u64 {
        self.suppressed.load(Ordering::Relaxed)
    }

    /// What becomes of a message without a key.
    #[must_use]
    pub fn missing_key(mut self, missing: MissingKey) -> Self {
        self.keys.missing = missing;
        self
    }

    /// How long a claim lasts that is not renewed, as that of a worker that has died. It is renewed
    /// after each third of that. 30 s unless set.
    ///
    /// # Panics
    /// When it is shorter than 100 ms.
    #[must_use]
    #[track_caller]
    pub fn claim_for(mut self, claim: Duration) -> Self {
        assert!(
            claim >= Duration::from_millis(100),
            "a claim must last at least 100 ms"
        );
        self.rules.claim_for = claim;
        self
    }

    /// How long an outcome is kept. It should be longer than whoever sends goes on trying. 24 h
    /// unless set.
    ///
    /// # Panics
    /// When it is shorter than a millisecond.
    #[must_use]
    #[track_caller]
    pub fn keep_for(mut self, keep: Duration) -> Self {
        assert!(
            keep >= Duration::from_millis(1),
            "an outcome must be kept for at least 1 ms"
        );
        self.rules.keep_for = keep;
        self
    }

    /// When a message comes again that came while another with its key was running. 1 s unless set.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.rules.retry_after = after;
        self
    }

    /// Which outcomes are stored. Successes and permanent failures unless set.
    #[must_use]
    pub fn remember(mut self, remember: Remember) -> Self {
        self.rules.remember = remember;
        self
    }

    /// What becomes of a message when the store fails. It fails too unless set.
    #[must_use]
    pub fn store_down(mut self, store_down: StoreDown) -> Self {
        self.rules.store_down = store_down;
        self
    }
}

impl<S, St: Clone, K: Clone> tower::Layer<S> for IdempotencyLayer<St, K> {
    type Service = Idempotency<S, St, K>;

    fn layer(&self, inner: S) -> Self::Service {
        Idempotency::new(inner, self.clone())
    }
}

/// Another message with the same key is being handled.
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

/// The store could not tell whether the message came before. The cause is the store's error.
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
