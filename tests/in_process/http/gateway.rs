//! HTTP requests as messages.

use std::{future::poll_fn, time::Duration};

use campanile::{
    BoxError, Error, Json, Kind, Message, Reply, ReplyMode, Router, RpcError, State,
    http_bridge::{Body, Gateway},
    transport::{Interest, Source, Transport, memory::Memory},
};
use futures_util::FutureExt as _;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tower::{Service, ServiceExt, service_fn};

use super::{Pieces, Taken, begun, endless, text};

fn post(path: &str) -> http::request::Builder {
    Request::post(path)
}

async fn ask<S, B>(gateway: &S, request: Request<B>) -> Response<Body>
where
    S: Service<Request<B>, Response = Response<Body>, Error = std::convert::Infallible> + Clone,
{
    gateway.clone().oneshot(request).await.unwrap()
}

async fn json_of(response: Response<Body>) -> Value {
    serde_json::from_str(&text(response.into_body()).await).unwrap()
}

/// Checks the form of a problem, and returns its status and code.
async fn problem(response: Response<Body>) -> (u16, String) {
    let status = response.status();
    assert_eq!(
        response.headers()["content-type"],
        "application/problem+json"
    );
    let wait = response.headers().contains_key("retry-after");
    assert_eq!(wait, matches!(status.as_u16(), 429 | 503));
    let problem = json_of(response).await;
    assert_eq!(problem["status"], status.as_u16());
    assert!(
        problem["title"].is_string() && problem["detail"].is_string(),
        "{problem}"
    );
    (
        status.as_u16(),
        problem["code"].as_str().unwrap().to_owned(),
    )
}

#[tokio::test]
async fn a_request_becomes_a_task_and_its_answer_has_the_id() {
    let taken = Taken::default();
    let request = post("/orders/create").body(Body::from("{}")).unwrap();
    let response = ask(&taken.gateway(), request).await;
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    assert_eq!(response.headers()["campanile-id"], "7-0");
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(json_of(response).await, json!({ "id": "7-0" }));
    let message = taken.one();
    assert_eq!(
        (message.kind(), &**message.name()),
        (Kind::Task, "orders.create")
    );
    assert_eq!(message.payload(), "{}");
    assert_eq!(
        message.parts().deadline,
        None,
        "a task does not expire by itself"
    );
}

#[tokio::test]
async fn a_request_becomes_an_event_without_headers() {
    let taken = Taken::default();
    let request = post("/orders/events")
        .header("traceparent", "00-1-2-01")
        .header("content-type", "application/json")
        .body(Body::from("{}"))
        .unwrap();
    let response = ask(&taken.gateway(), request).await;
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    assert_eq!(text(response.into_body()).await, "");
    let message = taken.one();
    assert_eq!(message.kind(), Kind::Event);
    assert!(
        message.headers().is_empty(),
        "a transport would refuse them"
    );
}

#[tokio::test]
async fn a_request_becomes_an_rpc_request_and_gets_its_reply() {
    let taken = Taken::default();
    let response = ask(
        &taken.gateway(),
        post("/ping").body(Body::default()).unwrap(),
    )
    .await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(
        response.headers()["content-type"],
        "application/octet-stream"
    );
    assert_eq!(text(response.into_body()).await, "pong");
    let left = taken.one().parts().deadline.unwrap().remaining();
    assert!(
        left <= Duration::from_secs(30) && left > Duration::from_secs(20),
        "{left:?}"
    );
}

#[tokio::test]
async fn nothing_but_the_routes_is_taken() {
    let taken = Taken::default();
    let gateway = taken
        .gateway()
        .route(Method::GET, "/v1/ping", Kind::Rpc, "ping");
    for path in [
        "/",
        "/orders",
        "/orders/delete",
        "/orders.create",
        "/orders/create/",
        "/Ping",
        "/ping/..",
        "/%2fping",
    ] {
        let response = ask(&gateway, post(path).body(Body::default()).unwrap()).await;
        assert_eq!(problem(response).await, (404, "not_found".into()), "{path}");
    }
    for (method, path, allow) in [
        (Method::GET, "/ping", "POST, OPTIONS"),
        (Method::DELETE, "/orders/create", "POST, OPTIONS"),
        (Method::POST, "/v1/ping", "GET, HEAD, OPTIONS"),
    ] {
        let request = Request::builder().method(method).uri(path);
        let response = ask(&gateway, request.body(Body::default()).unwrap()).await;
        assert_eq!(response.headers()["allow"], allow);
        assert_eq!(problem(response).await, (405, "method_not_allowed".into()));
    }
    for (path, allow) in [
        ("/orders/create", "POST, OPTIONS"),
        ("/v1/ping", "GET, HEAD, OPTIONS"),
    ] {
        let request = Request::builder().method(Method::OPTIONS).uri(path);
        let response = ask(&gateway, request.body(Body::default()).unwrap()).await;
        assert_eq!(response.status(), StatusCode::NO_CONTENT);
        assert_eq!(response.headers()["allow"], allow);
    }
    taken.assert_none();
    let response = ask(
        &gateway,
        Request::get("/v1/ping?x=1").body(Body::default()).unwrap(),
    )
    .await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(taken.one().name(), "ping");
}

