//! The future of a service that is called as soon as its message is let in.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use campanile::{BoxError, Message, Reply};
use pin_project::pin_project;
use tower::{Service, ServiceExt, util::Oneshot};

pub(crate) type Outcome = Result<Reply, BoxError>;

/// What decides when a message is let in, and holds what it takes until the message is done.
pub(crate) trait Admission: Unpin {
    /// Ready when the service may be called, or with why it never will.
    fn poll_admitted(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>>;

    /// What the service returned, before what was taken is given back.
    fn done(self, outcome: Outcome) -> Outcome
    where
        Self: Sized,
    {
        outcome
    }
}

/// Takes the service that is ready, and leaves a clone that is not.
pub(crate) fn take_ready<S: Clone>(inner: &mut S) -> S {
    let clone = inner.clone();
    std::mem::replace(inner, clone)
}

/// Waits for its admission, then for the service, then for the service's future.
#[pin_project]
pub(crate) struct Gated<S: Service<Message>, A> {
    #[pin]
    state: State<S, A>,
}

// The large one is the one that nearly every message is in nearly all the time.
#[allow(clippy::large_enum_variant)]
#[pin_project(project = StateProjection)]
enum State<S: Service<Message>, A> {
    Refused {
        error: Option<BoxError>,
    },
    Waiting {
        admission: Option<A>,
        call: Option<(S, Message)>,
    },
    Running {
        // Before the admission: fields are dropped in this order, and the admission must outlive
        // the work, or the next message would be let in beside this one's end.
        #[pin]
        work: Oneshot<S, Message>,
        admission: Option<A>,
    },
}

impl<S: Service<Message>, A> Gated<S, A> {
    /// Fails.
    pub(crate) fn refused(error: impl Into<BoxError>) -> Self {
        let error = Some(error.into());
        Self {
            state: State::Refused { error },
        }
    }

    /// Waits for nothing but the service.
    pub(crate) fn free(service: S, message: Message) -> Self {
        Self {
            state: State::Running {
                admission: None,
                work: service.oneshot(message),
            },
        }
    }

    /// Waits until the message is let in.
    pub(crate) fn waiting(admission: A, service: S, message: Message) -> Self {
        Self {
            state: State::Waiting {
                admission: Some(admission),
                call: Some((service, message)),
            },
        }
    }
}

impl<S, A> Future for Gated<S, A>
where
    S: Service<Message, Response = Reply, Error: Into<BoxError>>,
    A: Admission,
{
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        const POLLED_AGAIN: &str = "polled after it was done";
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProjection::Refused { error } => {
                    return Poll::Ready(Err(error.take().expect(POLLED_AGAIN)));
                }
                StateProjection::Waiting { admission, call } => {
                    let waiting = admission.as_mut().expect(POLLED_AGAIN);
                    let admitted = ready!(waiting.poll_admitted(cx));
                    let admission = admission.take();
                    let (service, message) = call.take().expect("taken once, just here");
                    admitted?;
                    let work = service.oneshot(message);
                    state.set(State::Running { admission, work });
                }
                StateProjection::Running { work, admission } => {
                    let outcome = ready!(work.poll(cx)).map_err(Into::into);
                    let admission = admission.take();
                    // Drops the work before the admission is given back.
                    state.set(State::Refused { error: None });
                    return Poll::Ready(match admission {
                        Some(admission) => admission.done(outcome),
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
            State::Refused { .. } => "Refused",
            State::Waiting { .. } => "Waiting",
            State::Running { .. } => "Running",
        })
    }
}

/// The future of a layer: a [`Gated`] of its own name.
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
            S: tower::Service<
                    campanile::Message,
                    Response = campanile::Reply,
                    Error: Into<campanile::BoxError>,
                >,
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
