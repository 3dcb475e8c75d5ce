//! Extractors: the arguments of handlers.
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
//! | `Bytes`, `Vec<u8>` | the payload; a `Bytes` of 4 KiB or more may share its memory with other messages, so copy the bytes if you keep them for long | |
//! | `String` | the payload as text | the payload is not UTF-8 |
//! | [`Message`](crate::Message) | the whole message | |
//! | [`State<T>`] | the router's state, or a part of it ([`FromRef`]) | |
//! | [`Extension<T>`](crate::Extension) | a value that a layer added | no layer added the value (a failure that is retried) |
//! | `HeaderMap` | the headers | |
//! | [`Name`](crate::Name), [`Kind`](crate::Kind), [`Attempt`](crate::Attempt) | the name, the kind or the attempt of the message | |
//! | [`MatchedRoute`](crate::MatchedRoute) | the route as it was registered | the message did not come through a router |
//! | [`MessageId`](crate::MessageId), [`Lease`](crate::Lease) | the id of the message, the lease on the delivery | the message did not come from a stream |
//! | [`Outbox`](crate::Outbox) | tasks and events that are sent when the delivery is acknowledged | the transport has no outboxes |
//! | [`Progress`](crate::Progress) | a handle that reports the progress of a task that is tracked or unique; it has no effect for other messages | |
//! | [`Checkpoint`](crate::Checkpoint) | the state that an earlier attempt has saved | the message is not a task that is tracked or unique |
//! | [`Deadline`](crate::Deadline) | the time after which nobody needs the outcome | the message has no deadline |
//! | `Option<T>` | the value, or `None` if it is missing | the value is malformed |
//! | `Result<T, T::Rejection>` | the value, or the rejection of the extractor `T` | |
//!
//! An `Option` of a payload type is `None` if the payload is empty.
//!
//! # Ordering
//! Arguments are extracted from left to right. A message has one payload, so an extractor that
//! takes the payload (the first four rows) must be the last argument.
//!
//! # Errors
//! If an extractor rejects the message, the handler is not called, and the delivery fails with the
//! rejection. The extractors of this crate reject with a [`Rejection`](crate::Rejection), which
//! says whether a retry can help.
//!
//! # Custom extractors
//! Implement [`FromMessageParts`], or [`FromMessage`] for a type that takes the payload.
//!
//! ```
//! use campanile::{FromMessageParts, Parts, Rejection, Router};
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

mod carries;
#[cfg(any(feature = "cbor", feature = "msgpack", feature = "protobuf"))]
mod codec;
pub(crate) mod extension;
mod optional;
mod parts;
mod payload;
pub(crate) mod state;
pub(crate) mod traits;

#[doc(hidden)]
pub use self::traits::via;
pub use self::{
    carries::Carries,
    extension::AddExtension,
    optional::{OptionalFromMessage, OptionalFromMessageParts},
};
pub(crate) use self::{
    state::{FromRef, State},
    traits::{FromMessage, FromMessageParts},
};