#[tokio::test]
async fn only_listed_headers_go_along_in_both_directions() {
    let service = service_fn(|message: Message| async move {
        let mut reply = Reply::new(format!("{:?}", {
            let mut names: Vec<_> = message.headers().keys().map(ToString::to_string).collect();
            names.sort();
            names
        }));
        for name in [
            "set-cookie",
            "content-type",
            "x-tenant",
            "ce-id",
            "location",
        ] {
            let name = HeaderName::from_static(name);
            reply
                .headers
                .insert(name, HeaderValue::from_static("value"));
        }
        Ok::<_, BoxError>(reply)
    });
    let gateway = Gateway::new(service)
        .rpc("ping")
        .forward_header(HeaderName::from_static("x-tenant"));
    let request = [
        "authorization",
        "cookie",
        "x-tenant",
        "x-other",
        "traceparent",
        "tracestate",
        "x-request-id",
        "content-type",
        "content-encoding",
        "ce-id",
        "host",
        "campanile-id",
    ]
    .iter()
    .fold(post("/ping"), |request, name| {
        let value = match *name {
            "content-encoding" => "identity",
            _ => "value",
        };
        request.header(*name, value)
    });
    let response = ask(&gateway, request.body(Body::default()).unwrap()).await;
    let mut names: Vec<_> = response
        .headers()
        .keys()
        .map(|name| name.as_str())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["ce-id", "content-type", "x-request-id", "x-tenant"]);
    assert_eq!(
        text(response.into_body()).await,
        r#"["ce-id", "content-encoding", "content-type", "traceparent", "tracestate", "x-request-id", "x-tenant"]"#
    );
}

