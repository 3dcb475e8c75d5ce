//! The replies to requests whose name is a constant.

use serde::de::DeserializeOwned;

use crate::{
    error::BoxError,
    payload::Json,
    reply::{FromReply, Reply},
};

/// The type of reply that the caller of an [`Rpc`](super::Rpc) gets. Implemented for all types that
/// can be read from JSON.
#[diagnostic::on_unimplemented(
    message = "a reply cannot be read as `{Self}`",
    note = "it must be `serde::de::DeserializeOwned`"
)]
pub trait ContractReply: Sized {
    /// Reads the reply.
    ///
    /// # Errors
    /// If the payload is not of this type.
    #[doc(hidden)]
    fn read(reply: Reply) -> Result<Self, BoxError>;
}

/// A handler that returns `()` sends an empty reply, so an empty reply is read as `null`.
impl<R: DeserializeOwned> ContractReply for R {
    fn read(reply: Reply) -> Result<Self, BoxError> {
        match reply.payload.is_empty() {
            true => Ok(serde_json::from_str("null")?),
            false => Json::from_reply(reply).map(|Json(value)| value),
        }
    }
}
