//! The return values of functions that take a batch of messages.

use std::sync::Arc;

use super::error::{BatchError, BatchFault};
use crate::{
    error::BoxError,
    reply::{IntoReply, Reply},
};

/// A value that the function of a [`Batch`](crate::Batch) may return: `()` if all messages
/// succeeded, a `Vec` with a reply or a result for each message, or a `Result` of one of these.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no answer to a batch",
    label = "a batch's handler cannot return this",
    note = "return `()`, `Result<(), E>`, or a `Vec` of replies or of results, one for each message in their order"
)]
pub trait IntoReplies {
    /// Returns one outcome for each message of a batch of `message_count` messages.
    ///
    /// # Errors
    /// If the batch failed as a whole, or if the number of outcomes is not the number of messages.
    fn into_replies(self, message_count: usize)
    -> Result<Vec<Result<Reply, BoxError>>, BatchError>;
}

impl IntoReplies for () {
    fn into_replies(
        self,
        message_count: usize,
    ) -> Result<Vec<Result<Reply, BoxError>>, BatchError> {
        Ok((0..message_count).map(|_| Ok(Reply::default())).collect())
    }
}

impl<R: IntoReply> IntoReplies for Vec<R> {
    fn into_replies(
        self,
        message_count: usize,
    ) -> Result<Vec<Result<Reply, BoxError>>, BatchError> {
        let reply_count = self.len();
        if reply_count != message_count {
            return Err(BatchError(BatchFault::Miscounted {
                replies: reply_count,
                messages: message_count,
            }));
        }
        Ok(self.into_iter().map(IntoReply::into_reply).collect())
    }
}

impl<T: IntoReplies, E: Into<BoxError>> IntoReplies for Result<T, E> {
    fn into_replies(
        self,
        message_count: usize,
    ) -> Result<Vec<Result<Reply, BoxError>>, BatchError> {
        self.map_err(|error| BatchError(BatchFault::Failed(Arc::new(error.into()))))?
            .into_replies(message_count)
    }
}
