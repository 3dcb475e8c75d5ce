//! HTTP services as message services, and the other way round.
//!
//! Over the crates `http` and `http-body` alone, so it works with whatever stands on those: axum,
//! hyper, tonic, tower-http.
//!
//! | what | makes | of |
//! |---|---|---|
//! | [`HttpHandler`] | a `Service<Message>` | an HTTP service, such as an `axum::Router` with its layers |
//! | [`Gateway`] | an HTTP service | a `Service<Message>`, such as a transport or a router |
//! | [`HttpLayer`] | a layer for messages | a layer for HTTP, such as those of tower-http |
//! | [`Health`] | an HTTP service for probes | the state of transports |
//! | [`Problem`] | an HTTP answer | an [`Error`](crate::Error) of a call |
//!
//! One process that does all of it, with one state and one shutdown, is `examples/axum`. The
//! [guide](crate::guide::http) goes through it, and has a table of all layers of tower-http.
//!
//! ```
//! use campanile::{
//!     Client, WithInterest, http_bridge::{Body, Gateway, HttpHandler}, serve, transport::memory::Memory,
//! };
//! use http::{Request, Response};
//! use std::convert::Infallible;
//! use tower::{ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Messages that are handled by an HTTP service: here it could be an `axum::Router`.
//! let web = service_fn(|request: Request<Body>| async {
//!     Ok::<_, Infallible>(Response::new(request.into_body()))
//! });
//! let memory = Memory::new();
//! let app = WithInterest::stream(HttpHandler::new(web)); // tasks and RPC requests
//! let worker = tokio::spawn(serve(memory.clone(), app).into_future());
//!
//! // And HTTP requests that become messages, wherever an HTTP service can be mounted.
//! let gateway = Gateway::new(memory).rpc("echo");
//! let response = gateway.oneshot(Request::post("/echo").body(Body::from("hey"))?).await?;
//! assert_eq!(response.status(), 200);
//! # worker.abort();
//! # Ok(())
//! # }
//! ```
//!
//! # What a request holds
//! For an [`HttpHandler`] a message is a `POST` to the [path](path()) of its name, `/orders/create` for
//! `orders.create`, unless a [target](HttpHandler::target) is set. The payload is the body, the
//! message's headers are the request's (but for those of a connection), its extensions too, with
//! an [`Origin`] among them. Beside that there are the headers [`KIND`], [`NAME`], [`ATTEMPT`] and
//! [`ID`]; those of CloudEvents pass as they are, or are [made](HttpHandler::cloud_events).
//!
//! # What a status means
//! | status | task | request | event |
//! |---|---|---|---|
//! | 2xx | done | replied, with headers and body | handled |
//! | 408, 425, 429, 5xx | delivered again, when `Retry-After` says or after the back-off | an error by the [code] | logged |
//! | 404 without a body | as a name without a route | `not_found` | logged |
//! | anything else | a dead letter | an error by the [code] | logged |
//! | 2xx, and the body breaks off | delivered again | `internal` | logged |
//! | 2xx, and the body is too long | a dead letter | `internal` | logged |
//!
//! [`HttpHandler::on_status`] decides otherwise for tasks. An error of the HTTP service
//! itself, such as one of a time-out layer, is an error like that of any other service.
//!
//! # What a gateway answers
//! | the message | answer |
//! |---|---|
//! | a task was taken | 202, `{"id":"…"}` and the header [`ID`] |
//! | an event was taken | 202 |
//! | a request was answered | 200 with the reply |
//! | a request was answered with an error | [by its code](status()) |
//! | it could not be sent | 502, 503, 504 or 400, as [`Problem`] says |
//! | the path, or the method, is not one of the gateway's | 404, 405 |
//! | the body is too long, or breaks off | 413, 400 |
//! | `Idempotency-Key` or CloudEvents headers make no sense | 400 |
//!
//! Every error is a [`Problem`]; a 503 has a `Retry-After`.
//!
//! # Delivery guarantee
//! 202 means that the transport took the message; a task will be handled at least once. With an
//! `Idempotency-Key` it is sent once, however often the HTTP request is repeated.

mod body;
mod gateway;
mod handler;
mod headers;
mod health;
mod layer;
mod names;
mod problem;
mod status;

pub use self::{
    body::{Body, BodyError},
    gateway::{Gateway, GatewayFuture},
    handler::{HttpHandler, HttpHandlerFuture, Origin},
    headers::{ATTEMPT, ID, KIND, NAME},
    health::Health,
    layer::{AsHttp, AsHttpFuture, HttpLayer},
    names::path,
    problem::Problem,
    status::{StatusError, code, settle, status},
};
