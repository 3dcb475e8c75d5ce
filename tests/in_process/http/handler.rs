//! Tests of HTTP services as message services.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use campanile::{
    Attempt, BoxError, Failure, Kind, Message, MessageId, NotFound, Reply, RpcCode, RpcError,
    error::{FailureVerdict, find},
    http_bridge::{self as web, Body, BodyError, HttpHandler, Origin, StatusError},
};
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use tower::{Service, ServiceExt, limit::ConcurrencyLimit, service_fn};

use super::{Pieces, begun, endless, text};

/// An HTTP service with this response to every request.
fn answering<B>(
    status: u16,
    headers: &'static [(&'static str, &'static str)],
    body: B,
) -> impl Service<Request<Body>, Response = Response<B>, Error = Infallible, Future: Send> + Clone
where
    B: Clone + Send,
{
    service_fn(move |_: Request<Body>| {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let response = response.body(body.clone()).unwrap();
        async move { Ok(response) }
    })
}

async fn handled<S, B>(service: S, message: Message) -> Result<Reply, BoxError>
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible>,
    B: http_body::Body<Error: Into<BoxError>>,
{
    HttpHandler::new(service).oneshot(message).await
}

fn task() -> Message {
    Message::task("orders.create", "{}")
}

fn rpc() -> Message {
    Message::rpc("orders.count", "{}")
}

/// A short text for the way in which an error settles its delivery.
fn settlement(error: &BoxError) -> String {
    match find::<Failure>(&**error).map(Failure::verdict) {
        None => "back-off".into(),
        Some(FailureVerdict::Redeliver {
            after: None,
            counted: true,
        }) => "back-off".into(),
        Some(FailureVerdict::Redeliver {
            after: Some(after),
            counted: true,
        }) => format!("after {after:?}"),
        Some(FailureVerdict::DeadLetter) => "dead".into(),
        other => panic!("{other:?}"),
    }
}

fn answer(error: &BoxError) -> &RpcError {
    find(&**error).expect("the caller gets this error")
}

/// An HTTP service that keeps the last request.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Option<(http::request::Parts, String)>>>);

impl Seen {
    fn service(
        &self,
    ) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone
    {
        let seen = self.clone();
        service_fn(move |request: Request<Body>| {
            let seen = seen.clone();
            async move {
                let (head, body) = request.into_parts();
                *seen.0.lock().unwrap() = Some((head, text(body).await));
                Ok(Response::new(Body::default()))
            }
        })
    }

    fn take(&self) -> (http::request::Parts, String) {
        self.0
            .lock()
            .unwrap()
            .take()
            .expect("a request has arrived")
    }
}

