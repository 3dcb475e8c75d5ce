//! Tests of tower-http's layers around message services.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use campanile::{
    Attempt, Client, Deadline, Error, Failure, Json, Kind, Message, MessageId, NotFound, Rejection,
    Reply, Router, RpcCode, RpcError,
    error::{FailureVerdict, find},
    http_bridge::{Body, HttpLayer, StatusError},
    transport::memory::Memory,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::{
    Layer, Service, ServiceExt, layer::util::Identity, limit::ConcurrencyLimit, service_fn,
};
use tower_http::{
    auth::AddAuthorizationLayer,
    catch_panic::CatchPanicLayer,
    compression::CompressionLayer,
    decompression::{DecompressionLayer, RequestDecompressionLayer},
    limit::RequestBodyLimitLayer,
    request_id::{MakeRequestUuid, PropagateRequestIdLayer, RequestId, SetRequestIdLayer},
    sensitive_headers::SetSensitiveHeadersLayer,
    set_header::{SetRequestHeaderLayer, SetResponseHeaderLayer},
    timeout::TimeoutLayer,
    trace::TraceLayer,
    validate_request::ValidateRequestHeaderLayer,
};

fn header(name: &'static str) -> HeaderName {
    HeaderName::from_static(name)
}

/// A message with every field set.
fn full(kind: Kind) -> Message {
    let mut message = Message::new(kind, "café.a/b", &b"\xff\x00payload"[..]);
    let parts = message.parts_mut();
    parts.id = Some(MessageId::from("7-0"));
    parts.attempt = Attempt(3);
    parts.deadline = Some(Deadline::after(Duration::from_secs(9)));
    parts.idempotency_key = Some("key".into());
    parts
        .headers
        .append("x-a", HeaderValue::from_bytes(b"\xff").unwrap());
    parts
        .headers
        .append("x-a", HeaderValue::from_static("again"));
    parts
        .headers
        .insert("content-length", HeaderValue::from_static("9999"));
    parts
        .headers
        .insert("campanile-id", HeaderValue::from_static("the sender's"));
    parts.extensions.insert(42u8);
    message
}

#[tokio::test]
async fn a_layer_without_effect_changes_nothing() {
    for kind in [Kind::Task, Kind::Event, Kind::Rpc] {
        let sent = full(kind);
        let expected = format!("{:?}", sent.parts());
        let inner = service_fn(move |message: Message| {
            assert_eq!(format!("{:?}", message.parts()), expected);
            let before = full(kind);
            assert_eq!(message.headers(), before.headers());
            assert_eq!(message.payload(), before.payload());
            assert_eq!(
                message.parts().idempotency_key,
                before.parts().idempotency_key
            );
            assert_eq!(message.extensions().len(), 1);
            assert_eq!(message.extensions().get(), Some(&42u8));
            let mut reply = Reply::accepted(MessageId::from("8-0"));
            reply.payload = "reply".into();
            reply
                .headers
                .insert("content-length", HeaderValue::from_static("9999"));
            reply.extensions.insert(43u8);
            async move { Ok::<_, Error>(reply) }
        });
        let reply = HttpLayer::new(Identity::new())
            .layer(inner)
            .oneshot(sent)
            .await
            .unwrap();
        assert_eq!(reply.receipt().map(|id| &**id), Some("8-0"));
        assert_eq!(reply.payload, "reply");
        assert_eq!(reply.headers.len(), 1);
        assert_eq!(reply.extensions.len(), 1);
        assert_eq!(reply.extensions.get(), Some(&43u8));
    }
}

#[tokio::test]
async fn an_error_of_the_service_passes_unchanged() {
    let app: Router = Router::new()
        .task("a", async || {
            Err::<(), _>(Failure::redeliver_after(Duration::from_secs(7)))
        })
        .layer(HttpLayer::new(TraceLayer::new_for_http()));
    let error = app
        .clone()
        .oneshot(Message::task("a", ""))
        .await
        .unwrap_err();
    let after = Some(Duration::from_secs(7));
    let settle = find::<Failure>(&*error).unwrap().verdict();
    assert_eq!(
        settle,
        FailureVerdict::Redeliver {
            after,
            counted: true
        }
    );
    let error = app.oneshot(Message::task("b", "")).await.unwrap_err();
    assert!(find::<NotFound>(&*error).is_some());
}

