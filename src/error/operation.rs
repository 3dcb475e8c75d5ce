//! The error of this crate's own operations.

use std::fmt;

use super::{BoxError, RpcError, find};
use crate::message::{MessageId, Shown};

/// The error of an operation of this crate.
///
/// The predicates name the kind of the failure. The text says what to do, and the
/// [`source`](std::error::Error::source) is the cause. Neither contains a password.
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<BoxError>,
}

/// The kind of an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// The operation's time-out passed.
    Timeout,
    /// Nothing was sent: there is no connection.
    Disconnected,
    /// The message was sent, and the connection was lost before the answer.
    Unknown,
    /// The message is stored, but too few replicas have confirmed it.
    Unreplicated,
    /// The server refused the command.
    Refused,
    /// The caller's input cannot be sent.
    Invalid,
    /// The reply cannot be read as the requested type.
    Decode,
    /// A setting is invalid.
    Config,
    /// The request was answered with an error.
    Rpc,
    /// A service failed.
    Service,
    /// The transport is closed.
    Closed,
    /// Running handlers were dropped, because the shutdown was forced.
    Forced,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
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

    /// A setting is invalid. This function and the next functions are for transports outside this
    /// crate.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, message)
    }

    /// There is no connection, and nothing was sent.
    pub fn disconnected(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Disconnected, message)
    }

    /// The message was sent, and it is unknown whether the server stored it.
    pub fn unknown_outcome(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unknown, message)
    }

    /// The message is stored under this id, but fewer replicas have confirmed it than the sender
    /// has asked for.
    pub fn unreplicated(id: MessageId, message: impl Into<String>) -> Self {
        Self::stored(id, message, None)
    }

    /// An [`unreplicated`](Self::unreplicated) message, with the reason why no replica is known to
    /// have it.
    pub(crate) fn stored(
        id: MessageId,
        message: impl Into<String>,
        source: Option<BoxError>,
    ) -> Self {
        Self::new(ErrorKind::Unreplicated, message).with_source(StoredMessage { id, source })
    }

    /// The operation's time-out passed.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Timeout, message)
    }

    /// The server refused the command.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused, message)
    }

    /// The message is invalid for this transport.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// The transport is closed.
    pub fn closed() -> Self {
        Self::new(ErrorKind::Closed, "the transport is closed")
    }

    /// Converts the error of a service into the error of the operation that called it. A [`Client`]
    /// does this with the errors of its service; use it to call a service without a client.
    ///
    /// An `Error` in the box is returned as it is. An [`RpcError`] in the chain of sources is the
    /// error reply of the [other side](Self::rpc), and tower's timeout is a
    /// [timeout](Self::is_timeout). Any other error becomes the source.
    ///
    /// [`Client`]: crate::Client
    ///
    /// ```
    /// use campanile::{Error, Message, Reply, transport::memory::Memory};
    /// use std::time::Duration;
    /// use tower::{Service, ServiceBuilder, ServiceExt};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// let mut sender = ServiceBuilder::new()
    ///     .timeout(Duration::from_secs(5)) // its error is a `BoxError`
    ///     .service(Memory::new());
    /// let sender = sender.ready().await.map_err(Error::from_service)?;
    /// sender.call(Message::task("orders.create", "{}")).await.map_err(Error::from_service)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_service(error: impl Into<BoxError>) -> Self {
        let error = match error.into().downcast::<Error>() {
            Ok(error) => return *error,
            Err(error) => error,
        };
        if let Some(answer) = find::<RpcError>(&*error) {
            return answer.clone().into();
        }
        if find::<tower::timeout::error::Elapsed>(&*error).is_some() {
            return Self::new(ErrorKind::Timeout, "the call timed out").with_source(error);
        }
        Self::new(ErrorKind::Service, "the service failed").with_source(error)
    }

    /// The time-out passed. A message that was sent may still take effect.
    pub fn is_timeout(&self) -> bool {
        self.kind == ErrorKind::Timeout
    }

    /// There was no connection and nothing was sent: trying again is safe.
    pub fn is_disconnected(&self) -> bool {
        self.kind == ErrorKind::Disconnected
    }

    /// The message was sent, and the connection was lost before the server's answer: the message
    /// may or may not be stored.
    pub fn is_unknown_outcome(&self) -> bool {
        self.kind == ErrorKind::Unknown
    }

    /// The message is stored, but fewer replicas have confirmed it than
    /// [`Call::replicas`](crate::client::Call::replicas) has asked for. Workers will handle it,
    /// unless a failover loses it. [`stored_id`](Self::stored_id) is its id.
    ///
    /// To send it again makes a second message. With an idempotency key it does not: the call then
    /// asks the replicas again about the first message.
    pub fn is_unreplicated(&self) -> bool {
        self.kind == ErrorKind::Unreplicated
    }

    /// The id of the message, if it is stored although the call has failed.
    pub fn stored_id(&self) -> Option<&MessageId> {
        find::<StoredMessage>(self.source.as_deref()?).map(|stored| &stored.id)
    }

    /// The server refused the command: a missing right, no memory, a key of another type.
    pub fn is_refused(&self) -> bool {
        self.kind == ErrorKind::Refused
    }

    /// A name, a header or a payload is invalid.
    pub fn is_invalid(&self) -> bool {
        self.kind == ErrorKind::Invalid
    }

    /// The reply cannot be read as the requested type.
    pub fn is_decode(&self) -> bool {
        self.kind == ErrorKind::Decode
    }

    /// A setting is invalid.
    pub fn is_config(&self) -> bool {
        self.kind == ErrorKind::Config
    }

    /// The transport is closed.
    pub fn is_closed(&self) -> bool {
        self.kind == ErrorKind::Closed
    }

    /// A forced shutdown has dropped running handlers. Their messages are delivered again when
    /// their leases end; the text has their number.
    pub fn is_forced_shutdown(&self) -> bool {
        self.kind == ErrorKind::Forced
    }

    /// The error reply of the other side, if that is the cause of this error.
    pub fn rpc(&self) -> Option<&RpcError> {
        find(self.source.as_deref()?)
    }

    /// The error and its sources on one line, bounded and escaped, for logs.
    pub(crate) fn chain(&self) -> String {
        shown_chain(self)
    }
}

/// Like [`chain`], escaped and bounded for logs: errors of handlers and servers quote text of
/// senders.
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
        Self::new(ErrorKind::Rpc, "the request was answered with an error").with_source(answer)
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

/// The id of a message that is stored although its call has failed.
#[derive(Debug)]
struct StoredMessage {
    id: MessageId,
    source: Option<BoxError>,
}

impl fmt::Display for StoredMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it is stored as {}", self.id)
    }
}

impl std::error::Error for StoredMessage {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
