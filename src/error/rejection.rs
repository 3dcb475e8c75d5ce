//! The error of extractors.

use std::fmt;

use super::BoxError;

/// The error of an extractor whose value is missing in the message or malformed.
///
/// [`is_permanent`](Self::is_permanent) tells two kinds apart:
///
/// - Permanent: the *message* is invalid, since its payload or its headers do not fit the handler.
///   A retry cannot change that, so a task becomes a dead letter at once and a request is answered
///   with `invalid`.
/// - Ordinary: the *deployment* is wrong, such as a missing layer for an extension. The message is
///   delivered again, perhaps to a corrected deployment.
///
/// [`find`](super::find) finds a rejection anywhere in an error's chain. The text of a rejection
/// names the place and the kind of the fault and never contains the payload.
///
/// ```
/// use campanile::{BoxError, Rejection, error};
///
/// let error: BoxError = Rejection::permanent("the header `x-tenant` is missing").into();
/// assert!(error::find::<Rejection>(&*error).is_some_and(Rejection::is_permanent));
/// ```
#[derive(Debug)]
pub struct Rejection {
    permanent: bool,
    message: String,
    source: Option<BoxError>,
}

impl Rejection {
    /// A permanent rejection: the message is invalid.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self {
            permanent: true,
            message: message.into(),
            source: None,
        }
    }

    /// An ordinary rejection: another deployment may be able to handle the message.
    pub fn ordinary(message: impl Into<String>) -> Self {
        Self {
            permanent: false,
            message: message.into(),
            source: None,
        }
    }

    /// Adds the cause. It appears in logs, so it must not quote the payload.
    pub fn because(mut self, cause: impl Into<BoxError>) -> Self {
        self.source = Some(cause.into());
        self
    }

    /// Returns whether the message itself is invalid, so that no retry can help.
    pub fn is_permanent(&self) -> bool {
        self.permanent
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Rejection {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
