//! The text of a panic.

use std::any::Any;

/// Returns the text of a panic from its payload, or `no panic message` if the payload is not a
/// string.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no panic message")
}
