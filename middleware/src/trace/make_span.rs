//! Makes the span of a message.

use std::fmt;

use campanile::{Message, Name, message::EscapedText};
use tracing::{Level, Span, field::Empty};

use super::{Operation, at_level};
use crate::conventions;

/// A hook that makes the span of a message that is sent or handled.
///
/// Implemented for closures. A field that another hook records later must be declared in the span,
/// as [`Empty`]. The default hooks record `messaging.message.id`, `error.type`, `otel.status_code`
/// and `otel.status_description`.
pub trait MakeSpan {
    /// Makes the span. The layer calls this method within the span that surrounds the call.
    fn make_span(&mut self, message: &Message, operation: Operation) -> Span;
}

impl<F: FnMut(&Message, Operation) -> Span> MakeSpan for F {
    fn make_span(&mut self, message: &Message, operation: Operation) -> Span {
        self(message, operation)
    }
}

/// Makes spans named `{operation} {destination}` with the attributes of the [conventions].
#[derive(Debug, Clone)]
pub struct DefaultMakeSpan {
    pub(super) level: Level,
    pub(super) system: Name,
    group: Option<Name>,
}

impl DefaultMakeSpan {
    /// Creates the hook for spans at info level, for the system `redis`, without a group.
    pub const fn new() -> Self {
        Self {
            level: Level::INFO,
            system: Name::from_static(conventions::SYSTEM),
            group: None,
        }
    }

    /// Sets the level of the spans. Info unless set.
    #[must_use]
    pub const fn level(mut self, level: Level) -> Self {
        self.level = level;
        self
    }

    /// Sets the attribute `messaging.system`, which names the transport. `redis` unless set.
    #[must_use]
    pub fn system(mut self, system: impl Into<Name>) -> Self {
        self.system = system.into();
        self
    }

    /// Sets the attribute `messaging.consumer.group.name`, which names the group of the worker. A
    /// client's spans do not have this attribute.
    #[must_use]
    pub fn group(mut self, group: impl Into<Name>) -> Self {
        self.group = Some(group.into());
        self
    }
}

impl Default for DefaultMakeSpan {
    fn default() -> Self {
        Self::new()
    }
}

impl MakeSpan for DefaultMakeSpan {
    fn make_span(&mut self, message: &Message, operation: Operation) -> Span {
        let parts = message.parts();
        let route = parts.matched_route().map(|route| route.as_str());
        // The sender chooses the name, so it is escaped and shortened.
        let name = EscapedText::new(&parts.name).at_most(Name::MAX_LEN).text();
        let name = &*name;
        let is_handled = operation == Operation::Process;
        let destination = match is_handled {
            true => route,
            false => Some(name),
        };
        let span_name = SpanName {
            operation,
            destination: destination.filter(|destination| !destination.is_empty()),
        };
        let group = self.group.as_deref().filter(|_| is_handled);
        // A message that is sent has no attempt yet.
        let attempt = is_handled.then_some(i64::from(parts.attempt.0));
        at_level!(
            self.level,
            span!(
                "message",
                otel.name = %span_name,
                otel.kind = operation.span_kind(),
                otel.status_code = Empty,
                otel.status_description = Empty,
                messaging.system = self.system.as_str(),
                messaging.operation.name = operation.name(),
                messaging.operation.r#type = operation.type_name(),
                messaging.destination.name = name,
                messaging.destination.template =
                    route.filter(|&route| !route.is_empty() && route != name),
                messaging.consumer.group.name = group,
                messaging.message.id = parts.id.as_deref(),
                messaging.message.conversation_id =
                    parts.correlation_id.as_ref().map(tracing::field::display),
                messaging.message.body.size = message.payload().len() as i64,
                campanile.message.kind = parts.kind.as_str(),
                campanile.message.attempt = attempt,
                error.r#type = Empty,
            )
        )
    }
}

/// The name of a span: `{operation} {destination}`.
pub(super) struct SpanName<'a> {
    pub(super) operation: Operation,
    pub(super) destination: Option<&'a str>,
}

impl fmt::Display for SpanName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.destination {
            Some(destination) => write!(f, "{} {destination}", self.operation),
            None => self.operation.fmt(f),
        }
    }
}
