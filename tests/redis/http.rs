//! Messages as HTTP requests, and HTTP requests as messages, over Redis.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use campanile::{
    Redis,
    http_bridge::{Body, Gateway, HttpHandler},
    transport::{Broker, memory::Memory},
};
use http::{HeaderMap, Request, Response, StatusCode};
use tower::{ServiceExt, service_fn};

use crate::{
    SECOND,
    support::{RedisServer, raw, worker::Worker},
};

/// Sends a request twice with one key and one body, and once with another body.
async fn a_key_belongs_to_one_body(broker: impl Broker) {
    let gateway = Gateway::new(broker).task("a");
    let send = async |body: &'static str| {
        let request = Request::post("/a")
            .header("idempotency-key", "7")
            .header("content-type", "application/json")
            .body(Body::from(body))
            .unwrap();
        gateway.clone().oneshot(request).await.unwrap()
    };
    let first = send("1").await;
    assert_eq!(first.status(), StatusCode::ACCEPTED);
    let again = send("1").await;
    assert_eq!(again.status(), StatusCode::ACCEPTED);
    assert_eq!(
        again.headers()["campanile-id"],
        first.headers()["campanile-id"]
    );
    let other = send("2").await;
    assert_eq!(other.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let content_type = &other.headers()["content-type"];
    assert_eq!(content_type, "application/problem+json");
}

#[tokio::test]
async fn an_idempotency_key_with_another_body_is_422_in_memory() {
    let memory = Memory::new();
    a_key_belongs_to_one_body(memory.clone()).await;
    assert_eq!(memory.counts().sent, 1);
}

#[tokio::test]
async fn an_idempotency_key_with_another_body_is_422_on_redis() {
    let server = RedisServer::start().await;
    let redis = Redis::connect(&server.url()).await.unwrap().stream("s");
    a_key_belongs_to_one_body(redis).await;
    assert_eq!(raw::len(&server, "s").await, 1);
}

/// Headers that an HTTP service trusts as set by a proxy or a logged-in user.
const NOT_A_SENDERS: [&str; 8] = [
    "authorization",
    "cookie",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
    "forwarded",
    "proxy-authorization",
];

#[tokio::test]
async fn credentials_and_origins_that_a_sender_has_made_up_do_not_reach_an_http_service() {
    let server = RedisServer::start().await;
    let redis = Redis::connect(&server.url()).await.unwrap().stream("s");
    let seen: Arc<Mutex<Option<HeaderMap>>> = Arc::default();
    let noted = seen.clone();
    let web = service_fn(move |request: Request<Body>| {
        *noted.lock().unwrap() = Some(request.headers().clone());
        async { Ok::<_, Infallible>(Response::new(Body::default())) }
    });
    let worker = Worker::start(
        redis,
        campanile::WithInterest::stream(HttpHandler::new(web)),
    );
    let forged = NOT_A_SENDERS.map(|name| format!("h:{name}"));
    let mut fields = vec![("type", "task"), ("name", "a"), ("payload", "")];
    fields.extend([("h:x-tenant", "acme"), ("h:traceparent", "00-1-2-01")]);
    fields.extend(forged.iter().map(|name| (name.as_str(), "forged")));
    raw::add(&server, "s", &fields).await;
    let request = || async { seen.lock().unwrap().take() };
    let headers = raw::eventually(request, 20 * SECOND).await;
    for name in ["x-tenant", "traceparent"] {
        assert!(headers.contains_key(name), "{name} is missing");
    }
    let passed: Vec<_> = NOT_A_SENDERS
        .into_iter()
        .filter(|name| headers.contains_key(*name))
        .collect();
    assert!(passed.is_empty(), "{passed:?} were passed on");
    worker.stop().await.unwrap();
}
