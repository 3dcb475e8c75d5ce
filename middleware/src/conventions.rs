//! What [OpenTelemetry's conventions for messaging] (v1.44) call things here: the [`Operation`] that
//! a span or a metric is about, and the [`Fault`] that it ended with.
//!
//! [OpenTelemetry's conventions for messaging]: https://github.com/open-telemetry/semantic-conventions/tree/v1.44.0/docs/messaging
//!
//! | attribute | here |
//! |---|---|
//! | `messaging.system` | `redis`, unless a layer is told otherwise: it does not know what it stands on |
//! | `messaging.destination.name` | the message's name, such as `orders.create`; for what is received in batches, the stream |
//! | `messaging.destination.template` | the route, where it is another text: an event's pattern, a fallback's prefix |
//! | `messaging.consumer.group.name` | the consumer group, where a layer is told of it |
//! | `messaging.message.id` | the id that the transport gave the message |
//! | `messaging.message.conversation_id` | the id by which a request's reply is found, on the side that handles it: the sending transport makes it up after the span has begun |
//!
//! There is no operation for a reply, and so none that names a reply channel: to the caller it is the
//! end of the request, to the handler that of the processing.

use std::fmt;

use campanile::{
    BoxError, Error, Failure, Kind, NotFound, Rejection, RpcCode, RpcError,
    error::{Settle, find},
};
use tower::{load_shed::error::Overloaded, timeout::error::Elapsed};

/// What is done with a message: `messaging.operation.name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// A task is sent: until a transport has taken it.
    Send,
    /// An event is published: until a transport has taken it.
    Publish,
    /// A request is made: until its answer is there.
    Request,
    /// Deliveries are fetched.
    Receive,
    /// A delivery is handled.
    Process,
}

impl Operation {
    /// What a client does with a message of this kind.
    pub const fn of_client(kind: Kind) -> Self {
        match kind {
            Kind::Task => Self::Send,
            Kind::Event => Self::Publish,
            Kind::Rpc => Self::Request,
        }
    }

    /// `messaging.operation.name`: `send`, `publish`, `request`, `receive` or `process`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Publish => "publish",
            Self::Request => "request",
            Self::Receive => "receive",
            Self::Process => "process",
        }
    }

    /// `messaging.operation.type`: `send`, `receive` or `process`.
    pub const fn type_name(self) -> &'static str {
        match self {
            Self::Send | Self::Publish | Self::Request => "send",
            Self::Receive => "receive",
            Self::Process => "process",
        }
    }

    /// The kind of its span: `producer`, `client` or `consumer`. A request waits for its answer, so
    /// its span is a client's.
    pub const fn span_kind(self) -> &'static str {
        match self {
            Self::Send | Self::Publish => "producer",
            Self::Request | Self::Receive => "client",
            Self::Process => "consumer",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// On which side of a transport a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Serving,
    Client,
}

impl Side {
    pub(crate) fn operation(self, kind: Kind) -> Operation {
        match self {
            Side::Serving => Operation::Process,
            Side::Client => Operation::of_client(kind),
        }
    }
}

/// How an operation failed.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Fault<'a> {
    /// The service returned an error.
    Error(&'a BoxError),
    /// The service panicked. The panic goes on.
    Panicked,
    /// The future was dropped before it was done: a time-out further out, a caller that no longer
    /// waits, a forced shutdown. What it did until then may have taken effect.
    Dropped,
}

impl Fault<'_> {
    /// `error.type`: one of a fixed set of words, fit for a label.
    ///
    /// | word | the error, or the nearest one in its chain |
    /// |---|---|
    /// | `not_found`, `invalid`, `unavailable`, `deadline`, `internal` | an [`RpcError`] of that code |
    /// | `rpc_error` | an [`RpcError`] with a code of the application's own |
    /// | `not_found` | [`NotFound`]: no route |
    /// | `rejected`, `misconfigured` | a [`Rejection`] that is permanent, or is not |
    /// | `timeout` | tower's `Elapsed`; an [`Error`] that is one |
    /// | `overloaded` | tower's `Overloaded` |
    /// | `disconnected`, `unknown_outcome`, `refused`, `unsendable`, `undecodable`, `config`, `closed` | an [`Error`] that is this |
    /// | `redeliver`, `dead_letter`, `discard` | a [`Failure`] without one of the above as its cause |
    /// | `panic` | it panicked |
    /// | `dropped` | its future was dropped |
    /// | `_OTHER` | any other |
    pub fn error_type(&self) -> &'static str {
        match self {
            Self::Error(error) => class(&***error),
            Self::Panicked => "panic",
            Self::Dropped => "dropped",
        }
    }

    /// The error, where there is one.
    pub fn error(&self) -> Option<&BoxError> {
        match self {
            Self::Error(error) => Some(error),
            Self::Panicked | Self::Dropped => None,
        }
    }
}

