//! The names of [OpenTelemetry's conventions for messaging] (v1.44): the [`Operation`] of a span or
//! a metric, and the [`Fault`] with which an operation failed.
//!
//! [OpenTelemetry's conventions for messaging]: https://github.com/open-telemetry/semantic-conventions/tree/v1.44.0/docs/messaging
//!
//! | attribute | value |
//! |---|---|
//! | `messaging.system` | `redis`, unless set: a layer does not know its transport |
//! | `messaging.destination.name` | the message's name, such as `orders.create`; the stream for batches that are received |
//! | `messaging.destination.template` | the route, if it differs from the name: an event's pattern, a fallback's prefix |
//! | `messaging.consumer.group.name` | the consumer group, if set |
//! | `messaging.message.id` | the id that the transport gave the message |
//! | `messaging.message.conversation_id` | the correlation id of a request, on the handling side only: the sending transport generates it after the span has started |
//!
//! The hooks of [`TraceLayer`](crate::TraceLayer) get the operation and the fault:
//!
//! ```
//! # #[cfg(feature = "trace")] {
//! use std::time::Duration;
//! use campanile::Message;
//! use campanile_middleware::{TraceLayer, conventions::{Fault, Operation}};
//! use tracing::{Span, info_span, warn};
//!
//! let span = |message: &Message, operation: Operation| {
//!     info_span!("message", operation = operation.name(), name = &**message.name())
//! };
//! let failed = |fault: &Fault<'_>, after: Duration, _: &Span| {
//!     warn!(error_type = fault.error_type(), ?after, "failed");
//! };
//! let layer = TraceLayer::new().make_span(span).on_failure(failed);
//! # let _ = layer;
//! # }
//! ```
//!
//! A reply is not an operation, so no span has the name of a reply channel. For the caller the
//! reply ends the request, and for the handler it ends the processing.

use std::fmt;

use campanile::{
    BoxError, Error, Failure, Kind, NotFound, Rejection, RpcCode, RpcError,
    error::{FailureVerdict, find},
};
use tower::{load_shed::error::Overloaded, timeout::error::Elapsed};

/// An operation on a message, the value of `messaging.operation.name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// A client sends a task. Ends when the transport has accepted the task.
    Send,
    /// A client publishes an event. Ends when the transport has accepted the event.
    Publish,
    /// A client makes a request. Ends with its reply.
    Request,
    /// Deliveries are fetched.
    Receive,
    /// A delivery is handled.
    Process,
}

impl Operation {
    /// Returns the operation by which a client sends a message of this kind.
    pub const fn of_client(kind: Kind) -> Self {
        match kind {
            Kind::Task => Self::Send,
            Kind::Event => Self::Publish,
            Kind::Rpc => Self::Request,
        }
    }

    /// Returns the value of `messaging.operation.name`: `send`, `publish`, `request`, `receive` or
    /// `process`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Publish => "publish",
            Self::Request => "request",
            Self::Receive => "receive",
            Self::Process => "process",
        }
    }

    /// Returns the value of `messaging.operation.type`: `send`, `receive` or `process`.
    pub const fn type_name(self) -> &'static str {
        match self {
            Self::Send | Self::Publish | Self::Request => "send",
            Self::Receive => "receive",
            Self::Process => "process",
        }
    }

    /// Returns the kind of the operation's span: `producer`, `client` or `consumer`. A request has
    /// the kind `client`, because its span includes the wait for the reply.
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

/// The side of a transport that a layer is on.
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

/// The reason why an operation failed: an error, a panic or a drop.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Fault<'a> {
    /// The service returned an error.
    Error(&'a BoxError),
    /// The service panicked. The layer does not catch the panic.
    Panicked,
    /// The future was dropped before its end, for example by an outer timeout layer, by a caller
    /// that stopped waiting, or by a forced shutdown. The work may have had effects.
    Dropped,
}

impl Fault<'_> {
    /// Returns the value of `error.type`: a word of a fixed set, so that metrics can have it as a
    /// label. The first row whose type is in the chain of sources decides.
    ///
    /// | word | fault |
    /// |---|---|
    /// | `not_found`, `invalid`, `unavailable`, `deadline`, `internal` | an [`RpcError`] with that code |
    /// | `rpc_error` | an [`RpcError`] with an application's code |
    /// | `not_found` | [`NotFound`]: no route matches |
    /// | `rejected`, `misconfigured` | a permanent [`Rejection`], or any other [`Rejection`] |
    /// | `timeout` | tower's `Elapsed`, or an [`Error`] of this kind |
    /// | `overloaded` | tower's `Overloaded`, or an [`Error`] of this kind |
    /// | `disconnected`, `unknown_outcome`, `unreplicated`, `refused`, `unsendable`, `undecodable`, `config`, `closed` | an [`Error`] of this kind |
    /// | `redeliver`, `park`, `dead_letter`, `discard` | a [`Failure`] whose source is none of the above |
    /// | `panic` | a panic |
    /// | `dropped` | a dropped future |
    /// | `_OTHER` | any other error |
    pub fn error_type(&self) -> &'static str {
        match self {
            Self::Error(error) => error_type(&***error),
            Self::Panicked => "panic",
            Self::Dropped => "dropped",
        }
    }

    /// Returns the error, or `None` for a panic or a drop.
    pub fn error(&self) -> Option<&BoxError> {
        match self {
            Self::Error(error) => Some(error),
            Self::Panicked | Self::Dropped => None,
        }
    }
}