#[tokio::test]
async fn a_requests_id_is_in_every_answer() {
    let gateway = Taken::default().gateway();
    for path in ["/ping", "/orders/create", "/orders/events", "/nowhere"] {
        let request = post(path)
            .header("x-request-id", "r-7")
            .body(Body::default())
            .unwrap();
        assert_eq!(
            ask(&gateway, request).await.headers()["x-request-id"],
            "r-7",
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_413_and_nothing_is_sent() {
    let taken = Taken::default();
    let gateway = taken.gateway().max_body_bytes(10);
    // The first body has a known length, the second has none.
    let known = post("/orders/create")
        .body(Body::from("01234567890"))
        .unwrap();
    assert_eq!(
        problem(ask(&gateway, known).await).await,
        (413, "too_large".into())
    );
    let pieces = Pieces::new(["0123", "4567", "890"]).then_broken();
    let unknown = post("/orders/create").body(pieces).unwrap();
    assert_eq!(
        problem(ask(&gateway, unknown).await).await,
        (413, "too_large".into())
    );
    taken.assert_none();
    let exact = post("/orders/create")
        .body(Pieces::new(["01234", "56789"]))
        .unwrap();
    assert_eq!(ask(&gateway, exact).await.status(), StatusCode::ACCEPTED);
    assert_eq!(taken.one().payload(), "0123456789");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_400_and_nothing_is_sent() {
    let taken = Taken::default();
    let body = Pieces::new(["{\"id\":"]).then_broken();
    let response = ask(&taken.gateway(), post("/orders/create").body(body).unwrap()).await;
    let status = response.status();
    let problem = json_of(response).await;
    assert_eq!(
        (status.as_u16(), &problem["code"]),
        (400, &json!("invalid"))
    );
    assert_eq!(problem["detail"], "the body broke off", "no cause is shown");
    taken.assert_none();
}

/// The response of a gateway whose service fails with this error.
async fn failing<E: Into<BoxError>>(
    path: &str,
    error: impl Fn() -> E + Clone + Send + Sync + 'static,
) -> (u16, String) {
    let service = service_fn(move |_: Message| {
        let error: BoxError = error().into();
        async move { Err::<Reply, _>(error) }
    });
    let gateway = Gateway::new(service)
        .task("a.task")
        .event("an.event")
        .rpc("a.request");
    problem(ask(&gateway, post(path).body(Body::default()).unwrap()).await).await
}

#[tokio::test]
async fn the_status_says_how_sending_failed() {
    for path in ["/a/task", "/an/event", "/a/request"] {
        assert_eq!(
            failing(path, || Error::disconnected("x")).await,
            (503, "disconnected".into())
        );
        assert_eq!(
            failing(path, || Error::refused("x")).await,
            (503, "refused".into())
        );
        assert_eq!(failing(path, Error::closed).await, (503, "closed".into()));
        assert_eq!(
            failing(path, || Error::unknown_outcome("x")).await,
            (502, "unknown_outcome".into())
        );
        assert_eq!(
            failing(path, || Error::timeout("x")).await,
            (504, "timeout".into())
        );
        assert_eq!(
            failing(path, || Error::invalid("x")).await,
            (400, "invalid".into())
        );
        assert_eq!(
            failing(path, || Error::config("x")).await,
            (500, "internal".into())
        );
        assert_eq!(
            failing(path, || "password=1").await,
            (500, "internal".into())
        );
    }
}

#[tokio::test]
async fn an_answered_error_has_the_status_of_its_code() {
    for (error, status, code) in [
        (RpcError::invalid("x"), 400, "invalid"),
        (RpcError::not_found("x"), 404, "not_found"),
        (RpcError::unavailable("x"), 503, "unavailable"),
        (RpcError::deadline("x"), 504, "deadline"),
        (RpcError::internal("x"), 500, "internal"),
        (RpcError::new("forbidden".into(), "x"), 403, "forbidden"),
        (RpcError::new("quota".into(), "x"), 500, "quota"),
    ] {
        let expected = (status, code.to_owned());
        let as_it_is = error.clone();
        assert_eq!(
            failing("/a/request", move || as_it_is.clone()).await,
            expected
        );
        // The same error as the sending half of a transport returns it.
        assert_eq!(
            failing("/a/request", move || Error::from(error.clone())).await,
            expected
        );
    }
}

#[tokio::test]
async fn an_applications_own_codes_have_the_status_that_it_says() {
    let service = service_fn(|_: Message| async {
        Err::<Reply, BoxError>(RpcError::new("quota".into(), "no more today").into())
    });
    let gateway = Gateway::new(service)
        .rpc("a")
        .on_code(|code| match code.as_str() {
            "quota" => StatusCode::TOO_MANY_REQUESTS,
            _ => campanile::http_bridge::status(code),
        });
    let response = ask(&gateway, post("/a").body(Body::default()).unwrap()).await;
    assert_eq!(response.status(), 429);
    assert_eq!(json_of(response).await["detail"], "no more today");
}

#[tokio::test]
async fn a_503_says_when_to_come_back() {
    let service = service_fn(|_: Message| async { Err::<Reply, _>(Error::disconnected("x")) });
    let gateway = Gateway::new(service)
        .task("a")
        .retry_after(Duration::from_millis(2500));
    let response = ask(&gateway, post("/a").body(Body::default()).unwrap()).await;
    assert_eq!(response.headers()["retry-after"], "3");
}

#[tokio::test]
async fn a_full_stream_is_429_and_says_when_to_come_back() {
    let memory = Memory::new().max_waiting(1);
    let mut worker = memory.clone().open(Interest::stream()).await.unwrap();
    let gateway = Gateway::new(memory).task("a").rpc("b");
    let ask = async |path| ask(&gateway, post(path).body(Body::default()).unwrap()).await;
    assert_eq!(ask("/a").await.status(), StatusCode::ACCEPTED);
    for path in ["/a", "/b"] {
        let response = ask(path).await;
        assert_eq!(response.headers()["retry-after"], "5", "no rate is known");
        assert_eq!(problem(response).await, (429, "overloaded".into()));
    }
    drop(worker.next(1).await.unwrap());
    assert_eq!(ask("/a").await.status(), StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_body_of_another_type_than_its_route_takes_is_415_with_the_types() {
    let taken = Taken::default();
    let gateway = taken
        .gateway()
        .content_types("orders.create", ["application/json", "text/plain"]);
    let send = async |content_type: Option<&'static str>| {
        let mut request = post("/orders/create");
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        ask(&gateway, request.body(Body::from("7")).unwrap()).await
    };
    for refused in [Some("application/xml"), Some("x"), None] {
        let response = send(refused).await;
        assert_eq!(response.headers()["accept"], "application/json, text/plain");
        let expected = (415, "unsupported_media_type".into());
        assert_eq!(problem(response).await, expected);
    }
    taken.assert_none();
    for accepted in ["application/json;charset=utf-8", "TEXT/plain"] {
        assert_eq!(send(Some(accepted)).await.status(), StatusCode::ACCEPTED);
        taken.one();
    }
}

#[tokio::test]
async fn a_router_in_place_answers_as_a_transport_would() {
    let app: Router = Router::new()
        .rpc("double", async |Json(n): Json<u32>| Json(2 * n))
        .task("store", async |State(()): State<()>| {});
    let gateway = Gateway::new(app).rpc("double").rpc("nobody").task("store");
    let ask = async |path, body| ask(&gateway, post(path).body(Body::from(body)).unwrap()).await;
    assert_eq!(text(ask("/double", "21").await.into_body()).await, "42");
    assert_eq!(
        problem(ask("/double", "x").await).await,
        (400, "invalid".into())
    );
    assert_eq!(
        problem(ask("/nobody", "").await).await,
        (404, "not_found".into())
    );
    let response = ask("/store", "").await;
    assert!(!response.headers().contains_key("campanile-id"));
    assert_eq!(json_of(response).await, json!({ "id": null }));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_takes_too_long_is_504_and_is_dropped() {
    for path in ["/orders/create", "/ping"] {
        let (service, mut calls) = endless::<Message, Reply>();
        let gateway = Gateway::new(service)
            .task("orders.create")
            .rpc("ping")
            .timeout(Duration::from_secs(5));
        let started = tokio::time::Instant::now();
        let response = ask(&gateway, post(path).body(Body::default()).unwrap()).await;
        assert_eq!(problem(response).await, (504, "timeout".into()));
        // The clock moves in whole milliseconds.
        assert!((5000..5002).contains(&started.elapsed().as_millis()));
        assert!(calls.recv().await.unwrap().is_cancelled());
    }
}

#[tokio::test(start_paused = true)]
async fn the_expiry_of_a_task_is_not_a_time_out() {
    let service = service_fn(|_: Message| async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        Ok::<_, BoxError>(Reply::default())
    });
    let gateway = Gateway::new(service).task("a").prepare(|_, message| {
        message.parts_mut().deadline = Some(campanile::Deadline::after(Duration::from_secs(1)));
        Ok(())
    });
    let response = ask(&gateway, post("/a").body(Body::default()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_caller_that_goes_away_frees_what_it_waited_for() {
    let (service, mut calls) = endless::<Message, Reply>();
    let gateway = Gateway::new(service).rpc("ping");
    let mut work = Box::pin(gateway.oneshot(post("/ping").body(Body::default()).unwrap()));
    let dropped = begun(&mut work, &mut calls).await;
    assert!(!dropped.is_cancelled());
    drop(work);
    assert!(dropped.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_gateway_is_always_ready_and_waits_for_its_service_within_the_time_out() {
    let (service, mut handle) = tower_test::mock::pair::<Message, Reply>();
    handle.allow(0);
    let mut gateway = Gateway::new(service.clone()).rpc("ping");
    let ready = poll_fn(|cx| Service::<Request<Body>>::poll_ready(&mut gateway, cx));
    ready.now_or_never().expect("ready at once").unwrap();
    let response = ask(&gateway, post("/ping").body(Body::default()).unwrap()).await;
    assert_eq!(problem(response).await, (504, "timeout".into()));
    // `LoadShed` around the service fails instead of waiting.
    let gateway = Gateway::new(tower::load_shed::LoadShed::new(service)).rpc("ping");
    let response = ask(&gateway, post("/ping").body(Body::default()).unwrap()).await;
    assert_eq!(problem(response).await, (503, "unavailable".into()));
}

#[tokio::test]
async fn an_idempotency_key_sends_a_task_once_and_is_none_of_another_names() {
    let memory = Memory::new();
    let gateway = Gateway::new(memory.clone()).task("a").task("b");
    let send = async |path, key: &'static str| {
        let request = post(path)
            .header("idempotency-key", key)
            .body(Body::default())
            .unwrap();
        json_of(ask(&gateway, request).await).await["id"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let first = send("/a", "7").await;
    assert_eq!(send("/a", "7").await, first);
    assert_eq!(
        send("/a", "\"7\"").await,
        first,
        "the key is quoted, as in the draft"
    );
    assert_ne!(send("/a", "8").await, first);
    assert_ne!(send("/b", "7").await, first);
    assert_eq!(memory.counts().sent, 3);
}

#[tokio::test]
async fn header_values_that_cannot_be_carried_are_400_and_nothing_is_sent() {
    let taken = Taken::default();
    let long = "k".repeat(1024);
    for (path, name, value) in [
        ("/orders/create", "idempotency-key", &b"\xff"[..]),
        ("/orders/create", "idempotency-key", b""),
        ("/orders/create", "idempotency-key", long.as_bytes()),
        ("/ping", "idempotency-key", b"7"),
        ("/orders/events", "idempotency-key", b"7"),
        ("/orders/create", "ce-specversion", b"1.0"),
        ("/ping", "ce-specversion", b"0.3"),
    ] {
        let value = HeaderValue::from_bytes(value).unwrap();
        let request = post(path)
            .header(name, value)
            .body(Body::default())
            .unwrap();
        let response = ask(&taken.gateway(), request).await;
        assert_eq!(
            problem(response).await,
            (400, "invalid".into()),
            "{path} {name}"
        );
    }
    taken.assert_none();
}

#[tokio::test]
async fn header_values_of_any_bytes_reach_a_handler_through_a_transport() {
    let memory = Memory::new();
    let (send, mut seen) = tokio::sync::mpsc::channel(1);
    let app = Router::new().task("a", async move |headers: http::HeaderMap| {
        send.send(headers).await.unwrap();
    });
    let worker = tokio::spawn(campanile::serve(memory.clone(), app).into_future());
    let gateway = Gateway::new(memory)
        .task("a")
        .forward_header(HeaderName::from_static("x-raw"));
    let value = HeaderValue::from_bytes(b"caf\xe9\t\xff").unwrap();
    let request = post("/a")
        .header("x-raw", &value)
        .header("x-raw", "again")
        .header("traceparent", "00-1-2-01")
        .body(Body::default())
        .unwrap();
    assert_eq!(ask(&gateway, request).await.status(), StatusCode::ACCEPTED);
    let headers = seen.recv().await.unwrap();
    let again = HeaderValue::from_static("again");
    assert_eq!(
        headers.get_all("x-raw").iter().collect::<Vec<_>>(),
        [&value, &again]
    );
    assert_eq!(headers["traceparent"], "00-1-2-01");
    worker.abort();
}

#[tokio::test]
async fn a_message_can_be_changed_or_refused_by_what_is_known_of_its_request() {
    #[derive(Clone)]
    struct Tenant(&'static str);

    let taken = Taken::default();
    let gateway = taken.gateway().prepare(|request, message| {
        let Some(Tenant(tenant)) = request.extensions.get() else {
            return Err(RpcError::new("forbidden".into(), "no tenant"));
        };
        let value = HeaderValue::from_static(tenant);
        message.headers_mut().insert("x-tenant", value);
        message.parts_mut().reply_mode = ReplyMode::Fast;
        Ok(())
    });
    let request = || post("/ping").body(Body::default()).unwrap();
    assert_eq!(
        problem(ask(&gateway, request()).await).await,
        (403, "forbidden".into())
    );
    taken.assert_none();
    let mut request = request();
    request.extensions_mut().insert(Tenant("acme"));
    assert_eq!(ask(&gateway, request).await.status(), StatusCode::OK);
    let message = taken.one();
    assert_eq!(message.headers()["x-tenant"], "acme");
    assert_eq!(message.parts().reply_mode, ReplyMode::Fast);
    assert!(message.extensions().get::<Tenant>().is_some());
}

#[tokio::test]
async fn extensions_that_prepare_sets_win_over_those_of_the_request() {
    #[derive(Debug, Clone, PartialEq)]
    struct Tenant(&'static str);
    #[derive(Debug, Clone, PartialEq)]
    struct Peer(&'static str);
    let taken = Taken::default();
    let gateway = taken.gateway().prepare(|_, message| {
        message.extensions_mut().insert(Tenant("from prepare"));
        Ok(())
    });
    let request = post("/orders/create")
        .extension(Tenant("from the request"))
        .extension(Peer("from the request"))
        .body(Body::from("{}"))
        .unwrap();
    ask(&gateway, request).await;
    let message = taken.one();
    let extensions = message.extensions();
    assert_eq!(extensions.get(), Some(&Tenant("from prepare")));
    assert_eq!(extensions.get(), Some(&Peer("from the request")));
}
