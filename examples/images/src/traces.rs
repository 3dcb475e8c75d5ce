//! The traces. A trace begins with a client's request, and has the handlers of all its messages.

use std::{env, io};

use axum::{
    extract::{MatchedPath, Request},
    middleware::Next,
    response::Response,
};
use campanile::BoxError;
use opentelemetry::{propagation::TextMapPropagator, trace::TracerProvider};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing::{Instrument, info_span, level_filters::LevelFilter};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt};

/// Logs to the standard error, at the levels of `RUST_LOG`, and exports the spans over OTLP if
/// `OTEL_EXPORTER_OTLP_ENDPOINT` is set. `shutdown` of the returned provider exports the last
/// spans.
///
/// # Errors
/// If the endpoint is not valid, or the process has a subscriber already.
pub fn install() -> Result<SdkTracerProvider, BoxError> {
    let resource = Resource::builder().with_service_name("images").build();
    let mut spans = SdkTracerProvider::builder().with_resource(resource);
    if env::var_os("OTEL_EXPORTER_OTLP_ENDPOINT").is_some() {
        spans = spans.with_batch_exporter(SpanExporter::builder().with_http().build()?);
    }
    let spans = spans.build();
    let levels = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let exported = tracing_opentelemetry::layer().with_tracer(spans.tracer("images"));
    let subscriber = tracing_subscriber::registry()
        .with(log.with_filter(levels))
        .with(exported.with_filter(LevelFilter::INFO));
    tracing::subscriber::set_global_default(subscriber)?;
    Ok(spans)
}

/// Makes a span for each request. If the request has the header `traceparent`, the span belongs to
/// the trace of the client.
pub async fn traced(path: MatchedPath, request: Request, next: Next) -> Response {
    let name = format!("{} {}", request.method(), path.as_str());
    let span = info_span!("request", otel.name = name, otel.kind = "server");
    let context = TraceContextPropagator::new().extract(&HeaderExtractor(request.headers()));
    // Fails if the subscriber does not export spans, as in a test.
    let _ = span.set_parent(context);
    next.run(request).instrument(span).await
}
