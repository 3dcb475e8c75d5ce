//! A message on its way through an HTTP service.

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
    answer::Asked,
};
use crate::{error::BoxError, reply::Reply};

/// The future of an [`HttpHandler`](super::HttpHandler).
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct HttpHandlerFuture<F, B: http_body::Body<Error: Into<BoxError>>> {
    asked: Asked,
    #[pin]
    stage: Stage<F, B>,
}

// It is made once and stays where it is: a box would cost more than the room.
#[allow(clippy::large_enum_variant)]
#[pin_project(project = StageProjection)]
enum Stage<F, B: http_body::Body<Error: Into<BoxError>>> {
    Refused(Option<BoxError>),
    Calling(#[pin] F),
    Reading(Option<response::Parts>, #[pin] Reading<B>),
}

impl<F, B: http_body::Body<Error: Into<BoxError>>> HttpHandlerFuture<F, B> {
    pub(super) fn refused(asked: Asked, error: BoxError) -> Self {
        let stage = Stage::Refused(Some(error));
        Self { asked, stage }
    }

    pub(super) fn calling(asked: Asked, work: F) -> Self {
        let stage = Stage::Calling(work);
        Self { asked, stage }
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
        let limit = this.asked.options.limit;
        loop {
            let next = match this.stage.as_mut().project() {
                StageProjection::Refused(error) => {
                    return Poll::Ready(Err(error.take().expect("polled after completion")));
                }
                StageProjection::Calling(work) => {
                    let response = ready!(work.poll(cx)).map_err(Into::into)?;
                    let (head, body) = response.into_parts();
                    Stage::Reading(Some(head), read(body, limit))
                }
                StageProjection::Reading(head, body) => {
                    let body = payload(ready!(body.poll(cx)), limit);
                    let head = head.take().expect("polled after completion");
                    return Poll::Ready(this.asked.answered(head, body));
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
