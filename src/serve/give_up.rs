//! The hook for messages that are given up.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use crate::{
    error::{BoxError, panic_text},
    message::{Message, Shown},
};

/// A message that a worker gives up: it becomes a dead letter.
#[derive(Debug)]
#[non_exhaustive]
pub struct GivenUp {
    /// The message. Its parts have the number of the last attempt.
    pub message: Message,
    /// The reason that is stored with the dead letter. It says who decided to give the message up.
    pub reason: String,
    /// The error of the last attempt. `None` if the handler panicked, or if the message expired
    /// before it was started.
    pub error: Option<BoxError>,
}

/// The function that is called with each message that is given up.
#[derive(Clone)]
pub(super) struct OnGiveUp(Arc<dyn Fn(GivenUp) + Send + Sync>);

impl OnGiveUp {
    pub(super) fn new(hook: impl Fn(GivenUp) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hook))
    }

    /// Calls the function. A panic is only logged, so that the message still becomes a dead letter.
    pub(super) fn call(&self, given_up: GivenUp) {
        let name = given_up.message.name().clone();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.0)(given_up))) {
            let text = panic_text(&*panic);
            let (name, text) = (Shown::new(&name), Shown::new(text));
            tracing::error!(%name, "the function for messages that are given up panicked: {text}");
        }
    }
}

impl fmt::Debug for OnGiveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnGiveUp")
    }
}
