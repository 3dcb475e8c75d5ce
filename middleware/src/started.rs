//! A call that was made, or that has failed before it was.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use campanile::{BoxError, Reply};
use pin_project::pin_project;

/// The future of a layer that does not call the inner service with every message.
#[pin_project(project = Projection)]
pub(crate) enum Started<W> {
    Called(#[pin] W),
    Failed(Option<BoxError>),
}

impl<W> Started<W> {
    pub(crate) fn failed(error: impl Into<BoxError>) -> Self {
        Self::Failed(Some(error.into()))
    }
}

impl<W, E> Future for Started<W>
where
    W: Future<Output = Result<Reply, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Reply, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            Projection::Called(work) => work.poll(cx).map_err(Into::into),
            Projection::Failed(error) => {
                Poll::Ready(Err(error.take().expect("polled after completion")))
            }
        }
    }
}
