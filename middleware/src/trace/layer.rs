//! The trace layer and its hooks.

#[cfg(feature = "opentelemetry")]
use campanile::Kind;

#[cfg(feature = "opentelemetry")]
use super::propagation::Propagation;
use super::{make_span::DefaultMakeSpan, on_failure::DefaultOnFailure, on_reply::DefaultOnReply};
use crate::conventions::Side;

/// Makes [`Trace`](super::Trace) services. See the [module](super).
#[derive(Debug, Clone)]
pub struct TraceLayer<M = DefaultMakeSpan, R = DefaultOnReply, F = DefaultOnFailure> {
    pub(super) side: Side,
    pub(super) make_span: M,
    pub(super) on_reply: R,
    pub(super) on_failure: F,
    #[cfg(feature = "opentelemetry")]
    pub(super) propagation: Propagation,
}

impl TraceLayer {
    /// Creates a layer for a router or a handler. The layer traces the messages that are handled.
    pub fn new() -> Self {
        Self::for_side(Side::Serving)
    }

    /// Creates a layer for a client's transport. The layer traces the messages that are sent.
    pub fn new_for_client() -> Self {
        Self::for_side(Side::Client)
    }

    fn for_side(side: Side) -> Self {
        Self {
            side,
            make_span: DefaultMakeSpan::new(),
            on_reply: DefaultOnReply::new(),
            on_failure: DefaultOnFailure::new(),
            #[cfg(feature = "opentelemetry")]
            propagation: Propagation::default(),
        }
    }
}

/// Creates the layer as [`TraceLayer::new`] does.
impl Default for TraceLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<M, R, F> TraceLayer<M, R, F> {
    /// Sets the hook that makes the spans: a [`MakeSpan`](super::MakeSpan), such as a closure.
    pub fn make_span<N>(self, make_span: N) -> TraceLayer<N, R, F> {
        TraceLayer {
            side: self.side,
            make_span,
            on_reply: self.on_reply,
            on_failure: self.on_failure,
            #[cfg(feature = "opentelemetry")]
            propagation: self.propagation,
        }
    }

    /// Sets the hook for replies: an [`OnReply`](super::OnReply), such as a closure, or `()` for
    /// none.
    pub fn on_reply<N>(self, on_reply: N) -> TraceLayer<M, N, F> {
        TraceLayer {
            side: self.side,
            make_span: self.make_span,
            on_reply,
            on_failure: self.on_failure,
            #[cfg(feature = "opentelemetry")]
            propagation: self.propagation,
        }
    }

    /// Sets the hook for failures: an [`OnFailure`](super::OnFailure), such as a closure, or `()`
    /// for none.
    pub fn on_failure<N>(self, on_failure: N) -> TraceLayer<M, R, N> {
        TraceLayer {
            side: self.side,
            make_span: self.make_span,
            on_reply: self.on_reply,
            on_failure,
            #[cfg(feature = "opentelemetry")]
            propagation: self.propagation,
        }
    }

    /// Starts a new trace for each handled message of this kind, instead of continuing the trace of
    /// the sender. The new trace has a link to the span that sent the message. On a client's layer
    /// this has no effect.
    #[cfg(feature = "opentelemetry")]
    #[must_use]
    pub fn own_trace_for(mut self, kind: Kind) -> Self {
        self.propagation.start_own_trace_for(kind);
        self
    }

    /// Reads and writes contexts with the global propagator, instead of as W3C headers. The
    /// application sets this propagator with `opentelemetry::global::set_text_map_propagator`.
    #[cfg(feature = "opentelemetry")]
    #[must_use]
    pub fn use_global_propagator(mut self) -> Self {
        self.propagation.use_global_propagator();
        self
    }
}
