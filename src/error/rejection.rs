//! The error of extractors.

use std::fmt;

use super::BoxError;

/// The error of an extractor whose value is missing or malformed.
///
/// There are two kinds, which [`is_permanent`](Self::is_permanent) tells apart:
///
/// - Permanent: the *message* is invalid, because its payload or its headers do not fit the
///   handler. A retry cannot help, so a task becomes a dead letter immediately, and a request is
///   answered with `invalid`.
/// - Ordinary: the *deployment* is wrong. For example, the layer that adds an extension is missing.
///   A task is delivered again, perhaps to a corrected deployment.
///
/// [`find`](super::find) finds a rejection anywhere in an error's chain. The rejections of this
/// crate name the place and the kind of the fault, and never quote the payload.
///
/// ```
/// use campanile::{BoxError, Rejection, error};
///
/// let error: BoxError = Rejection::permanent("the header `x-tenant` is missing").into();
/// assert!(error::find::<Rejection>(&*error).is_some_and(Rejection::is_permanent));
/// ```
#[derive(Debug)]
pub struct Rejection {
    is_permanent: bool,
    message: String,
    source: Option<BoxError>,
}

impl Rejection {
    /// Creates a permanent rejection: the message is invalid.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self {
            is_permanent: true,
            message: message.into(),
            source: None,
        }
    }

    /// Creates an ordinary rejection: another deployment may be able to handle the message.
    pub fn ordinary(message: impl Into<String>) -> Self {
        Self {
            is_permanent: false,
            message: message.into(),
            source: None,
        }
    }

    /// Adds the cause. The cause appears in logs, so it must not quote the payload.
    pub fn because(mut self, cause: impl Into<BoxError>) -> Self {
        self.source = Some(cause.into());
        self
    }

    /// Returns `true` if the message itself is invalid, so that no retry can help.
    pub fn is_permanent(&self) -> bool {
        self.is_permanent
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
