//! At most so many at once for each key: a tenant, an account, an entity.
//!
//! tower's `ConcurrencyLimit` bounds a whole service. This layer bounds each key, so that one tenant
//! cannot take the handlers of all others.
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
//! With a key of one's own, a bound on who waits, and messages that may come without a key:
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
//! Those who wait for a key are let in in the order in which their futures were first polled. They
//! may end in any order; for one after the other see the layer that is ordered by key.
//!
//! # Back-pressure
//! The key is not known before the message is, so this layer is ready whenever the inner service
//! is, and a message waits in its own delivery, under its lease, which is renewed meanwhile. It
//! takes one of the source's `max_in_flight` while it waits. So bound who waits where one key can
//! have a long backlog: what comes then is [overload](#errors).
//!
//! The inner service's own readiness is asked for again when the message is let in: nothing of it
//! is held while the message waits.
//!
//! All services that one layer (or a clone of it) makes share the places. Keys that nobody uses
//! take no memory.
//!
//! # Cancel safety
//! A future that is dropped gives its place, or its turn in the line, to the next.
//!
//! # Errors
//! A message without a key is rejected, unless [`missing_key`](ConcurrencyByKeyLayer::missing_key)
//! lets it pass. One that finds
//! [`max_waiting_per_key`](ConcurrencyByKeyLayer::max_waiting_per_key) messages waiting already fails
//! with [`TooManyWaiting`], which is overload: a task is delivered again after the source's back-off and
//! loses no attempt, a request is answered `unavailable`.

use std::{
    error::Error,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use campanile::{BoxError, Message, Reply};
use tower::{Layer, Service, load_shed::error::Overloaded};

use crate::{
    gated::{Admission, Gated, gated_future, take_ready},
    key::{Key, KeyOf, Keys, MissingKey},
    places::{Place, Places},
};

/// Makes [`ConcurrencyByKey`] services. See the [module](self).
#[derive(Debug, Clone)]
pub struct ConcurrencyByKeyLayer<K> {
    keys: Keys<K>,
    places: Arc<Places>,
    max_waiting: usize,
}

impl<K: KeyOf> ConcurrencyByKeyLayer<K> {
    /// At most `permits` at once for each key.
    ///
    /// # Panics
    /// When `permits` is zero, or more than a semaphore can have.
    #[track_caller]
    pub fn new(permits: usize, key: K) -> Self {
        assert!(permits > 0, "with no permits nothing would ever run");
        assert!(
            permits <= tokio::sync::Semaphore::MAX_PERMITS,
            "more permits than there can be"
        );
        Self {
            keys: Keys::new(key),
            places: Places::new(permits),
            max_waiting: usize::MAX,
        }
    }

    /// How many messages may wait for one key. Without a bound unless set; zero means that none
    /// waits.
    #[must_use]
    pub fn max_waiting_per_key(mut self, messages: usize) -> Self {
        self.max_waiting = messages;
        self
    }

    /// What becomes of a message without a key. It is rejected unless set.
    #[must_use]
    pub fn missing_key(mut self, missing: MissingKey) -> Self {
        self.keys.missing = missing;
        self
    }

    /// How many keys have messages that run or wait.
    pub fn keys_in_use(&self) -> usize {
        self.places.keys()
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

/// A service of which at most so many run at once for each key. See the [module](self).
#[derive(Debug, Clone)]
pub struct ConcurrencyByKey<S, K> {
    inner: S,
    layer: ConcurrencyByKeyLayer<K>,
}

impl<S, K> Service<Message> for ConcurrencyByKey<S, K>
where
    S: Service<Message, Response = Reply, Error: Into<BoxError>> + Clone,
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
            Ok(None) => Gated::free(ready, message),
            Ok(Some(key)) => match layer.places.enter(key.clone(), layer.max_waiting) {
                None => Gated::refused(TooManyWaiting::new(key)),
                Some(place) if place.is_held() => Gated::waiting(place, ready, message),
                // What is ready may hold what others could use meanwhile.
                Some(place) => Gated::waiting(place, self.inner.clone(), message),
            },
        })
    }
}

impl Admission for Place {
    fn poll_admitted(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.poll_held(cx).map(Ok)
    }
}

gated_future! {
    /// The future of [`ConcurrencyByKey`].
    ConcurrencyByKeyFuture, Place
}

/// Too many messages wait for a key already. Its source is tower's overload.
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

    /// The key.
    pub fn key(&self) -> &Key {
        &self.key
    }
}

