//! What is done when there is a reply.

use std::time::Duration;

use campanile::Reply;
use tracing::{Level, Span};

use super::at_level;

/// Hears of the reply of a call, in its span. A layer calls either this or
/// [`OnFailure`](super::OnFailure), once.
///
/// Implemented for closures, and for `()`, which does nothing.
pub trait OnReply {
    /// `after` is how long the call took. Fields that the span was made with can be recorded now.
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

/// Records the id under which a transport took a task as `messaging.message.id`, and logs that the
/// call is done.
#[derive(Debug, Clone)]
pub struct DefaultOnReply {
    level: Level,
}

impl DefaultOnReply {
    /// It logs at debug level.
    pub const fn new() -> Self {
        Self {
            level: Level::DEBUG,
        }
    }

    /// At which level it logs.
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
