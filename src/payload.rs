//! Typed payloads: [`Json`] and raw bytes, on their way out and in.
//!
//! ```
//! use campanile::{FromReply, IntoPayload, Json, Reply};
//!
//! let payload = Json(("a", 1)).into_payload().unwrap();
//! assert_eq!(payload, r#"["a",1]"#);
//!
//! let Json((text, number)): Json<(String, u8)> = FromReply::from_reply(Reply::new(payload)).unwrap();
//! assert_eq!((text.as_str(), number), ("a", 1));
//! ```

use std::ops::{Deref, DerefMut};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::{error::BoxError, reply::Reply};

/// JSON: an extractor, a reply, and a payload to send.
///
/// As an extractor it rejects a payload that is not the JSON of a `T`; such a message becomes a
/// dead letter at once, since no retry can change it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Json<T>(pub T);

impl<T> Deref for Json<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Json<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T> From<T> for Json<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

/// What can be sent as the payload of a message.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a payload",
    label = "this cannot be sent",
    note = "send `()`, `Json(value)`, `Bytes`, `Vec<u8>`, `&[u8]`, `String` or `&str`"
)]
pub trait IntoPayload {
    /// Makes the bytes.
    ///
    /// # Errors
    /// Why the value could not be serialized.
    fn into_payload(self) -> Result<Bytes, BoxError>;
}

/// What a caller can ask a reply to be read as.
#[diagnostic::on_unimplemented(
    message = "a reply cannot be read as `{Self}`",
    note = "read it as `()`, `Json<T>`, `Bytes`, `Vec<u8>`, `String` or `Reply`"
)]
pub trait FromReply: Sized {
    /// Reads the reply.
    ///
    /// # Errors
    /// Why the payload is not what was asked for.
    fn from_reply(reply: Reply) -> Result<Self, BoxError>;
}

impl IntoPayload for () {
    fn into_payload(self) -> Result<Bytes, BoxError> {
        Ok(Bytes::new())
    }
}

impl IntoPayload for Bytes {
    fn into_payload(self) -> Result<Bytes, BoxError> {
        Ok(self)
    }
}

impl IntoPayload for Vec<u8> {
    fn into_payload(self) -> Result<Bytes, BoxError> {
        Ok(self.into())
    }
}

impl IntoPayload for String {
    fn into_payload(self) -> Result<Bytes, BoxError> {
        Ok(self.into())
    }
}

impl IntoPayload for &str {
    fn into_payload(self) -> Result<Bytes, BoxError> {
        Ok(Bytes::copy_from_slice(self.as_bytes()))
    }
}

impl IntoPayload for &[u8] {
    fn into_payload(self) -> Result<Bytes, BoxError> {
        Ok(Bytes::copy_from_slice(self))
    }
}

impl<T: Serialize> IntoPayload for Json<T> {
    fn into_payload(self) -> Result<Bytes, BoxError> {
        Ok(serde_json::to_vec(&self.0)?.into())
    }
}

impl FromReply for Reply {
    fn from_reply(reply: Reply) -> Result<Self, BoxError> {
        Ok(reply)
    }
}

/// Ignores whatever the payload is.
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
        Ok(Json(serde_json::from_slice(&reply.payload)?))
    }
}
