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
//! let app = Router::new().task("orders.create", create).with_state(Db);
//! ```
//!
//! | argument | what it is | where it rejects |
//! |---|---|---|
//! | [`Json<T>`](crate::Json) | the payload, read as JSON | payload is not the JSON of a `T` |
//! | `Bytes`, `Vec<u8>` | the payload as it came; a `Bytes` of 4 KiB or more may share memory with messages that arrived with it, so copy what is kept for long | |
//! | `String` | the payload as text | not UTF-8 |
//! | [`Message`] | everything | |
//! | [`State<T>`] | the router's state, or a part of it ([`FromRef`]) | |
//! | [`Extension<T>`] | a value that a layer added | no layer did (the deployment's fault) |
//! | `HeaderMap` | the headers | |
//! | [`Name`](crate::Name), [`Kind`](crate::Kind), [`Attempt`](crate::Attempt) | what they say | |
//! | [`MatchedRoute`](crate::MatchedRoute) | the route as it was registered | outside a router |
//! | [`MessageId`](crate::MessageId), [`Lease`](crate::Lease) | of this delivery | the message came from no stream |
//! | [`Deadline`](crate::Deadline) | when the outcome stops to matter | it never does |
//! | `Option<T>` | `None` where it is absent | it is there and malformed |
//! | `Result<T, T::Rejection>` | what another argument would reject with | |
//!
//! For `Option` an empty payload is an absent one.
//!
//! # Ordering
//! Arguments are extracted from left to right. Those that take the payload, the first four rows,
//! must come last: a message has one payload.
//!
//! # Errors
//! The first argument that rejects ends it: the handler is not called, and the delivery fails with
//! the extractor's rejection. That is a [`Rejection`](crate::error::Rejection) for the extractors of this crate, which says
//! whether a retry can help.
//!
//! # An extractor of your own
//! It implements [`FromMessageParts`], or [`FromMessage`] when it takes the payload.
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
//! # let _ = Router::new().task("create", create).with_state(());
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

/// An argument that any position of a handler can have: it leaves the payload alone.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be taken from a message's parts",
    label = "no extractor, or one that takes the payload and so must be the last argument",
    note = "an argument before the last one can be `State<T>`, `Extension<T>`, `HeaderMap`, `Name`, `Kind`, `MessageId`, `Attempt`, `Deadline`, `Lease`, `MatchedRoute`, or an `Option` or a `Result` of one of them",
    note = "for a type of your own, implement `FromMessageParts`"
)]
pub trait FromMessageParts<S>: Sized {
    /// Why there was none.
    type Rejection: Into<BoxError>;

    /// Takes it from the parts.
    ///
    /// # Errors
    /// When it is not there or malformed.
    fn from_message_parts(
        parts: &mut Parts,
        state: &S,
    ) -> impl Future<Output = Result<Self, Self::Rejection>> + Send;
}

/// An argument that the last position of a handler can have: it may take the payload.
///
/// Whatever implements [`FromMessageParts`] can come last too; the parameter `M` keeps the two ways
/// apart and is never written by hand.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be taken from a message",
    label = "this is no extractor",
    note = "the last argument of a handler can be `Json<T>` where `T: serde::Deserialize`, `Bytes`, `String`, `Vec<u8>`, `Message`, or anything that an earlier argument can be",
    note = "for a type of your own, implement `FromMessage`, or `FromMessageParts` when it leaves the payload alone"
)]
pub trait FromMessage<S, M = via::Message>: Sized {
    /// Why there was none.
    type Rejection: Into<BoxError>;

    /// Takes it from the message.
    ///
    /// # Errors
    /// When it is not there or malformed.
    fn from_message(
        message: Message,
        state: &S,
    ) -> impl Future<Output = Result<Self, Self::Rejection>> + Send;
}

/// The two ways in which a last argument can be extracted. Types that implement one of the traits
/// for themselves and another that covers all types with the other trait would otherwise overlap.
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
