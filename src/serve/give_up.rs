//! The hook for messages that are given up.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use crate::{
    error::{BoxError, panic_text},
    message::{EscapedText, Kind, Message},
    transport::Verdict,
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
            let (name, text) = (EscapedText::new(&name), EscapedText::new(text));
            tracing::error!(%name, "the function for messages that are given up panicked: {text}");
        }
    }
}

/// The function for one delivery, with the message that it is called with.
pub(super) struct GiveUpHook<'a>(Option<(&'a OnGiveUp, Message)>);

impl<'a> GiveUpHook<'a> {
    pub(super) fn new(on_give_up: Option<&'a OnGiveUp>, message: &Message) -> Self {
        // An event is not stored, so it cannot become a dead letter.
        let on_give_up = on_give_up.filter(|_| message.kind() != Kind::Event);
        Self(on_give_up.map(|hook| (hook, message.clone())))
    }

    /// Calls the function if the verdict is a dead letter.
    pub(super) fn call_if_given_up(self, verdict: &Verdict, error: Option<BoxError>) {
        if let Verdict::DeadLetter { reason, .. } = verdict
            && let Some((on_give_up, message)) = self.0
        {
            let reason = reason.clone();
            on_give_up.call(GivenUp {
                message,
                reason,
                error,
            });
        }
    }
}

impl fmt::Debug for OnGiveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnGiveUp")
    }
}
