//! The service of the trace layer, and its future.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use campanile::{BoxError, Message, MessageService, Reply, serve::log_failure_in_current_span};
use pin_project::pin_project;
use tower::{Layer, Service};
use tracing::Span;

use super::{
    DefaultMakeSpan, DefaultOnFailure, DefaultOnReply, Fault, MakeSpan, OnFailure, OnReply,
    TraceLayer,
};
use crate::conventions::Side;
use crate::observe::{Observed, Observer, Watch};

/// A service whose calls have spans. See the [module](super).
#[derive(Debug, Clone)]
pub struct Trace<S, M = DefaultMakeSpan, R = DefaultOnReply, F = DefaultOnFailure> {
    inner: S,
    layer: TraceLayer<M, R, F>,
}

impl<S> Trace<S> {
    /// Wraps the service that handles messages, as [`TraceLayer::new`] does.
    pub fn new(inner: S) -> Self {
        TraceLayer::new().layer(inner)
    }

    /// Wraps a client's transport, as [`TraceLayer::new_for_client`] does.
    pub fn new_for_client(inner: S) -> Self {
        TraceLayer::new_for_client().layer(inner)
    }
}

impl<S, M: Clone, R: Clone, F: Clone> Layer<S> for TraceLayer<M, R, F> {
    type Service = Trace<S, M, R, F>;

    fn layer(&self, inner: S) -> Self::Service {
        Trace {
            inner,
            layer: self.clone(),
        }
    }
}

inner_accessors!(Trace<S, M, R, F>);

impl<S, M, R, F> Service<Message> for Trace<S, M, R, F>
where
    S: MessageService,
    M: MakeSpan,
    R: OnReply + Clone,
    F: OnFailure + Clone,
{
    type Response = Reply;
    type Error = BoxError;
    type Future = TraceFuture<S::Future, R, F>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    #[cfg_attr(not(feature = "opentelemetry"), allow(unused_mut))]
    fn call(&mut self, mut message: Message) -> Self::Future {
        let Self { inner, layer } = self;
        let operation = layer.side.operation(message.kind());
        let span = layer.make_span.make_span(&message, operation);
        #[cfg(feature = "opentelemetry")]
        match layer.side {
            Side::Serving => layer.propagation.extract(&message, &span),
            Side::Client => layer.propagation.inject(&mut message, &span),
        }
        let watch = Watch::start(Hooks {
            span,
            side: layer.side,
            on_reply: layer.on_reply.clone(),
            on_failure: layer.on_failure.clone(),
        });
        TraceFuture {
            work: watch.observe(|| inner.call(message)),
        }
    }
}

/// The span of a call, and the hooks for its end.
struct Hooks<R, F> {
    span: Span,
    side: Side,
    on_reply: R,
    on_failure: F,
}

impl<R: OnReply, F: OnFailure> Observer for Hooks<R, F> {
    fn scope<T>(&mut self, part: impl FnOnce() -> T) -> T {
        self.span.in_scope(part)
    }

    fn ended(&mut self, outcome: Result<&Reply, Fault<'_>>, after: Duration) {
        let Self {
            span,
            side,
            on_reply,
            on_failure,
        } = self;
        span.in_scope(|| match outcome {
            Ok(reply) => on_reply.on_reply(reply, after, span),
            Err(fault) => {
                on_failure.on_failure(&fault, after, span);
                if *side == Side::Serving {
                    log_failure_in_current_span();
                }
            }
        });
    }
}

/// The future of [`Trace`].
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct TraceFuture<W, R: OnReply, F: OnFailure> {
    #[pin]
    work: Observed<W, Hooks<R, F>>,
}

impl<W, E, R, F> Future for TraceFuture<W, R, F>
where
    W: Future<Output = Result<Reply, E>>,
    E: Into<BoxError>,
    R: OnReply,
    F: OnFailure,
{
    type Output = Result<Reply, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().work.poll(cx)
    }
}

impl<W, R: OnReply, F: OnFailure> fmt::Debug for TraceFuture<W, R, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TraceFuture").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tower_test::mock;

    use super::*;
    use crate::{observe::assertions, trace::Operation};

    type Reports = Arc<Mutex<Vec<String>>>;

    /// Returns a layer whose hooks record their arguments.
    fn recording(
        layer: TraceLayer,
        reports: &Reports,
    ) -> TraceLayer<impl MakeSpan + Clone, impl OnReply + Clone, impl OnFailure + Clone> {
        let say = |reports: &Reports, text: String| reports.lock().unwrap().push(text);
        let [made, replied, failed] = [reports.clone(), reports.clone(), reports.clone()];
        layer
            .make_span(move |message: &Message, operation: Operation| {
                say(&made, format!("{operation} {}", message.name()));
                Span::none()
            })
            .on_reply(move |reply: &Reply, after: Duration, _: &Span| {
                say(&replied, format!("{} after {after:?}", reply.payload.len()));
            })
            .on_failure(move |fault: &Fault<'_>, after: Duration, _: &Span| {
                say(&failed, format!("{fault} after {after:?}"));
            })
    }

    type Inner = mock::Mock<Message, Reply>;

    fn around<L: Layer<Inner>>(
        layer: L,
    ) -> (mock::Spawn<L::Service>, mock::Handle<Message, Reply>) {
        let (inner, handle) = mock::pair();
        (mock::Spawn::new(layer.layer(inner)), handle)
    }

    #[tokio::test(start_paused = true)]
    async fn each_call_has_a_span_and_ends_with_one_hook() {
        let reports = Reports::default();
        let (mut service, mut handle) = around(recording(TraceLayer::new(), &reports));
        for outcome in [Ok(Reply::new("abc")), Err("disk full")] {
            assert!(service.poll_ready().is_ready());
            let call = service.call(Message::task("a", ""));
            let (_, answer) = handle.next_request().await.unwrap();
            tokio::time::advance(Duration::from_secs(2)).await;
            match outcome {
                Ok(reply) => answer.send_response(reply),
                Err(error) => answer.send_error(error),
            }
            let _ = call.await;
        }
        let reports = reports.lock().unwrap();
        assert_eq!(
            *reports,
            ["process a", "3 after 2s", "process a", "disk full after 2s"]
        );
    }

    #[tokio::test]
    async fn the_operation_of_a_client_depends_on_the_kind_of_message() {
        let reports = Reports::default();
        let layer = recording(TraceLayer::new_for_client(), &reports);
        let (mut service, _handle) = around(layer);
        let messages = [
            Message::task("a", ""),
            Message::event("b", ""),
            Message::rpc("c", ""),
        ];
        for message in messages {
            assert!(service.poll_ready().is_ready());
            drop(service.call(message));
        }
        let reports = reports.lock().unwrap();
        let made: Vec<_> = reports.iter().step_by(2).collect();
        assert_eq!(made, ["send a", "publish b", "request c"]);
    }

    #[tokio::test]
    async fn the_inner_services_readiness_and_its_error_pass_without_a_span() {
        let reports = Reports::default();
        assertions::readiness_and_its_error_pass(recording(TraceLayer::new(), &reports)).await;
        assert!(reports.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_clone_has_no_reservation_and_a_drop_releases_one() {
        assertions::a_clone_has_no_reservation_and_a_drop_releases_one(TraceLayer::new()).await;
    }
}
