//! Replies, and the conversions between values and replies.
//!
//! ```
//! use campanile::{FromReply, IntoReply, Json, Reply};
//!
//! let reply: Reply = Json([1, 2]).into_reply().unwrap();
//! assert_eq!(reply.payload, "[1,2]");
//!
//! let Json(numbers): Json<Vec<u8>> = FromReply::from_reply(reply).unwrap();
//! assert_eq!(numbers, [1, 2]);
//! ```
//!
//! The payload of a handler's reply to a task or an event is not sent; only success or failure
//! counts.

use std::fmt;

use bytes::Bytes;
use http::{Extensions, HeaderMap};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    error::{BoxError, IntoBoxError},
    message::MessageId,
    payload::{Format, IntoPayload, Json},
};

/// The reply of a `Service<Message>`.
///
/// The caller of an RPC request gets the handler's reply. A transport that accepts a task returns a
/// reply with a [`receipt`](Reply::receipt).
///
/// ```
/// use campanile::{Reply, Router};
///
/// async fn thumbnail() -> Reply {
///     let mut reply = Reply::new(vec![0x89, 0x50]);
///     reply.headers.insert("content-type", "image/png".parse().expect("a valid value"));
///     reply
/// }
///
/// let app: Router = Router::new().rpc("images.thumbnail", thumbnail);
/// ```
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct Reply {
    /// Headers, which are sent to the caller.
    pub headers: HeaderMap,
    /// The payload.
    pub payload: Bytes,
    /// Values for the layers of this process; never sent.
    pub extensions: Extensions,
    receipt: Option<MessageId>,
    is_duplicate: bool,
}

impl Reply {
    /// Creates a reply without headers.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self {
            payload: payload.into(),
            ..Self::default()
        }
    }

    /// Creates the reply of a transport that accepted a message under this id.
    pub fn accepted(id: MessageId) -> Self {
        Self {
            receipt: Some(id),
            ..Self::default()
        }
    }

    /// Creates the reply of a transport that did not store a task, because an earlier task has the
    /// same key. `id` is the id of the earlier task.
    pub fn duplicate(id: MessageId) -> Self {
        Self {
            is_duplicate: true,
            ..Self::accepted(id)
        }
    }

    /// Returns `true` if the [receipt](Self::receipt) is that of an earlier task.
    pub fn is_duplicate(&self) -> bool {
        self.is_duplicate
    }

    /// Returns the id under which a transport accepted the message. `None` for an event, and if a
    /// service handled the message without a transport.
    pub fn receipt(&self) -> Option<&MessageId> {
        self.receipt.as_ref()
    }
}

// Payloads and header values are not shown: they may hold secrets.
impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("headers", &self.headers.len())
            .field("payload", &format_args!("{} bytes", self.payload.len()))
            .field("receipt", &self.receipt)
            .finish_non_exhaustive()
    }
}

/// A value that a handler may return.
///
/// Implemented for the payloads of this crate (`()`, [`Json`], `Bytes`, `String`, `&'static str`,
/// `Vec<u8>`), for [`Reply`], and for `Result<T, E>` if `T` is one of these and `E` converts into a
/// [`BoxError`].
///
/// ```
/// use campanile::{BoxError, IntoReply, Json, Reply, Router};
///
/// /// The format of all replies of an application.
/// struct Answer(u64);
///
/// impl IntoReply for Answer {
///     fn into_reply(self) -> Result<Reply, BoxError> {
///         Json(serde_json::json!({ "answer": self.0 })).into_reply()
///     }
/// }
///
/// let app: Router = Router::new().rpc("count", async || Answer(7));
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a reply",
    label = "a handler cannot return this",
    note = "return `()`, `Json<T>`, `Bytes`, `String`, `&'static str`, `Vec<u8>`, `Reply`, or a `Result` of one of them whose error implements `std::error::Error`"
)]
pub trait IntoReply {
    /// Converts the value into a reply.
    ///
    /// # Errors
    /// The handler's error, or the reason why its value could not be serialized.
    fn into_reply(self) -> Result<Reply, BoxError>;
}

impl IntoReply for Reply {
    fn into_reply(self) -> Result<Reply, BoxError> {
        Ok(self)
    }
}

impl<T, E> IntoReply for Result<T, E>
where
    T: IntoReply,
    E: IntoBoxError,
{
    fn into_reply(self) -> Result<Reply, BoxError> {
        self.map_err(Into::into)?.into_reply()
    }
}

/// Implements [`IntoReply`] for each payload type. A blanket implementation for [`IntoPayload`]
/// would conflict with the implementations for [`Reply`] and `Result`.
macro_rules! payload_replies {
    ($($type:ty),* $(,)?) => {$(
        impl IntoReply for $type {
            fn into_reply(self) -> Result<Reply, BoxError> {
                self.into_payload().map(Reply::new)
            }
        }
    )*};
}

