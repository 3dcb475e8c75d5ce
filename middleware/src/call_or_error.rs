//! The future of a layer that may fail a message without calling the inner service.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use campanile::{BoxError, Reply};
use pin_project::pin_project;

/// The future of the inner service, or an error if the inner service was not called.
#[pin_project(project = Projection)]
pub(crate) enum CallOrError<W> {
    Call(#[pin] W),
    Failed(Option<BoxError>),
}

impl<W> CallOrError<W> {
    pub(crate) fn failed(error: impl Into<BoxError>) -> Self {
        Self::Failed(Some(error.into()))
    }
}

impl<W, E> Future for CallOrError<W>
where
    W: Future<Output = Result<Reply, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Reply, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            Projection::Call(work) => work.poll(cx).map_err(Into::into),
            Projection::Failed(error) => {
                Poll::Ready(Err(error.take().expect("polled after completion")))
            }
        }
    }
}
