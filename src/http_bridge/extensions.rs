//! The extensions that keep the parts of a message or a reply that HTTP has no place for.

use std::ops::Deref;

use crate::message::{MessageId, Parts};

/// The extension of a request that was made from a message. It has the message's parts, without
/// headers and extensions, which are in the request.
///
/// An axum handler extracts it as `Extension<Origin>`.
#[derive(Debug, Clone)]
pub struct Origin(pub(crate) Parts);

impl Deref for Origin {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// The extension of a response that keeps the receipt of its reply.
#[derive(Debug, Clone)]
pub(super) struct Accepted(pub(super) MessageId);
