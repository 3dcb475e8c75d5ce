//! One message's turn: the wait for it, and what its outcome means for those behind it.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use campanile::{
    Attempt, BoxError, Deadline, Failure, Kind, Message, NotFound,
    error::{Settle, find},
};
use tokio::time::{Instant, Sleep};

use super::{
    PutOff, Rules,
    line::{Away, Step, Turn},
    lines::{Lines, Reserved},
};
use crate::{
    gated::{Admission, Outcome},
    key::{Identity, Key},
};

/// A message in the line of its key. Dropping it lets the next one go.
pub(super) struct InLine {
    lines: Arc<Lines>,
    rules: Rules,
    key: Key,
    turn: Turn,
    about: About,
    timer: Option<Pin<Box<Sleep>>>,
    runs: bool,
    /// Whether it has left the line.
    ended: bool,
}

/// What says whether the message comes back.
struct About {
    kind: Kind,
    identity: Option<Identity>,
    attempt: Attempt,
    deadline: Option<Deadline>,
}

impl About {
    /// Its identity, if it can be delivered again at all.
    fn can_come_back(&self) -> Option<&Identity> {
        self.identity.as_ref().filter(|_| self.kind != Kind::Event)
    }
}

impl InLine {
    pub(super) fn new(
        lines: &Arc<Lines>,
        rules: Rules,
        reserved: Reserved,
        key: Key,
        message: &Message,
    ) -> Self {
        let parts = message.parts();
        let about = About {
            kind: parts.kind,
            identity: Identity::of(parts),
            attempt: parts.attempt,
            deadline: parts.deadline,
        };
        let turn = reserved.arrive(&key, about.can_come_back());
        Self {
            lines: lines.clone(),
            rules,
            key,
            turn,
            about,
            timer: None,
            runs: false,
            ended: false,
        }
    }

    /// Whether it is its turn at once.
    pub(super) fn runs_now(&mut self) -> bool {
        self.runs = self.step(Waker::noop()) == Step::Run;
        self.runs
    }

    fn step(&self, waker: &Waker) -> Step {
        let can_be_put_off = self.about.can_come_back().is_some();
        (self.lines).step(&self.key, self.turn, can_be_put_off, waker)
    }

    /// Ends the turn. With a wait, the message comes back and keeps it.
    fn end(&mut self, back_in: Option<Duration>) {
        self.ended = true;
        let away = back_in.and_then(|wait| self.away(wait));
        let comes_back = away.is_some();
        let keeps = (self.lines).end(&self.key, self.turn, away, self.rules.max_put_off);
        if comes_back && !keeps {
            tracing::warn!(
                id = self.about.identity.as_ref().map(tracing::field::display),
                most = self.rules.max_put_off,
                "a message lost its turn: so many are to come back already"
            );
        }
    }

    fn away(&self, wait: Duration) -> Option<Away> {
        // A wait that is longer than time itself ends with the message's patience.
        let expected = Instant::now().checked_add(wait)?;
        let until = expected.checked_add(self.rules.patience)?;
        let until = match self.about.deadline {
            // It is not started any more after that.
            Some(deadline) => until.min(deadline.0),
            None => until,
        };
        let identity = self.about.can_come_back()?.clone();
        Some(Away {
            identity,
            expected,
            until,
        })
    }

    /// The wait of a redelivery that has none of its own, or `None` where this was the last attempt.
    fn wait(&self, after: Option<Duration>, counted: bool) -> Option<Duration> {
        let attempt = self.about.attempt.0;
        if counted && attempt >= self.rules.max_deliveries {
            return None;
        }
        Some(after.unwrap_or_else(|| self.rules.backoff.after(attempt)))
    }

    fn failed(&mut self, error: BoxError) -> BoxError {
        let nobodys = find::<NotFound>(&*error).is_some();
        if nobodys || self.about.can_come_back().is_none() {
            self.end(None);
            return error;
        }
        let Some(Settle::Redeliver { after, counted }) = Settle::of(self.about.kind, &*error)
        else {
            self.end(None);
            return error;
        };
        let wait = self.wait(after, counted);
        self.end(wait);
        match wait {
            Some(wait) if after.is_none() => {
                let failure = Failure::redeliver_after(wait).because(error);
                let failure = if counted {
                    failure
                } else {
                    failure.uncounted()
                };
                failure.into()
            }
            _ => error,
        }
    }
}

impl Admission for InLine {
    fn poll_admitted(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        loop {
            if self.runs {
                return Poll::Ready(Ok(()));
            }
            match self.step(cx.waker()) {
                Step::Run => {
                    self.timer = None;
                    self.runs = true;
                }
                Step::PutOff(wait) => {
                    self.end(Some(wait));
                    let failure = Failure::redeliver_after(wait).uncounted();
                    return Poll::Ready(Err(failure.because(PutOff).into()));
                }
                Step::Wait(None) => return Poll::Pending,
                Step::Wait(Some(until)) => {
                    let timer = self
                        .timer
                        .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
                    if timer.deadline() != until {
                        timer.as_mut().reset(until);
                    }
                    ready!(timer.as_mut().poll(cx));
                }
            }
        }
    }

    fn done(mut self, outcome: Outcome) -> Outcome {
        match outcome {
            Ok(reply) => {
                self.end(None);
                Ok(reply)
            }
            Err(error) => Err(self.failed(error)),
        }
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // A panic, or an outer time limit: the delivery fails without a word of this layer's, so
        // the source's own back-off is what it waits. A request is answered then.
        let back_in = match self.about.kind {
            Kind::Task => self.wait(None, true),
            Kind::Rpc | Kind::Event => None,
        };
        self.end(back_in);
    }
}
