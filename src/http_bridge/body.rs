//! Converts payloads to HTTP bodies and back.

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Collected, Full, LengthLimitError, Limited, combinators::Collect};
use pin_project::pin_project;

use crate::error::BoxError;

/// A payload as the body of a request or a response. The body is one chunk of a known length.
#[derive(Clone, Default)]
#[pin_project]
pub struct Body(#[pin] Full<Bytes>);

impl<T: Into<Bytes>> From<T> for Body {
    fn from(payload: T) -> Self {
        Self(Full::new(payload.into()))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.project().0.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

// The payload is not shown, because it may contain secrets.
impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = http_body::Body::size_hint(self).exact().unwrap_or_default();
        f.debug_tuple("Body")
            .field(&format_args!("{length} bytes"))
            .finish()
    }
}

/// The error of a body that could not be read.
#[derive(Debug)]
pub struct BodyError {
    limit: usize,
    /// The error that ended the body early. `None` if the body is longer than the limit.
    cause: Option<BoxError>,
}

impl BodyError {
    /// Returns `true` if the body is longer than the limit, and `false` if reading it failed.
    pub fn is_too_long(&self) -> bool {
        self.cause.is_none()
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            None => write!(f, "the body is longer than {} bytes", self.limit),
            Some(_) => f.write_str("the body broke off"),
        }
    }
}

impl std::error::Error for BodyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

/// The future of [`read`].
pub(super) type Reading<B> = Collect<Limited<B>>;

/// Reads a body. Fails if it is longer than `limit` bytes.
pub(super) fn read<B>(body: B, limit: usize) -> Reading<B>
where
    B: http_body::Body<Error: Into<BoxError>>,
{
    Limited::new(body, limit).collect()
}

/// Converts the outcome of [`read`] into a payload. `limit` must be the limit that was passed to
/// [`read`].
pub(super) fn payload<D: bytes::Buf>(
    outcome: Result<Collected<D>, BoxError>,
    limit: usize,
) -> Result<Bytes, BodyError> {
    outcome.map(Collected::to_bytes).map_err(|error| BodyError {
        limit,
        cause: (!error.is::<LengthLimitError>()).then_some(error),
    })
}
