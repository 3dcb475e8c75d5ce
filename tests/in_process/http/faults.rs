//! Malformed and hostile requests and messages at the gateway and the handler.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use campanile::{
    Kind, SharedService,
    http_bridge::{Body, Gateway},
};
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use tokio::time::{Instant, Sleep};
use tower::{Service, ServiceExt};

use super::{Taken, text};

const SECOND: Duration = Duration::from_secs(1);

/// A body that sends one byte per period `every`, until none is `left`.
struct Drip {
    left: usize,
    every: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Drip {
    fn new(bytes: usize, every: Duration) -> Self {
        Self {
            left: bytes,
            every,
            timer: Box::pin(tokio::time::sleep(every)),
        }
    }
}

impl http_body::Body for Drip {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        ready!(self.timer.as_mut().poll(cx));
        let next = Instant::now() + self.every;
        self.timer.as_mut().reset(next);
        self.left -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
    }
}

/// A gateway in front of the service, with a route of each kind and one for `GET`.
fn every_kind(taken: &Taken) -> Gateway<impl SharedService> {
    Gateway::new(taken.service())
        .task("a.task")
        .event("an.event")
        .rpc("a.request")
        .route(Method::GET, "/users", Kind::Rpc, "user.list")
}

/// The paths of [`every_kind`]'s routes for `POST`.
const PATHS: [&str; 3] = ["/a/task", "/an/event", "/a/request"];

async fn ask<S, B>(gateway: &S, request: Request<B>) -> Response<Body>
where
    S: Service<Request<B>, Response = Response<Body>, Error = std::convert::Infallible> + Clone,
{
    gateway.clone().oneshot(request).await.unwrap()
}

#[track_caller]
fn assert_problem(response: &Response<Body>, status: StatusCode, about: &str) {
    assert_eq!(response.status(), status, "{about}");
    let content_type = &response.headers()["content-type"];
    assert_eq!(content_type, "application/problem+json", "{about}");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_arrive_within_the_time_out_is_408() {
    for path in PATHS {
        let taken = Taken::default();
        let gateway = every_kind(&taken).timeout(2 * SECOND);
        let started = Instant::now();
        let request = Request::post(path).body(Drip::new(14, SECOND)).unwrap();
        let response = ask(&gateway, request).await;
        assert_problem(&response, StatusCode::REQUEST_TIMEOUT, path);
        let after = started.elapsed();
        assert!(
            after >= 2 * SECOND && after < 3 * SECOND,
            "{path}: {after:?}"
        );
        assert_eq!(taken.count(), 0, "{path}: a message was sent");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_arrives_slowly_but_within_the_time_out_is_taken() {
    for path in PATHS {
        let taken = Taken::default();
        let gateway = every_kind(&taken).timeout(2 * SECOND);
        let body = Drip::new(3, SECOND / 2);
        let response = ask(&gateway, Request::post(path).body(body).unwrap()).await;
        assert!(response.status().is_success(), "{path}");
        assert_eq!(taken.0.lock().unwrap()[0].payload(), "xxx", "{path}");
    }
}

#[tokio::test]
async fn a_compressed_body_is_415_and_nothing_is_sent() {
    for path in PATHS {
        for coding in ["gzip", "br", "identity, gzip"] {
            let taken = Taken::default();
            let request = Request::post(path)
                .header("content-type", "application/json")
                .header("content-encoding", coding)
                .body(Body::from(&b"\x1f\x8b\x08"[..]))
                .unwrap();
            let response = ask(&every_kind(&taken), request).await;
            let about = format!("{path} {coding}");
            assert_problem(&response, StatusCode::UNSUPPORTED_MEDIA_TYPE, &about);
            assert_eq!(taken.count(), 0, "{about}: a message was sent");
        }
    }
}

/// A browser sends bodies of these types to any site, with the user's cookies and without asking
/// that site first. <https://fetch.spec.whatwg.org/#cors-safelisted-request-header>
#[tokio::test]
async fn a_form_of_another_site_is_415_and_nothing_is_sent() {
    for path in PATHS {
        for content_type in [
            "text/plain",
            "text/plain;charset=UTF-8",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
        ] {
            let taken = Taken::default();
            let request = Request::post(path)
                .header("origin", "https://elsewhere.example")
                .header("cookie", "session=secret")
                .header("content-type", content_type)
                .body(Body::from("{\"id\":1,\"x\":\"=\"}"))
                .unwrap();
            let response = ask(&every_kind(&taken), request).await;
            let about = format!("{path} {content_type}");
            assert_problem(&response, StatusCode::UNSUPPORTED_MEDIA_TYPE, &about);
            assert_eq!(taken.count(), 0, "{about}: a message was sent");
        }
    }
}

#[tokio::test]
async fn a_body_of_json_that_is_not_compressed_is_taken() {
    for path in PATHS {
        let taken = Taken::default();
        let request = Request::post(path)
            .header("content-type", "application/json; charset=utf-8")
            .header("content-encoding", "identity")
            .body(Body::from("{}"))
            .unwrap();
        let response = ask(&every_kind(&taken), request).await;
        assert!(response.status().is_success(), "{path}");
        assert_eq!(taken.count(), 1, "{path}");
    }
}

fn request(method: Method, path: &str) -> Request<Body> {
    let request = Request::builder().method(method).uri(path);
    request.body(Body::default()).unwrap()
}

/// The methods in a response's `Allow`, sorted.
fn allowed(response: &Response<Body>) -> Vec<String> {
    let allow = response.headers()["allow"].to_str().unwrap().split(',');
    let mut methods: Vec<_> = allow.map(|method| method.trim().to_owned()).collect();
    methods.sort();
    methods
}

#[tokio::test]
async fn head_of_a_get_route_is_answered_as_get_without_a_body() {
    let taken = Taken::default();
    let gateway = every_kind(&taken);
    let get = ask(&gateway, request(Method::GET, "/users")).await;
    let head = ask(&gateway, request(Method::HEAD, "/users")).await;
    assert_eq!(head.status(), StatusCode::OK);
    assert_eq!(
        head.headers()["content-type"],
        get.headers()["content-type"]
    );
    assert_eq!(text(get.into_body()).await, "pong");
    assert_eq!(text(head.into_body()).await, "");
}

#[tokio::test]
async fn options_of_a_route_names_its_methods() {
    let taken = Taken::default();
    let gateway = every_kind(&taken);
    for (path, methods) in [
        ("/a/task", &["OPTIONS", "POST"][..]),
        ("/a/request", &["OPTIONS", "POST"]),
        ("/users", &["GET", "HEAD", "OPTIONS"]),
    ] {
        let response = ask(&gateway, request(Method::OPTIONS, path)).await;
        assert_eq!(response.status(), StatusCode::NO_CONTENT, "{path}");
        assert_eq!(allowed(&response), methods, "{path}");
    }
    assert_eq!(taken.count(), 0);
}
