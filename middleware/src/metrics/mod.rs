//! What is sent and handled, and how transports are doing, in numbers: through the [`metrics`] facade, to
//! whatever recorder the application installs.
//!
//! ```
//! use campanile::{Client, Router, transport::memory::Memory};
//! use campanile_middleware::MetricsLayer;
//! use tower::ServiceBuilder;
//!
//! let app: Router = Router::new()
//!     .task("orders.create", async |order: String| drop(order))
//!     .layer(MetricsLayer::new());
//!
//! let sending = ServiceBuilder::new().layer(MetricsLayer::new_for_client());
//! let client = Client::new(sending.service(Memory::new()));
//! # let _ = (app, client);
//! ```
//!
//! With a group, a recorder with the conventions' buckets, and the numbers of the transport; the example
//! `prometheus` has all of it:
//!
//! ```
//! use campanile::{Router, transport::memory::Memory};
//! use campanile_middleware::{MetricsLayer, TransportMetrics, metrics};
//! use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), campanile::BoxError> {
//! let mut builder = PrometheusBuilder::new();
//! for name in metrics::DURATIONS {
//!     builder = builder.set_buckets_for_metric(Matcher::Full(name.into()), &metrics::BUCKETS)?;
//! }
//! let prometheus = builder.install_recorder()?; // before anything is counted
//! metrics::describe();
//!
//! let memory = Memory::new();
//! let layer = MetricsLayer::new().system("memory").group("app_group");
//! let app: Router = Router::new().task("orders.create", async || {}).layer(layer);
//! # let _ = app;
//!
//! // At each scrape:
//! let transport = TransportMetrics::new().system("memory");
//! transport.publish_counts(&memory.counts());
//! transport.publish_stats(&memory.stats().await?);
//! assert!(prometheus.render().contains("campanile_transport_dead"));
//! # Ok(())
//! # }
//! ```
//!
//! # What is counted where
//! A layer sees what the service inside it returned. It does not see how the delivery was settled, nor what
//! never came to it: what expired before it was started, died of too many deliveries, was no message.
//! The transport counts those, and [`TransportMetrics`] publishes its counts. So a failure in
//! [`CONSUMED_MESSAGES`] is an attempt that failed, and `campanile.transport.dead` a message that
//! was given up.
//!
//! | metric | of | what |
//! |---|---|---|
//! | [`SENT_MESSAGES`] | a client's layer | counter: messages that were tried to be sent |
//! | [`OPERATION_DURATION`] | a client's layer | histogram, seconds: until the transport had taken a message, or a request was answered |
//! | [`CONSUMED_MESSAGES`] | a serving layer | counter: deliveries that were handled |
//! | [`PROCESS_DURATION`] | a serving layer | histogram, seconds: how long that took |
//! | [`REDELIVERED_MESSAGES`] | a serving layer | counter: deliveries that were not their message's first |
//! | [`IN_FLIGHT`] | both | gauge: calls that have begun and not ended |
//! | `campanile.transport.*` | [`publish_counts`](TransportMetrics::publish_counts) | counters: each of [`Counts`](campanile::transport::Counts), so `sent`, `done`, `redelivered`, `dead`, `expired`, `reconnects`, … |
//! | `campanile.stream.*`, `campanile.group.*` | [`publish_stats`](TransportMetrics::publish_stats) | gauges: each of [`StreamStats`](campanile::transport::StreamStats), so `lag`, `pending`, `oldest_pending` (seconds), `delayed`, `dead`, … |
//! | [`READY`] | [`publish_state`](TransportMetrics::publish_state) | gauge: 1 while the handle works |
//!
//! The first four are [OpenTelemetry's] (v1.44). What failed has the label `error.type`, one of the
//! [fixed words](crate::conventions::Fault::error_type); what did not has no such label.
//!
//! # Labels
//! Those of the [conventions](crate::conventions): `messaging.system`, `messaging.operation.name`, `messaging.operation.type`,
//! `messaging.destination.name`, `messaging.consumer.group.name` where it is told; and
//! `campanile.message.kind`. Their values are bounded. A serving layer takes the route that matched, never a
//! name that came from outside: what has no route is `_OTHER`, and so is everything where the layer is
//! outside the router. A client's layer takes the names that the application sends to, and calls `_OTHER` what is beyond the
//! first [256](MetricsLayer::max_destinations).
//!
//! # Recorders
//! A layer keeps its handles, so that a message costs no look-up in the recorder: install the recorder before the first
//! message.
//!
//! # Errors
//! The inner service's errors pass, as a [`BoxError`](campanile::BoxError).
//!
//! # Panics
//! A panic of the inner service passes; it counts with the `error.type` `panic`.
//!
//! # Cancel safety
//! A future that is dropped before it is done counts with the `error.type` `dropped`.
//!
//! [`metrics`]: https://docs.rs/metrics
//! [OpenTelemetry's]: https://github.com/open-telemetry/semantic-conventions/blob/v1.44.0/docs/messaging/messaging-metrics.md

mod layer;
mod series;
mod service;
mod transport;

use ::metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

pub use self::{
    layer::MetricsLayer,
    service::{Metrics, MetricsFuture},
    transport::TransportMetrics,
};

/// Messages that a client tried to send.
pub const SENT_MESSAGES: &str = "messaging.client.sent.messages";
/// Deliveries that were handled.
pub const CONSUMED_MESSAGES: &str = "messaging.client.consumed.messages";
/// How long a client's operation took, in seconds.
pub const OPERATION_DURATION: &str = "messaging.client.operation.duration";
/// How long handling a delivery took, in seconds.
pub const PROCESS_DURATION: &str = "messaging.process.duration";
/// Deliveries that were not the first of their message.
pub const REDELIVERED_MESSAGES: &str = "campanile.process.redelivered.messages";
/// Calls that have begun and not ended.
pub const IN_FLIGHT: &str = "campanile.messages.in_flight";
/// Whether a transport's handle works right now: 1 or 0.
pub const READY: &str = "campanile.transport.ready";

/// The histograms, for an exporter that wants to be told their buckets.
pub const DURATIONS: [&str; 2] = [OPERATION_DURATION, PROCESS_DURATION];

/// The buckets that the conventions advise for both [`DURATIONS`]: upper bounds in seconds.
pub const BUCKETS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

/// Tells the recorder what the metrics of the layers are, and their units. Call it when the recorder is
/// installed.
pub fn describe() {
    describe_counter!(
        SENT_MESSAGES,
        Unit::Count,
        "Messages that a client tried to send."
    );
    describe_counter!(
        CONSUMED_MESSAGES,
        Unit::Count,
        "Deliveries that were handled."
    );
    describe_counter!(
        REDELIVERED_MESSAGES,
        Unit::Count,
        "Deliveries that were not the first of their message."
    );
    describe_histogram!(
        OPERATION_DURATION,
        Unit::Seconds,
        "How long sending a message took, or a request until its answer."
    );
    describe_histogram!(
        PROCESS_DURATION,
        Unit::Seconds,
        "How long handling a delivery took."
    );
    describe_gauge!(
        IN_FLIGHT,
        Unit::Count,
        "Calls that have begun and not ended."
    );
}
