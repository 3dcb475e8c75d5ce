//! A future that waits for the admission of its message. Used by layers such as a limit by key.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use campanile::{BoxError, Message, MessageService, Reply};
use pin_project::pin_project;
use tower::{Service, ServiceExt, util::Oneshot};

pub(crate) type Outcome = Result<Reply, BoxError>;

/// Decides when a message is admitted. The future keeps this value until the message is handled, so
/// that an implementation can hold a permit.
pub(crate) trait Admission: Unpin {
    /// Waits until the inner service may be called.
    ///
    /// # Errors
    /// If the message is not admitted.
    fn poll_admitted(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>>;

    /// Receives the outcome of the inner service, and returns the outcome of the layer. Drops
    /// `self`, which releases its permit.
    fn finish(self, outcome: Outcome) -> Outcome
    where
        Self: Sized,
    {
        outcome
    }
}

/// Takes the ready service. Leaves a clone, which has no reservation.
pub(crate) fn take_ready<S: Clone>(inner: &mut S) -> S {
    let clone = inner.clone();
    std::mem::replace(inner, clone)
}

/// A future that waits for the admission, then for the readiness of the service, and then for the
/// outcome of its call.
#[pin_project]
pub(crate) struct Gated<S: Service<Message>, A> {
    #[pin]
    state: GateState<S, A>,
}

// The largest variant is not boxed, because a message spends nearly all of its time in this
// variant.
#[allow(clippy::large_enum_variant)]
#[pin_project(project = GateStateProjection)]
enum GateState<S: Service<Message>, A> {
    Refused {
        error: Option<BoxError>,
    },
    Waiting {
        admission: Option<A>,
        call: Option<(S, Message)>,
    },
    Running {
        // Declared before `admission`, so that the work is dropped first. If the admission were
        // dropped first, the next message would be admitted while this work still exists.
        #[pin]
        work: Oneshot<S, Message>,
        admission: Option<A>,
    },
}

impl<S: Service<Message>, A> Gated<S, A> {
    /// Creates a future that fails with this error.
    pub(crate) fn refused(error: impl Into<BoxError>) -> Self {
        let error = Some(error.into());
        Self {
            state: GateState::Refused { error },
        }
    }

    /// Creates a future that calls the service without waiting for an admission.
    pub(crate) fn admitted(service: S, message: Message) -> Self {
        Self {
            state: GateState::Running {
                admission: None,
                work: service.oneshot(message),
            },
        }
    }

    /// Creates a future that calls the service once the message is admitted.
    pub(crate) fn waiting(admission: A, service: S, message: Message) -> Self {
        Self {
            state: GateState::Waiting {
                admission: Some(admission),
                call: Some((service, message)),
            },
        }
    }
}

impl<S, A> Future for Gated<S, A>
where
    S: MessageService,
    A: Admission,
{
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        const POLLED_AGAIN: &str = "polled after it was done";
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                GateStateProjection::Refused { error } => {
                    return Poll::Ready(Err(error.take().expect(POLLED_AGAIN)));
                }
                GateStateProjection::Waiting { admission, call } => {
                    let waiting = admission.as_mut().expect(POLLED_AGAIN);
                    let admitted = ready!(waiting.poll_admitted(cx));
                    let admission = admission.take();
                    let (service, message) = call.take().expect("taken once, just here");
                    admitted?;
                    let work = service.oneshot(message);
                    state.set(GateState::Running { admission, work });
                }
                GateStateProjection::Running { work, admission } => {
                    let outcome = ready!(work.poll(cx)).map_err(Into::into);
                    let admission = admission.take();
                    // Drops the work before the admission is dropped.
                    state.set(GateState::Refused { error: None });
                    return Poll::Ready(match admission {
                        Some(admission) => admission.finish(outcome),
                        None => outcome,
                    });
                }
            }
        }
    }
}

impl<S: Service<Message>, A> fmt::Debug for Gated<S, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.state {
            GateState::Refused { .. } => "Refused",
            GateState::Waiting { .. } => "Waiting",
            GateState::Running { .. } => "Running",
        })
    }
}

/// Defines a layer's public future, a wrapper of [`Gated`].
macro_rules! gated_future {
    ($(#[$doc:meta])* $name:ident, $admission:ty) => {
        $(#[$doc])*
        #[pin_project::pin_project]
        #[must_use = "futures do nothing unless polled"]
        pub struct $name<S: tower::Service<campanile::Message>>(
            #[pin] crate::gated::Gated<S, $admission>,
        );

        impl<S> std::future::Future for $name<S>
        where
            S: campanile::MessageService,
        {
            type Output = Result<campanile::Reply, campanile::BoxError>;

            fn poll(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Self::Output> {
                self.project().0.poll(cx)
            }
        }

        impl<S: tower::Service<campanile::Message>> std::fmt::Debug for $name<S> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_tuple(stringify!($name)).field(&self.0).finish()
            }
        }
    };
}
pub(crate) use gated_future;
