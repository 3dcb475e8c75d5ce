//! Runs the messages of a key one after the other, in their order, and different keys in parallel.
//!
//! ```
//! use campanile::Router;
//! use campanile_middleware::{OrderedByKeyLayer, key};
//!
//! async fn update() {}
//!
//! let app: Router = Router::new()
//!     .task("accounts.update", update)
//!     .layer(OrderedByKeyLayer::new(key::header("x-account")));
//! ```
//!
//! The layer needs the settings of the source, if they are not the defaults:
//!
//! ```
//! use campanile::{
//!     Message, Router,
//!     transport::{Backoff, memory::Memory},
//! };
//! use campanile_middleware::{OrderedByKeyLayer, key::MissingKey};
//! use std::time::Duration;
//!
//! # async fn update() {}
//! const BACKOFF: Backoff =
//!     Backoff::exponential(Duration::from_millis(200), Duration::from_secs(20));
//!
//! let memory = Memory::new().backoff(BACKOFF).max_deliveries(4);
//! let by_group = |message: &Message| message.name().split('.').next().map(str::to_owned);
//! let app: Router = Router::new()
//!     .task("accounts.update", update)
//!     .layer(
//!         OrderedByKeyLayer::new(by_group)
//!             .missing_key(MissingKey::Pass)
//!             .backoff(BACKOFF)
//!             .max_deliveries(4)
//!             .redelivery_timeout(Duration::from_secs(120)),
//!     );
//! # let _ = memory;
//! ```
//!
//! # Ordering
//! Within one worker, as long as it runs:
//!
//! - The messages of a key run one after the other. The next message starts when the future of the
//!   previous one has ended, or was dropped.
//! - They start in the order in which the layer became ready for them. If the layer is the
//!   outermost one that [`serve`](campanile::serve()) serves, for example around a whole router,
//!   that is the order of the stream, on any number of threads. Behind a layer that holds messages
//!   back, or around one route, they start in the order in which they reach this layer.
//! - **A failure keeps the order.** A message that will be delivered again keeps its turn, and
//!   later messages of its key wait for it. If it is due within a quarter of a second, they wait in
//!   their deliveries. Otherwise they are *put off*: they fail with [`PutOff`] and are delivered
//!   again shortly after that message, and the attempt does not count. So a back-off occupies no
//!   slot, and other keys go on. Each failure of the first message costs one redelivery for each
//!   message that is put off.
//! - A message that is done, answered, discarded or a dead letter gives up its turn.
//! - A message that does not return, because it was purged or another worker claimed it, loses its
//!   turn after the [`redelivery_timeout`], or at its deadline.
//!
//! **The turns end with the worker.** After a shutdown or a crash, messages that ran or were put
//! off are delivered again among new ones, so a message may run after later ones of its key.
//!
//! **Several workers break the order.** The workers of a group share its messages, so two of them
//! may run two messages of a key at the same time, and a redelivery may go to the other worker. If
//! order matters, give the group one worker. For more throughput, divide the keys among streams (by
//! a hash of the key), with one worker for each.
//!
//! A message without an [`id`](campanile::Parts::id), such as an event or a call in place, cannot
//! be delivered again. It does not wait for messages that will be delivered again.
//!
//! Put the layers that decide about failures *inside* this one: timeouts, `catch_panic`,
//! `map_failure`, `retry`. This layer reads the decision from the error (see
//! [`Settle::of`](campanile::error::Settle::of)). It sets the wait of a redelivery that has none,
//! so that it knows when the message returns. A future that panics or is dropped counts as a
//! failure. A message without a route holds up no others.
//!
//! # Back-pressure
//! Readiness cannot depend on a message's key, so the layer is ready whenever the inner service is.
//! A message waits in its delivery: its lease is renewed, and it occupies one of the source's
//! `max_in_flight` slots. A key with a long backlog can occupy them all. A waiting message holds no
//! reservation of the inner service.
//!
//! A reservation (`poll_ready` without `call`) keeps a turn, and holds up all later messages of all
//! keys. `serve` and clients call at once. So do tower's layers, except for those that keep
//! services ready: `Balance`, `ReadyCache`, and `Steer` around several of these services.
//!
//! Unused keys take no memory. At most [`max_put_off`] ids of messages that will be delivered again
//! are kept. Further messages keep no turn, and run in the order of their redelivery.
//!
//! # Cancel safety
//! Dropping a future wakes the next message. A task that will be delivered again keeps its turn.
//!
//! # Errors
//! A message without a key is rejected, unless [`missing_key`](OrderedByKeyLayer::missing_key) lets
//! it pass. A message that is put off fails with a [`Failure`](campanile::Failure) whose source is
//! [`PutOff`].
//!
//! [`redelivery_timeout`]: OrderedByKeyLayer::redelivery_timeout
//! [`max_put_off`]: OrderedByKeyLayer::max_put_off

