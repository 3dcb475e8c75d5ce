//! The future of a handler: waits for the response of the HTTP service, reads the body, and returns
//! the reply.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Response, response};
use pin_project::pin_project;

use super::{
    super::body::{Reading, payload, read},
    answer::ResponseReader,
};
use crate::{error::BoxError, reply::Reply};

/// The future of an [`HttpHandler`](super::HttpHandler).
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct HttpHandlerFuture<F, B: http_body::Body<Error: Into<BoxError>>> {
    /// Converts the response into a reply or an error.
    reader: ResponseReader,
    #[pin]
    stage: HandlerStage<F, B>,
}

// The largest variant is not boxed: the future is rarely moved, so an allocation would cost more
// than its size.
#[allow(clippy::large_enum_variant)]
#[pin_project(project = HandlerStageProjection)]
enum HandlerStage<F, B: http_body::Body<Error: Into<BoxError>>> {
    /// The message could not be converted into a request, so the HTTP service was not called.
    Failed(Option<BoxError>),
    /// The HTTP service handles the request.
    Calling(#[pin] F),
    /// The body of the response is being read, up to the limit of [`read`].
    Reading(Option<response::Parts>, #[pin] Reading<B>),
}

impl<F, B: http_body::Body<Error: Into<BoxError>>> HttpHandlerFuture<F, B> {
    pub(super) fn failed(reader: ResponseReader, error: BoxError) -> Self {
        let stage = HandlerStage::Failed(Some(error));
        Self { reader, stage }
    }

    pub(super) fn calling(reader: ResponseReader, work: F) -> Self {
        let stage = HandlerStage::Calling(work);
        Self { reader, stage }
    }
}

impl<F, E, B> Future for HttpHandlerFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    B: http_body::Body<Error: Into<BoxError>>,
{
    type Output = Result<Reply, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let limit = this.reader.options.limit;
        loop {
            let next = match this.stage.as_mut().project() {
                HandlerStageProjection::Failed(error) => {
                    return Poll::Ready(Err(error.take().expect("polled after completion")));
                }
                HandlerStageProjection::Calling(work) => {
                    let response = ready!(work.poll(cx)).map_err(Into::into)?;
                    let (head, body) = response.into_parts();
                    HandlerStage::Reading(Some(head), read(body, limit))
                }
                HandlerStageProjection::Reading(head, body) => {
                    let body = payload(ready!(body.poll(cx)), limit);
                    let head = head.take().expect("polled after completion");
                    return Poll::Ready(this.reader.outcome(head, body));
                }
            };
            this.stage.set(next);
        }
    }
}

impl<F, B: http_body::Body<Error: Into<BoxError>>> fmt::Debug for HttpHandlerFuture<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpHandlerFuture").finish_non_exhaustive()
    }
}
