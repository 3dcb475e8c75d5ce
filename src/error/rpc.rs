//! The error half of an RPC reply.

use std::{borrow::Cow, fmt};

/// What kind of error an [`RpcError`] is, for machines. It travels as a short text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RpcCode {
    /// No handler for the name, or no such thing: `not_found`.
    NotFound,
    /// The request cannot be understood; sending it again cannot help: `invalid`.
    Invalid,
    /// Not now; sending it again may help: `unavailable`.
    Unavailable,
    /// It took too long: `deadline`.
    Deadline,
    /// The handler failed: `internal`.
    Internal,
    /// A code of the application's own.
    Other(Cow<'static, str>),
}

impl RpcCode {
    /// The text on the wire.
    pub fn as_str(&self) -> &str {
        match self {
            RpcCode::NotFound => "not_found",
            RpcCode::Invalid => "invalid",
            RpcCode::Unavailable => "unavailable",
            RpcCode::Deadline => "deadline",
            RpcCode::Internal => "internal",
            RpcCode::Other(text) => text,
        }
    }
}

impl From<&str> for RpcCode {
    fn from(text: &str) -> Self {
        match text {
            "not_found" => RpcCode::NotFound,
            "invalid" => RpcCode::Invalid,
            "unavailable" => RpcCode::Unavailable,
            "deadline" => RpcCode::Deadline,
            "internal" => RpcCode::Internal,
            other => RpcCode::Other(Cow::Owned(other.to_owned())),
        }
    }
}

impl fmt::Display for RpcCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error that an RPC handler answers with, and that its caller gets.
///
/// Its message is sent to the caller as it is. Any other error of a handler reaches the caller only
/// as `internal`, without its text.
///
/// ```
/// use campanile::{RpcCode, RpcError};
///
/// let error = RpcError::new(RpcCode::Other("quota".into()), "no more requests today");
/// assert_eq!(error.to_string(), "no more requests today (quota)");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RpcError {
    code: RpcCode,
    message: String,
}

impl RpcError {
    /// An error with a code.
    pub fn new(code: RpcCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// There is no such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(RpcCode::NotFound, message)
    }

    /// The request makes no sense.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(RpcCode::Invalid, message)
    }

    /// Not now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(RpcCode::Unavailable, message)
    }

    /// It took too long.
    pub fn deadline(message: impl Into<String>) -> Self {
        Self::new(RpcCode::Deadline, message)
    }

    /// The handler failed.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(RpcCode::Internal, message)
    }

    /// For machines.
    pub fn code(&self) -> &RpcCode {
        &self.code
    }

    /// For people. May be empty.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() {
            write!(f, "{}", self.code)
        } else {
            write!(f, "{} ({})", self.message, self.code)
        }
    }
}

impl std::error::Error for RpcError {}