impl fmt::Display for TooManyWaiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the key, which may be a secret.
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
        error::{Settle, find},
    };
    use tokio_test::assert_ready;
    use tower_test::mock::{self, Spawn};

    use super::*;
    use crate::{
        key::Header,
        keyed_mocks::{self, Handle, Inner, by_header, call, nobody, reached, task, the_one},
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
    async fn as_many_of_a_key_run_as_there_are_permits_and_keys_do_not_hold_each_other_up() {
        let (mut service, mut handle) = service(&layer(2));
        let mut calls: Vec<_> = ["1", "2", "3", "4"]
            .map(|id| call(&mut service, task("k", id)))
            .into();
        let mut running = reached(&mut handle);
        assert_eq!(running.len(), 2);
        let _other = call(&mut service, task("l", "5"));
        let _kept = the_one(&mut handle, "5");
        // Who waits goes on in the order in which they came.
        for next in ["3", "4"] {
            let (_, answer) = running.remove(0);
            answer.send_response(Reply::default());
            assert_ready!(calls.remove(0).poll()).unwrap();
            let waiting = calls
                .iter_mut()
                .find(|call| call.is_woken())
                .expect("woken");
            assert!(waiting.poll().is_pending());
            running.push((next.to_owned(), the_one(&mut handle, next)));
        }
    }

    #[tokio::test]
    async fn a_dropped_future_frees_its_place_whether_it_ran_or_waited() {
        let layer = layer(1);
        let (mut service, mut handle) = service(&layer);
        let runs = call(&mut service, task("k", "1"));
        let waits = call(&mut service, task("k", "2"));
        let mut last = call(&mut service, task("k", "3"));
        let _kept = the_one(&mut handle, "1");
        drop(waits);
        drop(runs);
        assert!(last.is_woken() && last.poll().is_pending());
        let _kept = the_one(&mut handle, "3");
        assert_eq!(layer.keys_in_use(), 1);
        drop(last);
        assert_eq!(layer.keys_in_use(), 0);
    }

    /// A future that, when it is dropped, asserts that its place is still held.
    struct Work {
        places: Arc<Places>,
        outcome: Option<Result<Reply, BoxError>>,
    }

    impl Drop for Work {
        fn drop(&mut self) {
            // No other caller waits in this test, so a free place would be granted at once.
            let next = self.places.enter(Key::from("k"), usize::MAX);
            let next = next.expect("there is no bound on who waits");
            assert!(
                !next.is_held(),
                "the place was free before the work had ended"
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
    async fn a_place_is_free_only_after_the_work_in_it_was_dropped() {
        let layer = layer(1);
        let outcomes: [Option<Result<Reply, BoxError>>; 3] = [
            None,
            Some(Ok(Reply::default())),
            Some(Err("it failed".into())),
        ];
        for outcome in outcomes {
            let ends = outcome.is_some();
            let (places, outcome) = (layer.places.clone(), Arc::new(Mutex::new(outcome)));
            let inner = tower::service_fn(move |_: Message| Work {
                places: places.clone(),
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
    async fn all_services_of_a_layer_share_its_places() {
        let layer = layer(1);
        let (mut one, mut first) = service(&layer);
        let (mut two, mut second) = service(&layer.clone());
        let runs = call(&mut one, task("k", "1"));
        let mut waits = call(&mut two, task("k", "2"));
        let _kept = the_one(&mut first, "1");
        nobody(&mut second);
        drop(runs);
        assert!(waits.poll().is_pending());
        let _kept = the_one(&mut second, "2");
    }

    #[tokio::test]
    async fn what_comes_when_too_many_wait_is_overload() {
        let (mut service, _handle) = service(&layer(1).max_waiting_per_key(1));
        let _runs = call(&mut service, task("k", "1"));
        let waits = call(&mut service, task("k", "2"));
        assert_ready!(service.poll_ready()).unwrap();
        let mut shed = tokio_test::task::spawn(service.call(task("k", "3")));
        let error = assert_ready!(shed.poll()).unwrap_err();
        assert_eq!(find::<TooManyWaiting>(&*error).unwrap().key().as_str(), "k");
        assert!(find::<Overloaded>(&*error).is_some());
        assert_eq!(
            Settle::of(Kind::Task, &*error),
            Some(Settle::Redeliver {
                after: None,
                counted: false
            })
        );
        drop(waits);
        let _waits = call(&mut service, task("k", "3"));
    }

    #[tokio::test]
    async fn it_keeps_the_rules_of_all_layers() {
        keyed_mocks::readiness_and_its_error_pass(&layer(1));
        keyed_mocks::a_clone_has_no_reservation(&layer(1));
        keyed_mocks::who_waits_holds_nothing(&layer(1));
        keyed_mocks::without_a_key(&layer(1), &layer(1).missing_key(MissingKey::Pass));
    }

    #[test]
    fn numbers_that_cannot_work_panic_where_they_were_written() {
        crate::mocks::mistake(|| layer_at(0));
        crate::mocks::mistake(|| layer_at(usize::MAX));
    }

    #[track_caller]
    fn layer_at(permits: usize) -> ConcurrencyByKeyLayer<Header> {
        ConcurrencyByKeyLayer::new(permits, by_header())
    }
}