mod queue;
mod queued;
mod queues;
mod service;
#[cfg(test)]
mod tests;

use std::{error::Error, fmt, sync::Arc, time::Duration};

use campanile::transport::{Backoff, Settings};

use self::queues::KeyQueues;
pub use self::service::{OrderedByKey, OrderedByKeyFuture};
use crate::key::{KeyExtractor, KeyOf, MissingKey};

/// Makes [`OrderedByKey`] services. See the [module](self).
#[derive(Debug, Clone)]
pub struct OrderedByKeyLayer<K> {
    keys: KeyExtractor<K>,
    config: OrderConfig,
    queues: Arc<KeyQueues>,
}

/// The settings of a layer.
#[derive(Debug, Clone, Copy)]
struct OrderConfig {
    backoff: Backoff,
    max_deliveries: u32,
    redelivery_timeout: Duration,
    max_put_off: usize,
}

impl<K: KeyOf> OrderedByKeyLayer<K> {
    /// Orders messages by this key.
    pub fn new(key: K) -> Self {
        let settings = Settings::default();
        Self {
            keys: KeyExtractor::new(key),
            config: OrderConfig {
                backoff: settings.backoff,
                max_deliveries: settings.max_deliveries,
                redelivery_timeout: Duration::from_secs(60),
                max_put_off: 10_000,
            },
            queues: Arc::default(),
        }
    }

    /// Decides about a message without a key. It is rejected unless set.
    #[must_use]
    pub fn missing_key(mut self, missing: MissingKey) -> Self {
        self.keys.missing = missing;
        self
    }

    /// Sets the wait before a redelivery if the failure names none. It must equal the back-off of
    /// the source. 1 s, doubling to 5 min, unless set.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.config.backoff = backoff;
        self
    }

    /// Sets the number of deliveries after which a message is a dead letter. It must equal that of
    /// the source. 10 unless set.
    ///
    /// # Panics
    /// If `deliveries` is zero.
    #[must_use]
    #[track_caller]
    pub fn max_deliveries(mut self, deliveries: u32) -> Self {
        assert!(deliveries > 0, "max_deliveries must be at least 1");
        self.config.max_deliveries = deliveries;
        self
    }

    /// Sets how long after its due time a message keeps its turn if it is not delivered. A message
    /// is not delivered while no slot is free, so this time should be longer than handlers take. 60
    /// s unless set.
    #[must_use]
    pub fn redelivery_timeout(mut self, timeout: Duration) -> Self {
        self.config.redelivery_timeout = timeout;
        self
    }

    /// Sets how many messages of all keys keep their turns while they wait for redelivery. 10,000
    /// unless set.
    #[must_use]
    pub fn max_put_off(mut self, messages: usize) -> Self {
        self.config.max_put_off = messages;
        self
    }

    /// Returns the number of keys with messages that run, wait, or will be delivered again.
    pub fn keys_in_use(&self) -> usize {
        self.queues.keys()
    }
}

impl<S, K: Clone> tower::Layer<S> for OrderedByKeyLayer<K> {
    type Service = OrderedByKey<S, K>;

    fn layer(&self, inner: S) -> Self::Service {
        OrderedByKey::with_layer(inner, self.clone())
    }
}

/// The error of a message that is put off: an earlier message with the same key is to be delivered
/// again first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PutOff;

impl fmt::Display for PutOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an earlier message with the same key is to be delivered again first")
    }
}

impl Error for PutOff {}