#[tokio::test]
async fn a_message_is_a_post_to_the_path_of_its_name() {
    let seen = Seen::default();
    let mut message = Message::task("orders.create", "payload");
    let headers = message.headers_mut();
    for (name, value) in [
        ("x-tenant", "acme"),
        ("ce-id", "7"),
        ("content-length", "9999"),
        ("transfer-encoding", "chunked"),
        ("campanile-id", "forged"),
        ("campanile-kind", "forged"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    message.extensions_mut().insert("an extension");
    message.parts_mut().attempt = Attempt(3);
    handled(seen.service(), message).await.unwrap();

    let (head, body) = seen.take();
    assert_eq!(
        (head.method, head.uri.path()),
        (Method::POST, "/orders/create")
    );
    assert_eq!(body, "payload");
    let mut expected = HeaderMap::new();
    for (name, value) in [
        ("x-tenant", "acme"),
        ("ce-id", "7"),
        ("campanile-kind", "task"),
        ("campanile-name", "orders.create"),
        ("campanile-attempt", "3"),
    ] {
        expected.insert(name, HeaderValue::from_static(value));
    }
    assert_eq!(head.headers, expected);
    assert_eq!(head.extensions.get(), Some(&"an extension"));
    let origin: &Origin = head.extensions.get().unwrap();
    assert_eq!((origin.kind, origin.attempt), (Kind::Task, Attempt(3)));
}

#[tokio::test]
async fn names_and_ids_of_any_text_are_carried() {
    let seen = Seen::default();
    let mut message = Message::event("café/…\n.100%", "");
    message.parts_mut().id = Some(MessageId::from("é\r\nx: 1"));
    handled(seen.service(), message).await.unwrap();
    let (head, _) = seen.take();
    assert_eq!(head.uri.path(), "/caf%C3%A9%2F%E2%80%A6%0A/100%25");
    assert_eq!(
        head.headers[web::NAME.clone()],
        "caf%C3%A9/%E2%80%A6%0A.100%25"
    );
    assert_eq!(head.headers[web::ID.clone()], "%C3%A9%0D%0Ax:%201");
}

#[tokio::test]
async fn headers_that_do_not_fit_are_the_messages_fault() {
    let mut message = task();
    let mut n = 0;
    // The message has as many headers as a map can hold, so Campanile's own do not fit.
    while let Ok(name) = http::HeaderName::try_from(format!("h{n}"))
        && message
            .headers_mut()
            .try_insert(name, HeaderValue::from_static(""))
            .is_ok()
    {
        n += 1;
    }
    let error = handled(answering(200, &[], Body::default()), message)
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "more headers than HTTP allows");
    assert!(
        find::<campanile::Rejection>(&*error)
            .unwrap()
            .is_permanent()
    );
}

#[tokio::test]
async fn a_target_is_asked_for_method_and_uri_and_may_know_none() {
    let seen = Seen::default();
    let mut handler = HttpHandler::new(seen.service()).target(|message| {
        (message.name == "list").then(|| (Method::GET, Uri::from_static("http://shop/users?all")))
    });
    handler
        .ready()
        .await
        .unwrap()
        .call(Message::rpc("list", ""))
        .await
        .unwrap();
    let (head, _) = seen.take();
    assert_eq!(
        (head.method, head.uri.to_string()),
        (Method::GET, "http://shop/users?all".into())
    );
    let error = handler
        .ready()
        .await
        .unwrap()
        .call(rpc())
        .await
        .unwrap_err();
    assert!(find::<NotFound>(&*error).is_some());
    assert!(seen.0.lock().unwrap().is_none(), "no request was sent");
}

#[tokio::test]
async fn a_message_without_a_content_type_gets_the_one_that_is_set() {
    let seen = Seen::default();
    let handler = HttpHandler::new(seen.service()).content_type("application/json");
    handler.clone().oneshot(task()).await.unwrap();
    assert_eq!(seen.take().0.headers["content-type"], "application/json");
    let mut message = task();
    message
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("text/csv"));
    handler.oneshot(message).await.unwrap();
    assert_eq!(seen.take().0.headers["content-type"], "text/csv");
}

#[tokio::test]
async fn a_message_becomes_a_cloud_event_unless_it_is_one() {
    let seen = Seen::default();
    let handler = HttpHandler::new(seen.service()).cloud_events("/shop");
    let mut message = task();
    message.parts_mut().id = Some(MessageId::from("7-0"));
    handler.clone().oneshot(message).await.unwrap();
    let headers = seen.take().0.headers;
    for (name, value) in [
        ("ce-specversion", "1.0"),
        ("ce-id", "7-0"),
        ("ce-type", "orders.create"),
        ("ce-source", "/shop"),
    ] {
        assert_eq!(headers[name], value);
    }
    handler
        .clone()
        .oneshot(Message::event("e", ""))
        .await
        .unwrap();
    assert_eq!(seen.take().0.headers["ce-id"].len(), 36, "a UUID");

    let mut message = task();
    message
        .headers_mut()
        .insert("ce-specversion", HeaderValue::from_static("1.0"));
    message
        .headers_mut()
        .insert("ce-id", HeaderValue::from_static("its own"));
    handler.oneshot(message).await.unwrap();
    let headers = seen.take().0.headers;
    assert_eq!(headers["ce-id"], "its own");
    assert!(!headers.contains_key("ce-source"), "no attribute is added");
}

