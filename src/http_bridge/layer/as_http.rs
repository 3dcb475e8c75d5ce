//! A message service as an HTTP service, so that an HTTP layer can wrap it.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response, request};
use pin_project::pin_project;
use tower::Service;

use super::super::{
    body::{Body, Reading, payload, read},
    extensions::{AcceptedTaskId, Origin},
};
use crate::{
    error::{BoxError, Rejection},
    message::Message,
    reply::Reply,
    service::MessageService,
};

/// Turns a `Service<Message>` into an HTTP service. An [`HttpLayer`](super::HttpLayer) puts its
/// HTTP layer around this service.
#[derive(Debug, Clone)]
pub struct AsHttp<S> {
    inner: S,
    max_bytes: usize,
}

impl<S> AsHttp<S> {
    pub(super) fn new(inner: S, max_bytes: usize) -> Self {
        Self { inner, max_bytes }
    }
}

impl<S, B> Service<Request<B>> for AsHttp<S>
where
    S: MessageService + Clone,
    B: http_body::Body<Error: Into<BoxError>>,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = AsHttpFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (head, body) = request.into_parts();
        // The future takes the service that is ready, and leaves a clone without a reservation.
        let clone = self.inner.clone();
        AsHttpFuture {
            max_bytes: self.max_bytes,
            stage: AsHttpStage::Reading {
                service: mem::replace(&mut self.inner, clone),
                head: Some(head),
                body: read(body, self.max_bytes),
            },
        }
    }
}

/// The future of [`AsHttp`].
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct AsHttpFuture<S: Service<Message>, B: http_body::Body<Error: Into<BoxError>>> {
    max_bytes: usize,
    #[pin]
    stage: AsHttpStage<S, B>,
}

// The largest variant is not boxed: the future is rarely moved, so an allocation would cost more
// than the moves.
#[allow(clippy::large_enum_variant)]
#[pin_project(project = AsHttpStageProjection)]
enum AsHttpStage<S: Service<Message>, B: http_body::Body<Error: Into<BoxError>>> {
    /// The body of the request is being read.
    Reading {
        service: S,
        head: Option<request::Parts>,
        #[pin]
        body: Reading<B>,
    },
    /// The inner service handles the message.
    Calling(#[pin] S::Future),
}

impl<S, B> Future for AsHttpFuture<S, B>
where
    S: MessageService,
    B: http_body::Body<Error: Into<BoxError>>,
{
    type Output = Result<Response<Body>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let work = match this.stage.as_mut().project() {
                AsHttpStageProjection::Reading {
                    service,
                    head,
                    body,
                } => {
                    let payload =
                        payload(ready!(body.poll(cx)), *this.max_bytes).map_err(|error| {
                            Rejection::permanent("the payload cannot be read").because(error)
                        })?;
                    let head = head.take().expect("polled after completion");
                    service.call(message(head, payload)?)
                }
                AsHttpStageProjection::Calling(work) => {
                    let reply = ready!(work.poll(cx)).map_err(Into::into)?;
                    return Poll::Ready(Ok(response(reply)));
                }
            };
            this.stage.set(AsHttpStage::Calling(work));
        }
    }
}

/// Restores the message from the request that the HTTP layer has passed on.
fn message(mut head: request::Parts, payload: bytes::Bytes) -> Result<Message, BoxError> {
    let Some(Origin(mut parts)) = head.extensions.remove() else {
        return Err("an HTTP layer made a request of its own, which is no message".into());
    };
    parts.headers = head.headers;
    parts.extensions = head.extensions;
    Ok(Message::from_parts(parts, payload))
}

fn response(mut reply: Reply) -> Response<Body> {
    if let Some(id) = reply.receipt().cloned() {
        reply.extensions.insert(AcceptedTaskId(id));
    }
    let mut response = Response::new(Body::from(reply.payload));
    *response.headers_mut() = reply.headers;
    *response.extensions_mut() = reply.extensions;
    response
}

impl<S: Service<Message>, B: http_body::Body<Error: Into<BoxError>>> fmt::Debug
    for AsHttpFuture<S, B>
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsHttpFuture").finish_non_exhaustive()
    }
}
