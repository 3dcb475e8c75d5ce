//! Arguments that are fields of a message's parts.

use std::convert::Infallible;

use http::HeaderMap;

use super::{FromMessageParts, OptionalFromMessageParts};
use crate::{
    error::Rejection,
    message::{Attempt, Deadline, Kind, Lease, MatchedRoute, MessageId, Name, Parts},
};

/// Implements the extractors of fields that every message has.
macro_rules! required_fields {
    ($($type:ty: $parts:ident => $value:expr;)*) => {$(
        impl<S: Sync> FromMessageParts<S> for $type {
            type Rejection = Infallible;

            async fn from_message_parts($parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
                Ok($value)
            }
        }
    )*};
}

required_fields! {
    Kind: parts => parts.kind;
    Name: parts => parts.name.clone();
    Attempt: parts => parts.attempt;
    HeaderMap: parts => parts.headers.clone();
}

/// Implements the extractors of fields that only some messages have. An `Option` of the type is
/// `None` if the field is missing.
macro_rules! optional_fields {
    ($($type:ty: $parts:ident => $value:expr, else $rejection:expr;)*) => {$(
        impl<S: Sync> FromMessageParts<S> for $type {
            type Rejection = Rejection;

            async fn from_message_parts($parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
                $value.ok_or_else(|| $rejection)
            }
        }

        impl<S: Sync> OptionalFromMessageParts<S> for $type {
            type Rejection = Infallible;

            async fn from_message_parts($parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
                Ok($value)
            }
        }
    )*};
}

optional_fields! {
    // Permanent, because redeliveries of the message have no deadline either.
    Deadline: parts => parts.deadline,
        else Rejection::permanent("the message has no deadline");
    MessageId: parts => parts.id.clone(),
        else Rejection::ordinary("the message has no id: it did not come from a stream");
    Lease: parts => parts.lease.clone(),
        else Rejection::ordinary("the message has no lease: it did not come from a stream");
    MatchedRoute: parts => parts.matched_route().cloned(),
        else Rejection::ordinary("the message did not come through a router");
}
