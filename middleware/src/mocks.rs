//! Helpers for the tests of layers: a mock of the inner service, and assertions for every layer.

// The tests of a single feature do not use all of these helpers.
#![allow(dead_code)]

use std::{
    future::{Pending, pending},
    task::Poll,
};

use campanile::{BoxError, Message, Reply};
use tower::{Layer, Service, limit::ConcurrencyLimit, util::ServiceFn};
use tower_test::mock::{self, Handle, Mock, Spawn};

pub(crate) type Inner = Mock<Message, Reply>;
pub(crate) type Answers = Handle<Message, Reply>;

/// Wraps a mock with a layer. Returns the service, and the handle that receives the requests of the
/// mock.
pub(crate) fn around<L: Layer<Inner>>(layer: &L) -> (Spawn<L::Service>, Answers) {
    let (inner, handle) = mock::pair();
    (Spawn::new(layer.layer(inner)), handle)
}

/// Calls a service. Panics if it is not ready.
#[track_caller]
pub(crate) fn call<S>(service: &mut Spawn<S>, message: Message) -> S::Future
where
    S: Service<Message, Error: Into<BoxError>>,
{
    match service.poll_ready() {
        Poll::Ready(Ok(())) => service.call(message),
        Poll::Ready(Err(error)) => panic!("{}", error.into()),
        Poll::Pending => panic!("the service is not ready"),
    }
}

/// Asserts that the layer passes the inner service's readiness and its readiness error.
#[track_caller]
pub(crate) fn readiness_passes<L>(layer: &L)
where
    L: Layer<Inner, Service: Service<Message, Error: Into<BoxError>>>,
{
    let (mut service, mut handle) = around(layer);
    handle.allow(0);
    assert!(service.poll_ready().is_pending());
    handle.send_error("gone");
    match service.poll_ready() {
        Poll::Ready(Err(error)) => assert_eq!(error.into().to_string(), "gone"),
        Poll::Ready(Ok(())) => panic!("the service is ready"),
        Poll::Pending => panic!("the service waits"),
    }
}

/// A service with one permit, whose calls never end.
pub(crate) type OnePermit =
    ConcurrencyLimit<ServiceFn<fn(Message) -> Pending<Result<Reply, BoxError>>>>;

/// Asserts that a clone does not have the reservation of the inner service, and that dropping the
/// service or its future releases the reservation.
#[track_caller]
pub(crate) fn reservations_are_released<L>(layer: &L)
where
    L: Layer<OnePermit, Service: Service<Message, Error: Into<BoxError>> + Clone>,
{
    let never: fn(Message) -> Pending<Result<Reply, BoxError>> = |_| pending();
    let inner = ConcurrencyLimit::new(tower::service_fn(never), 1);
    let mut first = Spawn::new(layer.layer(inner));
    let ready = |service: &mut Spawn<L::Service>| match service.poll_ready() {
        Poll::Ready(Ok(())) => true,
        Poll::Ready(Err(error)) => panic!("{}", error.into()),
        Poll::Pending => false,
    };
    assert!(ready(&mut first));
    let mut second = first.clone();
    assert!(!ready(&mut second), "a clone has a reservation");
    drop(first);
    assert!(
        ready(&mut second),
        "a dropped service keeps its reservation"
    );
    let future = second.call(Message::task("a", ""));
    assert!(!ready(&mut second), "a running future has no reservation");
    drop(future);
    assert!(ready(&mut second), "a dropped future keeps its reservation");
}
