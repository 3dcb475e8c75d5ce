//! Spans for the batches of a source.

use campanile::{
    Error, Kind,
    transport::{Delivery, Interest, Settings, Source, Transport},
};
use tracing::Span;

#[cfg(feature = "opentelemetry")]
use super::propagation::Propagation;
use super::{DefaultMakeSpan, Operation, at_level, make_span::SpanName};

/// A transport whose sources make a span `receive {stream}` for each batch of deliveries.
///
/// ```
/// use campanile::{Router, serve, transport::memory::Memory};
/// use campanile_middleware::trace::{DefaultMakeSpan, TraceTransport};
///
/// # fn run() {
/// let app: Router = Router::new().task("orders.create", async || {});
/// let spans = DefaultMakeSpan::new().system("memory");
/// let worker = serve(TraceTransport::new(Memory::new()).make_span(spans), app);
/// # let _ = worker;
/// # }
/// ```
///
/// The span has the number of tasks and requests in the batch (`messaging.batch.message_count`),
/// and links to the spans that sent them. Events do not count, because the server pushes them. A
/// batch of only events has no span.
///
/// The span is made after the batch has arrived. So its duration has no meaning, and the source's
/// wait for messages has no span.
#[derive(Debug, Clone)]
pub struct TraceTransport<T> {
    inner: T,
    spans: DefaultMakeSpan,
}

impl<T> TraceTransport<T> {
    /// Wraps a transport. The spans have the level and the system of [`DefaultMakeSpan::new`]
    /// unless [`make_span`](Self::make_span) sets others.
    pub const fn new(inner: T) -> Self {
        Self {
            inner,
            spans: DefaultMakeSpan::new(),
        }
    }

    /// Sets the level and the system of the spans. The group of `spans` is ignored: the spans have
    /// the group of the source.
    #[must_use]
    pub fn make_span(mut self, spans: DefaultMakeSpan) -> Self {
        self.spans = spans;
        self
    }
}

impl<T> TraceTransport<T> {
    /// Returns the wrapped transport.
    pub const fn get_ref(&self) -> &T {
        &self.inner
    }

    /// Returns a mutable reference to the wrapped transport.
    pub const fn get_mut(&mut self) -> &mut T {
        &mut self.inner
    }

    /// Returns the wrapped transport.
    pub fn into_inner(self) -> T {
        self.inner
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
        self.trace_batch(&deliveries);
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
    /// Makes the span of a batch, and ends it.
    fn trace_batch(&self, deliveries: &[Delivery<S::Settle>]) {
        let is_event = |delivery: &Delivery<_>| match &delivery.content {
            Ok(message) => message.kind() == Kind::Event,
            Err(_undecodable) => false,
        };
        let received = deliveries.iter().filter(|delivery| !is_event(delivery));
        let count = received.clone().count();
        if count == 0 {
            return;
        }
        let span = self.span(count);
        #[cfg(feature = "opentelemetry")]
        if !span.is_disabled() {
            let messages = received.flat_map(|delivery| &delivery.content);
            Propagation::default().link(messages, &span);
        }
        drop(span);
    }

    fn span(&self, count: usize) -> Span {
        let settings = self.settings();
        let operation = Operation::Receive;
        let span_name = SpanName {
            operation,
            destination: Some(&settings.stream),
        };
        at_level!(
            self.spans.level,
            span!(
                "receive",
                otel.name = %span_name,
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
