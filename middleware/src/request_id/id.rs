//! The request id, and the hook that makes new ids.

use std::{fmt, future::Future};

use campanile::{FromMessageParts, Message, Parts, Rejection};
use http::HeaderValue;
use uuid::Uuid;

tokio::task_local! {
    /// The id of the message that the current task handles.
    pub(super) static CURRENT: RequestId;
}

/// The id of a request. See the [module](super).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The maximum length of an id, in bytes.
    pub const MAX_LEN: usize = 128;

    /// Parses an id.
    ///
    /// # Errors
    /// If the text is empty, longer than [`MAX_LEN`](Self::MAX_LEN), or contains characters that
    /// are not visible ASCII.
    pub fn new(text: &str) -> Result<Self, InvalidRequestId> {
        let value = HeaderValue::from_str(text).map_err(|_| InvalidRequestId::NOT_VISIBLE)?;
        Self::from_value(&value)
    }

    pub(super) fn from_value(value: &HeaderValue) -> Result<Self, InvalidRequestId> {
        match value.as_bytes() {
            [] => Err(InvalidRequestId("it is empty")),
            bytes if bytes.len() > Self::MAX_LEN => {
                Err(InvalidRequestId("it is longer than 128 bytes"))
            }
            bytes if !bytes.iter().all(u8::is_ascii_graphic) => Err(InvalidRequestId::NOT_VISIBLE),
            _ => Ok(Self(value.clone())),
        }
    }

    /// Returns the id of the message that the current task handles. `None` if the task is in
    /// neither a [`RequestIdLayer`](super::RequestIdLayer) nor a [`scope`](Self::scope).
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Runs a future with this id as the [current](Self::current) id. Use it for futures that a
    /// handler spawns.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, future)
    }

    pub(super) fn value(&self) -> &HeaderValue {
        &self.0
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        self.0.to_str().expect("an id is visible ASCII")
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl From<u64> for RequestId {
    fn from(number: u64) -> Self {
        Self(number.into())
    }
}

impl From<Uuid> for RequestId {
    fn from(uuid: Uuid) -> Self {
        let text = uuid.to_string();
        Self(HeaderValue::try_from(text).expect("a UUID is visible ASCII"))
    }
}

/// Extracts the id that a [`RequestIdLayer`](super::RequestIdLayer) around the handler has set.
/// Without such a layer the extraction fails with an ordinary rejection.
impl<S: Sync> FromMessageParts<S> for RequestId {
    type Rejection = Rejection;

    async fn from_message_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        let found = parts.extensions.get().cloned();
        found.ok_or_else(|| {
            Rejection::ordinary(
                "the message has no request id: no `RequestIdLayer` is around the handler",
            )
        })
    }
}

/// The error of a text that is not a valid [`RequestId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidRequestId(&'static str);

impl InvalidRequestId {
    const NOT_VISIBLE: Self = Self("it has other bytes than visible ASCII");
}

impl fmt::Display for InvalidRequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a valid request id: {}", self.0)
    }
}

impl std::error::Error for InvalidRequestId {}

/// Makes an id for a message that has none. Implemented for `Fn(&Message) -> RequestId`.
pub trait MakeRequestId {
    /// Makes the id.
    fn make_request_id(&self, message: &Message) -> RequestId;
}

impl<F: Fn(&Message) -> RequestId> MakeRequestId for F {
    fn make_request_id(&self, message: &Message) -> RequestId {
        self(message)
    }
}
