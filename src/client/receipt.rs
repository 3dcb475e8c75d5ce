//! The receipt of a task.

use std::fmt;

use crate::{
    error::BoxError,
    message::MessageId,
    reply::{FromReply, Reply},
};

/// The receipt of an accepted task. It has the id of the task.
///
/// ```
/// use campanile::{Client, transport::memory::Memory};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), campanile::Error> {
/// let client = Client::new(Memory::new());
/// let receipt = client.enqueue("orders.create", "7").idempotency_key("order 7").await?;
/// let again = client.enqueue("orders.create", "7").idempotency_key("order 7").await?;
/// assert_eq!(receipt.id(), again.id());
/// assert!(again.is_duplicate());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Receipt {
    id: Option<MessageId>,
    is_duplicate: bool,
}

impl Receipt {
    /// Returns the id of the task. `None` if the client's service handled the task itself, or if
    /// the task is in an [`Outbox`](crate::Outbox) and not stored yet.
    pub fn id(&self) -> Option<&MessageId> {
        self.id.as_ref()
    }

    /// Returns `true` if an earlier task had the same idempotency key or unique key. In that case
    /// this task was not stored, and [`id`](Self::id) returns the id of the earlier task.
    pub fn is_duplicate(&self) -> bool {
        self.is_duplicate
    }
}

impl From<Reply> for Receipt {
    fn from(reply: Reply) -> Self {
        Self {
            id: reply.receipt().cloned(),
            is_duplicate: reply.is_duplicate(),
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
