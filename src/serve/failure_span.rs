//! The span in which a failure is logged.

use std::cell::Cell;

use tracing::Span;

thread_local! {
    /// `None` while this thread polls no delivery. The inner value is the span of the last call of
    /// [`log_failure_in_current_span`] during this poll.
    static FAILURE_SPAN: Cell<Option<Option<Span>>> = const { Cell::new(None) };
}

/// Makes [`serve`](super) log the failure of the current delivery in the current span, instead of
/// outside any span.
///
/// For layers that make a span for each message. Such a layer calls this function inside its span
/// when the inner service fails or panics: `serve` logs the failure later, when the span is no
/// longer entered. The span of the last call wins. The function has no effect if the delivery
/// succeeds, or outside of a worker.
pub fn log_failure_in_current_span() {
    // A future may call this function while it is dropped at the end of its thread, when
    // thread-local values no longer exist.
    let _ = FAILURE_SPAN.try_with(|span| {
        if span.take().is_some() {
            span.set(Some(Some(Span::current())));
        }
    });
}

/// Polls a delivery. Returns the result, and the span that a layer has chosen for the log line of a
/// failure. `poll` must not panic.
pub(super) fn poll_with_failure_span<T>(poll: impl FnOnce() -> T) -> (T, Option<Span>) {
    let outer = FAILURE_SPAN.replace(Some(None));
    let result = poll();
    (result, FAILURE_SPAN.replace(outer).flatten())
}
