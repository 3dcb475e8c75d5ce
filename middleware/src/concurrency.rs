//! Limits how many messages with the same key run concurrently. A key is, for example, a tenant or
//! an account.
//!
//! tower's `ConcurrencyLimit` limits a whole service. This layer limits each key separately, so
//! that one tenant cannot occupy all handlers.
//!
//! ```
//! use campanile::Router;
//! use campanile_middleware::{ConcurrencyByKeyLayer, key};
//!
//! async fn import() {}
//!
//! let app: Router = Router::new()
//!     .task("import", import)
//!     .layer(ConcurrencyByKeyLayer::new(4, key::header("x-tenant")));
//! ```
//!
//! This layer has a custom key and a limit for waiting messages, and lets messages without a key
//! pass:
//!
//! ```
//! use campanile::{Message, Router};
//! use campanile_middleware::{ConcurrencyByKeyLayer, key::MissingKey};
//!
//! # async fn import() {}
//! let by_group = |message: &Message| message.name().split('.').next().map(str::to_owned);
//! let app: Router = Router::new()
//!     .task("orders.import", import)
//!     .layer(
//!         ConcurrencyByKeyLayer::new(4, by_group)
//!             .max_waiting_per_key(8)
//!             .missing_key(MissingKey::Pass),
//!     );
//! ```
//!
//! # Ordering
//! Waiting messages with the same key start in the order in which their futures were first polled.
//! Messages may end in any order. To run them one after the other, use `OrderedByKeyLayer`.
//!
//! # Back-pressure
//! `poll_ready` does not know the message, so this layer is ready whenever the inner service is. A
//! message that has to wait stays in the worker: the worker renews its lease, and the message
//! occupies one of the source's `max_in_flight` slots. If one key can have a long backlog, bound
//! its waiting messages by [`max_waiting_per_key`](ConcurrencyByKeyLayer::max_waiting_per_key).
//! Further messages then fail as [overload](#errors).
//!
//! A waiting message holds no reservation of the inner service. Once it has a permit, it waits
//! again until the inner service is ready.
//!
//! All services that a layer and its clones make share the permits. A key without messages takes no
//! memory.
//!
//! # Cancel safety
//! Dropping a future releases its permit, or cancels its request for a permit.
//!
//! # Errors
//! A message without a key fails as [`MissingKey::Reject`] says, unless
//! [`missing_key`](ConcurrencyByKeyLayer::missing_key) lets it pass. A message fails with
//! [`TooManyWaiting`] if [`max_waiting_per_key`](ConcurrencyByKeyLayer::max_waiting_per_key)
//! messages with its key are waiting already. This error is overload: a task is delivered again
//! after the source's back-off without counting the attempt, and a request is answered with
//! `unavailable`.

