//! The service around what may fail, and its future.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use campanile::{BoxError, Message, Reply};
use pin_project::pin_project;
use tokio::time::{Instant, sleep_until};
use tower::Service;

use super::{
    CircuitOpen,
    circuit::{Circuit, Refusal, Ticket},
};
use crate::{
    class::{Class, Classifier},
    started::Started,
};

/// A service that is not called while its circuit is open. See the [module](super).
pub struct CircuitBreaker<S> {
    inner: S,
    circuit: Arc<Circuit>,
    classifier: Classifier,
    fail_fast: bool,
    reserved: Reserved,
}

enum Reserved {
    Nothing,
    /// Ready when it is worth asking again.
    Waiting(Pin<Box<dyn Future<Output = ()> + Send + Sync>>),
    Call(Ticket),
    /// The next call is to fail; this long is left until probes are let through.
    Refused(Duration),
}

impl<S> CircuitBreaker<S> {
    pub(super) fn new(
        inner: S,
        circuit: Arc<Circuit>,
        classifier: Classifier,
        fail_fast: bool,
    ) -> Self {
        Self {
            inner,
            circuit,
            classifier,
            fail_fast,
            reserved: Reserved::Nothing,
        }
    }

    fn admit(&self) -> Reserved {
        match self.circuit.admit() {
            Ok(ticket) => Reserved::Call(ticket),
            Err(Refusal::Open(until)) if self.fail_fast => {
                Reserved::Refused(until.saturating_duration_since(Instant::now()))
            }
            Err(Refusal::Busy(_)) if self.fail_fast => Reserved::Refused(Duration::ZERO),
            Err(Refusal::Open(until)) => Reserved::Waiting(Box::pin(sleep_until(until))),
            Err(Refusal::Busy(changed)) => Reserved::Waiting(Box::pin(changed)),
        }
    }
}

// By hand: what one has reserved is not the other's.
impl<S: Clone> Clone for CircuitBreaker<S> {
    fn clone(&self) -> Self {
        Self::new(
            self.inner.clone(),
            self.circuit.clone(),
            self.classifier.clone(),
            self.fail_fast,
        )
    }
}

impl<S> Service<Message> for CircuitBreaker<S>
where
    S: Service<Message, Response = Reply, Error: Into<BoxError>>,
{
    type Response = Reply;
    type Error = BoxError;
    type Future = CircuitBreakerFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        loop {
            match &mut self.reserved {
                Reserved::Call(ticket) if ticket.is_current() => {
                    let ready = ready!(self.inner.poll_ready(cx));
                    if let Err(error) = ready {
                        self.reserved = Reserved::Nothing;
                        return Poll::Ready(Err(error.into()));
                    }
                    // The wait for the inner service may have been long.
                    if ticket.is_current() {
                        return Poll::Ready(Ok(()));
                    }
                    self.reserved = Reserved::Nothing;
                }
                Reserved::Waiting(wait) => {
                    ready!(wait.as_mut().poll(cx));
                    self.reserved = Reserved::Nothing;
                }
                Reserved::Nothing | Reserved::Call(_) | Reserved::Refused(_) => {
                    // A stale ticket is given up first: it may be all that is in the way of a new one.
                    self.reserved = Reserved::Nothing;
                    self.reserved = self.admit();
                    if matches!(self.reserved, Reserved::Refused(_)) {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }

    fn call(&mut self, message: Message) -> Self::Future {
        let (work, ticket) = match std::mem::replace(&mut self.reserved, Reserved::Nothing) {
            Reserved::Call(ticket) => (Started::Called(self.inner.call(message)), Some(ticket)),
            Reserved::Refused(after) => (Started::failed(CircuitOpen::new(after)), None),
            Reserved::Nothing | Reserved::Waiting(_) => panic!("called before it was ready"),
        };
        CircuitBreakerFuture {
            work,
            ticket,
            classifier: self.classifier.clone(),
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for CircuitBreaker<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreaker")
            .field("inner", &self.inner)
            .field("circuit", &self.circuit)
            .field("fail_fast", &self.fail_fast)
            .finish_non_exhaustive()
    }
}

/// The future of [`CircuitBreaker`].
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct CircuitBreakerFuture<W> {
    #[pin]
    work: Started<W>,
    /// `None` where nothing was called.
    ticket: Option<Ticket>,
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
        if let Some(ticket) = this.ticket.take() {
            match &outcome {
                Ok(_) => ticket.count(true),
                Err(error) if this.classifier.class(&**error) == Class::Transient => {
                    ticket.count(false);
                }
                Err(_) => drop(ticket),
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
