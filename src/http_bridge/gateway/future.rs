//! A request on its way to becoming a message, and its answer.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Response, request};
use pin_project::pin_project;
use tokio::time::{Sleep, sleep_until};
use tower::{Service, ServiceExt, util::Oneshot};

use super::{
    super::body::{Body, Reading, payload},
    answer::Asked,
    routes::Route,
};
use crate::{error::BoxError, message::Message, service::MessageService};

/// The future of a [`Gateway`](super::Gateway).
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct GatewayFuture<S: Service<Message>, B: http_body::Body<Error: Into<BoxError>>> {
    asked: Asked,
    #[pin]
    stage: Stage<S, B>,
}

// It is made once and stays where it is: a box would cost more than the room.
#[allow(clippy::large_enum_variant)]
#[pin_project(project = StageProjection)]
pub(super) enum Stage<S: Service<Message>, B: http_body::Body<Error: Into<BoxError>>> {
    Answered(Option<Response<Body>>),
    Reading {
        service: Option<S>,
        route: Route,
        head: Option<request::Parts>,
        #[pin]
        body: Reading<B>,
    },
    Sending {
        route: Route,
        #[pin]
        call: Oneshot<S, Message>,
        #[pin]
        timer: Sleep,
    },
}

impl<S: Service<Message>, B: http_body::Body<Error: Into<BoxError>>> GatewayFuture<S, B> {
    pub(super) fn new(asked: Asked, stage: Stage<S, B>) -> Self {
        Self { asked, stage }
    }
}

impl<S, B> Future for GatewayFuture<S, B>
where
    S: MessageService,
    B: http_body::Body<Error: Into<BoxError>>,
{
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.stage.as_mut().project() {
                StageProjection::Answered(response) => {
                    return Poll::Ready(Ok(response.take().expect("polled after completion")));
                }
                StageProjection::Reading {
                    service,
                    route,
                    head,
                    body,
                } => match payload(ready!(body.poll(cx)), this.asked.options.limit) {
                    Err(error) => Stage::Answered(Some(this.asked.unread(error))),
                    Ok(payload) => {
                        let head = head.take().expect("it is read once");
                        match this.asked.options.message(route, head, payload) {
                            Err(problem) => Stage::Answered(Some(this.asked.failed(problem))),
                            Ok(message) => {
                                let until = this.asked.options.until(&message);
                                let service = service.take().expect("it is read once");
                                Stage::Sending {
                                    route: route.clone(),
                                    call: service.oneshot(message),
                                    timer: sleep_until(until.0),
                                }
                            }
                        }
                    }
                },
                // The work before the clock: a reply that is there is not late.
                StageProjection::Sending { route, call, timer } => {
                    let response = match call.poll(cx) {
                        Poll::Ready(result) => {
                            this.asked.answered(route, result.map_err(Into::into))
                        }
                        Poll::Pending => {
                            ready!(timer.poll(cx));
                            this.asked.late(route)
                        }
                    };
                    Stage::Answered(Some(response))
                }
            };
            this.stage.set(next);
        }
    }
}

impl<S: Service<Message>, B: http_body::Body<Error: Into<BoxError>>> fmt::Debug
    for GatewayFuture<S, B>
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayFuture").finish_non_exhaustive()
    }
}
