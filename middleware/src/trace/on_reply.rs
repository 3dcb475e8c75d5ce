//! The hook for replies.

use std::time::Duration;

use campanile::Reply;
use tracing::{Level, Span};

use super::at_level;

/// A hook that is called when a call succeeds, within the span of the call. For each call a layer
/// calls either this hook or [`OnFailure`](super::OnFailure), once.
///
/// Implemented for closures, and for `()`, which does nothing.
pub trait OnReply {
    /// Handles the reply of a call that took `after`. May record fields that are declared in the
    /// span.
    fn on_reply(&mut self, reply: &Reply, after: Duration, span: &Span);
}

impl OnReply for () {
    fn on_reply(&mut self, _: &Reply, _: Duration, _: &Span) {}
}

impl<F: FnMut(&Reply, Duration, &Span)> OnReply for F {
    fn on_reply(&mut self, reply: &Reply, after: Duration, span: &Span) {
        self(reply, after, span);
    }
}

/// Records the id of an accepted task as `messaging.message.id`, and logs that the call succeeded.
#[derive(Debug, Clone)]
pub struct DefaultOnReply {
    level: Level,
}

impl DefaultOnReply {
    /// Creates the hook, which logs at debug level.
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

impl Default for DefaultOnReply {
    fn default() -> Self {
        Self::new()
    }
}

impl OnReply for DefaultOnReply {
    fn on_reply(&mut self, reply: &Reply, after: Duration, span: &Span) {
        if let Some(id) = reply.receipt() {
            span.record("messaging.message.id", id.as_str());
        }
        at_level!(self.level, event!(?after, "done"));
    }
}
