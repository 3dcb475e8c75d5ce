//! Maps HTTP statuses to verdicts and RPC codes, and RPC codes to HTTP statuses.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, StatusCode, header::RETRY_AFTER};

use crate::{
    RpcCode,
    error::{FailureVerdict, RpcError},
};

/// The maximum wait that a `Retry-After` can request: a day.
const MAX_WAIT: Duration = Duration::from_secs(86_400);

/// Returns how a task is settled after a response with this non-success status. The temporary
/// failures 408, 425, 429 and 500 or above lead to a redelivery. Any other status leads to a dead
/// letter.
///
/// This is the default of [`HttpHandler::on_status`](super::HttpHandler::on_status).
pub fn failure_verdict(status: StatusCode) -> FailureVerdict {
    match status.as_u16() {
        408 | 425 | 429 | 500.. => FailureVerdict::Redeliver {
            after: None,
            counted: true,
        },
        _ => FailureVerdict::DeadLetter,
    }
}

/// Returns the code of the error reply to a request that an HTTP service answered with this status.
///
/// | status | code |
/// |---|---|
/// | 401, 403, 409, 410 | `unauthenticated`, `forbidden`, `conflict`, `gone` |
/// | 404 | `not_found` |
/// | 408, 504 | `deadline` |
/// | 425, 429, 502, 503 | `unavailable` |
/// | any other 4xx | `invalid` |
/// | anything else | `internal` |
pub fn code(status: StatusCode) -> RpcCode {
    match status.as_u16() {
        401 => RpcCode::Other("unauthenticated".into()),
        403 => RpcCode::Other("forbidden".into()),
        404 => RpcCode::NotFound,
        408 | 504 => RpcCode::Deadline,
        409 => RpcCode::Other("conflict".into()),
        410 => RpcCode::Other("gone".into()),
        425 | 429 | 502 | 503 => RpcCode::Unavailable,
        400..500 => RpcCode::Invalid,
        _ => RpcCode::Internal,
    }
}

/// Returns the status of an HTTP response to a request that failed with this code.
///
/// | code | status |
/// |---|---|
/// | `invalid` | 400 |
/// | `unauthenticated`, `forbidden` | 401, 403 |
/// | `not_found` | 404 |
/// | `conflict`, `gone` | 409, 410 |
/// | `unavailable` | 503 |
/// | `deadline` | 504 |
/// | `internal`, and any code of the application | 500 |
///
/// This is the default of [`Gateway::on_code`](super::Gateway::on_code).
pub fn status(code: &RpcCode) -> StatusCode {
    match code {
        RpcCode::Invalid => StatusCode::BAD_REQUEST,
        RpcCode::NotFound => StatusCode::NOT_FOUND,
        RpcCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        RpcCode::Deadline => StatusCode::GATEWAY_TIMEOUT,
        RpcCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        RpcCode::Other(code) => match &**code {
            "unauthenticated" => StatusCode::UNAUTHORIZED,
            "forbidden" => StatusCode::FORBIDDEN,
            "conflict" => StatusCode::CONFLICT,
            "gone" => StatusCode::GONE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        },
    }
}

/// Returns the wait that a [`Retry-After`](https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3)
/// requests, at most [`MAX_WAIT`]. The header is a number of seconds or a date. `None` if the
/// header is missing or malformed.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
        // A number that overflows is more than a day.
        text.parse().map_or(MAX_WAIT, Duration::from_secs)
    } else {
        let date = httpdate::parse_http_date(text).ok()?;
        date.duration_since(SystemTime::now()).unwrap_or_default()
    };
    Some(wait.min(MAX_WAIT))
}

/// The error of a message whose HTTP response had a non-success status.
///
/// If the message is a request, the source is the [`RpcError`] that the caller gets.
#[derive(Debug)]
pub struct StatusError {
    status: StatusCode,
    text: String,
    /// The error reply for the caller. `None` if the message is not a request.
    error_reply: Option<RpcError>,
}

impl StatusError {
    pub(super) fn new(status: StatusCode, text: String) -> Self {
        Self {
            status,
            text,
            error_reply: None,
        }
    }

    /// Adds the error reply for the caller of a request.
    pub(super) fn with_error_reply(self) -> Self {
        let text = match self.text.is_empty() {
            true => self
                .status
                .canonical_reason()
                .unwrap_or("the request failed"),
            false => &self.text,
        };
        let error_reply = RpcError::new(code(self.status), text);
        Self {
            error_reply: Some(error_reply),
            ..self
        }
    }

    /// Returns the status of the response.
    pub fn status(&self) -> StatusCode {
        self.status
    }
}

impl fmt::Display for StatusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the HTTP service answered {}", self.status)?;
        // For a request, the source (the error reply) has the text.
        if self.error_reply.is_none() && !self.text.is_empty() {
            write!(f, ": {}", self.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for StatusError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error_reply.as_ref().map(|reply| reply as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http_status(n: u16) -> StatusCode {
        StatusCode::from_u16(n).unwrap()
    }

    fn requested_wait(value: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, value.parse().unwrap());
        retry_after(&headers)
    }

    #[test]
    fn only_temporary_failures_are_delivered_again() {
        for n in (100..200).chain(300..1000) {
            let again = matches!(n, 408 | 425 | 429) || n >= 500;
            let verdict = failure_verdict(http_status(n));
            assert_eq!(
                matches!(verdict, FailureVerdict::Redeliver { .. }),
                again,
                "{n}"
            );
        }
    }

    #[test]
    fn codes_of_the_table_map_back_to_their_statuses() {
        for n in [400, 401, 403, 404, 409, 410, 500, 503, 504] {
            assert_eq!(status(&code(http_status(n))), http_status(n));
        }
        for (n, expected) in [
            (302, "internal"),
            (408, "deadline"),
            (422, "invalid"),
            (425, "unavailable"),
            (429, "unavailable"),
            (501, "internal"),
            (502, "unavailable"),
        ] {
            assert_eq!(code(http_status(n)).as_str(), expected, "{n}");
        }
        assert_eq!(status(&RpcCode::Other("quota".into())), http_status(500));
    }

    #[test]
    fn a_wait_is_seconds_or_a_date_and_at_most_a_day() {
        assert_eq!(requested_wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(requested_wait("0"), Some(Duration::ZERO));
        assert_eq!(requested_wait("99999999999999999999999"), Some(MAX_WAIT));
        let soon = SystemTime::now() + Duration::from_secs(100);
        let wait = requested_wait(&httpdate::fmt_http_date(soon)).unwrap();
        assert!((90..=100).contains(&wait.as_secs()), "{wait:?}");
        assert_eq!(
            requested_wait("Thu, 01 Jan 1970 00:00:00 GMT"),
            Some(Duration::ZERO)
        );
        assert_eq!(
            requested_wait("Fri, 31 Dec 9999 23:59:59 GMT"),
            Some(MAX_WAIT)
        );
        for nonsense in ["", "soon", "-1", "1.5", "1 hour"] {
            assert_eq!(requested_wait(nonsense), None, "{nonsense:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
