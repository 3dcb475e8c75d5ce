//! Why an extractor could not get what a handler asked for.

use std::fmt;

use super::BoxError;

/// The error of an extractor that found no such thing in the message, or something malformed.
///
/// It is one of two things, and [`is_permanent`](Self::is_permanent) says which:
///
/// - The *message* is at fault: its payload or its headers are not what the handler takes. No
///   retry can change that, so a task becomes a dead letter at once and a request is answered with
///   `invalid`.
/// - The *deployment* is: an extension that no layer added, say. That is an ordinary failure; the
///   next deployment may do better.
///
/// It is found wherever it stands in an error's chain, with [`find`](super::find). The texts name
/// the place and the kind of a fault and never show the payload.
///
/// ```
/// use campanile::{error::{self, Rejection}, BoxError};
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
    /// The message is at fault, and stays so.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self {
            permanent: true,
            message: message.into(),
            source: None,
        }
    }

    /// The deployment is at fault: another one may be able to handle the message.
    pub fn ordinary(message: impl Into<String>) -> Self {
        Self {
            permanent: false,
            message: message.into(),
            source: None,
        }
    }

    /// Adds the cause. It is shown in logs, so it must not quote the payload.
    pub fn because(mut self, cause: impl Into<BoxError>) -> Self {
        self.source = Some(cause.into());
        self
    }

    /// Whether the message itself is at fault, so that no retry can help.
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