payload_replies!((), Bytes, Vec<u8>, String, &'static str);

impl<T: Serialize> IntoReply for Json<T> {
    fn into_reply(self) -> Result<Reply, BoxError> {
        self.into_payload().map(Reply::new)
    }
}

/// A value that a handler may return for an [`Rpc`](crate::contract::Rpc) with the reply type `R`.
/// A router checks this only if the route's name is a constant.
#[diagnostic::on_unimplemented(
    message = "the handler returns `{Self}`, and the reply of this name is `{R}`",
    label = "this handler does not return the reply of its name",
    note = "the reply of a constant is returned as `Json<{R}>`, or unread as `Reply`, `Bytes` or `Vec<u8>`, or as a `Result` of one of these"
)]
pub trait Replies<R> {}

impl<R> Replies<R> for Json<R> {}
impl Replies<()> for () {}
impl<R> Replies<R> for Reply {}
impl<R> Replies<R> for Bytes {}
impl<R> Replies<R> for Vec<u8> {}
impl<R, T: Replies<R>, E> Replies<R> for Result<T, E> {}

/// A type that a reply can be read as.
///
/// ```
/// use campanile::{BoxError, Client, FromReply, Reply, Router};
///
/// struct Count(u64);
///
/// impl FromReply for Count {
///     fn from_reply(reply: Reply) -> Result<Self, BoxError> {
///         Ok(Count(String::from_reply(reply)?.parse()?))
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), campanile::Error> {
/// let app: Router = Router::new().rpc("count", async || "7");
/// let Count(count) = Client::new(app).request("count", ()).await?;
/// assert_eq!(count, 7);
/// # Ok(())
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "a reply cannot be read as `{Self}`",
    note = "read it as `()`, `Json<T>`, `Bytes`, `Vec<u8>`, `String` or `Reply`"
)]
pub trait FromReply: Sized {
    /// Reads the reply.
    ///
    /// # Errors
    /// If the payload is not of this type.
    fn from_reply(reply: Reply) -> Result<Self, BoxError>;
}

impl FromReply for Reply {
    fn from_reply(reply: Reply) -> Result<Self, BoxError> {
        Ok(reply)
    }
}

/// Ignores the payload.
impl FromReply for () {
    fn from_reply(_: Reply) -> Result<Self, BoxError> {
        Ok(())
    }
}

impl FromReply for Bytes {
    fn from_reply(reply: Reply) -> Result<Self, BoxError> {
        Ok(reply.payload)
    }
}

impl FromReply for Vec<u8> {
    fn from_reply(reply: Reply) -> Result<Self, BoxError> {
        Ok(reply.payload.into())
    }
}

impl FromReply for String {
    fn from_reply(reply: Reply) -> Result<Self, BoxError> {
        Ok(String::from_utf8(reply.payload.into())?)
    }
}

impl<T: DeserializeOwned> FromReply for Json<T> {
    fn from_reply(reply: Reply) -> Result<Self, BoxError> {
        check_format(&reply, Format::Json)?;
        Ok(Json(serde_json::from_slice(&reply.payload)?))
    }
}

/// Refuses a reply whose headers name another format than `format`.
fn check_format(reply: &Reply, format: Format) -> Result<(), BoxError> {
    format.check_headers(&reply.headers).map_err(|other| {
        let expected_type = format.content_type();
        format!("the reply is {other}, and the caller reads {expected_type}").into()
    })
}

/// Replies in other formats than JSON.
#[cfg(any(feature = "cbor", feature = "msgpack", feature = "protobuf"))]
mod codec {
    use super::{FromReply, IntoReply, Replies, Reply, check_format};
    use crate::{
        error::BoxError,
        payload::{IntoPayload, for_each_codec},
    };

    /// Implements the traits of replies for a format.
    macro_rules! codec_replies {
        ([$($codec:tt)*], [$($write:tt)*], [$($read:tt)*]) => {
            impl<T: $($write)*> IntoReply for $($codec)*<T> {
                fn into_reply(self) -> Result<Reply, BoxError> {
                    let content_type = self.content_type();
                    let mut reply = Reply::new(self.into_payload()?);
                    reply.headers.extend(content_type.map(|value| (http::header::CONTENT_TYPE, value)));
                    Ok(reply)
                }
            }

            impl<T: $($read)*> FromReply for $($codec)*<T> {
                fn from_reply(reply: Reply) -> Result<Self, BoxError> {
                    check_format(&reply, Self::FORMAT)?;
                    Self::decode(&reply.payload).map_err(Into::into)
                }
            }

            impl<T> Replies<$($codec)*<T>> for $($codec)*<T> {}
        };
    }

    for_each_codec!(codec_replies);
}
