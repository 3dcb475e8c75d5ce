//! A collector of traces, for the examples that export them over OTLP.

use axum::{Router, body::Bytes, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, trace::v1::Span,
};
use prost::Message;
use tokio::{net::TcpListener, sync::mpsc};

/// A collector on loopback, and the spans that were exported to it.
pub(crate) struct Collector {
    /// The value of `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub(crate) url: String,
    exported: mpsc::UnboundedReceiver<Span>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let (sender, exported) = mpsc::unbounded_channel();
        let collect = async move |body: Bytes| {
            let request = ExportTraceServiceRequest::decode(body).expect("an OTLP request");
            let resources = request.resource_spans.into_iter();
            let scopes = resources.flat_map(|resource| resource.scope_spans);
            for span in scopes.flat_map(|scope| scope.spans) {
                sender.send(span).expect("the test reads them");
            }
        };
        let app = Router::new().route("/v1/traces", post(collect));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(axum::serve(listener, app).into_future());
        Self { url, exported }
    }

    /// Returns the spans of a process that has ended.
    pub(crate) fn spans(&mut self) -> Vec<Span> {
        std::iter::from_fn(|| self.exported.try_recv().ok()).collect()
    }
}

/// Asserts that each of these spans is the parent of the next one. Returns the first.
pub(crate) fn chain<'a>(spans: &'a [Span], names: &[&str]) -> &'a Span {
    let named = |name: &str| {
        let found = spans.iter().find(|span| span.name == name);
        found.unwrap_or_else(|| panic!("no span {name:?} among {spans:?}"))
    };
    for pair in names.windows(2) {
        let (parent, child) = (named(pair[0]), named(pair[1]));
        assert_eq!(child.parent_span_id, parent.span_id, "{pair:?}");
        assert_eq!(child.trace_id, parent.trace_id, "{pair:?}");
    }
    named(names[0])
}
