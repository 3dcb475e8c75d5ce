//! The messages of a key one after the other, in the order in which they came; keys in parallel.
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
//! Beside a source with settings of its own, which the layer is told:
//!
//! ```
//! use campanile::{Message, Router, transport::memory::Memory};
//! use campanile_middleware::{OrderedByKeyLayer, key::MissingKey};
//! use std::time::Duration;
//!
//! # async fn update() {}
//! const FIRST: Duration = Duration::from_millis(200);
//! const MOST: Duration = Duration::from_secs(20);
//!
//! let memory = Memory::new().backoff(FIRST, MOST).max_deliveries(4);
//! let by_group = |message: &Message| message.name().split('.').next().map(str::to_owned);
//! let app: Router = Router::new()
//!     .task("accounts.update", update)
//!     .layer(
//!         OrderedByKeyLayer::new(by_group)
//!             .missing_key(MissingKey::Pass)
//!             .backoff(FIRST, MOST)
//!             .max_deliveries(4)
//!             .patience(Duration::from_secs(120)),
//!     );
//! # let _ = memory;
//! ```
//!
//! # Ordering
//! Within one worker, and as long as it runs:
//!
//! - The messages of a key are handled one after the other. The next begins when the service's
//!   future for the one before has ended, or was dropped.
//! - They begin in the order in which the layer was made ready for them. Where the layer is the
//!   outermost of what [`serve`](campanile::serve()) serves (around a whole router, say) that is
//!   the order in which the source delivers them, which is the order of the stream, on any number
//!   of threads. Further in, behind a layer that holds messages up or beside other routes, it is
//!   the order in which they get there.
//! - **A failure keeps the order.** A message that is to be delivered again keeps its turn, and
//!   later ones of its key wait for it: in place where it is due within a quarter of a second.
//!   Otherwise they are *put off*: they fail with [`PutOff`], come again shortly after it, and lose
//!   no attempt. So nothing is held while a message backs off, and other keys go on. It costs a
//!   redelivery for each message that is put off, each time that the first one fails.
//! - A message that ends for good lets the next one go: done, answered, a dead letter, discarded.
//! - A message that does not come back, since somebody purged it or another worker took it, loses
//!   its turn when its [`patience`] is over, or its own deadline.
//!
//! **A worker that ends forgets the turns.** What it was handling or had put off is delivered
//! again beside what is new: after a shutdown or a crash a message may be handled after later
//! ones of its key.
//!
//! **Several workers break the order.** The workers of a group share its messages, so two of them
//! may handle two messages of a key at the same time, and a redelivery may go to the other one.
//! Where order matters, give the group one worker; for more throughput divide the keys among
//! streams (by a hash of the key), with one worker for each.
//!
//! What was never accepted by a transport, so that it has no
//! [`id`](campanile::message::Parts::id) (an event, a call in place), cannot be delivered again. It
//! takes its turn among those that are here, and does not wait for those that are to come back.
//!
//! Put what decides about failures *inside* this layer: time-outs, `catch_panic`, `map_failure`,
//! `retry`. It looks at the error that it gets (see
//! [`Settle::of`](campanile::error::Settle::of)), and sets the wait of a redelivery that has none,
//! so that it knows when the message comes back. A future that panics or is dropped counts as a
//! failure. A message without a route holds nobody up.
//!
//! # Back-pressure
//! The key is not known before the message is, so the layer is ready whenever the inner service is,
//! and a message waits in its own delivery, under its lease. Those who wait for one that runs take
//! one of the source's `max_in_flight` each: a key with a long backlog can take them all.
//! The inner service's readiness is asked for again when a message's turn comes.
//!
//! A reservation (`poll_ready` without `call`) keeps a turn, for whatever key. Like a permit of
//! tower's `ConcurrencyLimit` that is held idle, it holds up everything behind it. `serve`, clients
//! and tower's own layers call at once, except for those that keep services ready: `Balance`,
//! `ReadyCache`, and `Steer` around several of these.
//!
//! Keys that nobody uses take no memory. Of messages that are to come back the ids are kept, at
//! most [`max_put_off`] of them; what is put off beyond that has no turn, and comes in the order
//! in which it is delivered again.
//!
//! # Cancel safety
//! A future that is dropped lets the next one go. If its message is one that will be delivered
//! again (a task under a lease), it keeps its turn.
//!
//! # Errors
//! A message without a key is rejected, unless [`missing_key`](OrderedByKeyLayer::missing_key) lets
//! it pass. One that is put off fails with a [`Failure`](campanile::Failure) because of [`PutOff`].
//!
//! [`patience`]: OrderedByKeyLayer::patience
//! [`max_put_off`]: OrderedByKeyLayer::max_put_off

