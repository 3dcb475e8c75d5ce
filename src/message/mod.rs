//! Messages: a [`Message`] has [`Parts`] and a payload of bytes.
//!
//! A message is a request in tower's sense: a handler is a `tower::Service<Message>`. A message is
//! built like an `http::Request`, from the same [`HeaderMap`](http::HeaderMap) and
//! [`Extensions`](http::Extensions), so code for those types works here.
//!
//! ```
//! use campanile::{Kind, Message};
//!
//! let message = Message::task("orders.create", r#"{"id":7}"#);
//! assert_eq!(message.kind(), Kind::Task);
//! assert_eq!(message.name(), "orders.create");
//! ```
//!
//! A message with a header:
//!
//! ```
//! use campanile::Message;
//! use http::HeaderValue;
//!
//! let mut message = Message::event("orders.events", "created");
//! message.headers_mut().insert("x-tenant", HeaderValue::from_static("acme"));
//! ```
//!
//! # Delivery guarantee
//! A message is cheap to clone, and layers may clone it. The right to settle the delivery is not
//! part of the message and cannot be cloned.

pub(crate) mod correlation;
mod escaped_text;
mod follow_up;
pub(crate) mod lease;
pub(crate) mod name;
pub(crate) mod parts;
mod permit;
mod task_record;
mod unique;

pub(crate) use self::{
    correlation::CorrelationId,
    follow_up::{FollowUps, MAX_INTEGER},
    lease::Lease,
    name::{DeadLetterId, IdempotencyKey, MessageId, Name, PartitionKey, UniqueKey},
    parts::{Attempt, Deadline, Due, Kind, MatchedRoute, Message, Parts, ReplyMode},
    permit::{holder_name, parking_key_of_newer, parking_key_of_paused, parse_parked_key},
    task_record::RunningRecord,
};
pub use self::{
    escaped_text::EscapedText,
    follow_up::{FollowUp, Write},
    parts::{ByKind, Replicas},
    permit::PermitRequest,
    task_record::{RecordFuture, TaskRecord},
    unique::{OnConflict, Unique},
};