#[tokio::test]
async fn a_success_is_a_reply_with_headers_and_body() {
    for status in [200, 201, 202, 204, 226] {
        let headers = &[
            ("x-total", "7"),
            ("connection", "close"),
            ("content-length", "2"),
        ];
        let reply = handled(answering(status, headers, Body::from("42")), rpc())
            .await
            .unwrap();
        assert_eq!(reply.payload, "42");
        let mut expected = HeaderMap::new();
        expected.insert("x-total", HeaderValue::from_static("7"));
        assert_eq!(reply.headers, expected);
        handled(answering(status, &[], Body::default()), task())
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn every_other_status_is_a_redelivery_or_a_dead_letter() {
    for status in (300..600).map(|n| StatusCode::from_u16(n).unwrap()) {
        for message in [task(), Message::event("e", "")] {
            let service = answering(status.as_u16(), &[], Body::from("why"));
            let error = handled(service, message).await.unwrap_err();
            let again = matches!(status.as_u16(), 408 | 425 | 429 | 500..);
            assert_eq!(
                settlement(&error),
                if again { "back-off" } else { "dead" },
                "{status}"
            );
            let cause: &StatusError = find(&*error).unwrap();
            assert_eq!(cause.status(), status);
            assert_eq!(
                cause.to_string(),
                format!("the HTTP service answered {status}: why")
            );
        }
    }
}

#[tokio::test]
async fn retry_after_says_when() {
    let soon: &'static str = httpdate(Duration::from_secs(60)).leak();
    let soon: &'static [_] = vec![("retry-after", soon)].leak();
    for (headers, expected) in [
        (&[("retry-after", "120")][..], "after 120s"),
        (&[("retry-after", "0")], "after 0ns"),
        (
            &[("retry-after", "Thu, 01 Jan 1970 00:00:00 GMT")],
            "after 0ns",
        ),
        (&[("retry-after", "when it suits")], "back-off"),
    ] {
        for status in [429, 503] {
            let service = answering(status, headers, Body::default());
            assert_eq!(
                settlement(&handled(service, task()).await.unwrap_err()),
                expected
            );
        }
    }
    let error = handled(answering(503, soon, Body::default()), task())
        .await
        .unwrap_err();
    match find::<Failure>(&*error).unwrap().verdict() {
        FailureVerdict::Redeliver {
            after: Some(after), ..
        } => {
            assert!((40..=60).contains(&after.as_secs()), "{after:?}");
        }
        other => panic!("{other:?}"),
    }
    // The response has a `Retry-After`, but no attempt of this message can succeed.
    let service = answering(400, &[("retry-after", "120")], Body::default());
    assert_eq!(
        settlement(&handled(service, task()).await.unwrap_err()),
        "dead"
    );
}

/// The date `after` from now, in the format of HTTP.
fn httpdate(after: Duration) -> String {
    httpdate::fmt_http_date(std::time::SystemTime::now() + after)
}

#[tokio::test]
async fn the_meaning_of_a_status_can_be_changed() {
    let handler =
        HttpHandler::new(answering(409, &[], Body::default())).on_status(|status| match status {
            StatusCode::CONFLICT => FailureVerdict::Discard,
            status => web::failure_verdict(status),
        });
    let error = handler.oneshot(task()).await.unwrap_err();
    assert_eq!(
        find::<Failure>(&*error).unwrap().verdict(),
        FailureVerdict::Discard
    );
}

#[tokio::test]
async fn the_caller_of_a_request_gets_a_code_and_the_services_own_words() {
    const PROBLEM: &[(&str, &str)] = &[("content-type", "application/problem+json")];
    const HTML: &[(&str, &str)] = &[("content-type", "text/html; charset=utf-8")];
    let long: &'static str = "x".repeat(2000).leak();
    for (status, headers, body, code, message) in [
        (404, &[][..], "no such user", "not_found", "no such user"),
        (
            422,
            &[],
            "missing field `id`\r\nat line 1",
            "invalid",
            "missing field `id`  at line 1",
        ),
        (
            400,
            PROBLEM,
            r#"{"title":"T","detail":"bad id"}"#,
            "invalid",
            "bad id",
        ),
        (400, PROBLEM, r#"{"title":"T"}"#, "invalid", "T"),
        (403, HTML, "<html>no</html>", "forbidden", "Forbidden"),
        (409, &[], "", "conflict", "Conflict"),
        (503, &[], "", "unavailable", "Service Unavailable"),
        (504, &[], "", "deadline", "Gateway Timeout"),
        (500, &[], long, "internal", &long[..512]),
        (302, &[("location", "/elsewhere")], "", "internal", "Found"),
        (599, &[], "", "internal", "the request failed"),
    ] {
        let error = handled(answering(status, headers, Body::from(body)), rpc())
            .await
            .unwrap_err();
        let answer = answer(&error);
        assert_eq!(
            (answer.code().as_str(), answer.message()),
            (code, message),
            "{status}"
        );
    }
    let binary = Body::from(&b"\xff\xfe"[..]);
    let error = handled(answering(500, &[], binary), rpc())
        .await
        .unwrap_err();
    assert_eq!(answer(&error).message(), "Internal Server Error");
}

#[tokio::test]
async fn a_404_that_says_nothing_is_a_name_without_a_route() {
    for message in [task(), rpc()] {
        let service = answering(404, &[], Body::default());
        let error = handled(service, message).await.unwrap_err();
        assert!(find::<NotFound>(&*error).is_some(), "{error}");
    }
    // A handler has sent a 404 with a body, which makes the task a dead letter.
    let service = answering(404, &[], Body::from("no such order"));
    assert_eq!(
        settlement(&handled(service, task()).await.unwrap_err()),
        "dead"
    );
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error_for_all_that_was_said_before() {
    let broken = |status: u16| {
        service_fn(move |_: Request<Body>| async move {
            let body = Pieces::new(["{\"id\":"]).then_broken();
            Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
        })
    };
    let error = handled(broken(200), task()).await.unwrap_err();
    assert_eq!(settlement(&error), "back-off");
    assert!(!find::<BodyError>(&*error).unwrap().is_too_long());
    let error = handled(broken(200), rpc()).await.unwrap_err();
    assert_eq!(answer(&error).code(), &RpcCode::Internal);
    assert_eq!(
        answer(&error).message(),
        "the answer cannot be read: the body broke off"
    );
    // The status decides, even if the body cannot be read.
    let error = handled(broken(422), task()).await.unwrap_err();
    assert_eq!(settlement(&error), "dead");
}

#[tokio::test]
async fn a_body_beyond_its_limit_is_an_error_and_no_more_of_it_is_read() {
    let endless = service_fn(|_: Request<Body>| async {
        // More chunks than the limit allows: reading those behind it would fail.
        let body = Pieces::new(["0123456789", "0123456789"]).then_broken();
        Ok::<_, Infallible>(Response::new(body))
    });
    let handler = HttpHandler::new(endless).max_response_bytes(15);
    let error = handler.clone().oneshot(task()).await.unwrap_err();
    assert_eq!(settlement(&error), "dead");
    let cause: &BodyError = find(&*error).unwrap();
    assert!(cause.is_too_long());
    assert_eq!(cause.to_string(), "the body is longer than 15 bytes");
    let error = handler.oneshot(rpc()).await.unwrap_err();
    let text = "the answer cannot be read: the body is longer than 15 bytes";
    assert_eq!(answer(&error).message(), text);

    let exact = HttpHandler::new(answering(200, &[], Body::from("x".repeat(15))));
    exact.max_response_bytes(15).oneshot(rpc()).await.unwrap();
}

#[tokio::test]
async fn an_error_of_the_service_passes_as_it_is() {
    #[derive(Debug, thiserror::Error)]
    #[error("no connection")]
    struct Away;
    let service = service_fn(|_: Request<Body>| async { Err::<Response<Body>, _>(Away) });
    let error = HttpHandler::new(service).oneshot(task()).await.unwrap_err();
    assert!(error.is::<Away>());
}

#[tokio::test]
async fn readiness_and_its_error_pass() {
    let (inner, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let mut service = tower_test::mock::Spawn::new(HttpHandler::new(inner));
    handle.allow(0);
    assert!(service.poll_ready().is_pending());
    handle.allow(1);
    assert!(service.poll_ready().is_ready());
    handle.send_error("gone");
    match service.poll_ready() {
        std::task::Poll::Ready(Err(error)) => assert_eq!(error.to_string(), "gone"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn dropping_the_future_drops_the_services_work() {
    let (inner, mut calls) = endless::<Request<Body>, Response<Body>>();
    let mut work = Box::pin(HttpHandler::new(inner).oneshot(task()));
    let dropped = begun(&mut work, &mut calls).await;
    assert!(!dropped.is_cancelled());
    drop(work);
    assert!(dropped.is_cancelled());
}

#[tokio::test]
async fn a_clone_has_no_reservation_and_a_call_spends_its_own() {
    let limited = ConcurrencyLimit::new(answering(200, &[], Body::default()), 1);
    let mut first = HttpHandler::new(limited);
    let mut second = first.clone();
    first.ready().await.unwrap();
    assert!(second.ready().now_or_never().is_none());
    first.call(task()).await.unwrap();
    second
        .ready()
        .now_or_never()
        .expect("the service has room")
        .unwrap();
}
