//! The service of the metrics layer, and its future.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use campanile::{BoxError, Message, MessageService, Reply};
use pin_project::pin_project;
use tower::{Layer, Service};

use super::{
    MetricsLayer,
    series::{Series, SeriesTable},
};
use crate::{
    conventions::Fault,
    observe::{Observed, Observer, Watch},
};

/// A service whose calls are counted and timed. See the [module](super).
#[derive(Debug, Clone)]
pub struct Metrics<S> {
    inner: S,
    table: Arc<SeriesTable>,
}

impl<S> Metrics<S> {
    /// Wraps a service that is served, as [`MetricsLayer::new`] does.
    pub fn new(inner: S) -> Self {
        MetricsLayer::new().layer(inner)
    }

    /// Wraps a client's transport, as [`MetricsLayer::new_for_client`] does.
    pub fn new_for_client(inner: S) -> Self {
        MetricsLayer::new_for_client().layer(inner)
    }
}

impl<S> Layer<S> for MetricsLayer {
    type Service = Metrics<S>;

    fn layer(&self, inner: S) -> Metrics<S> {
        Metrics {
            inner,
            table: Arc::clone(&self.table),
        }
    }
}

inner_accessors!(Metrics<S>);

impl<S> Service<Message> for Metrics<S>
where
    S: MessageService,
{
    type Response = Reply;
    type Error = BoxError;
    type Future = MetricsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, message: Message) -> Self::Future {
        let series = self.table.of(&message);
        series.begin(&message);
        let watch = Watch::start(SeriesObserver(series));
        MetricsFuture {
            work: watch.observe(|| self.inner.call(message)),
        }
    }
}

/// Counts the end of a call, with its outcome.
struct SeriesObserver(Arc<Series>);

impl Observer for SeriesObserver {
    fn ended(&mut self, outcome: Result<&Reply, Fault<'_>>, after: Duration) {
        self.0.end(outcome.err().map(|f| f.error_type()), after);
    }
}

/// The future of [`Metrics`].
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct MetricsFuture<W> {
    #[pin]
    work: Observed<W, SeriesObserver>,
}

impl<W, E> Future for MetricsFuture<W>
where
    W: Future<Output = Result<Reply, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Reply, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().work.poll(cx)
    }
}

impl<W> fmt::Debug for MetricsFuture<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsFuture").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use crate::{MetricsLayer, observe::assertions};

    #[tokio::test]
    async fn the_inner_services_readiness_and_its_error_pass() {
        assertions::readiness_and_its_error_pass(MetricsLayer::new()).await;
    }

    #[tokio::test]
    async fn a_clone_has_no_reservation_and_a_drop_releases_one() {
        assertions::a_clone_has_no_reservation_and_a_drop_releases_one(MetricsLayer::new()).await;
    }
}
