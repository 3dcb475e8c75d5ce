//! A span for each message that is sent or handled, with [OpenTelemetry's conventions for messaging].
//!
//! Around what is served, as the outermost layer of the router:
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
//! Around what is called, and with words of one's own:
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
//! let layer = TraceLayer::new_for_client().make_span_with(spans.clone());
//! let client = Client::new(ServiceBuilder::new().layer(layer).service(memory.clone()));
//!
//! let app: Router = Router::new()
//!     .task("orders.create", async |order: String| drop(order))
//!     .layer(
//!         TraceLayer::new()
//!             .make_span_with(spans.group("app_group"))
//!             .on_failure(|fault: &Fault<'_>, after: Duration, _: &Span| {
//!                 tracing::warn!(error_type = fault.error_type(), ?after, "failed");
//!             }),
//!     );
//! # let _ = (client, app);
//! ```
//!
//! # Spans
//! | span | kind | when |
//! |---|---|---|
//! | `send {destination}` | `PRODUCER` | a client sends a task: until the transport has taken it |
//! | `publish {destination}` | `PRODUCER` | a client publishes an event |
//! | `request {destination}` | `CLIENT` | a client makes a request: until the answer is there. No reply channel is named, and a reply has no span of its own |
//! | `receive {stream}` | `CLIENT` | a source of [`TraceTransport`] hands deliveries out; none of them when there is no such wrapper |
//! | `process {destination}` | `CONSUMER` | a delivery is handled |
//!
//! The destination is the message's name where the application itself has chosen it: when it is sent,
//! and when it is handled by a route, whose name or pattern it then is. A name that has no route is
//! left out of the span's name, which must not be anybody's text; it is in `messaging.destination.name`.
//! So the layer belongs into the router, where the route is known. The attributes are those of
//! [`conventions`](crate::conventions), and `messaging.message.body.size` in bytes,
//! `campanile.message.kind`, and, where a message is handled, `campanile.message.attempt`.
//! Neither payloads nor headers are ever part of a span.
//!
//! # Receiving
//! [`serve`](mod@campanile::serve) hands messages to handlers, which is what the conventions call push-based:
//! the span of such a delivery is `process`, and waiting for one is no operation of the
//! application's. Who wants to see batches, or drives a source by hand, wraps the transport in a [`TraceTransport`].
//!
//! # Context
//! With the feature `opentelemetry`, and a [`tracing_opentelemetry`] layer in the subscriber, a trace runs on
//! through messages: from an HTTP request through the task that it sends to the request that the task makes.
//!
//! A client's layer writes the context of its span into the message's headers (W3C:
//! `traceparent`, `tracestate`). A context that is there already and is of another trace was put there on purpose: it is
//! kept, and the span links to it. Events have no headers on Pub/Sub and so carry no context.
//!
//! A serving layer reads it. The `process` span links to the span that sent the message, as the
//! conventions want it, and has it as its parent too, which is their option for single messages. It is
//! not the parent where another span surrounds the handling, as in a router that is called in place:
//! that one is. [`TraceLayer::own_trace_for`] takes the parent away, for tasks that run hours later, say.
//!
//! Where the subscriber filters the span of a message out, a client's layer passes the context on that surrounds
//! the call; a serving layer passes nothing on, and the trace ends there.
//!
//! A `traceparent` that is malformed is logged at debug level and ignored: it never fails a message.
//!
//! [`tracing_opentelemetry`]: https://docs.rs/tracing-opentelemetry
//!
//! # Errors
//! The inner service's errors pass, as a [`BoxError`](campanile::BoxError). Its readiness is no
//! message's, so it has no span.
//!
//! # Panics
//! A panic of the inner service passes; its span ends with the `error.type` `panic`.
//!
//! # Cancel safety
//! A future that is dropped before it is done ends its span with the `error.type` `dropped`.
//!
//! [OpenTelemetry's conventions for messaging]: https://github.com/open-telemetry/semantic-conventions/blob/v1.44.0/docs/messaging/messaging-spans.md

#[cfg(feature = "opentelemetry")]
mod context;
mod layer;
mod make_span;
mod on_failure;
mod on_reply;
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

/// A tracing macro whose level is a value: the macros themselves want it known when they are
/// compiled.
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
