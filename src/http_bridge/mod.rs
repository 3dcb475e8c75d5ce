//! Connects HTTP services and message services, in both directions.
//!
//! The public types use only the crates `http` and `http-body`, so they work with everything that
//! is built on these crates: axum, hyper, tonic, tower-http.
//!
//! | type | is | made from |
//! |---|---|---|
//! | [`HttpHandler`] | a `Service<Message>` | an HTTP service, such as an `axum::Router` with its layers |
//! | [`Gateway`] | an HTTP service | a `Service<Message>`, such as a transport or a router |
//! | [`HttpLayer`] | a layer for messages | a layer for HTTP, such as those of tower-http |
//! | [`Health`] | an HTTP service for probes | the state of transports |
//! | [`Backlogs`] | an HTTP service for scalers and Prometheus | the backlogs of streams |
//! | [`Problem`] | an HTTP response | an [`Error`](crate::Error) of a call |
//!
//! `examples/axum` uses all of these types in one process, with one shared state and one shutdown.
//! The [guide](crate::guide::http) explains this example, and has a table of all layers of
//! tower-http.
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
//! // An HTTP service handles messages. It could be an `axum::Router`.
//! let web = service_fn(|request: Request<Body>| async {
//!     Ok::<_, Infallible>(Response::new(request.into_body()))
//! });
//! let memory = Memory::new();
//! let app = WithInterest::stream(HttpHandler::new(web)); // tasks and RPC requests
//! let worker = tokio::spawn(serve(memory.clone(), app).into_future());
//!
//! // HTTP requests become messages. A gateway can be mounted like any HTTP service.
//! let gateway = Gateway::new(memory).rpc("echo");
//! let response = gateway.oneshot(Request::post("/echo").body(Body::from("hey"))?).await?;
//! assert_eq!(response.status(), 200);
//! # worker.abort();
//! # Ok(())
//! # }
//! ```
//!
//! # The request for a message
//! An [`HttpHandler`] turns a message into a `POST` to the [path](path()) of its name,
//! `/orders/create` for `orders.create`, unless a [target](HttpHandler::target) is set. The body is
//! the payload. The request has the headers [`KIND`], [`NAME`], [`ATTEMPT`] and [`ID`], and the
//! message's headers. Headers that are valid only for one connection are left out. Headers that
//! identify the caller, such as `authorization`, are left out unless they are
//! [trusted](HttpHandler::trust_header). The extensions of the request are the message's
//! extensions, and an [`Origin`] with the message's other parts. CloudEvents headers of the message
//! are kept. If the message has none, they can be [added](HttpHandler::cloud_events).
//!
//! # The meaning of a status
//! | status | task | request | event |
//! |---|---|---|---|
//! | 2xx | done | replied, with headers and body | handled |
//! | 408, 425, 429, 5xx | delivered again, at the time in `Retry-After` or after the back-off | an error by the [code] | logged |
//! | 404 without a body | failed, like a name without a route | `not_found` | logged |
//! | anything else | a dead letter | an error by the [code] | logged |
//! | 2xx with a body that breaks off | delivered again | `internal` | logged |
//! | 2xx with a body that is too long | a dead letter | `internal` | logged |
//!
//! [`HttpHandler::on_status`] changes the outcome for tasks. An error of the HTTP service itself,
//! such as the error of a timeout layer, is handled like the error of any other service.
//!
//! # The responses of a gateway
//! | outcome | response |
//! |---|---|
//! | a task was accepted | 202, `{"id":"…"}` and the header [`ID`] |
//! | an event was accepted | 202 |
//! | a request was answered | 200 with the reply |
//! | a request was answered with an error | [by its code](status()) |
//! | a message could not be sent | 502, 503, 504 or 400, as [`Problem`] says |
//! | too many messages [wait](crate::transport::Settings::max_waiting) already | 429 with a `Retry-After` |
//! | the gateway has no route for the path, or none for the method | 404, 405 with `Allow` |
//! | the method is `OPTIONS` | 204 with `Allow` |
//! | the body is too long, breaks off, or does not arrive within the [timeout](Gateway::timeout) | 413, 400, 408 |
//! | the body is compressed, or its content type is refused: it is not [one of the route](Gateway::content_types), or [forms of other sites](Gateway::accept_form_type) can send it | 415 |
//! | `Idempotency-Key` or CloudEvents headers are invalid | 400 |
//! | an earlier request with another body had the same `Idempotency-Key` | 422 |
//!
//! Every error is a [`Problem`]; a 429 and a 503 have a `Retry-After`.
//!
//! # Back-pressure
//! See [`Gateway`]. If the stream is full, the response is a 429 with a `Retry-After`.
//!
//! # Delivery guarantee
//! The status 202 means that the transport accepted the message: a task will be handled at least
//! once. With an `Idempotency-Key` the task is stored only once, even if the HTTP request is
//! repeated.

mod backlogs;
mod body;
mod extensions;
mod gateway;
mod handler;
mod headers;
mod health;
mod layer;
mod names;
mod problem;
mod status;

pub use self::{
    backlogs::{Backlogs, BacklogsFuture},
    body::{Body, BodyError},
    extensions::Origin,
    gateway::{Gateway, GatewayFuture},
    handler::{HttpHandler, HttpHandlerFuture},
    headers::{ATTEMPT, ID, KIND, NAME},
    health::Health,
    layer::{AsHttp, AsHttpFuture, HttpLayer},
    names::path,
    problem::Problem,
    status::{StatusError, code, failure_verdict, status},
};
