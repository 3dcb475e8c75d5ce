//! Traces over OTLP: the span of a handler is a child of the span that sent the task.
//!
//! ```text
//! docker run --rm -p 16686:16686 -p 4318:4318 jaegertracing/jaeger # or any other collector
//! REDIS_URL=redis://127.0.0.1/ cargo run -p example-recipes --example traces
//! ```
//!
//! `OTEL_EXPORTER_OTLP_ENDPOINT` names another collector than <http://localhost:4318>.

use std::env;

use campanile::{BoxError, Client, Redis, Router, serve};
use campanile_middleware::TraceLayer;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;
use tracing::{Instrument, info_span, level_filters::LevelFilter};
use tracing_subscriber::layer::{Layer, SubscriberExt};

/// Sends the spans of level `INFO` to the collector, in batches.
fn export() -> Result<SdkTracerProvider, BoxError> {
    let exporter = SpanExporter::builder().with_http().build()?;
    let provider = SdkTracerProvider::builder()
        .with_resource(Resource::builder().with_service_name("shop").build())
        .with_batch_exporter(exporter)
        .build();
    let spans = tracing_opentelemetry::layer().with_tracer(provider.tracer("shop"));
    let spans = spans.with_filter(LevelFilter::INFO);
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(spans))?;
    Ok(provider)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let spans = export()?;
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".into());
    let redis = Redis::connect(&url).await?.stream("shop");

    // The client's layer writes the context of its span into the header `traceparent`.
    let sender = TraceLayer::new_for_client();
    let client = Client::new(ServiceBuilder::new().layer(sender).service(redis.clone()));
    let checkout = info_span!("checkout");
    let send = client.enqueue("orders.place", "7").into_future();
    send.instrument(checkout).await?;

    // The worker's layer reads the header. The handler, and all its messages, belong to the same
    // trace.
    let stop = CancellationToken::new();
    let placed = stop.clone();
    let place = async move |order: String| {
        info_span!("charge").in_scope(|| println!("order {order}: placed"));
        placed.cancel();
    };
    let app = Router::new().task("orders.place", place);
    let worker = serve(redis, app.layer(TraceLayer::new()));
    worker
        .with_graceful_shutdown(stop.cancelled_owned())
        .await?;
    spans.shutdown()?; // exports the last batch
    Ok(())
}
