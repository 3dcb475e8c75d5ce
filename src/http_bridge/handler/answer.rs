//! Converts an HTTP response into a reply, or into an error. The error decides how a task is
//! settled.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header::CONTENT_TYPE, response};
use serde_json::Value;

use super::{
    super::{
        body::BodyError,
        extensions::AcceptedTaskId,
        headers::strip_connection,
        status::{StatusError, retry_after},
    },
    request::{HandlerOptions, HeaderPolicy},
};
use crate::{
    error::{BoxError, Failure, FailureVerdict, NotFound, RpcError, shown_chain},
    message::{EscapedText, Kind, Name},
    reply::Reply,
};

/// Converts the response to one message into the message's outcome.
pub(super) struct ResponseReader {
    pub(super) kind: Kind,
    pub(super) name: Name,
    pub(super) options: Arc<HandlerOptions>,
}

impl ResponseReader {
    pub(super) fn outcome(
        &self,
        head: response::Parts,
        body: Result<Bytes, BodyError>,
    ) -> Result<Reply, BoxError> {
        match (head.status.is_success(), body) {
            (true, Ok(payload)) => Ok(self.reply(head, payload)),
            (true, Err(error)) => Err(self.body_error(error)),
            // The body of an error response only explains the status, so an error of the body is
            // ignored.
            (false, body) => Err(self.status_error(head.status, &head.headers, body.ok())),
        }
    }

    fn reply(&self, mut head: response::Parts, payload: Bytes) -> Reply {
        let mut reply = match head.extensions.remove::<AcceptedTaskId>() {
            Some(AcceptedTaskId(id)) => Reply::accepted(id),
            None => Reply::default(),
        };
        reply.headers = head.headers;
        reply.extensions = head.extensions;
        reply.payload = payload;
        if self.options.header_policy == HeaderPolicy::Stripped {
            strip_connection(&mut reply.headers);
        }
        reply
    }

    /// Returns the error for a 2xx response whose body cannot be read.
    fn body_error(&self, error: BodyError) -> BoxError {
        match self.kind {
            Kind::Rpc => {
                let name = EscapedText::new(&self.name);
                tracing::warn!(%name, error = shown_chain(&error), "the answer of an HTTP service cannot be read");
                RpcError::internal(format!("the answer cannot be read: {error}")).into()
            }
            // The body would be too long after a redelivery, too.
            _ if error.is_too_long() => Failure::dead_letter().because(error).into(),
            _ => error.into(),
        }
    }

    /// Returns the error for a status other than 2xx.
    fn status_error(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        body: Option<Bytes>,
    ) -> BoxError {
        let body = body.unwrap_or_default();
        // A 404 without a body comes from an HTTP router that has no route. A 404 with a body comes
        // from a handler.
        if status == StatusCode::NOT_FOUND && body.is_empty() {
            return NotFound::new(self.kind, self.name.clone()).into();
        }
        let error = StatusError::new(status, error_text(headers, &body));
        if self.kind == Kind::Rpc {
            return error.with_error_reply().into();
        }
        let mut verdict = (self.options.failure_verdict)(status);
        if let FailureVerdict::Redeliver { after, .. } = &mut verdict {
            *after = retry_after(headers).or(*after);
        }
        Failure::from(verdict).because(error).into()
    }
}

/// Returns the text of an error response: the detail or the title of a problem, or the start of any
/// other body that is text and not HTML.
fn error_text(headers: &HeaderMap, body: &[u8]) -> String {
    const MAX_CHARS: usize = 512;
    let content_type = headers
        .get(CONTENT_TYPE)
        .map_or(&b""[..], |value| value.as_bytes());
    if content_type.starts_with(b"application/problem+json")
        && let Ok(problem) = serde_json::from_slice::<Value>(body)
    {
        let member = |name| problem.get(name).and_then(Value::as_str);
        let text = member("detail").or(member("title")).unwrap_or_default();
        return one_line(text, MAX_CHARS);
    }
    if content_type.starts_with(b"text/html") {
        return String::new();
    }
    one_line(std::str::from_utf8(body).unwrap_or_default(), MAX_CHARS)
}

fn one_line(text: &str, max_chars: usize) -> String {
    let line = text.trim().chars().take(max_chars);
    line.map(|c| if c.is_control() { ' ' } else { c }).collect()
}
