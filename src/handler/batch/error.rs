//! The error of a batch.

use std::{fmt, sync::Arc};

use crate::error::BoxError;

/// The error of every message of a batch that failed as a whole.
///
/// If the function returned an error, that error is the [`source`](std::error::Error::source).
#[derive(Debug, Clone)]
pub struct BatchError(pub(super) BatchFault);

/// The reason why a batch failed.
#[derive(Debug, Clone)]
pub(super) enum BatchFault {
    /// The function returned this error.
    Failed(Arc<BoxError>),
    /// The function returned a `Vec` with another number of replies than messages.
    Miscounted { replies: usize, messages: usize },
    /// The function panicked.
    Panicked,
}

impl fmt::Display for BatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            BatchFault::Failed(_) => f.write_str("the batch failed"),
            BatchFault::Miscounted { replies, messages } => write!(
                f,
                "the batch's handler returned {replies} replies to {messages} messages; it must \
                 return one for each, in their order"
            ),
            BatchFault::Panicked => f.write_str("the batch's handler panicked"),
        }
    }
}

impl std::error::Error for BatchError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0 {
            BatchFault::Failed(error) => Some(&***error),
            _ => None,
        }
    }
}
