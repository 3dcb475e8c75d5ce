//! The service, and its future.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use campanile::{BoxError, Message, Reply};
use pin_project::pin_project;
use tower::Service;
use tracing::Span;

use super::{
    DefaultMakeSpan, DefaultOnFailure, DefaultOnReply, Fault, MakeSpan, OnFailure, OnReply,
    TraceLayer,
};
#[cfg(feature = "opentelemetry")]
use crate::conventions::Side;
use crate::observe::{Observed, Observer, Watch};

/// A service whose calls have spans. See the [module](super).
#[derive(Debug, Clone)]
pub struct Trace<S, M = DefaultMakeSpan, R = DefaultOnReply, F = DefaultOnFailure> {
    inner: S,
    layer: TraceLayer<M, R, F>,
}

impl<S, M, R, F> Trace<S, M, R, F> {
    pub(super) fn new(inner: S, layer: TraceLayer<M, R, F>) -> Self {
        Self { inner, layer }
    }
}

impl<S, M, R, F> Service<Message> for Trace<S, M, R, F>
where
    S: Service<Message, Response = Reply, Error: Into<BoxError>>,
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
            Side::Serving => layer.context.extract(&message, &span),
            Side::Client => layer.context.inject(&mut message, &span),
        }
        let watch = Watch::start(Hooks {
            span,
            on_reply: layer.on_reply.clone(),
            on_failure: layer.on_failure.clone(),
        });
        TraceFuture {
            work: watch.over(|| inner.call(message)),
        }
    }
}

struct Hooks<R, F> {
    span: Span,
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
            on_reply,
            on_failure,
        } = self;
        span.in_scope(|| match outcome {
            Ok(reply) => on_reply.on_reply(reply, after, span),
            Err(fault) => on_failure.on_failure(&fault, after, span),
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

    use tower::Layer;
    use tower_test::mock;

    use super::*;
    use crate::{observe::laws, trace::Operation};

    type Said = Arc<Mutex<Vec<String>>>;

    /// A layer whose hooks say what they hear.
    fn speaking(
        layer: TraceLayer,
        said: &Said,
    ) -> TraceLayer<impl MakeSpan + Clone, impl OnReply + Clone, impl OnFailure + Clone> {
        let say = |said: &Said, text: String| said.lock().unwrap().push(text);
        let [made, replied, failed] = [said.clone(), said.clone(), said.clone()];
        layer
            .make_span_with(move |message: &Message, operation: Operation| {
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
    async fn each_call_has_its_span_and_ends_in_one_hook() {
        let said = Said::default();
        let (mut service, mut handle) = around(speaking(TraceLayer::new(), &said));
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
        let said = said.lock().unwrap();
        assert_eq!(
            *said,
            ["process a", "3 after 2s", "process a", "disk full after 2s"]
        );
    }

    #[tokio::test]
    async fn a_clients_operation_is_that_of_the_messages_kind() {
        let said = Said::default();
        let layer = speaking(TraceLayer::new_for_client(), &said);
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
        let said = said.lock().unwrap();
        let made: Vec<_> = said.iter().step_by(2).collect();
        assert_eq!(made, ["send a", "publish b", "request c"]);
    }

    #[tokio::test]
    async fn the_inner_services_readiness_and_its_error_pass_without_a_span() {
        let said = Said::default();
        laws::readiness_and_its_error_pass(speaking(TraceLayer::new(), &said)).await;
        assert!(said.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_clone_has_no_reservation_and_what_is_dropped_releases_its_own() {
        laws::a_reservation_is_its_own_and_is_given_back(TraceLayer::new()).await;
    }
}
