//! The body of a response.

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::Stream;
use http_body::{Frame, SizeHint};

/// The body of a response of a [`Dashboard`](super::Dashboard): a page, or server-sent events.
pub struct DashboardBody(Content);

enum Content {
    /// `None` once the bytes were sent, or if there are none.
    Whole(Option<Bytes>),
    Events(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
}

impl DashboardBody {
    pub(super) fn events(events: impl Stream<Item = Bytes> + Send + 'static) -> Self {
        Self(Content::Events(Box::pin(events)))
    }
}

impl<T: Into<Bytes>> From<T> for DashboardBody {
    fn from(whole: T) -> Self {
        let whole = whole.into();
        Self(Content::Whole((!whole.is_empty()).then_some(whole)))
    }
}

impl http_body::Body for DashboardBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match &mut self.0 {
            Content::Whole(whole) => whole.take(),
            Content::Events(events) => ready!(events.as_mut().poll_next(cx)),
        };
        Poll::Ready(next.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, Content::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Content::Whole(whole) => {
                SizeHint::with_exact(whole.as_ref().map_or(0, |whole| whole.len() as u64))
            }
            Content::Events(_) => SizeHint::default(),
        }
    }
}

// Does not show the content, because it may be secret.
impl fmt::Debug for DashboardBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DashboardBody").finish_non_exhaustive()
    }
}
