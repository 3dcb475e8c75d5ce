//! The error of this crate's own operations.

use std::fmt;

use super::{BoxError, RpcError, find};
use crate::message::Shown;

/// Why an operation of this crate failed.
///
/// Ask it what it is by its predicates; its text says what to do, its
/// [`source`](std::error::Error::source) what was behind it. No password is ever part of either.
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<BoxError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The time for it was used up.
    Timeout,
    /// Nothing was sent: there is no connection.
    Disconnected,
    /// It was sent, and the connection was lost before the answer.
    Unknown,
    /// The server said no.
    Refused,
    /// The caller's input cannot be sent.
    Invalid,
    /// The answer cannot be read as what was asked for.
    Decode,
    /// The set-up cannot work.
    Config,
    /// The other side answered with an error.
    Rpc,
    /// The service that the client stands on failed.
    Service,
    /// It was closed before.
    Closed,
    /// Running handlers were dropped, because the shutdown was forced.
    Forced,
}

impl Error {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    pub(crate) fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// For transports outside this crate: it cannot be used as it was set up.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(Kind::Config, message)
    }

    /// For transports outside this crate: there is no connection, nothing was sent.
    pub fn disconnected(message: impl Into<String>) -> Self {
        Self::new(Kind::Disconnected, message)
    }

    /// For transports outside this crate: it was sent, whether it was taken is not known.
    pub fn unknown_outcome(message: impl Into<String>) -> Self {
        Self::new(Kind::Unknown, message)
    }

    /// For transports outside this crate: the time for it was used up.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(Kind::Timeout, message)
    }

    /// For transports outside this crate: the server refused it.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(Kind::Refused, message)
    }

    /// For transports outside this crate: it cannot be sent as it is.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// For transports outside this crate: it was closed before.
    pub fn closed() -> Self {
        Self::new(Kind::Closed, "the transport is closed")
    }

    /// What a service failed with, as the error of the operation that called it.
    pub(crate) fn from_service(error: BoxError) -> Self {
        let error = match error.downcast::<Error>() {
            Ok(error) => return *error,
            Err(error) => error,
        };
        if let Some(answer) = find::<RpcError>(&*error) {
            return answer.clone().into();
        }
        if find::<tower::timeout::error::Elapsed>(&*error).is_some() {
            return Self::new(Kind::Timeout, "the call timed out").with_source(error);
        }
        Self::new(Kind::Service, "the service failed").with_source(error)
    }

    /// The time for it was used up. What was sent may still take effect.
    pub fn is_timeout(&self) -> bool {
        self.kind == Kind::Timeout
    }

    /// There was no connection and nothing was sent: trying again is safe.
    pub fn is_disconnected(&self) -> bool {
        self.kind == Kind::Disconnected
    }

    /// It was sent, and the connection was lost before the server's answer: it may or may not have
    /// been taken.
    pub fn is_unknown_outcome(&self) -> bool {
        self.kind == Kind::Unknown
    }

    /// The server refused: no right, no memory, a key of another type.
    pub fn is_refused(&self) -> bool {
        self.kind == Kind::Refused
    }

    /// The input cannot be sent: a name, a header or a payload.
    pub fn is_invalid(&self) -> bool {
        self.kind == Kind::Invalid
    }

    /// The answer is not what was asked for.
    pub fn is_decode(&self) -> bool {
        self.kind == Kind::Decode
    }

    /// The set-up cannot work as it is.
    pub fn is_config(&self) -> bool {
        self.kind == Kind::Config
    }

    /// The transport was closed before.
    pub fn is_closed(&self) -> bool {
        self.kind == Kind::Closed
    }

    /// A forced shutdown has dropped running handlers. Their messages are delivered again when their
    /// leases end; the text says how many there were.
    pub fn is_forced_shutdown(&self) -> bool {
        self.kind == Kind::Forced
    }

    /// What the other side answered, where it answered with an error.
    pub fn rpc(&self) -> Option<&RpcError> {
        find(self.source.as_deref()?)
    }

    /// The whole chain on one line, bounded and escaped, for logs.
    pub(crate) fn chain(&self) -> String {
        shown_chain(self)
    }
}

/// [`chain`] as a log may have it: handlers and servers quote in their errors what senders wrote.
pub(crate) fn shown_chain(error: &(dyn std::error::Error + 'static)) -> String {
    const MAX_LEN: usize = 2048;
    Shown::new(&chain(error)).at_most(MAX_LEN).to_string()
}

/// An error and all of its sources on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    for source in std::iter::successors(error.source(), |error| error.source()).take(16) {
        text.push_str(": ");
        text.push_str(&source.to_string());
    }
    text
}

impl From<RpcError> for Error {
    fn from(answer: RpcError) -> Self {
        Self::new(Kind::Rpc, "the request was answered with an error").with_source(answer)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.kind)
            .field("message", &self.message)
            .field("source", &self.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
