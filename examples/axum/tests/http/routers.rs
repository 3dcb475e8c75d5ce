//! Tests of axum's routers behind messages and in front of them.

use axum::{Json, Router, body::Body, extract::Extension, response::Response, routing::post};
use campanile::{
    Client, Message, NotFound, Reply, RpcCode, WithInterest,
    error::find,
    http_bridge::{Gateway, HttpHandler, Origin},
    serve,
    transport::memory::Memory,
};
use http::{HeaderName, HeaderValue, Request, StatusCode};
use tower::ServiceExt;
use tower_http::set_header::SetResponseHeaderLayer;

async fn text(response: Response) -> String {
    let bytes = axum::body::to_bytes(response.into_body(), 1024)
        .await
        .unwrap();
    String::from_utf8(bytes.into()).unwrap()
}

async fn ask(site: &Router, path: &str, body: &'static str) -> Response {
    let request = Request::post(path).body(Body::from(body)).unwrap();
    site.clone().oneshot(request).await.unwrap()
}

#[tokio::test]
async fn an_axum_router_with_its_layers_serves_routes_of_our_router() {
    let double = async |Extension(origin): Extension<Origin>, Json(n): Json<u32>| {
        assert_eq!(origin.name, "math.double");
        Json(2 * n)
    };
    let version = SetResponseHeaderLayer::overriding(
        HeaderName::from_static("x-version"),
        HeaderValue::from_static("1"),
    );
    let web = Router::new()
        .route("/math/double", post(double))
        .layer(version);
    let handler = HttpHandler::new(web).content_type("application/json");
    let app: campanile::Router = campanile::Router::new()
        .rpc_service("math.double", handler.clone())
        .fallback_service(handler);
    let client = Client::new(app);

    let reply: Reply = client
        .request("math.double", campanile::Json(21))
        .await
        .unwrap();
    assert_eq!(reply.payload, "42");
    assert_eq!(reply.headers["x-version"], "1");
    let error = client
        .request::<Reply>("math.double", "no number")
        .await
        .unwrap_err();
    assert_eq!(error.rpc().unwrap().code(), &RpcCode::Invalid);
    let error = client
        .request::<Reply>("math.halve", "4")
        .await
        .unwrap_err();
    assert!(find::<NotFound>(&error).is_some(), "{error:?}");
}

#[tokio::test]
async fn an_unknown_path_is_a_name_without_a_route() {
    let web = Router::new().route("/known", post(async || "yes"));
    let app = HttpHandler::new(web);
    let reply = app
        .clone()
        .oneshot(Message::rpc("known", ""))
        .await
        .unwrap();
    assert_eq!(reply.payload, "yes");
    for message in [Message::task("unknown", ""), Message::rpc("known.not", "")] {
        let error = app.clone().oneshot(message).await.unwrap_err();
        assert!(find::<NotFound>(&*error).is_some(), "{error}");
    }
}

#[tokio::test]
async fn a_gateway_is_mounted_in_a_router() {
    let memory = Memory::new();
    let app = campanile::Router::new().rpc(
        "math.double",
        async |campanile::Json(n): campanile::Json<u32>| campanile::Json(2 * n),
    );
    let worker = tokio::spawn(serve(memory.clone(), app).into_future());
    let gateway = Gateway::new(memory)
        .rpc("math.double")
        .content_type("application/json");
    let site = Router::new().nest_service("/messages", gateway);
    let response = ask(&site, "/messages/math/double", "21").await;
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(text(response).await, "42");
    assert_eq!(ask(&site, "/math/double", "21").await.status(), 404);
    worker.abort();
}

#[tokio::test]
async fn a_handler_behind_a_gateway_is_the_original_service() {
    // A request becomes a message in memory, and then a request again.
    let web = Router::new().route("/shout", post(async |text: String| text.to_uppercase()));
    let memory = Memory::new();
    let worker = tokio::spawn(
        serve(memory.clone(), WithInterest::stream(HttpHandler::new(web))).into_future(),
    );
    let gateway = Gateway::new(memory.clone()).rpc("shout").rpc("whisper");
    let site = Router::new().fallback_service(gateway);
    let response = ask(&site, "/shout", "hey").await;
    assert_eq!(
        response.headers()["content-type"],
        "text/plain; charset=utf-8"
    );
    assert_eq!(text(response).await, "HEY");
    let response = ask(&site, "/whisper", "hey").await;
    assert_eq!(response.status(), 404);
    let shouted: String = Client::new(memory).request("shout", "hey").await.unwrap();
    assert_eq!(shouted, "HEY");
    worker.abort();
}

#[tokio::test]
async fn every_method_of_a_route_is_answered_as_axum_answers_it() {
    use campanile::Kind;
    use http::Method;

    let app: campanile::Router = campanile::Router::new().fallback(async || "pong");
    let gateway = Gateway::new(app)
        .route(Method::GET, "/get", Kind::Rpc, "a")
        .route(Method::POST, "/post", Kind::Rpc, "a")
        .route(Method::GET, "/both", Kind::Rpc, "a")
        .route(Method::POST, "/both", Kind::Rpc, "a");
    let pong = async || "pong";
    let native = Router::new()
        .route("/get", axum::routing::get(pong))
        .route("/post", post(pong))
        .route("/both", axum::routing::get(pong).post(pong));
    let answer = async |site: Router, method: &Method, path: &str| {
        let request = Request::builder().method(method).uri(path);
        let request = request.body(Body::empty()).unwrap();
        let response = site.oneshot(request).await.unwrap();
        let status = response.status();
        let allow = response.headers().get("allow").map(|allow| {
            let allow = allow.to_str().unwrap().split(',');
            let mut allow: Vec<_> = allow.map(|method| method.trim().to_owned()).collect();
            allow.sort();
            // The gateway answers it, axum does not.
            allow.retain(|method| method != "OPTIONS");
            allow
        });
        // Error texts may differ.
        let body = text(response).await;
        (status, allow, status.is_success().then_some(body))
    };
    let site = Router::new().fallback_service(gateway);
    for method in [
        Method::HEAD,
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::DELETE,
    ] {
        for path in ["/get", "/post", "/both", "/neither"] {
            assert_eq!(
                answer(site.clone(), &method, path).await,
                answer(native.clone(), &method, path).await,
                "{method} {path}"
            );
        }
    }
    let options = answer(site.clone(), &Method::OPTIONS, "/both").await;
    let allowed = ["GET", "HEAD", "POST"].map(str::to_owned).to_vec();
    assert_eq!(
        options,
        (StatusCode::NO_CONTENT, Some(allowed), Some(String::new()))
    );
    assert_eq!(answer(site, &Method::OPTIONS, "/neither").await.0, 404);
}
