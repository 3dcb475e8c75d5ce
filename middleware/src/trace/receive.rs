//! Spans for what a source hands out.

use campanile::{
    Error, Kind,
    transport::{Delivery, Interest, Settings, Source, Transport},
};
use tracing::Span;

#[cfg(feature = "opentelemetry")]
use super::context::Context;
use super::{DefaultMakeSpan, Operation, at_level, make_span::Title};

/// A transport whose sources make a span, `receive {stream}`, for each batch of deliveries that they
/// hand out.
///
/// ```
/// use campanile::{Router, serve, transport::memory::Memory};
/// use campanile_middleware::trace::{DefaultMakeSpan, TraceTransport};
///
/// # fn run() {
/// let app: Router = Router::new().task("orders.create", async || {});
/// let spans = DefaultMakeSpan::new().system("memory");
/// let worker = serve(TraceTransport::new(Memory::new()).make_span_with(spans), app);
/// # let _ = worker;
/// # }
/// ```
///
/// The span says how many messages came (`messaging.batch.message_count`) and links to those that
/// sent them. It is made when they are there: a worker that waits has no span, and the length of
/// this one says nothing. Events are not counted, since nobody asks a server for them.
#[derive(Debug, Clone)]
pub struct TraceTransport<T> {
    inner: T,
    spans: DefaultMakeSpan,
}

impl<T> TraceTransport<T> {
    /// Around this transport, with spans as those of [`DefaultMakeSpan::new`].
    pub const fn new(inner: T) -> Self {
        Self {
            inner,
            spans: DefaultMakeSpan::new(),
        }
    }

    /// The level and the system of the spans. The group is the transport's own.
    #[must_use]
    pub fn make_span_with(mut self, spans: DefaultMakeSpan) -> Self {
        self.spans = spans;
        self
    }
}

impl<T: Transport> Transport for TraceTransport<T> {
    type Source = TraceSource<T::Source>;

    async fn open(self, interest: Interest) -> Result<Self::Source, Error> {
        Ok(TraceSource {
            inner: self.inner.open(interest).await?,
            spans: self.spans,
        })
    }
}

/// The source of a [`TraceTransport`].
#[derive(Debug)]
pub struct TraceSource<S> {
    inner: S,
    spans: DefaultMakeSpan,
}

impl<S: Source> Source for TraceSource<S> {
    type Settle = S::Settle;

    fn settings(&self) -> &Settings {
        self.inner.settings()
    }

    fn requests_waiting(&self) -> usize {
        self.inner.requests_waiting()
    }

    async fn next(&mut self, max: usize) -> Result<Vec<Delivery<S::Settle>>, Error> {
        let deliveries = self.inner.next(max).await?;
        self.report(&deliveries);
        Ok(deliveries)
    }

    async fn stop(&mut self) {
        self.inner.stop().await;
    }

    async fn close(self) -> Result<(), Error> {
        self.inner.close().await
    }
}

impl<S: Source> TraceSource<S> {
    fn report(&self, deliveries: &[Delivery<S::Settle>]) {
        let asked_for = |delivery: &&Delivery<_>| match &delivery.content {
            Ok(message) => message.kind() != Kind::Event,
            Err(_) => true,
        };
        let count = deliveries.iter().filter(asked_for).count();
        if count == 0 {
            return;
        }
        let span = self.span(count);
        #[cfg(feature = "opentelemetry")]
        if !span.is_disabled() {
            let messages = deliveries.iter().flat_map(|delivery| &delivery.content);
            Context::default().link(messages, &span);
        }
        drop(span);
    }

    fn span(&self, count: usize) -> Span {
        let settings = self.settings();
        let operation = Operation::Receive;
        let title = Title {
            operation,
            destination: Some(&settings.stream),
        };
        at_level!(
            self.spans.level,
            span!(
                "receive",
                otel.name = %title,
                otel.kind = operation.span_kind(),
                messaging.system = self.spans.system.as_str(),
                messaging.operation.name = operation.name(),
                messaging.operation.r#type = operation.type_name(),
                messaging.destination.name = settings.stream.as_str(),
                messaging.consumer.group.name = settings.group.as_str(),
                messaging.batch.message_count = count as i64,
            )
        )
    }
}
