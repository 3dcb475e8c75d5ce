//! The hook for failed calls.

use std::time::Duration;

use tracing::{Level, Span};

use super::{Fault, at_level};

/// A hook that is called when a call fails, within the span of the call. For each call a layer
/// calls either this hook or [`OnReply`](super::OnReply), once.
///
/// Implemented for closures, and for `()`, which does nothing.
pub trait OnFailure {
    /// Handles the failure of a call that took `after`. May record fields that are declared in the
    /// span.
    fn on_failure(&mut self, fault: &Fault<'_>, after: Duration, span: &Span);
}

impl OnFailure for () {
    fn on_failure(&mut self, _: &Fault<'_>, _: Duration, _: &Span) {}
}

impl<F: FnMut(&Fault<'_>, Duration, &Span)> OnFailure for F {
    fn on_failure(&mut self, fault: &Fault<'_>, after: Duration, span: &Span) {
        self(fault, after, span);
    }
}

/// Records `error.type` and the error's text, marks the span as failed, and logs the failure.
#[derive(Debug, Clone)]
pub struct DefaultOnFailure {
    level: Level,
}

impl DefaultOnFailure {
    /// Creates the hook, which logs at debug level: [`serve`](mod@campanile::serve) logs failed
    /// deliveries already, and a client's error is returned to the caller.
    pub const fn new() -> Self {
        Self {
            level: Level::DEBUG,
        }
    }

    /// Sets the level of the log line. Debug unless set.
    #[must_use]
    pub const fn level(mut self, level: Level) -> Self {
        self.level = level;
        self
    }
}

impl Default for DefaultOnFailure {
    fn default() -> Self {
        Self::new()
    }
}

impl OnFailure for DefaultOnFailure {
    fn on_failure(&mut self, fault: &Fault<'_>, after: Duration, span: &Span) {
        let error_type = fault.error_type();
        span.record("error.type", error_type);
        span.record("otel.status_code", "ERROR");
        span.record("otel.status_description", tracing::field::display(fault));
        at_level!(self.level, event!(error_type, %fault, ?after, "failed"));
    }
}
