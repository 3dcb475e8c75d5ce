//! The exported spans. All tests share one subscriber, since tracing caches for each call site
//! whether a subscriber is interested. Each test finds its spans by the names of its messages.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use opentelemetry::{
    Value,
    trace::{SpanId, TracerProvider},
};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tracing_subscriber::{Layer, layer::SubscriberExt};

use crate::support::raw::eventually;

static EXPORTER: LazyLock<(InMemorySpanExporter, SdkTracerProvider)> = LazyLock::new(|| {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder()
        .with_simple_exporter(exporter.clone())
        .build();
    let spans = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    let subscriber = tracing_subscriber::registry().with(spans).with(Warnings);
    tracing::subscriber::set_global_default(subscriber).expect("no other subscriber is installed");
    (exporter, provider)
});

/// Installs the subscriber. Must be called before anything is traced.
pub(crate) fn start() {
    LazyLock::force(&EXPORTER);
}

pub(crate) fn all() -> Vec<SpanData> {
    EXPORTER
        .0
        .get_finished_spans()
        .expect("the exporter is not shut down")
}

/// Waits for the span of this name to end.
pub(crate) async fn span(name: &str) -> SpanData {
    let found = || async { all().into_iter().find(|span| span.name == name) };
    eventually(found, Duration::from_secs(30)).await
}

pub(crate) fn has_parent(span: &SpanData, parent: &SpanData) -> bool {
    span.span_context.trace_id() == parent.span_context.trace_id()
        && span.parent_span_id == parent.span_context.span_id()
}

pub(crate) fn is_root(span: &SpanData) -> bool {
    span.parent_span_id == SpanId::INVALID
}

pub(crate) fn links_to(span: &SpanData, other: &SpanData) -> bool {
    let other = &other.span_context;
    span.links.iter().any(|link| {
        link.span_context.span_id() == other.span_id()
            && link.span_context.trace_id() == other.trace_id()
    })
}

/// The value of an attribute as text, or `None` if the span has no such attribute.
pub(crate) fn attribute(span: &SpanData, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|kv| kv.key.as_str() == key)?;
    Some(match &found.value {
        Value::I64(n) => format!("{n} as a number"),
        value => value.to_string(),
    })
}

static MALFORMED: AtomicUsize = AtomicUsize::new(0);

/// The number of log lines about a malformed context.
pub(crate) fn malformed() -> usize {
    MALFORMED.load(Ordering::SeqCst)
}

struct Warnings;

impl<S: tracing::Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        event.record(
            &mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                if field.name() == "message" && format!("{value:?}").contains("malformed") {
                    MALFORMED.fetch_add(1, Ordering::SeqCst);
                }
            },
        );
    }
}
