//! Counts and times messages, and publishes the counts of transports. The metrics are recorded
//! through the [`metrics`] facade by the application's recorder.
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
//! The next example adds a consumer group, a Prometheus recorder with the buckets that
//! OpenTelemetry recommends, and the counts of the transport. The example `prometheus` is a
//! complete application:
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
//! # Metrics
//! A layer sees the outcome of the inner service, but not how the delivery was settled. A count in
//! [`CONSUMED_MESSAGES`] with the label `error.type` is a failed attempt. Dead letters are counted
//! in `campanile.transport.dead`.
//!
//! Messages that expired, were delivered too often, or cannot be decoded never reach a layer. The
//! transport counts them, and [`TransportMetrics`] publishes the counts of the transport.
//!
//! | metric | source | meaning |
//! |---|---|---|
//! | [`SENT_MESSAGES`] | a client's layer | counter: messages that a client tried to send |
//! | [`OPERATION_DURATION`] | a client's layer | histogram, seconds: until the transport accepted a message, or a request was answered |
//! | [`CONSUMED_MESSAGES`] | a serving layer | counter: handled deliveries |
//! | [`PROCESS_DURATION`] | a serving layer | histogram, seconds: the time to handle a delivery |
//! | [`REDELIVERED_MESSAGES`] | a serving layer | counter: deliveries that were not the first of their message |
//! | [`IN_FLIGHT`] | either layer | gauge: running calls |
//! | `campanile.transport.*` | [`publish_counts`](TransportMetrics::publish_counts) | counters: the fields of [`Counts`](campanile::transport::Counts), such as `sent`, `done`, `redelivered`, `dead`, `expired`, `reconnects` |
//! | `campanile.stream.*`, `campanile.group.*` | [`publish_stats`](TransportMetrics::publish_stats) | gauges: the fields of [`StreamStats`](campanile::transport::StreamStats), such as `lag`, `pending`, `oldest_pending` (seconds), `delayed`, `dead` |
//! | [`READY`] | [`publish_state`](TransportMetrics::publish_state) | gauge: 1 while the handle is connected |
//!
//! The first four metrics are [OpenTelemetry's] (v1.44). A failure has the label `error.type` with
//! one of the [fixed words](crate::conventions::Fault::error_type); a success has no such label.
//!
//! # Labels
//! The labels of the [conventions](crate::conventions) are `messaging.system`,
//! `messaging.operation.name`, `messaging.operation.type`, `messaging.destination.name`, and, if
//! set, `messaging.consumer.group.name`. A further label is `campanile.message.kind`. The number of
//! values of each label is bounded. A serving layer takes the destination from the matched route,
//! not from the message. The destination is `_OTHER` if no route matches, or if the layer is
//! outside the router. In a client's layer the destination is the name of the message. It is
//! `_OTHER` for all names after the first [256](MetricsLayer::max_destinations).
//!
//! # Recorders
//! A layer gets each metric handle from the recorder once, and keeps it. So install the recorder
//! before the first message.
//!
//! # Errors
//! Errors of the inner service are returned unchanged, as a [`BoxError`](campanile::BoxError).
//!
//! # Panics
//! A panic of the inner service propagates, and counts with the `error.type` `panic`.
//!
//! # Cancel safety
//! A dropped future counts with the `error.type` `dropped`.
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
/// Handled deliveries.
pub const CONSUMED_MESSAGES: &str = "messaging.client.consumed.messages";
/// The duration of a client's operation, in seconds.
pub const OPERATION_DURATION: &str = "messaging.client.operation.duration";
/// The time to handle a delivery, in seconds.
pub const PROCESS_DURATION: &str = "messaging.process.duration";
/// Deliveries that were not the first delivery of their message.
pub const REDELIVERED_MESSAGES: &str = "campanile.process.redelivered.messages";
/// Running calls.
pub const IN_FLIGHT: &str = "campanile.messages.in_flight";
/// 1 while a transport's handle is connected, and otherwise 0.
pub const READY: &str = "campanile.transport.ready";

/// The names of the histograms, for an exporter that needs to set their buckets.
pub const DURATIONS: [&str; 2] = [OPERATION_DURATION, PROCESS_DURATION];

/// The buckets that the conventions recommend for both [`DURATIONS`]: upper bounds in seconds.
pub const BUCKETS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

/// Registers the descriptions and units of the layers' metrics with the recorder. Call this
/// function after the recorder is installed.
pub fn describe() {
    describe_counter!(
        SENT_MESSAGES,
        Unit::Count,
        "Messages that a client tried to send."
    );
    describe_counter!(CONSUMED_MESSAGES, Unit::Count, "Handled deliveries.");
    describe_counter!(
        REDELIVERED_MESSAGES,
        Unit::Count,
        "Deliveries that were not the first of their message."
    );
    describe_histogram!(
        OPERATION_DURATION,
        Unit::Seconds,
        "Time until a transport accepted a message, or a request was answered."
    );
    describe_histogram!(
        PROCESS_DURATION,
        Unit::Seconds,
        "Time to handle a delivery."
    );
    describe_gauge!(IN_FLIGHT, Unit::Count, "Running calls.");
}
