//! The error of a request.

use std::time::Duration;

use http::StatusCode;

use crate::error::Error;

/// The error of a request: the status, the title and the text of a page or a JSON document.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) status: StatusCode,
    pub(super) title: &'static str,
    pub(super) text: String,
}

impl Fault {
    fn new(status: StatusCode, title: &'static str, text: impl Into<String>) -> Self {
        let text = text.into();
        Self {
            status,
            title,
            text,
        }
    }

    pub(super) fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "This request is not valid", text)
    }

    pub(super) fn not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "Not found", text)
    }

    pub(super) fn forbidden(text: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "This is not allowed", text)
    }

    pub(super) fn wrong_method() -> Self {
        let text = "use GET to look, and POST to change something";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "The method is wrong", text)
    }

    pub(super) fn body_too_long(limit: usize) -> Self {
        let text = format!("the body is longer than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "The form is too long", text)
    }

    pub(super) fn wrong_body_type() -> Self {
        let text = "send JSON, with `content-type: application/json`";
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        Self::new(status, "The type of the body is wrong", text)
    }

    pub(super) fn too_many_requests(text: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "Too much at once", text)
    }

    pub(super) fn timeout(limit: Duration) -> Self {
        let text = format!("the server did not answer within {} s", limit.as_secs());
        Self::new(StatusCode::GATEWAY_TIMEOUT, "This takes too long", text)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let (status, title) = if error.is_invalid() || error.is_config() {
            (StatusCode::BAD_REQUEST, "This request is not valid")
        } else if error.is_disconnected() || error.is_unknown_outcome() {
            (StatusCode::SERVICE_UNAVAILABLE, "Redis cannot be reached")
        } else if error.is_timeout() {
            (StatusCode::GATEWAY_TIMEOUT, "Redis does not answer in time")
        } else if error.is_closed() {
            (StatusCode::SERVICE_UNAVAILABLE, "The connection is closed")
        } else {
            (StatusCode::BAD_GATEWAY, "Redis refuses this")
        };
        Self::new(status, title, chain(&error))
    }
}

/// Returns the texts of an error and of its sources.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let sources = std::iter::successors(error.source(), |error| error.source());
    sources.fold(error.to_string(), |text, source| {
        format!("{text}: {source}")
    })
}