use std::{
    error::Error,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use campanile::{BoxError, Message, MessageService, Reply};
use tower::{Layer, Service, load_shed::error::Overloaded};

use crate::{
    gated::{Admission, Gated, gated_future, take_ready},
    key::{Key, KeyExtractor, KeyOf, MissingKey},
    keyed_permits::{KeyedPermit, KeyedPermits},
};

/// Makes [`ConcurrencyByKey`] services. See the [module](self).
#[derive(Debug, Clone)]
pub struct ConcurrencyByKeyLayer<K> {
    keys: KeyExtractor<K>,
    permits: Arc<KeyedPermits>,
    max_waiting: usize,
}

impl<K: KeyOf> ConcurrencyByKeyLayer<K> {
    /// Creates a layer that runs at most `permits` messages concurrently for each key.
    ///
    /// # Panics
    /// If `permits` is zero, or more than
    /// [`Semaphore::MAX_PERMITS`](tokio::sync::Semaphore::MAX_PERMITS).
    #[track_caller]
    pub fn new(permits: usize, key: K) -> Self {
        assert!(permits > 0, "a concurrency limit needs at least one permit");
        assert!(
            permits <= tokio::sync::Semaphore::MAX_PERMITS,
            "a concurrency limit has too many permits for a semaphore"
        );
        Self {
            keys: KeyExtractor::new(key),
            permits: KeyedPermits::new(permits),
            max_waiting: usize::MAX,
        }
    }

    /// Sets the maximum number of waiting messages with the same key. With zero, no message waits.
    /// Unlimited unless set.
    #[must_use]
    pub fn max_waiting_per_key(mut self, messages: usize) -> Self {
        self.max_waiting = messages;
        self
    }

    /// Sets the handling of messages without a key. [`MissingKey::Reject`] unless set.
    #[must_use]
    pub fn missing_key(mut self, missing: MissingKey) -> Self {
        self.keys.missing = missing;
        self
    }

    /// Returns the number of keys with running or waiting messages.
    pub fn keys_in_use(&self) -> usize {
        self.permits.keys()
    }
}

impl<S, K: Clone> Layer<S> for ConcurrencyByKeyLayer<K> {
    type Service = ConcurrencyByKey<S, K>;

    fn layer(&self, inner: S) -> Self::Service {
        ConcurrencyByKey {
            inner,
            layer: self.clone(),
        }
    }
}

/// A service with a concurrency limit for each key. See the [module](self).
#[derive(Debug, Clone)]
pub struct ConcurrencyByKey<S, K> {
    inner: S,
    layer: ConcurrencyByKeyLayer<K>,
}

impl<S, K: KeyOf> ConcurrencyByKey<S, K> {
    /// Wraps a service, as [`ConcurrencyByKeyLayer::new`] does. Clones share the permits.
    ///
    /// # Panics
    /// As [`ConcurrencyByKeyLayer::new`].
    #[track_caller]
    pub fn new(inner: S, permits: usize, key: K) -> Self {
        let layer = ConcurrencyByKeyLayer::new(permits, key);
        Self { inner, layer }
    }
}

inner_accessors!(ConcurrencyByKey<S, K>);

impl<S, K> Service<Message> for ConcurrencyByKey<S, K>
where
    S: MessageService + Clone,
    K: KeyOf,
{
    type Response = Reply;
    type Error = BoxError;
    type Future = ConcurrencyByKeyFuture<S>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, message: Message) -> Self::Future {
        let ready = take_ready(&mut self.inner);
        let layer = &self.layer;
        ConcurrencyByKeyFuture(match layer.keys.of(&message) {
            Err(rejection) => Gated::refused(rejection),
            Ok(None) => Gated::admitted(ready, message),
            Ok(Some(key)) => match layer.permits.request(key.clone(), layer.max_waiting) {
                None => Gated::refused(TooManyWaiting::new(key)),
                Some(permit) if permit.is_acquired() => Gated::waiting(permit, ready, message),
                // Drops `ready`, so that another message can use its reservation during the wait.
                Some(permit) => Gated::waiting(permit, self.inner.clone(), message),
            },
        })
    }
}

impl Admission for KeyedPermit {
    fn poll_admitted(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.poll_acquired(cx).map(Ok)
    }
}

gated_future! {
    /// The future of [`ConcurrencyByKey`].
    ConcurrencyByKeyFuture, KeyedPermit
}

/// The error of a message if too many messages with its key are waiting already. Its source is
/// tower's [`Overloaded`].
#[derive(Debug)]
pub struct TooManyWaiting {
    key: Key,
    overload: Overloaded,
}

impl TooManyWaiting {
    fn new(key: Key) -> Self {
        Self {
            key,
            overload: Overloaded::new(),
        }
    }

    /// Returns the key of the message.
    pub fn key(&self) -> &Key {
        &self.key
    }
}

impl fmt::Display for TooManyWaiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Does not show the key, which may be a secret.
        f.write_str("too many messages with the same key are waiting")
    }
}

