//! Helpers for the tests of the layers that work by key.

use std::task::Poll;

use campanile::{BoxError, Kind, Message, Rejection, Reply, error::find};
use http::HeaderValue;
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Layer, Service, limit::ConcurrencyLimit};
use tower_test::mock::{self, Mock, SendResponse, Spawn};

use crate::key::{self, Header};

/// The inner service of these tests.
pub(crate) type Inner = Mock<Message, Reply>;
pub(crate) type Handle = mock::Handle<Message, Reply>;

/// Takes the header `x-key` as the key of a message.
pub(crate) fn by_header() -> Header {
    key::header("x-key")
}

/// Returns a message with this key. Its payload is `id`. Unless it is an event, its id is `id` too.
pub(crate) fn message(kind: Kind, key: &str, id: &str) -> Message {
    let mut message = Message::new(kind, "a", id.to_owned());
    let value = HeaderValue::from_str(key).unwrap();
    message.headers_mut().insert("x-key", value);
    if kind != Kind::Event {
        message.parts_mut().id = Some(id.into());
    }
    message
}

pub(crate) fn task(key: &str, id: &str) -> Message {
    message(Kind::Task, key, id)
}

/// Calls a service that is ready, and polls the future once.
pub(crate) fn call<S: Service<Message, Error = BoxError>>(
    service: &mut Spawn<S>,
    message: Message,
) -> task::Spawn<S::Future>
where
    S::Future: Future<Output = Result<Reply, BoxError>>,
{
    assert_ready!(service.poll_ready()).unwrap();
    let mut call = task::spawn(service.call(message));
    assert_pending!(call.poll());
    call
}

/// Returns the new requests of the inner service, with their payloads.
pub(crate) fn reached(handle: &mut Handle) -> Vec<(String, SendResponse<Reply>)> {
    let next = || match handle.poll_request() {
        Poll::Ready(Some((message, answer))) => {
            let payload = String::from_utf8(message.payload().to_vec()).unwrap();
            Some((payload, answer))
        }
        Poll::Ready(None) | Poll::Pending => None,
    };
    std::iter::from_fn(next).collect()
}

/// Returns the only new request of the inner service, which must have this payload.
#[track_caller]
pub(crate) fn only_request(handle: &mut Handle, payload: &str) -> SendResponse<Reply> {
    let mut all = reached(handle);
    assert_eq!(all.len(), 1, "{all:?}");
    let (found, answer) = all.remove(0);
    assert_eq!(found, payload);
    answer
}

/// Asserts that the inner service has no new request.
#[track_caller]
pub(crate) fn no_request(handle: &mut Handle) {
    let all = reached(handle);
    assert!(all.is_empty(), "{all:?}");
}

/// Asserts that the layer is ready when the inner service is, and that it returns the error of the
/// inner service's `poll_ready`.
pub(crate) fn readiness_and_its_error_pass<L>(layer: &L)
where
    L: Layer<Inner, Service: Service<Message, Error = BoxError>>,
{
    let (inner, mut handle) = mock::pair();
    let mut service = Spawn::new(layer.layer(inner));
    handle.allow(0);
    assert_pending!(service.poll_ready());
    handle.allow(1);
    assert_ready!(service.poll_ready()).unwrap();
    handle.send_error("gone");
    let (inner, mut handle) = mock::pair();
    let mut service = Spawn::new(layer.layer(inner));
    handle.send_error("gone");
    let error = assert_ready!(service.poll_ready()).unwrap_err();
    assert_eq!(error.to_string(), "gone");
}

/// Asserts that a clone does not have the reservation of a service, and that dropping the service
/// releases the reservation.
pub(crate) fn a_clone_has_no_reservation<L>(layer: &L)
where
    L: Layer<ConcurrencyLimit<Inner>, Service: Service<Message, Error = BoxError> + Clone>,
{
    let (inner, _handle) = mock::pair();
    let mut service = Spawn::new(layer.layer(ConcurrencyLimit::new(inner, 1)));
    let mut clone = Spawn::new(service.get_ref().clone());
    assert_ready!(service.poll_ready()).unwrap();
    assert_pending!(clone.poll_ready());
    drop(service);
    assert!(clone.is_woken());
    assert_ready!(clone.poll_ready()).unwrap();
}

/// Asserts that a waiting message holds no reservation of the inner service. `layer` must run one
/// message of a key at a time.
pub(crate) fn a_waiting_message_holds_no_reservation<L>(layer: &L)
where
    L: Layer<
            ConcurrencyLimit<Inner>,
            Service: Service<
                Message,
                Error = BoxError,
                Future: Future<Output = Result<Reply, BoxError>>,
            > + Clone,
        >,
{
    let (inner, mut handle) = mock::pair();
    let mut service = Spawn::new(layer.layer(ConcurrencyLimit::new(inner, 2)));
    let mut other = Spawn::new(service.get_ref().clone());
    let first = call(&mut service, task("k", "1"));
    let _second = call(&mut service, task("k", "2"));
    let _kept = only_request(&mut handle, "1");
    let _other = call(&mut other, task("l", "3"));
    let _kept = only_request(&mut handle, "3");
    drop(first);
}

/// Asserts that a message without a key is permanently rejected by `rejecting`, and passes through
/// `passing`.
pub(crate) fn a_message_without_a_key_is_rejected_or_passes<L>(rejecting: &L, passing: &L)
where
    L: Layer<
            Inner,
            Service: Service<
                Message,
                Error = BoxError,
                Future: Future<Output = Result<Reply, BoxError>>,
            >,
        >,
{
    let (inner, mut handle) = mock::pair();
    let mut service = Spawn::new(rejecting.layer(inner));
    assert_ready!(service.poll_ready()).unwrap();
    let mut rejected = task::spawn(service.call(Message::task("a", "1")));
    let error = assert_ready!(rejected.poll()).unwrap_err();
    assert!(find::<Rejection>(&*error).unwrap().is_permanent());
    assert_eq!(error.to_string(), "the message has no key");
    no_request(&mut handle);

    let (inner, mut handle) = mock::pair();
    let mut service = Spawn::new(passing.layer(inner));
    let _first = call(&mut service, Message::task("a", "1"));
    let _second = call(&mut service, Message::task("a", "2"));
    assert_eq!(reached(&mut handle).len(), 2);
}
