//! Makes the response to a request from a reply or an error.

use std::sync::Arc;

use http::{
    HeaderValue, Response, StatusCode,
    header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE},
};

use super::{
    super::{
        body::{Body, BodyError},
        headers::{ID, REQUEST_ID},
        names::encode_header_value,
        problem::Problem,
    },
    GatewayOptions,
    media::MediaFault,
    routes::{GatewayRoute, NoRoute},
};
use crate::{
    error::{BoxError, Error, shown_chain},
    message::{Kind, MessageId},
    reply::Reply,
};

/// Makes the response to one request.
pub(super) struct Responder {
    pub(super) options: Arc<GatewayOptions>,
    /// `true` for a `HEAD` request, whose response has no body.
    pub(super) is_head: bool,
    /// The `x-request-id` of the request, which is copied to the response.
    pub(super) request_id: Option<HeaderValue>,
}

impl Responder {
    /// Returns the response to a request whose message was sent.
    pub(super) fn result_response(
        &self,
        route: &GatewayRoute,
        result: Result<Reply, BoxError>,
    ) -> Response<Body> {
        match result {
            Ok(reply) => self.finish(match route.kind {
                Kind::Task => accepted_response(reply.receipt()),
                Kind::Event => response_with_status(StatusCode::ACCEPTED, Body::default()),
                Kind::Rpc => self.reply_response(reply),
            }),
            Err(error) => {
                let problem = Problem::from_error(&route.name, &*error, &*self.options.status);
                if problem.status().is_server_error() {
                    let (kind, name) = (route.kind, &route.name);
                    let status = problem.status().as_u16();
                    tracing::warn!(%kind, %name, status, error = shown_chain(&*error), "a request failed");
                }
                self.problem_response(problem)
            }
        }
    }

    /// Returns the response to a request without a route.
    pub(super) fn no_route_response(&self, reason: NoRoute) -> Response<Body> {
        match reason {
            NoRoute::Path => {
                let problem = Problem::new(StatusCode::NOT_FOUND, "not_found", "no such path");
                self.problem_response(problem)
            }
            NoRoute::Method(allow) => {
                let status = StatusCode::METHOD_NOT_ALLOWED;
                let problem = Problem::new(status, "method_not_allowed", "not with this method");
                let mut response = self.problem_response(problem);
                response.headers_mut().insert(ALLOW, allow);
                response
            }
            NoRoute::Options(allow) => {
                let mut response = response_with_status(StatusCode::NO_CONTENT, Body::default());
                response.headers_mut().insert(ALLOW, allow);
                self.finish(response)
            }
        }
    }

    pub(super) fn long_body_response(&self) -> Response<Body> {
        let text = format!(
            "the body is longer than {} bytes",
            self.options.max_body_bytes
        );
        self.problem_response(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            text,
        ))
    }

    pub(super) fn media_fault_response(&self, fault: MediaFault) -> Response<Body> {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        let problem = Problem::new(status, "unsupported_media_type", fault.text);
        let mut response = self.problem_response(problem);
        response.headers_mut().extend(fault.accepted);
        response
    }

    /// Returns the response to a request whose body did not arrive within the gateway's timeout.
    pub(super) fn late_body_response(&self) -> Response<Body> {
        let text = format!("the body did not arrive within {:?}", self.options.timeout);
        self.problem_response(Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", text))
    }

    /// Returns the response to a request whose body is too long or broke off.
    pub(super) fn body_error_response(&self, error: BodyError) -> Response<Body> {
        if error.is_too_long() {
            return self.long_body_response();
        }
        tracing::debug!(
            error = shown_chain(&error),
            "a request's body cannot be read"
        );
        self.problem_response(Problem::new(
            StatusCode::BAD_REQUEST,
            "invalid",
            error.to_string(),
        ))
    }

    /// Returns the response to a request whose message was sent, but not answered within the
    /// gateway's timeout. The message may still take effect.
    pub(super) fn late_call_response(&self, route: &GatewayRoute) -> Response<Body> {
        self.result_response(route, Err(Error::timeout("no answer in time").into()))
    }

    pub(super) fn problem_response(&self, problem: Problem) -> Response<Body> {
        let is_unavailable = problem.status() == StatusCode::SERVICE_UNAVAILABLE;
        let problem = match is_unavailable {
            true => problem.retry_after(self.options.retry_after),
            false => problem,
        };
        self.finish(problem.into_response())
    }

    fn reply_response(&self, reply: Reply) -> Response<Body> {
        let mut response = Response::new(Body::from(reply.payload));
        *response.headers_mut() = self.options.forwarded.select(&reply.headers);
        let headers = response.headers_mut();
        if !headers.contains_key(CONTENT_TYPE) {
            headers.insert(CONTENT_TYPE, self.options.default_content_type.clone());
        }
        response
    }

    /// Copies the request id to the response, and removes the body of a response to `HEAD`.
    fn finish(&self, mut response: Response<Body>) -> Response<Body> {
        if let Some(id) = &self.request_id {
            response
                .headers_mut()
                .insert(REQUEST_ID.clone(), id.clone());
        }
        if self.is_head {
            let body = std::mem::take(response.body_mut());
            let length = http_body::Body::size_hint(&body).lower();
            response.headers_mut().insert(CONTENT_LENGTH, length.into());
        }
        response
    }
}

fn accepted_response(id: Option<&MessageId>) -> Response<Body> {
    let json = serde_json::json!({ "id": id.map(MessageId::as_str) });
    let mut response = response_with_status(StatusCode::ACCEPTED, Body::from(json.to_string()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(id) = id {
        headers.insert(ID.clone(), encode_header_value(id));
    }
    response
}

fn response_with_status(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}
