//! The service of the circuit breaker, and its future.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use campanile::{BoxError, Message, MessageService, Reply};
use pin_project::pin_project;
use tokio::time::{Instant, sleep_until};
use tower::Service;

use super::{
    CircuitBreakerLayer, CircuitOpen,
    circuit::{CallPermit, Refusal},
};
use crate::{
    call_or_error::CallOrError,
    class::{Class, Classifier},
};

/// A service that is not called while its circuit is open. See the [module](super).
pub struct CircuitBreaker<S> {
    inner: S,
    layer: CircuitBreakerLayer,
    readiness: Readiness,
}

enum Readiness {
    Unknown,
    /// The circuit admits no call. The future completes when the circuit may admit a call.
    Waiting(Pin<Box<dyn Future<Output = ()> + Send + Sync>>),
    /// The circuit admits the next call.
    Admitted(CallPermit),
    /// The next call fails. The circuit admits probes after this time.
    Refused(Duration),
}

impl<S> CircuitBreaker<S> {
    /// Wraps a service with a new circuit, as [`CircuitBreakerLayer::new`] does. Clones share the
    /// circuit.
    pub fn new(inner: S) -> Self {
        Self::with_layer(inner, CircuitBreakerLayer::new())
    }

    pub(super) fn with_layer(inner: S, layer: CircuitBreakerLayer) -> Self {
        Self {
            inner,
            layer,
            readiness: Readiness::Unknown,
        }
    }

    fn admit(&self) -> Readiness {
        let fail_fast = self.layer.fail_fast;
        match self.layer.circuit.admit() {
            Ok(permit) => Readiness::Admitted(permit),
            Err(Refusal::Open(until)) if fail_fast => {
                Readiness::Refused(until.saturating_duration_since(Instant::now()))
            }
            Err(Refusal::Busy(_)) if fail_fast => Readiness::Refused(Duration::ZERO),
            Err(Refusal::Open(until)) => Readiness::Waiting(Box::pin(sleep_until(until))),
            Err(Refusal::Busy(changed)) => Readiness::Waiting(Box::pin(changed)),
        }
    }
}

inner_accessors!(CircuitBreaker<S>);

/// A clone starts without a permit.
impl<S: Clone> Clone for CircuitBreaker<S> {
    fn clone(&self) -> Self {
        Self::with_layer(self.inner.clone(), self.layer.clone())
    }
}

impl<S> Service<Message> for CircuitBreaker<S>
where
    S: MessageService,
{
    type Response = Reply;
    type Error = BoxError;
    type Future = CircuitBreakerFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        loop {
            match &mut self.readiness {
                Readiness::Admitted(permit) if permit.is_current() => {
                    let ready = ready!(self.inner.poll_ready(cx));
                    if let Err(error) = ready {
                        self.readiness = Readiness::Unknown;
                        return Poll::Ready(Err(error.into()));
                    }
                    // The state may have changed during the wait for the inner service.
                    if permit.is_current() {
                        return Poll::Ready(Ok(()));
                    }
                    self.readiness = Readiness::Unknown;
                }
                Readiness::Waiting(wait) => {
                    ready!(wait.as_mut().poll(cx));
                    self.readiness = Readiness::Unknown;
                }
                Readiness::Unknown | Readiness::Admitted(_) | Readiness::Refused(_) => {
                    // A permit that is dropped here was granted before the last change of the
                    // circuit's state. So it releases no probe of the current state.
                    self.readiness = Readiness::Unknown;
                    self.readiness = self.admit();
                    if matches!(self.readiness, Readiness::Refused(_)) {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }

    fn call(&mut self, message: Message) -> Self::Future {
        let (work, permit) = match std::mem::replace(&mut self.readiness, Readiness::Unknown) {
            Readiness::Admitted(permit) => {
                (CallOrError::Call(self.inner.call(message)), Some(permit))
            }
            Readiness::Refused(after) => (CallOrError::failed(CircuitOpen::new(after)), None),
            Readiness::Unknown | Readiness::Waiting(_) => {
                panic!("`poll_ready` is called before `call`")
            }
        };
        CircuitBreakerFuture {
            work,
            permit,
            classifier: self.layer.classifier.clone(),
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for CircuitBreaker<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreaker")
            .field("inner", &self.inner)
            .field("layer", &self.layer)
            .finish_non_exhaustive()
    }
}

/// The future of [`CircuitBreaker`].
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct CircuitBreakerFuture<W> {
    #[pin]
    work: CallOrError<W>,
    /// The permit of the call, or `None` if the call was not admitted.
    permit: Option<CallPermit>,
    classifier: Classifier,
}

impl<W, E> Future for CircuitBreakerFuture<W>
where
    W: Future<Output = Result<Reply, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Reply, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let outcome = ready!(this.work.poll(cx));
        if let Some(permit) = this.permit.take() {
            match &outcome {
                Ok(_) => permit.count(true),
                Err(error) if this.classifier.class(&**error) == Class::Transient => {
                    permit.count(false);
                }
                Err(_) => drop(permit),
            }
        }
        Poll::Ready(outcome)
    }
}

impl<W> fmt::Debug for CircuitBreakerFuture<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreakerFuture")
            .finish_non_exhaustive()
    }
}
