//! Error replies to RPC requests.

use std::{
    borrow::Cow,
    fmt,
    hash::{Hash, Hasher},
};

/// The kind of an [`RpcError`], for programs. Each code has a short text, which is sent to the
/// caller. Two codes with the same text are equal.
///
/// ```
/// use campanile::{RpcCode, RpcError};
///
/// let error = RpcError::not_found("no such order");
/// assert_eq!(error.code(), &RpcCode::NotFound);
///
/// // A code of the application.
/// let error = RpcError::new(RpcCode::from("out_of_stock"), "none is left");
/// assert_eq!(error.code().as_str(), "out_of_stock");
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum RpcCode {
    /// No handler has the name of the request, or the requested object does not exist: `not_found`.
    NotFound,
    /// The request is invalid, and sending it again cannot help: `invalid`.
    Invalid,
    /// The request cannot be handled now, and sending it again may help: `unavailable`.
    Unavailable,
    /// The deadline passed: `deadline`.
    Deadline,
    /// The handler failed: `internal`.
    Internal,
    /// A code of the application. If its text belongs to a variant above, [`RpcError::new`]
    /// replaces the code with that variant. So the handler and its caller see the same variant.
    Other(Cow<'static, str>),
}

impl RpcCode {
    /// Returns the text of the code, as it is sent to the caller.
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

impl RpcCode {
    /// Returns the variant with this text. `None` if this is the text of a code of the application.
    fn from_known_text(text: &str) -> Option<Self> {
        Some(match text {
            "not_found" => RpcCode::NotFound,
            "invalid" => RpcCode::Invalid,
            "unavailable" => RpcCode::Unavailable,
            "deadline" => RpcCode::Deadline,
            "internal" => RpcCode::Internal,
            _ => return None,
        })
    }
}

impl From<&str> for RpcCode {
    fn from(text: &str) -> Self {
        Self::from_known_text(text).unwrap_or_else(|| RpcCode::Other(Cow::Owned(text.to_owned())))
    }
}

impl PartialEq for RpcCode {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for RpcCode {}

impl Hash for RpcCode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl fmt::Display for RpcCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error reply of an RPC handler to its caller.
///
/// The caller gets the code and the text of this error unchanged. If a handler returns an error
/// type of the application instead, the caller gets the code `internal`. The caller gets the text
/// of that error only if the worker sets
/// [`expose_error_text`](crate::serve::Serve::expose_error_text).
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
    /// Creates an error with a code and a text.
    pub fn new(code: RpcCode, message: impl Into<String>) -> Self {
        Self {
            // The caller decodes a known text to its variant, so the handler uses this variant,
            // too.
            code: RpcCode::from_known_text(code.as_str()).unwrap_or(code),
            message: message.into(),
        }
    }

    /// Creates an error with the code `not_found`: the requested object does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(RpcCode::NotFound, message)
    }

    /// Creates an error with the code `invalid`: the request is invalid.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(RpcCode::Invalid, message)
    }

    /// Creates an error with the code `unavailable`: the request cannot be handled now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(RpcCode::Unavailable, message)
    }

    /// Creates an error with the code `deadline`: the deadline passed.
    pub fn deadline(message: impl Into<String>) -> Self {
        Self::new(RpcCode::Deadline, message)
    }

    /// Creates an error with the code `internal`: the handler failed.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(RpcCode::Internal, message)
    }

    /// Returns the code, for programs.
    pub fn code(&self) -> &RpcCode {
        &self.code
    }

    /// Returns the text, for people. May be empty.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_the_same_on_both_sides_of_the_wire() {
        let codes = [
            RpcCode::NotFound,
            RpcCode::Invalid,
            RpcCode::Unavailable,
            RpcCode::Deadline,
            RpcCode::Internal,
            RpcCode::Other("quota".into()),
        ];
        for code in codes {
            let other = RpcCode::Other(code.as_str().to_owned().into());
            let decoded = RpcCode::from(code.as_str());
            assert_eq!((&other, &decoded), (&code, &code));
            let error = RpcError::new(other, "why");
            assert_eq!(error, RpcError::new(decoded, "why"));
            // Codes of different variants can be equal, so the variants are compared, too.
            let variant = std::mem::discriminant::<RpcCode>;
            assert_eq!(variant(error.code()), variant(&code));
        }
        assert_ne!(RpcCode::Other("quota".into()), RpcCode::Internal);
    }
}
