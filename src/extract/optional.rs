//! `Option<T>` and `Result<T, _>` as arguments.

use std::{convert::Infallible, future::Future};

use super::{FromMessage, FromMessageParts};
use crate::{
    error::BoxError,
    message::{Message, Parts},
};

/// An extractor that distinguishes a missing value from a malformed one. It makes `Option<Self>` an
/// extractor that can be an argument in any position.
#[diagnostic::on_unimplemented(
    message = "`Option<{Self}>` is no extractor",
    label = "this extractor does not distinguish a missing value from a malformed one",
    note = "take `Result<{Self}, _>` to get whatever it rejects with, or implement `OptionalFromMessageParts`"
)]
pub trait OptionalFromMessageParts<S>: Sized {
    /// The error of a malformed value.
    type Rejection: Into<BoxError>;

    /// Extracts the value, or returns `None` if it is missing.
    ///
    /// # Errors
    /// If the value is malformed.
    fn from_message_parts(
        parts: &mut Parts,
        state: &S,
    ) -> impl Future<Output = Result<Option<Self>, Self::Rejection>> + Send;
}

/// The counterpart of [`OptionalFromMessageParts`] for an extractor that takes the payload. The
/// value is missing if the payload is empty.
#[diagnostic::on_unimplemented(
    message = "`Option<{Self}>` is no extractor",
    label = "this extractor does not distinguish a missing value from a malformed one",
    note = "take `Result<{Self}, _>` to get whatever it rejects with, or implement `OptionalFromMessage`"
)]
pub trait OptionalFromMessage<S>: Sized {
    /// The error of a malformed value.
    type Rejection: Into<BoxError>;

    /// Extracts the value, or returns `None` if it is missing.
    ///
    /// # Errors
    /// If the value is malformed.
    fn from_message(
        message: Message,
        state: &S,
    ) -> impl Future<Output = Result<Option<Self>, Self::Rejection>> + Send;
}

impl<S, T> FromMessageParts<S> for Option<T>
where
    S: Sync,
    T: OptionalFromMessageParts<S>,
{
    type Rejection = T::Rejection;

    fn from_message_parts(
        parts: &mut Parts,
        state: &S,
    ) -> impl Future<Output = Result<Self, Self::Rejection>> + Send {
        T::from_message_parts(parts, state)
    }
}

impl<S, T> FromMessage<S> for Option<T>
where
    S: Sync,
    T: OptionalFromMessage<S>,
{
    type Rejection = T::Rejection;

    fn from_message(
        message: Message,
        state: &S,
    ) -> impl Future<Output = Result<Self, Self::Rejection>> + Send {
        T::from_message(message, state)
    }
}

impl<S, T> FromMessageParts<S> for Result<T, T::Rejection>
where
    S: Sync,
    T: FromMessageParts<S>,
{
    type Rejection = Infallible;

    async fn from_message_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        Ok(T::from_message_parts(parts, state).await)
    }
}

impl<S, T> FromMessage<S> for Result<T, T::Rejection>
where
    S: Sync,
    T: FromMessage<S>,
{
    type Rejection = Infallible;

    async fn from_message(message: Message, state: &S) -> Result<Self, Infallible> {
        Ok(T::from_message(message, state).await)
    }
}
