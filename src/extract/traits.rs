//! The traits of extractors.

use std::future::Future;

use crate::{
    error::BoxError,
    message::{Message, Parts},
};

/// An extractor that does not use the payload. It can be an argument in any position of a handler.
///
/// ```
/// use campanile::{FromMessageParts, Parts, Rejection, Router};
///
/// struct Tenant(String);
///
/// impl<S: Sync> FromMessageParts<S> for Tenant {
///     type Rejection = Rejection;
///
///     async fn from_message_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
///         let tenant = parts.headers.get("x-tenant").and_then(|it| it.to_str().ok());
///         let tenant = tenant.ok_or_else(|| Rejection::permanent("the header x-tenant is missing"))?;
///         Ok(Tenant(tenant.to_owned()))
///     }
/// }
///
/// let app: Router = Router::new().task("import", async |Tenant(name): Tenant| println!("{name}"));
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a handler's argument in this place",
    label = "no extractor, or one that takes the payload before the last argument",
    note = "a message has one payload: `campanile::Json<T>` (not that of axum), `Bytes`, `String`, `Vec<u8>` and `Message` take it, and must be the last argument",
    note = "an argument before the last one can be `State<T>`, `Extension<T>`, `HeaderMap`, `Name`, `Kind`, `MessageId`, `Attempt`, `Deadline`, `Lease`, `MatchedRoute`, `Progress`, `Checkpoint`, `Outbox`, or an `Option` or a `Result` of one of them",
    note = "for a type of your own, implement `FromMessageParts`, or `FromMessage` if it takes the payload"
)]
pub trait FromMessageParts<S>: Sized {
    /// The error of a missing or malformed value.
    type Rejection: Into<BoxError>;

    /// Extracts the value.
    ///
    /// # Errors
    /// If the value is missing or malformed.
    fn from_message_parts(
        parts: &mut Parts,
        state: &S,
    ) -> impl Future<Output = Result<Self, Self::Rejection>> + Send;
}

/// An extractor that may take the payload. It can only be the last argument of a handler.
///
/// Types that implement [`FromMessageParts`] can be the last argument, too. The parameter `M`
/// distinguishes the two cases. The compiler infers `M`.
///
/// ```
/// use campanile::{FromMessage, Message, Rejection, Router};
///
/// struct Words(Vec<String>);
///
/// impl<S: Sync> FromMessage<S> for Words {
///     type Rejection = Rejection;
///
///     async fn from_message(message: Message, state: &S) -> Result<Self, Rejection> {
///         let text = String::from_message(message, state).await?;
///         Ok(Words(text.split(' ').map(Into::into).collect()))
///     }
/// }
///
/// let app: Router = Router::new().rpc("count", async |Words(words): Words| words.len().to_string());
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be taken from a message",
    label = "this is not an extractor",
    note = "`Json<T>` reads a `T` that can be read: `#[derive(serde::Deserialize)]`",
    note = "the last argument of a handler can be `Json<T>`, `Bytes`, `String`, `Vec<u8>`, `Message`, or anything that an earlier argument can be",
    note = "for a type of your own, implement `FromMessage`, or `FromMessageParts` when it leaves the payload alone"
)]
pub trait FromMessage<S, M = via::WholeMessage>: Sized {
    /// The error of a missing or malformed value.
    type Rejection: Into<BoxError>;

    /// Extracts the value.
    ///
    /// # Errors
    /// If the value is missing or malformed.
    fn from_message(
        message: Message,
        state: &S,
    ) -> impl Future<Output = Result<Self, Self::Rejection>> + Send;
}

/// Marks the trait through which the last argument is extracted. Without the mark, the blanket
/// implementation for types with [`FromMessageParts`] would overlap with the other implementations.
#[doc(hidden)]
pub mod via {
    /// Through [`FromMessageParts`](super::FromMessageParts).
    #[derive(Debug, Clone, Copy)]
    pub enum PartsOnly {}

    /// Through [`FromMessage`](super::FromMessage) itself.
    #[derive(Debug, Clone, Copy)]
    pub enum WholeMessage {}
}

impl<S, T> FromMessage<S, via::PartsOnly> for T
where
    S: Sync,
    T: FromMessageParts<S>,
{
    type Rejection = T::Rejection;

    async fn from_message(mut message: Message, state: &S) -> Result<Self, Self::Rejection> {
        T::from_message_parts(message.parts_mut(), state).await
    }
}