impl Error for TooManyWaiting {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.overload)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::Pin, sync::Mutex};

    use campanile::{
        Kind,
        error::{FailureVerdict, find},
    };
    use tokio_test::assert_ready;
    use tower_test::mock::{self, Spawn};

    use super::*;
    use crate::{
        key::Header,
        keyed_mocks::{
            self, Handle, Inner, by_header, call, no_request, only_request, reached, task,
        },
    };

    fn layer(permits: usize) -> ConcurrencyByKeyLayer<Header> {
        ConcurrencyByKeyLayer::new(permits, by_header())
    }

    fn service(
        layer: &ConcurrencyByKeyLayer<Header>,
    ) -> (Spawn<ConcurrencyByKey<Inner, Header>>, Handle) {
        let (inner, handle) = mock::pair();
        (Spawn::new(layer.layer(inner)), handle)
    }

    #[tokio::test]
    async fn a_key_runs_as_many_messages_as_it_has_permits_and_does_not_delay_other_keys() {
        let (mut service, mut handle) = service(&layer(2));
        let mut calls: Vec<_> = ["1", "2", "3", "4"]
            .map(|id| call(&mut service, task("k", id)))
            .into();
        let mut running = reached(&mut handle);
        assert_eq!(running.len(), 2);
        let _other = call(&mut service, task("l", "5"));
        let _kept = only_request(&mut handle, "5");
        // Waiting messages start in the order of their arrival.
        for next in ["3", "4"] {
            let (_, answer) = running.remove(0);
            answer.send_response(Reply::default());
            assert_ready!(calls.remove(0).poll()).unwrap();
            let waiting = calls
                .iter_mut()
                .find(|call| call.is_woken())
                .expect("woken");
            assert!(waiting.poll().is_pending());
            running.push((next.to_owned(), only_request(&mut handle, next)));
        }
    }

    #[tokio::test]
    async fn a_dropped_future_releases_its_permit_or_cancels_its_request() {
        let layer = layer(1);
        let (mut service, mut handle) = service(&layer);
        let runs = call(&mut service, task("k", "1"));
        let waits = call(&mut service, task("k", "2"));
        let mut last = call(&mut service, task("k", "3"));
        let _kept = only_request(&mut handle, "1");
        drop(waits);
        drop(runs);
        assert!(last.is_woken() && last.poll().is_pending());
        let _kept = only_request(&mut handle, "3");
        assert_eq!(layer.keys_in_use(), 1);
        drop(last);
        assert_eq!(layer.keys_in_use(), 0);
    }

    /// A future that asserts on drop that its permit is still held.
    struct Work {
        permits: Arc<KeyedPermits>,
        outcome: Option<Result<Reply, BoxError>>,
    }

    impl Drop for Work {
        fn drop(&mut self) {
            // No other request waits in this test, so a free permit would be granted immediately.
            let next = self.permits.request(Key::from("k"), usize::MAX);
            let next = next.expect("the number of waiting requests is unlimited");
            assert!(
                !next.is_acquired(),
                "the permit was released before the work was dropped"
            );
        }
    }

    impl Future for Work {
        type Output = Result<Reply, BoxError>;

        fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
            match self.outcome.take() {
                Some(outcome) => Poll::Ready(outcome),
                None => Poll::Pending,
            }
        }
    }

    #[tokio::test]
    async fn a_permit_is_released_after_its_work_is_dropped() {
        let layer = layer(1);
        let outcomes: [Option<Result<Reply, BoxError>>; 3] = [
            None,
            Some(Ok(Reply::default())),
            Some(Err("it failed".into())),
        ];
        for outcome in outcomes {
            let ends = outcome.is_some();
            let (permits, outcome) = (layer.permits.clone(), Arc::new(Mutex::new(outcome)));
            let inner = tower::service_fn(move |_: Message| Work {
                permits: permits.clone(),
                outcome: outcome.lock().unwrap().take(),
            });
            let mut service = Spawn::new(layer.layer(inner));
            assert_ready!(service.poll_ready()).unwrap();
            let mut call = tokio_test::task::spawn(service.call(task("k", "1")));
            assert_eq!(call.poll().is_ready(), ends);
            drop(call);
            assert_eq!(layer.keys_in_use(), 0);
        }
    }

    #[tokio::test]
    async fn all_services_of_a_layer_share_its_permits() {
        let layer = layer(1);
        let (mut one, mut first) = service(&layer);
        let (mut two, mut second) = service(&layer.clone());
        let runs = call(&mut one, task("k", "1"));
        let mut waits = call(&mut two, task("k", "2"));
        let _kept = only_request(&mut first, "1");
        no_request(&mut second);
        drop(runs);
        assert!(waits.poll().is_pending());
        let _kept = only_request(&mut second, "2");
    }

    #[tokio::test]
    async fn a_message_that_finds_too_many_waiting_fails_as_overload() {
        let (mut service, _handle) = service(&layer(1).max_waiting_per_key(1));
        let _runs = call(&mut service, task("k", "1"));
        let waits = call(&mut service, task("k", "2"));
        assert_ready!(service.poll_ready()).unwrap();
        let mut shed = tokio_test::task::spawn(service.call(task("k", "3")));
        let error = assert_ready!(shed.poll()).unwrap_err();
        assert_eq!(find::<TooManyWaiting>(&*error).unwrap().key().as_str(), "k");
        assert!(find::<Overloaded>(&*error).is_some());
        assert_eq!(
            FailureVerdict::of(Kind::Task, &*error),
            Some(FailureVerdict::Redeliver {
                after: None,
                counted: false
            })
        );
        drop(waits);
        let _waits = call(&mut service, task("k", "3"));
    }

    #[tokio::test]
    async fn readiness_reservations_and_missing_keys_are_handled_as_in_every_layer() {
        keyed_mocks::readiness_and_its_error_pass(&layer(1));
        keyed_mocks::a_clone_has_no_reservation(&layer(1));
        keyed_mocks::a_waiting_message_holds_no_reservation(&layer(1));
        keyed_mocks::a_message_without_a_key_is_rejected_or_passes(
            &layer(1),
            &layer(1).missing_key(MissingKey::Pass),
        );
    }

    #[test]
    fn invalid_numbers_panic_at_the_callers_location() {
        crate::panics::panic_text(|| tracked_layer(0));
        crate::panics::panic_text(|| tracked_layer(usize::MAX));
    }

    #[track_caller]
    fn tracked_layer(permits: usize) -> ConcurrencyByKeyLayer<Header> {
        ConcurrencyByKeyLayer::new(permits, by_header())
    }
}