/// Writes the error and all of its sources on one line.
impl fmt::Display for Fault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = match self {
            Self::Error(error) => error,
            Self::Panicked => return f.write_str("the handler panicked"),
            Self::Dropped => return f.write_str("the handler was dropped before it finished"),
        };
        error.fmt(f)?;
        // Bounded, because a custom error may return itself as its source.
        let sources = std::iter::successors(error.source(), |error| error.source()).take(16);
        for source in sources {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

fn error_type(error: &(dyn std::error::Error + 'static)) -> &'static str {
    if let Some(answer) = find::<RpcError>(error) {
        rpc_error_type(answer.code())
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
    } else if let Some(word) = find::<Error>(error).and_then(operation_error_type) {
        word
    } else if let Some(failure) = find::<Failure>(error) {
        match failure.verdict() {
            FailureVerdict::Redeliver { .. } => "redeliver",
            FailureVerdict::Park => "park",
            FailureVerdict::DeadLetter => "dead_letter",
            FailureVerdict::Discard => "discard",
            _ => OTHER,
        }
    } else {
        OTHER
    }
}

fn rpc_error_type(code: &RpcCode) -> &'static str {
    match code {
        RpcCode::NotFound => "not_found",
        RpcCode::Invalid => "invalid",
        RpcCode::Unavailable => "unavailable",
        RpcCode::Deadline => "deadline",
        RpcCode::Internal => "internal",
        // The application chooses this code. It could be any text, so it cannot be a label.
        _ => "rpc_error",
    }
}

fn operation_error_type(error: &Error) -> Option<&'static str> {
    let words = [
        (error.is_timeout(), "timeout"),
        (error.is_disconnected(), "disconnected"),
        (error.is_unknown_outcome(), "unknown_outcome"),
        (error.is_unreplicated(), "unreplicated"),
        (error.is_overloaded(), "overloaded"),
        (error.is_refused(), "refused"),
        (error.is_invalid(), "unsendable"),
        (error.is_decode(), "undecodable"),
        (error.is_config(), "config"),
        (error.is_closed(), "closed"),
    ];
    words.into_iter().find_map(|(is, word)| is.then_some(word))
}

/// The value of `error.type`, or of another attribute with a fixed set of words, if no word
/// applies.
pub(crate) const OTHER: &str = "_OTHER";

/// The value of `messaging.system`, unless set.
pub(crate) const SYSTEM: &str = "redis";

#[cfg(test)]
mod tests {
    use super::*;

    fn error_type_of(error: impl Into<BoxError>) -> &'static str {
        Fault::Error(&error.into()).error_type()
    }

    #[test]
    fn every_error_of_campanile_and_tower_has_a_type() {
        let words = [
            (error_type_of(RpcError::unavailable("")), "unavailable"),
            (
                error_type_of(RpcError::new("quota".into(), "none left")),
                "rpc_error",
            ),
            (
                error_type_of(NotFound::new(Kind::Task, "a".into())),
                "not_found",
            ),
            (error_type_of(Rejection::permanent("")), "rejected"),
            (error_type_of(Rejection::ordinary("")), "misconfigured"),
            (error_type_of(Elapsed::new()), "timeout"),
            (error_type_of(Overloaded::new()), "overloaded"),
            (error_type_of(Error::timeout("")), "timeout"),
            (error_type_of(Error::disconnected("")), "disconnected"),
            (error_type_of(Error::unknown_outcome("")), "unknown_outcome"),
            (
                error_type_of(Error::unreplicated("1-0".into(), "")),
                "unreplicated",
            ),
            (error_type_of(Error::refused("")), "refused"),
            (error_type_of(Error::invalid("")), "unsendable"),
            (error_type_of(Error::config("")), "config"),
            (error_type_of(Error::closed()), "closed"),
            (error_type_of(Error::from(RpcError::invalid(""))), "invalid"),
            (error_type_of(Failure::redeliver()), "redeliver"),
            (error_type_of(Failure::dead_letter()), "dead_letter"),
            (error_type_of(Failure::discard()), "discard"),
            (error_type_of("disk full"), "_OTHER"),
        ];
        for (class, word) in words {
            assert_eq!(class, word);
        }
    }

    #[test]
    fn the_source_of_a_failure_decides_its_type_if_it_has_one() {
        let failure = || Failure::dead_letter();
        assert_eq!(error_type_of(failure().because(Elapsed::new())), "timeout");
        assert_eq!(error_type_of(failure().because("disk full")), "dead_letter");
    }

    #[test]
    fn a_fault_shows_the_whole_chain() {
        let error = Failure::discard().because("disk full").into();
        let shown = Fault::Error(&error).to_string();
        assert_eq!(shown, "the delivery is to be discarded: disk full");
    }
}
