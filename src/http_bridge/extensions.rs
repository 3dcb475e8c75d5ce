//! Extensions for the parts of messages and replies that have no place in HTTP.

use std::ops::Deref;

use crate::message::{MessageId, Parts};

/// The parts of a message, as an extension of the request that was made from the message. The
/// headers and extensions of these parts are empty, because they were moved to the request.
///
/// An axum handler extracts the parts as `Extension<Origin>`.
#[derive(Debug, Clone)]
pub struct Origin(pub(crate) Parts);

impl Deref for Origin {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// The message id in a reply's receipt, as an extension of the response that was made from the
/// reply.
#[derive(Debug, Clone)]
pub(super) struct AcceptedTaskId(pub(super) MessageId);
