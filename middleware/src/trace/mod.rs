//! Makes a span for each message that is sent or handled, following [OpenTelemetry's conventions
//! for messaging].
//!
//! In a router, as its outermost layer:
//!
//! ```
//! use campanile::Router;
//! use campanile_middleware::TraceLayer;
//!
//! let app: Router = Router::new()
//!     .task("orders.create", async |order: String| drop(order))
//!     .layer(TraceLayer::new());
//! ```
//!
//! The next example also has a layer around a client's transport, and custom hooks:
//!
//! ```
//! use campanile::{Client, Router, transport::memory::Memory};
//! use campanile_middleware::trace::{DefaultMakeSpan, Fault, TraceLayer};
//! use std::time::Duration;
//! use tower::ServiceBuilder;
//! use tracing::{Level, Span};
//!
//! let memory = Memory::new();
//! let spans = DefaultMakeSpan::new().system("memory").level(Level::DEBUG);
//!
//! let layer = TraceLayer::new_for_client().make_span(spans.clone());
//! let client = Client::new(ServiceBuilder::new().layer(layer).service(memory.clone()));
//!
//! let app: Router = Router::new()
//!     .task("orders.create", async |order: String| drop(order))
//!     .layer(
//!         TraceLayer::new()
//!             .make_span(spans.group("app_group"))
//!             .on_failure(|fault: &Fault<'_>, after: Duration, _: &Span| {
//!                 tracing::warn!(error_type = fault.error_type(), ?after, "failed");
//!             }),
//!     );
//! # let _ = (client, app);
//! ```
//!
//! # Spans
//! | span | kind | meaning |
//! |---|---|---|
//! | `send {destination}` | `PRODUCER` | a client sends a task, until the transport has accepted it |
//! | `publish {destination}` | `PRODUCER` | a client publishes an event |
//! | `request {destination}` | `CLIENT` | a client makes a request, until its reply. The reply itself has no span, and no span contains the name of the reply channel |
//! | `receive {stream}` | `CLIENT` | a source of a [`TraceTransport`] returns deliveries |
//! | `process {destination}` | `CONSUMER` | a delivery is handled |
//!
//! The destination is a name that the application has chosen: the name of a message that is sent,
//! or the route of a message that is handled. If a message has no route, any sender could have
//! chosen its name. So the name is not in the span's name, only in the attribute
//! `messaging.destination.name`. Add the layer with [`Router::layer`](campanile::Router::layer),
//! because a layer around the router does not know the route. The attributes are those of
//! [`conventions`](crate::conventions), `messaging.message.body.size` in bytes,
//! `campanile.message.kind`, and for handled messages `campanile.message.attempt`. A span never
//! contains payloads or headers.
//!
//! # Logs
//! [`serve`](mod@campanile::serve) logs a failed delivery once, as a warning that says why the
//! delivery failed and how it is settled. The log line is inside the `process` span.
//!
//! # Receiving
//! [`serve`](mod@campanile::serve) calls handlers with messages. The conventions call this
//! push-based: the span of a delivery is `process`, and the wait for the delivery has no span. To
//! get spans for batches, or if the application drives a source itself, wrap the transport in a
//! [`TraceTransport`].
//!
//! # Context
//! With the feature `opentelemetry` and a [`tracing_opentelemetry`] layer in the subscriber, a
//! trace continues through messages: for example from an HTTP request to a task, and to the request
//! that the task makes.
//!
//! A client's layer writes the context of its span into the message's headers (W3C: `traceparent`,
//! `tracestate`). If the application has set the context of another trace, the layer keeps that
//! context, and the span links to it. Redis Pub/Sub carries no headers, so an event does not carry
//! the context.
//!
//! A serving layer reads the context. The `process` span links to the span that sent the message,
//! as the conventions require. The sending span is also the parent of the `process` span, which the
//! conventions allow for single messages. If the handling already runs in another span, that span
//! is the parent instead: for example, if a client calls the router directly, without a transport.
//! [`TraceLayer::own_trace_for`] starts a new trace, for example for tasks that run hours later.
//!
//! If the subscriber filters out the span of a message, a client's layer sends the context that
//! surrounds the call. A serving layer then does not pass the sender's trace on to the handler.
//!
//! A malformed `traceparent` is logged at debug level and ignored. It never fails a message.
//!
//! [`tracing_opentelemetry`]: https://docs.rs/tracing-opentelemetry
//!
//! # Errors
//! Errors of the inner service are returned unchanged, as a [`BoxError`](campanile::BoxError). An
//! error of `poll_ready` belongs to no message, so it has no span.
//!
//! # Panics
//! A panic of the inner service propagates, and the span of the message ends with the `error.type`
//! `panic`.
//!
//! # Cancel safety
//! The span of a dropped future ends with the `error.type` `dropped`.
//!
//! [OpenTelemetry's conventions for messaging]: https://github.com/open-telemetry/semantic-conventions/blob/v1.44.0/docs/messaging/messaging-spans.md

mod layer;
mod make_span;
mod on_failure;
mod on_reply;
#[cfg(feature = "opentelemetry")]
mod propagation;
mod receive;
mod service;

pub use self::{
    layer::TraceLayer,
    make_span::{DefaultMakeSpan, MakeSpan},
    on_failure::{DefaultOnFailure, OnFailure},
    on_reply::{DefaultOnReply, OnReply},
    receive::{TraceSource, TraceTransport},
    service::{Trace, TraceFuture},
};
pub use crate::conventions::{Fault, Operation};

/// Calls a tracing macro with a level that is known only at run time. The macros need a constant
/// level.
macro_rules! at_level {
    ($level:expr, $macro:ident!($($args:tt)*)) => {
        match $level {
            tracing::Level::ERROR => tracing::$macro!(tracing::Level::ERROR, $($args)*),
            tracing::Level::WARN => tracing::$macro!(tracing::Level::WARN, $($args)*),
            tracing::Level::INFO => tracing::$macro!(tracing::Level::INFO, $($args)*),
            tracing::Level::DEBUG => tracing::$macro!(tracing::Level::DEBUG, $($args)*),
            tracing::Level::TRACE => tracing::$macro!(tracing::Level::TRACE, $($args)*),
        }
    };
}
use at_level;