#[tokio::test]
async fn a_layer_keeps_the_events_of_its_router() {
    let memory = Memory::new();
    let (send, mut seen) = tokio::sync::mpsc::channel(1);
    let app: Router = Router::new()
        .event("news", async move |text: String| {
            send.send(text).await.unwrap()
        })
        .layer(HttpLayer::new(TraceLayer::new_for_http()));
    let worker = tokio::spawn(campanile::serve(memory.clone(), app).into_future());
    let client = Client::new(memory);
    // Publishes until an event arrives: the subscription is not reported.
    let heard = loop {
        client.publish("news", "extra").await.unwrap();
        tokio::task::yield_now().await;
        if let Ok(text) = seen.try_recv() {
            break text;
        }
    };
    assert_eq!(heard, "extra");
    worker.abort();
}

#[tokio::test]
async fn the_services_readiness_and_its_error_pass() {
    let (inner, mut handle) = tower_test::mock::pair::<Message, Reply>();
    let layered = HttpLayer::new(Identity::new()).layer(inner);
    let mut service = tower_test::mock::Spawn::new(layered);
    handle.allow(0);
    assert!(service.poll_ready().is_pending());
    handle.send_error("gone");
    match service.poll_ready() {
        std::task::Poll::Ready(Err(error)) => assert_eq!(error.to_string(), "gone"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_reservation_belongs_to_its_call_and_not_to_a_clone() {
    let inner = service_fn(async |_: Message| Ok::<_, Error>(Reply::default()));
    let limited = ConcurrencyLimit::new(inner, 1);
    let mut first = HttpLayer::new(Identity::new()).layer(limited);
    let mut second = first.clone();
    assert!(is_ready(&mut first).await);
    assert!(!is_ready(&mut second).await);
    let call = first.call(Message::task("a", ""));
    assert!(!is_ready(&mut first).await, "a clone has no reservation");
    drop(call);
    assert!(
        is_ready(&mut second).await,
        "a drop releases the reservation"
    );
}

async fn is_ready<S: Service<Message, Error: std::fmt::Debug>>(service: &mut S) -> bool {
    let ready = std::future::poll_fn(|cx| service.poll_ready(cx));
    timeout(Duration::ZERO, ready)
        .await
        .is_ok_and(|ready| ready.is_ok())
}

#[tokio::test]
async fn dropping_the_future_drops_the_services_work() {
    let (send, mut calls) = tokio::sync::mpsc::unbounded_channel();
    let inner = service_fn(move |_: Message| {
        let dropped = CancellationToken::new();
        send.send(dropped.clone()).unwrap();
        let guard = dropped.drop_guard();
        async move {
            let _guard = guard;
            std::future::pending::<Result<Reply, Error>>().await
        }
    });
    let layered = HttpLayer::new(TraceLayer::new_for_http()).layer(inner);
    let mut work = Box::pin(layered.oneshot(Message::task("a", "")));
    let dropped = tokio::select! {
        biased;
        _ = &mut work => panic!("the work ended without an answer"),
        dropped = calls.recv() => dropped.unwrap(),
    };
    drop(work);
    assert!(dropped.is_cancelled());
}

/// Collects the output of `tracing`.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn trace_sees_a_message_as_a_request() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let app: Router = Router::new()
        .task("orders.create", async || {})
        .task("orders.fail", async || {
            Err::<(), _>(io::Error::other("disk full"))
        })
        .layer(HttpLayer::new(TraceLayer::new_for_http()));
    app.clone()
        .oneshot(Message::task("orders.create", ""))
        .await
        .unwrap();
    app.oneshot(Message::task("orders.fail", ""))
        .await
        .unwrap_err();
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for expected in [
        "method=POST uri=/orders/create",
        "finished processing request",
        "status=200",
        "uri=/orders/fail version=HTTP/1.1}: tower_http::trace::on_failure: response failed",
        "disk full",
    ] {
        assert!(log.contains(expected), "{expected:?} is not in\n{log}");
    }
}

#[tokio::test]
async fn a_request_id_is_made_or_kept_and_returned() {
    let app: Router = Router::new()
        .rpc("id", async |message: Message| {
            let id: &RequestId = message.extensions().get().unwrap();
            assert_eq!(id.header_value(), &message.headers()["x-request-id"]);
        })
        .layer(HttpLayer::new(PropagateRequestIdLayer::x_request_id()))
        .layer(HttpLayer::new(SetRequestIdLayer::x_request_id(
            MakeRequestUuid,
        )));
    let client = Client::new(app);
    let made: Reply = client.request("id", ()).await.unwrap();
    assert_eq!(made.headers["x-request-id"].len(), 36);
    let kept: Reply = client
        .request("id", ())
        .header("x-request-id", "r-7")
        .await
        .unwrap();
    assert_eq!(kept.headers["x-request-id"], "r-7");
}

#[tokio::test]
async fn a_caught_panic_is_a_500_and_so_a_redelivery_or_internal() {
    let panicking = async || {
        if true {
            panic!("on purpose");
        }
    };
    let app: Router = Router::new()
        .task("a", panicking)
        .rpc("a", panicking)
        .layer(HttpLayer::new(CatchPanicLayer::new()));
    let error = app
        .clone()
        .oneshot(Message::task("a", ""))
        .await
        .unwrap_err();
    assert_eq!(find::<StatusError>(&*error).unwrap().status(), 500);
    let settle = find::<Failure>(&*error).unwrap().verdict();
    assert!(
        matches!(settle, FailureVerdict::Redeliver { .. }),
        "{settle:?}"
    );
    let error = Client::new(app).request::<()>("a", ()).await.unwrap_err();
    assert_eq!(error.rpc().unwrap().code(), &RpcCode::Internal);
}

#[tokio::test(start_paused = true)]
async fn a_time_out_answers_with_its_status() {
    let slow = async || tokio::time::sleep(Duration::from_secs(9)).await;
    let limit = Duration::from_secs(5);
    let layer = TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, limit);
    let app: Router = Router::new()
        .task("a", slow)
        .rpc("a", slow)
        .layer(HttpLayer::new(layer));
    let error = app
        .clone()
        .oneshot(Message::task("a", ""))
        .await
        .unwrap_err();
    let settle = find::<Failure>(&*error).unwrap().verdict();
    assert!(
        matches!(settle, FailureVerdict::Redeliver { .. }),
        "{settle:?}"
    );
    let started = tokio::time::Instant::now();
    let error = Client::new(app).request::<()>("a", ()).await.unwrap_err();
    assert_eq!(error.rpc().unwrap().code(), &RpcCode::Deadline);
    assert_eq!(started.elapsed().as_secs(), 5);
}

#[tokio::test]
async fn sensitive_headers_are_marked_on_both_ways() {
    let app: Router = Router::new()
        .rpc("a", async |headers: HeaderMap| {
            assert!(headers["x-token"].is_sensitive());
            assert!(!headers["x-other"].is_sensitive());
            let mut reply = Reply::default();
            reply
                .headers
                .insert("x-token", HeaderValue::from_static("secret"));
            reply
        })
        .layer(HttpLayer::new(SetSensitiveHeadersLayer::new([header(
            "x-token",
        )])));
    let call = Client::new(app)
        .request("a", ())
        .header("x-token", "secret")
        .header("x-other", "1");
    let reply: Reply = call.await.unwrap();
    assert!(reply.headers["x-token"].is_sensitive());
}

#[tokio::test]
async fn headers_are_set_on_both_ways_on_both_sides() {
    let set = HeaderValue::from_static("set");
    let app = Router::new()
        .rpc("a", async |headers: HeaderMap| {
            assert_eq!(headers["x-caller"], "set");
            assert_eq!(headers["authorization"], "Bearer token");
        })
        .layer(HttpLayer::new(SetResponseHeaderLayer::overriding(
            header("x-server"),
            set.clone(),
        )));
    let memory = Memory::new();
    let worker = tokio::spawn(campanile::serve(memory.clone(), app).into_future());
    // The sending half of a transport is a service like any other.
    let sending = HttpLayer::new((
        AddAuthorizationLayer::bearer("token"),
        SetRequestHeaderLayer::if_not_present(header("x-caller"), set),
    ))
    .layer(memory);
    let reply: Reply = Client::new(sending.clone()).request("a", ()).await.unwrap();
    assert_eq!(reply.headers["x-server"], "set");
    // The receipt of a task passes the layer, too.
    assert!(
        Client::new(sending)
            .enqueue("b", ())
            .await
            .unwrap()
            .id()
            .is_some()
    );
    worker.abort();
}

#[tokio::test]
async fn an_invalid_request_does_not_reach_the_service() {
    let reached = Arc::new(AtomicUsize::new(0));
    let handler = {
        let reached = reached.clone();
        async move || {
            reached.fetch_add(1, Ordering::SeqCst);
        }
    };
    #[allow(deprecated)]
    let layer = ValidateRequestHeaderLayer::accept("application/json");
    let app: Router = Router::new()
        .task("a", handler.clone())
        .rpc("a", handler)
        .layer(HttpLayer::new(layer));
    let client = Client::new(app);
    client
        .request::<()>("a", ())
        .header("accept", "application/json")
        .await
        .unwrap();
    assert_eq!(reached.load(Ordering::SeqCst), 1);
    let error = client
        .request::<()>("a", ())
        .header("accept", "text/csv")
        .await
        .unwrap_err();
    assert_eq!(error.rpc().unwrap().code(), &RpcCode::Invalid);
    let error = client
        .enqueue("a", ())
        .header("accept", "text/csv")
        .await
        .unwrap_err();
    assert_eq!(
        find::<Failure>(&error).unwrap().verdict(),
        FailureVerdict::DeadLetter
    );
    assert_eq!(reached.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn replies_and_payloads_are_compressed_for_receivers_that_accept_it() {
    let text = "all work and no play ".repeat(100);
    let app = {
        let text = text.clone();
        Router::new()
            .rpc("book", async move || text.clone())
            .rpc("length", async |text: String| Json(text.len()))
            .layer(HttpLayer::new(CompressionLayer::new()))
            .layer(HttpLayer::new(RequestDecompressionLayer::new()))
    };
    let client = Client::new(app);
    let plain: Reply = client.request("book", ()).await.unwrap();
    assert_eq!(plain.payload, text);
    let call = client.request("book", ()).header("accept-encoding", "gzip");
    let small: Reply = call.await.unwrap();
    assert_eq!(small.headers["content-encoding"], "gzip");
    assert!(small.payload.len() < 200, "{} bytes", small.payload.len());
    // The payload of this request is already compressed.
    let call = client
        .request("length", small.payload.clone())
        .header("content-encoding", "gzip");
    let Json(length): Json<usize> = call.await.unwrap();
    assert_eq!(length, text.len());
    // Around the client, the layer decompresses replies.
    let reading = HttpLayer::new(DecompressionLayer::new()).layer(client.service().clone());
    let whole: String = Client::new(reading).request("book", ()).await.unwrap();
    assert_eq!(whole, text);

    let call = client
        .request::<Reply>("length", "no gzip")
        .header("content-encoding", "gzip");
    let error = call.await.unwrap_err();
    assert!(
        find::<Rejection>(&error).unwrap().is_permanent(),
        "{error:?}"
    );
    let bounded = HttpLayer::new(RequestDecompressionLayer::new()).max_bytes(1000);
    let bounded = bounded.layer(client.service().clone());
    let call = Client::new(bounded)
        .request::<Reply>("length", small.payload)
        .header("content-encoding", "gzip");
    let error = call.await.unwrap_err();
    let text = format!("{:?}", find::<Rejection>(&error).unwrap());
    assert!(text.contains("limit: 1000"), "{text}");
}

#[tokio::test]
async fn a_payload_beyond_the_limit_of_a_layer_is_a_dead_letter() {
    let app: Router = Router::new()
        .task("a", async |payload: bytes::Bytes| drop(payload))
        .layer(HttpLayer::new(RequestBodyLimitLayer::new(10)));
    let client = Client::new(app);
    client.enqueue("a", "0123456789").await.unwrap();
    let error = client.enqueue("a", "0123456789a").await.unwrap_err();
    assert!(
        find::<Rejection>(&error).unwrap().is_permanent(),
        "{error:?}"
    );
    // If a header has the length, the layer answers without the inner service.
    let error = client
        .enqueue("a", "")
        .header(header::CONTENT_LENGTH, "11")
        .await
        .unwrap_err();
    assert_eq!(find::<StatusError>(&error).unwrap().status(), 413);
    assert_eq!(
        find::<Failure>(&error).unwrap().verdict(),
        FailureVerdict::DeadLetter
    );
}

#[tokio::test]
async fn a_request_that_is_not_a_message_is_an_error_with_a_text() {
    let fresh = tower::util::MapRequestLayer::new(|_: Request<Body>| Request::new(Body::default()));
    let inner = service_fn(|_: Message| async { Err::<Reply, _>(RpcError::internal("reached")) });
    let error = HttpLayer::new(fresh)
        .layer(inner)
        .oneshot(Message::task("a", ""))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("no message"), "{error}");
}
