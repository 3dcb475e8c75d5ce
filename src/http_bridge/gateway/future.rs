//! The future of a gateway: reads a request, sends its message, and returns the response.

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
    answer::Responder,
    routes::GatewayRoute,
};
use crate::{error::BoxError, message::Message, service::MessageService};

/// The future of a [`Gateway`](super::Gateway).
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct GatewayFuture<S: Service<Message>, B: http_body::Body<Error: Into<BoxError>>> {
    responder: Responder,
    #[pin]
    stage: GatewayStage<S, B>,
}

// The largest variant is not boxed: the future is rarely moved, so an allocation would cost more
// than its size.
#[allow(clippy::large_enum_variant)]
#[pin_project(project = GatewayStageProjection)]
pub(super) enum GatewayStage<S: Service<Message>, B: http_body::Body<Error: Into<BoxError>>> {
    /// The response is complete.
    Answered(Option<Response<Body>>),
    /// The body of the request is being read.
    Reading {
        service: Option<S>,
        route: GatewayRoute,
        head: Option<request::Parts>,
        #[pin]
        body: Reading<B>,
        #[pin]
        timer: Sleep,
    },
    /// The inner service handles the message.
    Sending {
        route: GatewayRoute,
        #[pin]
        call: Oneshot<S, Message>,
        #[pin]
        timer: Sleep,
    },
}

impl<S: Service<Message>, B: http_body::Body<Error: Into<BoxError>>> GatewayFuture<S, B> {
    pub(super) fn new(responder: Responder, stage: GatewayStage<S, B>) -> Self {
        Self { responder, stage }
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
                GatewayStageProjection::Answered(response) => {
                    return Poll::Ready(Ok(response.take().expect("polled after completion")));
                }
                GatewayStageProjection::Reading {
                    service,
                    route,
                    head,
                    body,
                    timer,
                } => {
                    // The body is polled before the timer, so a body that has arrived is not late.
                    let Poll::Ready(read) = body.poll(cx) else {
                        ready!(timer.poll(cx));
                        let response = this.responder.late_body_response();
                        this.stage.set(GatewayStage::Answered(Some(response)));
                        continue;
                    };
                    let options = &this.responder.options;
                    let message = match payload(read, options.max_body_bytes) {
                        Err(error) => Err(this.responder.body_error_response(error)),
                        Ok(payload) => {
                            let head = head.take().expect("it is read once");
                            let message = options.build_message(route, head, payload);
                            message.map_err(|problem| this.responder.problem_response(problem))
                        }
                    };
                    match message {
                        Err(response) => GatewayStage::Answered(Some(response)),
                        Ok(message) => {
                            let deadline = options.answer_deadline(&message);
                            let service = service.take().expect("it is read once");
                            GatewayStage::Sending {
                                route: route.clone(),
                                call: service.oneshot(message),
                                timer: sleep_until(deadline.0),
                            }
                        }
                    }
                }
                // The call is polled before the timer, so a reply that has arrived is not late.
                GatewayStageProjection::Sending { route, call, timer } => {
                    let response = match call.poll(cx) {
                        Poll::Ready(result) => this
                            .responder
                            .result_response(route, result.map_err(Into::into)),
                        Poll::Pending => {
                            ready!(timer.poll(cx));
                            this.responder.late_call_response(route)
                        }
                    };
                    GatewayStage::Answered(Some(response))
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
