//! Bodies: a payload as one, and one as a payload.

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

/// A payload as the body of a request or a response: one piece, whose length is known.
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

// Like a message's payload it is not shown.
impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = http_body::Body::size_hint(self).exact().unwrap_or_default();
        f.debug_tuple("Body")
            .field(&format_args!("{length} bytes"))
            .finish()
    }
}

/// Why a body could not be taken as a payload.
#[derive(Debug)]
pub struct BodyError {
    limit: usize,
    /// `None` where it is longer than the limit.
    cause: Option<BoxError>,
}

impl BodyError {
    /// Whether it is longer than its limit; otherwise it ended before its end.
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

/// Reads a body to its end, or to its limit.
pub(super) type Reading<B> = Collect<Limited<B>>;

pub(super) fn read<B>(body: B, limit: usize) -> Reading<B>
where
    B: http_body::Body<Error: Into<BoxError>>,
{
    Limited::new(body, limit).collect()
}

/// What [`read`] has come to.
pub(super) fn payload<D: bytes::Buf>(
    read: Result<Collected<D>, BoxError>,
    limit: usize,
) -> Result<Bytes, BodyError> {
    read.map(Collected::to_bytes).map_err(|error| BodyError {
        limit,
        cause: (!error.is::<LengthLimitError>()).then_some(error),
    })
}