/// The error with all of its sources on one line.
impl fmt::Display for Fault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = match self {
            Self::Error(error) => error,
            Self::Panicked => return f.write_str("it panicked"),
            Self::Dropped => return f.write_str("it was dropped before it was done"),
        };
        error.fmt(f)?;
        // A chain that loops would otherwise never end.
        let sources = std::iter::successors(error.source(), |error| error.source()).take(16);
        for source in sources {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

fn class(error: &(dyn std::error::Error + 'static)) -> &'static str {
    if let Some(answer) = find::<RpcError>(error) {
        code(answer.code())
    } else if find::<NotFound>(error).is_some() {
        "not_found"
    } else if let Some(rejection) = find::<Rejection>(error) {
        match rejection.is_permanent() {
            true => "rejected",
            false => "misconfigured",
        }
    } else if find::<Elapsed>(error).is_some() {
        "timeout"
    } else if find::<Overloaded>(error).is_some() {
        "overloaded"
    } else if let Some(word) = find::<Error>(error).and_then(operation_error) {
        word
    } else if let Some(failure) = find::<Failure>(error) {
        match failure.settle() {
            Settle::Redeliver { .. } => "redeliver",
            Settle::DeadLetter => "dead_letter",
            Settle::Discard => "discard",
            _ => OTHER,
        }
    } else {
        OTHER
    }
}

fn code(code: &RpcCode) -> &'static str {
    match code {
        RpcCode::NotFound => "not_found",
        RpcCode::Invalid => "invalid",
        RpcCode::Unavailable => "unavailable",
        RpcCode::Deadline => "deadline",
        RpcCode::Internal => "internal",
        // It came from the other side, so it could be any text.
        _ => "rpc_error",
    }
}

fn operation_error(error: &Error) -> Option<&'static str> {
    let words = [
        (error.is_timeout(), "timeout"),
        (error.is_disconnected(), "disconnected"),
        (error.is_unknown_outcome(), "unknown_outcome"),
        (error.is_refused(), "refused"),
        (error.is_invalid(), "unsendable"),
        (error.is_decode(), "undecodable"),
        (error.is_config(), "config"),
        (error.is_closed(), "closed"),
    ];
    words.into_iter().find_map(|(is, word)| is.then_some(word))
}

/// What the conventions call an error, or anything else, that has no name of its own.
pub(crate) const OTHER: &str = "_OTHER";

/// `messaging.system` where a layer is told of no other.
pub(crate) const SYSTEM: &str = "redis";

#[cfg(test)]
mod tests {
    use super::*;

    fn class_of(error: impl Into<BoxError>) -> &'static str {
        Fault::Error(&error.into()).error_type()
    }

    #[test]
    fn every_error_of_ours_and_towers_has_a_word() {
        let words = [
            (class_of(RpcError::unavailable("")), "unavailable"),
            (
                class_of(RpcError::new("quota".into(), "none left")),
                "rpc_error",
            ),
            (class_of(NotFound::new(Kind::Task, "a".into())), "not_found"),
            (class_of(Rejection::permanent("")), "rejected"),
            (class_of(Rejection::ordinary("")), "misconfigured"),
            (class_of(Elapsed::new()), "timeout"),
            (class_of(Overloaded::new()), "overloaded"),
            (class_of(Error::timeout("")), "timeout"),
            (class_of(Error::disconnected("")), "disconnected"),
            (class_of(Error::unknown_outcome("")), "unknown_outcome"),
            (class_of(Error::refused("")), "refused"),
            (class_of(Error::invalid("")), "unsendable"),
            (class_of(Error::config("")), "config"),
            (class_of(Error::closed()), "closed"),
            (class_of(Error::from(RpcError::invalid(""))), "invalid"),
            (class_of(Failure::redeliver()), "redeliver"),
            (class_of(Failure::dead_letter()), "dead_letter"),
            (class_of(Failure::discard()), "discard"),
            (class_of("disk full"), "_OTHER"),
        ];
        for (class, word) in words {
            assert_eq!(class, word);
        }
    }

    #[test]
    fn a_failures_cause_says_more_than_the_failure() {
        let failure = || Failure::dead_letter();
        assert_eq!(class_of(failure().because(Elapsed::new())), "timeout");
        assert_eq!(class_of(failure().because("disk full")), "dead_letter");
    }

    #[test]
    fn a_fault_shows_the_whole_chain() {
        let error = Failure::discard().because("disk full").into();
        let shown = Fault::Error(&error).to_string();
        assert_eq!(shown, "the delivery is to be discarded: disk full");
    }
}
