//! The error of this crate's own operations.

use std::{fmt, time::Duration};

use super::{BoxError, RpcError, find};
use crate::message::{EscapedText, MessageId};

/// The error of an operation of this crate.
///
/// The predicates, such as [`is_timeout`](Self::is_timeout), tell the kinds of failures apart. The
/// text describes the failure, and the [`source`](std::error::Error::source) is the cause. The text
/// and the cause contain no password.
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<BoxError>,
}

/// The kind of an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// The timeout of the operation passed.
    Timeout,
    /// There is no connection, so nothing was sent.
    Disconnected,
    /// The message was sent, and the connection was lost before the server's response.
    UnknownOutcome,
    /// The message is stored, but too few replicas have confirmed it.
    Unreplicated,
    /// The message is not stored, since another task has the same unique key.
    Duplicate,
    /// The message is not stored, since an earlier task with the same idempotency key has other
    /// content.
    ReusedKey,
    /// The message is not stored, since too many messages wait on its stream.
    Overloaded,
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
    ForcedShutdown,
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

    /// Creates the error of an invalid setting. This constructor and those below are for transports
    /// outside this crate.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, message)
    }

    /// Creates the error of an operation that sent nothing because there is no connection.
    pub fn disconnected(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Disconnected, message)
    }

    /// Creates the error of a message that was sent and may or may not be stored.
    pub fn unknown_outcome(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::UnknownOutcome, message)
    }

    /// Creates the error of a message that is stored under this id, but was confirmed by fewer
    /// replicas than the sender requested.
    pub fn unreplicated(id: MessageId, message: impl Into<String>) -> Self {
        Self::unreplicated_with_source(id, message, None)
    }

    /// Creates an [`unreplicated`](Self::unreplicated) error. `source` says why the confirmations
    /// are missing.
    pub(crate) fn unreplicated_with_source(
        id: MessageId,
        message: impl Into<String>,
        source: Option<BoxError>,
    ) -> Self {
        Self::new(ErrorKind::Unreplicated, message).with_source(StoredMessage { id, source })
    }

    /// Creates the error of a task that was refused because another task has the same unique key.
    /// `id` is the id of the other task.
    pub fn duplicate(id: MessageId) -> Self {
        let text = format!("the task `{id}` has the same unique key and has not ended");
        Self::new(ErrorKind::Duplicate, text).with_source(StoredMessage { id, source: None })
    }

    /// Creates the error of a task that was refused because an earlier task has the same
    /// idempotency key and other content. `id` is the id of the earlier task.
    pub fn reused_key(id: MessageId) -> Self {
        let text = format!("the task `{id}` has the same idempotency key and other content");
        Self::new(ErrorKind::ReusedKey, text).with_source(StoredMessage { id, source: None })
    }

    /// Creates the error of a message that was refused because too many messages wait on its
    /// stream. A sender may try again after `retry_after`.
    pub fn overloaded(message: impl Into<String>, retry_after: Duration) -> Self {
        Self::new(ErrorKind::Overloaded, message).with_source(RetryAfter(retry_after))
    }

    /// Creates the error of an operation whose timeout passed.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Timeout, message)
    }

    /// Creates the error of a command that the server refused.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused, message)
    }

    /// Creates the error of a message that is invalid for this transport.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// Creates the error of a transport that is closed.
    pub fn closed() -> Self {
        Self::new(ErrorKind::Closed, "the transport is closed")
    }

    /// Converts the error of a service into the error of the operation that called it. A [`Client`]
    /// does this with the errors of its service. Use this function if you call a service without a
    /// client.
    ///
    /// If the error is an `Error` itself, it is returned unchanged. If the chain of sources has an
    /// [`RpcError`], the result is an [error reply](Self::rpc). If the chain has tower's timeout
    /// error, the result is a [timeout](Self::is_timeout). Any other error becomes the source of
    /// the result.
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

    /// Returns `true` if the timeout of the operation passed. A message that was sent may still
    /// take effect.
    pub fn is_timeout(&self) -> bool {
        self.kind == ErrorKind::Timeout
    }

    /// Returns `true` if nothing was sent because there is no connection. Trying again is safe.
    pub fn is_disconnected(&self) -> bool {
        self.kind == ErrorKind::Disconnected
    }

    /// Returns `true` if the message was sent, and the connection was lost before the server's
    /// response. The message may or may not be stored.
    pub fn is_unknown_outcome(&self) -> bool {
        self.kind == ErrorKind::UnknownOutcome
    }

    /// Returns `true` if the message is stored, but was confirmed by fewer replicas than
    /// [`Call::replicas`](crate::client::Call::replicas) requested. Workers will handle the
    /// message, unless a failover loses it. [`stored_id`](Self::stored_id) returns its id.
    ///
    /// Sending the message again stores a second message, unless it has an idempotency key. With
    /// the same key, the call stores nothing and only waits for the replicas again.
    pub fn is_unreplicated(&self) -> bool {
        self.kind == ErrorKind::Unreplicated
    }

    /// Returns `true` if the task was refused because another task has the same
    /// [unique key](crate::message::OnConflict::Refuse). [`stored_id`](Self::stored_id) returns the
    /// id of that task.
    pub fn is_duplicate(&self) -> bool {
        self.kind == ErrorKind::Duplicate
    }

    /// Returns `true` if the task was refused because an earlier task has the same idempotency key
    /// and another [digest](crate::Parts::content_digest). [`stored_id`](Self::stored_id) returns
    /// the id of that task.
    pub fn is_reused_key(&self) -> bool {
        self.kind == ErrorKind::ReusedKey
    }

    /// Returns `true` if nothing was stored because the stream has reached the sender's
    /// [bound](crate::transport::memory::Memory::max_waiting): too many messages wait on the
    /// stream, or a message has waited for too long. [`retry_after`](Self::retry_after) says when
    /// there may be room.
    ///
    /// If a handler fails with this error, its task is delivered again, and the failed attempt does
    /// not count.
    pub fn is_overloaded(&self) -> bool {
        self.kind == ErrorKind::Overloaded
    }

    /// If the stream is [full](Self::is_overloaded), returns the time after which a sender may try
    /// again. By then, the stream should be below 90% of the sender's bound, if workers take
    /// messages as fast as before. The time is from 1 s to 5 min. It is 5 s if the rate of the
    /// workers is unknown.
    pub fn retry_after(&self) -> Option<Duration> {
        find::<RetryAfter>(self.source.as_deref()?).map(|it| it.0)
    }

    /// If the call failed but the message is stored, returns the id of the message. For a
    /// [duplicate](Self::is_duplicate) or a [reused key](Self::is_reused_key), returns the id of
    /// the other task.
    pub fn stored_id(&self) -> Option<&MessageId> {
        find::<StoredMessage>(self.source.as_deref()?).map(|stored| &stored.id)
    }

    /// Returns `true` if the server refused the command, for example because of a missing
    /// permission, missing memory or a key of another type.
    pub fn is_refused(&self) -> bool {
        self.kind == ErrorKind::Refused
    }

    /// Returns `true` if the input of the caller is invalid, such as a name, a header or a payload.
    pub fn is_invalid(&self) -> bool {
        self.kind == ErrorKind::Invalid
    }

    /// Returns `true` if the reply cannot be read as the requested type.
    pub fn is_decode(&self) -> bool {
        self.kind == ErrorKind::Decode
    }

    /// Returns `true` if a setting is invalid.
    pub fn is_config(&self) -> bool {
        self.kind == ErrorKind::Config
    }

    /// Returns `true` if the transport is closed.
    pub fn is_closed(&self) -> bool {
        self.kind == ErrorKind::Closed
    }

    /// Returns `true` if a forced shutdown dropped running handlers. Their messages are delivered
    /// again when their leases end. The text has the number of handlers.
    pub fn is_forced_shutdown(&self) -> bool {
        self.kind == ErrorKind::ForcedShutdown
    }

    /// If the request was answered with an error, returns this error reply.
    pub fn rpc(&self) -> Option<&RpcError> {
        find(self.source.as_deref()?)
    }

    /// Returns the error and its sources on one line, escaped and shortened for logs.
    pub(crate) fn chain(&self) -> String {
        shown_chain(self)
    }
}

/// Returns an error and its sources on one line. Errors of handlers and servers may quote text from
/// senders, so the line is escaped and shortened.
pub(crate) fn shown_chain(error: &(dyn std::error::Error + 'static)) -> String {
    const MAX_LEN: usize = 2048;
    EscapedText::new(&chain(error)).at_most(MAX_LEN).to_string()
}

/// Returns an error and up to 16 of its sources on one line.
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

/// Shows the text and the causes on one line, because `main` and `unwrap` print errors with
/// `Debug`.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// The source of an [`Error`] that names a stored message: the message of the failed call, or
/// another task with the same key.
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

/// The source of an [`Error`] of a call that failed because the stream is full.
#[derive(Debug)]
struct RetryAfter(Duration);

impl fmt::Display for RetryAfter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "try again in {:.0?}", self.0)
    }
}

impl std::error::Error for RetryAfter {}
