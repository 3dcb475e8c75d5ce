//! The receipt of a task.

use std::fmt;

use crate::{
    error::BoxError,
    message::MessageId,
    reply::{FromReply, Reply},
};

/// The receipt of a task that was accepted. It has the id of the task.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Receipt {
    id: Option<MessageId>,
}

impl Receipt {
    /// Returns the id of the task. `None` if a service handled the task in place, and for a task in
    /// an [`Outbox`](crate::Outbox), which is not stored yet.
    pub fn id(&self) -> Option<&MessageId> {
        self.id.as_ref()
    }
}

impl From<Reply> for Receipt {
    fn from(reply: Reply) -> Self {
        Self {
            id: reply.receipt().cloned(),
        }
    }
}

impl FromReply for Receipt {
    fn from_reply(reply: Reply) -> Result<Self, BoxError> {
        Ok(reply.into())
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.id {
            Some(id) => id.fmt(f),
            None => f.write_str("not stored"),
        }
    }
}
