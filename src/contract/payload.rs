//! The payloads that may be sent under a name.

use bytes::Bytes;
use http::HeaderValue;
use serde::Serialize;

use super::AnyPayload;
use crate::{
    error::BoxError,
    payload::{IntoPayload, Json},
};

/// An encoded payload, and its content type.
#[derive(Debug)]
pub struct EncodedPayload {
    pub(crate) payload: Bytes,
    pub(crate) content_type: Option<HeaderValue>,
}

impl EncodedPayload {
    pub(super) fn new(payload: impl IntoPayload) -> Result<Self, BoxError> {
        let content_type = payload.content_type();
        Ok(Self {
            payload: payload.into_payload()?,
            content_type,
        })
    }
}

/// A value that can be sent under a name with the payload type `C`. If the name is a constant with
/// the payload type `T`, the value is a `T`, a `&T` or a `Json<T>`. If the name is a string, the
/// value is any [`IntoPayload`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be sent under this name, whose payload is `{C}`",
    label = "this is not the payload of the name",
    note = "under a constant of `T`, send a `T`, a `&T` or a `Json(value)` of one",
    note = "under a text, send `()`, `Json(value)`, `Bytes`, `Vec<u8>`, `&[u8]`, `String` or `&str`"
)]
pub trait PayloadFor<C> {
    /// Converts the value into a payload.
    ///
    /// # Errors
    /// If the value cannot be serialized.
    #[doc(hidden)]
    fn encode(self) -> Result<EncodedPayload, BoxError>;
}

impl<P: IntoPayload> PayloadFor<AnyPayload> for P {
    fn encode(self) -> Result<EncodedPayload, BoxError> {
        EncodedPayload::new(self)
    }
}

impl<T: Serialize> PayloadFor<T> for T {
    fn encode(self) -> Result<EncodedPayload, BoxError> {
        EncodedPayload::new(Json(self))
    }
}

impl<T: Serialize> PayloadFor<T> for &T {
    fn encode(self) -> Result<EncodedPayload, BoxError> {
        EncodedPayload::new(Json(self))
    }
}

impl<T: Serialize> PayloadFor<T> for Json<T> {
    fn encode(self) -> Result<EncodedPayload, BoxError> {
        EncodedPayload::new(self)
    }
}

impl<T: Serialize> PayloadFor<T> for Json<&T> {
    fn encode(self) -> Result<EncodedPayload, BoxError> {
        EncodedPayload::new(self)
    }
}
