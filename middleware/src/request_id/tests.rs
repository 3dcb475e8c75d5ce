//! Tests of the layer around one service.

use std::{
    io,
    sync::{Arc, Mutex},
};

use campanile::BoxError;
use http::HeaderValue;
use tower::{ServiceExt, service_fn};

use super::*;
use crate::mocks::{around, call, readiness_passes, reservations_are_released};

const HEADER: &str = "x-request-id";

fn with_header(mut message: Message, value: &[u8]) -> Message {
    let value = HeaderValue::from_bytes(value).unwrap();
    message.headers_mut().insert(HEADER, value);
    message
}

/// Calls the layer with a message. Returns the message that reached the inner service.
async fn passed(layer: RequestIdLayer, message: Message) -> Message {
    let (mut service, mut handle) = around(&layer);
    let _answer = call(&mut service, message);
    handle.next_request().await.unwrap().0
}

fn header(message: &Message) -> Option<&str> {
    Some(message.headers().get(HEADER)?.to_str().unwrap())
}

#[tokio::test]
async fn an_id_that_was_sent_is_kept() {
    let message = with_header(Message::task("a", ""), b"7");
    let inside = passed(RequestIdLayer::new(), message).await;
    assert_eq!(header(&inside), Some("7"));
    assert_eq!(
        inside.extensions().get::<RequestId>().unwrap().as_str(),
        "7"
    );
}

#[tokio::test]
async fn a_message_without_an_id_gets_a_uuid_or_the_id_of_the_hook() {
    let inside = passed(RequestIdLayer::new(), Message::rpc("a", "")).await;
    let id = header(&inside).expect("an id");
    assert!(Uuid::parse_str(id).is_ok(), "{id}");
    let other = passed(RequestIdLayer::new(), Message::rpc("a", "")).await;
    assert_ne!(header(&other), Some(id));
    let by_name = |message: &Message| RequestId::new(message.name()).unwrap();
    let inside = passed(
        RequestIdLayer::new().make_request_id(by_name),
        Message::task("me", ""),
    )
    .await;
    assert_eq!(header(&inside), Some("me"));
}

#[tokio::test]
async fn an_event_has_an_id_and_no_header() {
    let inside = passed(RequestIdLayer::new(), Message::event("a", "")).await;
    assert!(inside.headers().is_empty());
    assert!(inside.extensions().get::<RequestId>().is_some());
}

#[tokio::test]
async fn the_header_can_be_set() {
    let layer = RequestIdLayer::new().header(HeaderName::from_static("x-other"));
    let inside = passed(layer, with_header(Message::task("a", ""), b"7")).await;
    assert_eq!(header(&inside), Some("7"));
    assert_ne!(inside.headers()["x-other"], "7");
}

#[tokio::test]
async fn the_id_is_current_in_the_call_and_in_the_future_and_nowhere_else() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let inner = service_fn(move |_: Message| {
        log.lock().unwrap().push(RequestId::current());
        let log = log.clone();
        async move {
            tokio::task::yield_now().await;
            log.lock().unwrap().push(RequestId::current());
            let id = RequestId::current().unwrap();
            let spawned = tokio::spawn(async { RequestId::current() }).await.unwrap();
            log.lock().unwrap().push(spawned);
            let carried = tokio::spawn(id.scope(async { RequestId::current() }));
            let carried = carried.await.unwrap();
            log.lock().unwrap().push(carried);
            Ok::<_, BoxError>(Reply::default())
        }
    });
    let service = RequestIdLayer::new().layer(inner);
    service
        .oneshot(with_header(Message::task("a", ""), b"7"))
        .await
        .unwrap();
    let seven = || RequestId::new("7").ok();
    assert_eq!(*seen.lock().unwrap(), [seven(), seven(), None, seven()]);
    assert_eq!(RequestId::current(), None);
}

#[tokio::test]
async fn a_message_that_a_handler_sends_has_the_current_id_unless_it_has_its_own() {
    let seven = RequestId::from(7);
    let inside = seven
        .clone()
        .scope(passed(RequestIdLayer::new(), Message::task("b", "")));
    assert_eq!(header(&inside.await), Some("7"));
    let own = with_header(Message::task("b", ""), b"8");
    let inside = seven.scope(passed(RequestIdLayer::new(), own));
    assert_eq!(header(&inside.await), Some("8"));
}

#[tokio::test]
async fn the_reply_to_a_request_has_its_id_unless_the_handler_has_set_another() {
    let reply = async |message: Message, reply: Reply| {
        let (mut service, mut handle) = around(&RequestIdLayer::new());
        let answer = call(&mut service, message);
        handle.next_request().await.unwrap().1.send_response(reply);
        answer.await.unwrap()
    };
    let request = || with_header(Message::rpc("a", ""), b"7");
    assert_eq!(
        reply(request(), Reply::default()).await.headers[HEADER],
        "7"
    );
    let mut own = Reply::default();
    own.headers.insert(HEADER, HeaderValue::from_static("8"));
    let own = reply(request(), own).await;
    assert_eq!(
        own.headers.get_all(HEADER).iter().collect::<Vec<_>>(),
        ["8"]
    );
    let task = with_header(Message::task("a", ""), b"7");
    assert!(reply(task, Reply::default()).await.headers.is_empty());
}

/// The output of a subscriber.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn an_invalid_id_is_replaced_and_logged() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    for (value, fault) in [
        (&b""[..], "it is empty"),
        (b"two words", "other bytes than visible ASCII"),
        (b"\xff\xfe", "other bytes than visible ASCII"),
        (&[b'x'; 129], "it is longer than 128 bytes"),
    ] {
        let mut message = with_header(Message::task("a", ""), value);
        let second = HeaderValue::from_static("second");
        message.headers_mut().append(HEADER, second);
        let inside = passed(RequestIdLayer::new(), message).await;
        let id = header(&inside).unwrap();
        assert!(Uuid::parse_str(id).is_ok(), "{id}");
        assert_eq!(inside.headers().get_all(HEADER).iter().count(), 1);
        let line = String::from_utf8(std::mem::take(&mut *log.0.lock().unwrap())).unwrap();
        assert!(line.contains("WARN") && line.contains(fault), "{line}");
    }
    let longest = [b'x'; 128];
    let inside = passed(
        RequestIdLayer::new(),
        with_header(Message::task("a", ""), &longest),
    )
    .await;
    assert_eq!(header(&inside).unwrap().len(), 128);
    assert!(log.0.lock().unwrap().is_empty());
}

#[test]
fn an_invalid_text_is_refused() {
    for text in ["", "a b", "a\n", "ä", &"x".repeat(129)] {
        assert!(RequestId::new(text).is_err(), "{text:?}");
    }
    let fault = RequestId::new("").unwrap_err();
    assert_eq!(fault.to_string(), "not a valid request id: it is empty");
}

#[test]
fn readiness_and_reservations_of_the_inner_service_pass() {
    readiness_passes(&RequestIdLayer::new());
    reservations_are_released(&RequestIdLayer::new());
}
