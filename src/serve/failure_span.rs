//! The span in which a failure is logged.

use std::cell::Cell;

use tracing::Span;

thread_local! {
    /// `None` while no delivery is polled. The inner value is the span of the last call that
    /// failed.
    static FAILED: Cell<Option<Option<Span>>> = const { Cell::new(None) };
}

/// Makes [`serve`](super) log the failure of the current delivery in the current span.
///
/// For layers that make a span for each message. Such a layer calls this in its span if the inner
/// service fails or panics, because `serve` learns of the failure after the span is left. The last
/// call counts. It has no effect if the delivery succeeds, or outside of a worker.
pub fn log_failure_in_current_span() {
    // A future may be dropped at the end of a thread, when the thread's values are gone.
    let _ = FAILED.try_with(|failed| {
        if failed.take().is_some() {
            failed.set(Some(Some(Span::current())));
        }
    });
}

/// Polls a delivery, and returns the span in which its failure is to be logged. `poll` must not
/// panic.
pub(super) fn observe<T>(poll: impl FnOnce() -> T) -> (T, Option<Span>) {
    let outer = FAILED.replace(Some(None));
    let result = poll();
    (result, FAILED.replace(outer).flatten())
}
