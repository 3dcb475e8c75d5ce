//! Runs messages with the same key one after the other, in their order, and messages with different
//! keys concurrently.
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
//! The layer must have the same back-off as the source. If the source does not have the default
//! back-off, set it for the layer, too:
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
//! let memory = Memory::new().backoff(BACKOFF);
//! let by_group = |message: &Message| message.name().split('.').next().map(str::to_owned);
//! let app: Router = Router::new()
//!     .task("accounts.update", update)
//!     .layer(
//!         OrderedByKeyLayer::new(by_group)
//!             .missing_key(MissingKey::Pass)
//!             .backoff(BACKOFF)
//!             .redelivery_timeout(Duration::from_secs(120)),
//!     );
//! # let _ = memory;
//! ```
//!
//! # Ordering
//! The *turn* of a message is its position in the order of the messages with its key. Within one
//! worker, as long as it runs:
//!
//! - Messages with the same key run one after the other. A message starts only after the future of
//!   the previous message has completed or was dropped.
//! - A message takes its turn before its `call`: when `poll_ready` of this layer succeeds. If this
//!   layer is the outermost layer of the served application, for example around a whole router, the
//!   turns have the order of the stream, on any number of threads. If an outer layer delays
//!   messages, or if this layer is around one route, the turns have the order in which messages
//!   reach this layer.
//! - **A failure keeps the order.** A message that will be delivered again keeps its turn, and
//!   later messages of its key wait for it. If the redelivery is due within a quarter of a second,
//!   the later messages wait in the worker. Otherwise they are *put off*: they fail with
//!   [`PutOff`], and are delivered again shortly after the failed message. An attempt that is put
//!   off does not count. A message that is put off occupies no slot of `max_in_flight` during the
//!   back-off, so messages with other keys continue. Each failure costs one redelivery for each
//!   message that is put off.
//! - A message gives up its turn when it is done, answered, discarded, or a dead letter.
//! - A message that keeps its turn may never return, because it was purged or another worker
//!   claimed it. Such a message loses its turn [`redelivery_timeout`] after its redelivery was due,
//!   or at its deadline if that is earlier.
//!
//! **The turns end with the worker.** After a shutdown or a crash, messages that ran or were put
//! off are delivered again among new messages. A message may then run after later messages with its
//! key.
//!
//! **Several workers break the order.** The workers of a group share its messages. Two workers may
//! run two messages with the same key at the same time, and a redelivery may go to another worker.
//! If order matters, give the group only one worker, or use a stream with [owned
//! partitions](campanile::transport::Streams::owned).
//!
//! Some messages cannot be delivered again, so this layer cannot put them off: events, and messages
//! without an [`id`](campanile::Parts::id), such as those of a client that calls the router without
//! a transport. These messages wait for earlier messages that run or wait in the worker. They do
//! not wait for messages that will be delivered again.
//!
//! Put the layers that decide about failures *inside* this layer: timeouts, `catch_panic`,
//! `map_failure`, `retry`. This layer reads the decision from the error (see
//! [`FailureVerdict::of`](campanile::error::FailureVerdict::of)). If the error requests a redelivery and sets no
//! delay, the layer sets the delay, so that it knows when the message returns. A task whose future
//! panics or is dropped counts as failed. A message without a route gives up its turn.
//!
//! # Back-pressure
//! `poll_ready` does not know the message, so the layer is ready whenever the inner service is. A
//! message that has to wait stays in the worker: the worker renews its lease, and the message
//! occupies one of the source's `max_in_flight` slots. A key with a long backlog can occupy all
//! slots. A waiting message holds no reservation of the inner service.
//!
//! A service that was polled ready and not yet called holds a turn. All later messages, with any
//! key, wait for this turn. `serve` and clients call the service immediately after `poll_ready`. So
//! do tower's layers, except those that keep services ready: `Balance`, `ReadyCache`, and `Steer`
//! around several of these services.
//!
//! A key without messages takes no memory. Messages that failed or were put off keep their turns
//! until they are delivered again. At most [`max_put_off`] messages, over all keys, keep their
//! turns in this way. Further messages keep no turn, and run in the order of their redelivery.
//!
//! # Cancel safety
//! Dropping the future of a task counts as a failure. If the task has attempts left, it will be
//! delivered again, and keeps its turn. Dropping the future of a request or an event gives up the
//! turn, and the next message runs.
//!
//! # Errors
//! A message without a key fails as [`MissingKey::Reject`] says, unless
//! [`missing_key`](OrderedByKeyLayer::missing_key) lets it pass. A message that is put off fails
//! with a [`Failure`](campanile::Failure) whose source is [`PutOff`].
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
    redelivery_timeout: Duration,
    max_put_off: usize,
}

impl<K: KeyOf> OrderedByKeyLayer<K> {
    /// Creates a layer that orders the messages of each key.
    pub fn new(key: K) -> Self {
        let settings = Settings::default();
        Self {
            keys: KeyExtractor::new(key),
            config: OrderConfig {
                backoff: settings.backoff,
                redelivery_timeout: Duration::from_secs(60),
                max_put_off: 10_000,
            },
            queues: Arc::default(),
        }
    }

    /// Sets the handling of messages without a key. [`MissingKey::Reject`] unless set.
    #[must_use]
    pub fn missing_key(mut self, missing: MissingKey) -> Self {
        self.keys.missing = missing;
        self
    }

    /// Sets the back-off: the delay of a redelivery if the failure sets no delay. The source must
    /// have the same back-off. From 1 s, doubling up to 5 min, unless set.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.config.backoff = backoff;
        self
    }

    /// Sets for how long a message keeps its turn after its redelivery was due. The worker delivers
    /// no message while all slots are occupied, so choose a time that is longer than handlers take.
    /// 60 s unless set.
    #[must_use]
    pub fn redelivery_timeout(mut self, timeout: Duration) -> Self {
        self.config.redelivery_timeout = timeout;
        self
    }

    /// Sets how many messages, over all keys, may keep their turns after they failed or were put
    /// off. 10,000 unless set.
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

/// The error of a message that is put off, because an earlier message with the same key must be
/// delivered again first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PutOff;

impl fmt::Display for PutOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an earlier message with the same key is to be delivered again first")
    }
}

impl Error for PutOff {}
