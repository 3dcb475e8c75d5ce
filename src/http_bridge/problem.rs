//! Errors as HTTP responses.

use std::{borrow::Cow, time::Duration};

use http::{
    HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use serde::Serialize;

use super::{body::Body, status::status};
use crate::{
    RpcCode,
    error::{self, Error, RpcError, find},
};

/// An error as an HTTP response: problem details
/// ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)) as JSON, with a member `code` for machines.
///
/// A [`Gateway`](super::Gateway) responds to failed requests with problems. Convert an [`Error`] to
/// respond in the same way from another HTTP handler:
///
/// ```
/// use campanile::{Error, http_bridge::Problem};
///
/// let error = Error::disconnected("no connection to 10.0.0.7:6379");
/// let response = Problem::from(error).into_response();
/// assert_eq!(response.status(), 503);
/// assert_eq!(response.headers()["retry-after"], "1");
/// ```
///
/// | the error | status | code |
/// |---|---|---|
/// | [disconnected](Error::is_disconnected), [closed](Error::is_closed): nothing was sent | 503 | `disconnected`, `closed` |
/// | [refused](Error::is_refused): nothing was stored | 503 | `refused` |
/// | [overloaded](Error::is_overloaded): nothing was stored | 429, with the error's [`retry_after`](Error::retry_after) as `Retry-After` | `overloaded` |
/// | [unknown outcome](Error::is_unknown_outcome): the message may be stored | 502 | `unknown_outcome` |
/// | [unreplicated](Error::is_unreplicated): the message is stored | 502 | `unreplicated` |
/// | [reused key](Error::is_reused_key): nothing was stored | 422 | `reused_key` |
/// | [timed out](Error::is_timeout): the message may be stored | 504 | `timeout` |
/// | [invalid](Error::is_invalid) | 400 | `invalid` |
/// | a reply that [cannot be read](Error::is_decode) | 502 | `bad_reply` |
/// | an [error reply](Error::rpc) | [by its code](super::status()) | its code |
/// | anything else | 500 | `internal` |
///
/// If nothing was sent or stored, it is always safe to send the request again. After a 502 or a
/// 504, sending the request again may store a task twice, unless the request has an
/// `Idempotency-Key`. After an error reply the handler may have run, even if the status is 503.
///
/// The texts are for callers, so they do not contain the addresses and causes that an error names.
#[derive(Debug, Clone, Serialize)]
pub struct Problem {
    title: &'static str,
    #[serde(serialize_with = "serialize_status")]
    status: StatusCode,
    detail: Cow<'static, str>,
    code: Cow<'static, str>,
    #[serde(skip)]
    retry_after: Option<Duration>,
}

fn serialize_status<S: serde::Serializer>(
    status: &StatusCode,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

impl Problem {
    /// The default `Retry-After` of a 503.
    pub(super) const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);

    /// Creates a problem with a status, a code for machines and a text for people.
    ///
    /// A 503 has a `Retry-After` of one second.
    pub fn new(
        status: StatusCode,
        code: impl Into<Cow<'static, str>>,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            title: status.canonical_reason().unwrap_or("Error"),
            status,
            detail: detail.into(),
            code: code.into(),
            retry_after: (status == StatusCode::SERVICE_UNAVAILABLE)
                .then_some(Self::DEFAULT_RETRY_AFTER),
        }
    }

    /// Sets the `Retry-After`, rounded up to whole seconds.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Returns the status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns the code, for machines.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// Converts the problem into a response.
    pub fn into_response(self) -> Response<Body> {
        let json = serde_json::to_vec(&self).expect("texts and a number are JSON");
        let mut response = Response::new(Body::from(json));
        *response.status_mut() = self.status;
        let content_type = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }

    /// Converts any error of a call to the message `name`. `status` maps the codes of error replies
    /// to statuses.
    pub(super) fn from_error(
        name: &str,
        error: &(dyn std::error::Error + 'static),
        status: impl Fn(&RpcCode) -> StatusCode,
    ) -> Self {
        let send_error = find::<Error>(error);
        if let Some(problem) = send_error.and_then(Self::from_send_error) {
            return Self {
                retry_after: send_error
                    .and_then(Error::retry_after)
                    .or(problem.retry_after),
                ..problem
            };
        }
        let answer = error::error_reply(name, error);
        let answer = answer.unwrap_or_else(|| RpcError::internal("internal error"));
        Self::from_error_reply(&answer, status(answer.code()))
    }

    /// Converts an error reply.
    pub(super) fn from_error_reply(answer: &RpcError, status: StatusCode) -> Self {
        Self::new(
            status,
            answer.code().as_str().to_owned(),
            answer.message().to_owned(),
        )
    }

    /// Converts an error of sending a message or of reading its reply. Returns `None` for any other
    /// error.
    fn from_send_error(error: &Error) -> Option<Self> {
        let (status, code, detail) = if error.is_disconnected() {
            (
                503,
                "disconnected",
                "there is no connection to the server, nothing was sent",
            )
        } else if error.is_closed() {
            (
                503,
                "closed",
                "this server is shutting down, nothing was sent",
            )
        } else if error.is_refused() {
            (503, "refused", "the server refused the message")
        } else if error.is_overloaded() {
            (
                429,
                "overloaded",
                "too many messages wait already, nothing was stored",
            )
        } else if error.is_unknown_outcome() {
            (
                502,
                "unknown_outcome",
                "the connection was lost: the message may have been taken",
            )
        } else if error.is_unreplicated() {
            (
                502,
                "unreplicated",
                "the message is stored, and not confirmed by enough replicas",
            )
        } else if error.is_reused_key() {
            (
                422,
                "reused_key",
                "the idempotency key is that of a request with another body",
            )
        } else if error.is_timeout() {
            (
                504,
                "timeout",
                "no answer in time: the message may have been taken",
            )
        } else if error.is_decode() {
            (502, "bad_reply", "the answer cannot be read")
        } else if error.is_invalid() {
            // The text may be shown to callers: it describes the fault of a name, a header or a
            // key, and does not quote the value.
            return Some(Self::new(
                StatusCode::BAD_REQUEST,
                "invalid",
                error.to_string(),
            ));
        } else {
            return None;
        };
        let status = StatusCode::from_u16(status).expect("each number above is a status");
        Some(Self::new(status, code, detail))
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::from_error("", &error, status)
    }
}

impl From<RpcError> for Problem {
    fn from(answer: RpcError) -> Self {
        Self::from_error_reply(&answer, status(answer.code()))
    }
}

impl From<Problem> for Response<Body> {
    fn from(problem: Problem) -> Self {
        problem.into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(error: Error) -> (u16, String, Option<HeaderValue>) {
        let problem = Problem::from(error);
        let code = problem.code().to_owned();
        let response = problem.into_response();
        let wait = response.headers().get(RETRY_AFTER).cloned();
        (response.status().as_u16(), code, wait)
    }

    #[test]
    fn status_and_code_say_how_sending_failed() {
        let one = Some(HeaderValue::from_static("1"));
        for (error, status, code) in [
            (Error::disconnected("x"), 503, "disconnected"),
            (Error::closed(), 503, "closed"),
            (Error::refused("x"), 503, "refused"),
            (
                Error::overloaded("x", Duration::from_secs(1)),
                429,
                "overloaded",
            ),
            (Error::unknown_outcome("x"), 502, "unknown_outcome"),
            (Error::unreplicated("1-0".into(), "x"), 502, "unreplicated"),
            (Error::timeout("x"), 504, "timeout"),
            (Error::invalid("x"), 400, "invalid"),
            (Error::config("x"), 500, "internal"),
            (RpcError::invalid("x").into(), 400, "invalid"),
            (RpcError::not_found("x").into(), 404, "not_found"),
            (RpcError::unavailable("x").into(), 503, "unavailable"),
            (RpcError::deadline("x").into(), 504, "deadline"),
            (RpcError::internal("x").into(), 500, "internal"),
            (RpcError::new("quota".into(), "x").into(), 500, "quota"),
        ] {
            let wait = one.clone().filter(|_| matches!(status, 429 | 503));
            assert_eq!(shown(error), (status, code.to_owned(), wait));
        }
    }

    #[test]
    fn causes_and_servers_are_not_shown() {
        let cause = std::io::Error::other("password=1");
        for error in [
            Error::disconnected("10.0.0.7 is away").with_source(cause),
            Error::config("10.0.0.7 is old"),
            Error::from_service("10.0.0.7: password=1"),
        ] {
            let problem = Problem::from(error);
            let json = serde_json::to_string(&problem).unwrap();
            assert!(
                !json.contains("10.0.0.7") && !json.contains("password"),
                "{json}"
            );
        }
    }

    #[test]
    fn a_problem_has_the_members_of_its_rfc() {
        let problem = Problem::new(StatusCode::CONFLICT, "taken", "it is \"taken\"")
            .retry_after(Duration::from_millis(1500));
        let json = serde_json::to_string(&problem).unwrap();
        assert_eq!(
            json,
            r#"{"title":"Conflict","status":409,"detail":"it is \"taken\"","code":"taken"}"#
        );
        let response = problem.into_response();
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        assert_eq!(response.headers()[RETRY_AFTER], "2");
    }
}
