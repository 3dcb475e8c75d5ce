//! Extractors: what a handler can take as its arguments.
//!
//! ```
//! use campanile::{Attempt, Json, Router, State};
//!
//! #[derive(Clone)]
//! struct Db;
//!
//! #[derive(serde::Deserialize)]
//! struct Order {
//!     id: u64,
//! }
//!
//! async fn create(State(db): State<Db>, attempt: Attempt, Json(order): Json<Order>) {
//!     # let _ = (db, attempt, order.id);
//! }
//!
//! let app: Router = Router::new().task("orders.create", create).with_state(Db);
//! ```
//!
//! # Extractors
//! | argument | value | rejects if |
//! |---|---|---|
//! | [`Json<T>`](crate::Json) | the payload, read as JSON | the payload is not the JSON of a `T` |
//! | `Bytes`, `Vec<u8>` | the payload; a `Bytes` of 4 KiB or more may share memory with messages that arrived with it, so copy it to keep it for long | |
//! | `String` | the payload as text | it is not UTF-8 |
//! | [`Message`] | the whole message | |
//! | [`State<T>`] | the router's state, or a part of it ([`FromRef`]) | |
//! | [`Extension<T>`] | a value that a layer added | no layer did (an ordinary failure) |
//! | `HeaderMap` | the headers | |
//! | [`Name`](crate::Name), [`Kind`](crate::Kind), [`Attempt`](crate::Attempt) | those of the message | |
//! | [`MatchedRoute`](crate::MatchedRoute) | the route as it was registered | outside a router |
//! | [`MessageId`](crate::MessageId), [`Lease`](crate::Lease) | those of the delivery | the message did not come from a stream |
//! | [`Deadline`](crate::Deadline) | the time after which the outcome does not matter | the message has none |
//! | `Option<T>` | `None` if the value is missing | it is malformed |
//! | `Result<T, T::Rejection>` | the value, or the other argument's rejection | |
//!
//! An empty payload is `None` as an `Option`.
//!
//! # Ordering
//! Arguments are extracted from left to right. Those that take the payload, the first four rows,
//! must come last: a message has one payload.
//!
//! # Errors
//! If an argument rejects, the handler is not called, and the delivery fails with the extractor's
//! rejection. The extractors of this crate reject with a [`Rejection`](crate::error::Rejection),
//! which says whether a retry can help.
//!
//! # Custom extractors
//! Implement [`FromMessageParts`], or [`FromMessage`] for a type that takes the payload.
//!
//! ```
//! use campanile::{Router, error::Rejection, extract::FromMessageParts, message::Parts};
//!
//! struct Tenant(String);
//!
//! impl<S: Sync> FromMessageParts<S> for Tenant {
//!     type Rejection = Rejection;
//!
//!     async fn from_message_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
//!         let tenant = parts.headers.get("x-tenant").and_then(|value| value.to_str().ok());
//!         match tenant {
//!             Some(tenant) => Ok(Tenant(tenant.to_owned())),
//!             None => Err(Rejection::permanent("the header `x-tenant` is missing")),
//!         }
//!     }
//! }
//!
//! async fn create(Tenant(tenant): Tenant) {
//!     # let _ = tenant;
//! }
//! # let _: Router = Router::new().task("create", create);
//! ```

mod extension;
mod optional;
mod parts;
mod payload;
mod state;

use std::future::Future;

use crate::{
    error::BoxError,
    message::{Message, Parts},
};

pub use self::{
    extension::{AddExtension, Extension},
    optional::{OptionalFromMessage, OptionalFromMessageParts},
    state::{FromRef, State},
};

/// An argument for any position of a handler: it does not use the payload.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a handler's argument in this place",
    label = "no extractor, or one that takes the payload before the last argument",
    note = "a message has one payload: `Json<T>`, `Bytes`, `String`, `Vec<u8>` and `Message` take it, and must be the last argument",
    note = "an argument before the last one can be `State<T>`, `Extension<T>`, `HeaderMap`, `Name`, `Kind`, `MessageId`, `Attempt`, `Deadline`, `Lease`, `MatchedRoute`, or an `Option` or a `Result` of one of them",
    note = "for a type of your own, implement `FromMessageParts`, or `FromMessage` if it takes the payload"
)]
pub trait FromMessageParts<S>: Sized {
    /// The error if the value is missing or malformed.
    type Rejection: Into<BoxError>;

    /// Extracts the value.
    ///
    /// # Errors
    /// If it is missing or malformed.
    fn from_message_parts(
        parts: &mut Parts,
        state: &S,
    ) -> impl Future<Output = Result<Self, Self::Rejection>> + Send;
}

/// An argument for the last position of a handler: it may take the payload.
///
/// Types with [`FromMessageParts`] can be last, too; the parameter `M` distinguishes the two and is
/// never written by hand.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be taken from a message",
    label = "this is not an extractor",
    note = "`Json<T>` reads a `T` that can be read: `#[derive(serde::Deserialize)]`",
    note = "the last argument of a handler can be `Json<T>`, `Bytes`, `String`, `Vec<u8>`, `Message`, or anything that an earlier argument can be",
    note = "for a type of your own, implement `FromMessage`, or `FromMessageParts` when it leaves the payload alone"
)]
pub trait FromMessage<S, M = via::Message>: Sized {
    /// The error if the value is missing or malformed.
    type Rejection: Into<BoxError>;

    /// Extracts the value.
    ///
    /// # Errors
    /// If it is missing or malformed.
    fn from_message(
        message: Message,
        state: &S,
    ) -> impl Future<Output = Result<Self, Self::Rejection>> + Send;
}

/// The two ways to extract a last argument. Without this marker, implementations of one trait for a
/// type and of the other for all types would overlap.
#[doc(hidden)]
pub mod via {
    /// Through [`FromMessageParts`](super::FromMessageParts).
    #[derive(Debug, Clone, Copy)]
    pub enum Parts {}

    /// Through [`FromMessage`](super::FromMessage) itself.
    #[derive(Debug, Clone, Copy)]
    pub enum Message {}
}

impl<S, T> FromMessage<S, via::Parts> for T
where
    S: Sync,
    T: FromMessageParts<S>,
{
    type Rejection = T::Rejection;

    async fn from_message(mut message: Message, state: &S) -> Result<Self, Self::Rejection> {
        T::from_message_parts(message.parts_mut(), state).await
    }
}