mod line;
mod lines;
mod service;
#[cfg(test)]
mod tests;
mod turn;

use std::{error::Error, fmt, sync::Arc, time::Duration};

use campanile::transport::{Backoff, Settings};

use self::lines::Lines;
pub use self::service::{OrderedByKey, OrderedByKeyFuture};
use crate::key::{KeyOf, Keys, MissingKey};

/// Makes [`OrderedByKey`] services. See the [module](self).
#[derive(Debug, Clone)]
pub struct OrderedByKeyLayer<K> {
    keys: Keys<K>,
    rules: Rules,
    lines: Arc<Lines>,
}

/// What the layer knows about redelivery.
#[derive(Debug, Clone, Copy)]
struct Rules {
    backoff: Backoff,
    max_deliveries: u32,
    patience: Duration,
    max_put_off: usize,
}

impl<K: KeyOf> OrderedByKeyLayer<K> {
    /// Orders messages by this key.
    pub fn new(key: K) -> Self {
        let settings = Settings::default();
        Self {
            keys: Keys::new(key),
            rules: Rules {
                backoff: settings.backoff,
                max_deliveries: settings.max_deliveries,
                patience: Duration::from_secs(60),
                max_put_off: 10_000,
            },
            lines: Arc::default(),
        }
    }

    /// What becomes of a message without a key. It is rejected unless set.
    #[must_use]
    pub fn missing_key(mut self, missing: MissingKey) -> Self {
        self.keys.missing = missing;
        self
    }

    /// The wait before a redelivery whose failure names none: the same as the source's. 1 s,
    /// doubling to 5 min, unless set.
    #[must_use]
    pub fn backoff(mut self, first: Duration, most: Duration) -> Self {
        self.rules.backoff = Backoff { first, most };
        self
    }

    /// How many deliveries a message gets before it is a dead letter: the same as the source's. 10
    /// unless set.
    ///
    /// # Panics
    /// When it is zero.
    #[must_use]
    #[track_caller]
    pub fn max_deliveries(mut self, deliveries: u32) -> Self {
        assert!(deliveries > 0, "max_deliveries must be at least 1");
        self.rules.max_deliveries = deliveries;
        self
    }

    /// For how long after it was due a message is waited for that does not come back. While no
    /// handler is free it cannot come, so this should be longer than handlers take. 60 s unless set.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.rules.patience = patience;
        self
    }

    /// How many messages, of all keys together, keep their turns while they are to come back.
    /// 10,000 unless set.
    #[must_use]
    pub fn max_put_off(mut self, messages: usize) -> Self {
        self.rules.max_put_off = messages;
        self
    }

    /// How many keys have messages that run, wait, or are to come back.
    pub fn keys_in_use(&self) -> usize {
        self.lines.keys()
    }
}

impl<S, K: Clone> tower::Layer<S> for OrderedByKeyLayer<K> {
    type Service = OrderedByKey<S, K>;

    fn layer(&self, inner: S) -> Self::Service {
        OrderedByKey::new(inner, self.clone())
    }
}

/// Why a message was put off: an earlier one with its key is to be delivered again first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PutOff;

impl fmt::Display for PutOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an earlier message with the same key is to be delivered again first")
    }
}

impl Error for PutOff {}
