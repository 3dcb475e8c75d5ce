//! A message in the queue of its key. It waits for its turn, and its outcome decides when later
//! messages run.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use campanile::{
    Attempt, BoxError, Deadline, Failure, Kind, Message, NotFound,
    error::{FailureVerdict, find},
};
use tokio::time::{Instant, Sleep};

use super::{
    OrderConfig, PutOff,
    queue::{Deferred, NextStep, Turn},
    queues::{KeyQueues, ReservedTurn},
};
use crate::{
    gated::{Admission, Outcome},
    key::{Key, MessageIdentity},
};

/// A message in the queue of its key. Dropping this value removes the message from the queue. A
/// task then counts as failed, and keeps its turn unless this was its last attempt.
pub(super) struct QueuedMessage {
    queues: Arc<KeyQueues>,
    config: OrderConfig,
    key: Key,
    turn: Turn,
    delivery: DeliveryInfo,
    timer: Option<Pin<Box<Sleep>>>,
    /// Set when the message may run.
    is_running: bool,
    /// Set when the message has left the queue.
    has_left: bool,
}

/// The parts of a message that decide when it is delivered again.
struct DeliveryInfo {
    kind: Kind,
    identity: Option<MessageIdentity>,
    attempt: Attempt,
    is_last_attempt: bool,
    deadline: Option<Deadline>,
}

impl DeliveryInfo {
    /// Returns the identity of the message if a transport can deliver the message again.
    fn redeliverable_identity(&self) -> Option<&MessageIdentity> {
        self.identity.as_ref().filter(|_| self.kind != Kind::Event)
    }
}

impl QueuedMessage {
    pub(super) fn new(
        queues: &Arc<KeyQueues>,
        config: OrderConfig,
        reserved: ReservedTurn,
        key: Key,
        message: &Message,
    ) -> Self {
        let parts = message.parts();
        let delivery = DeliveryInfo {
            kind: parts.kind,
            identity: MessageIdentity::of(parts),
            attempt: parts.attempt,
            is_last_attempt: parts.is_last_attempt(),
            deadline: parts.deadline,
        };
        let turn = reserved.arrive(&key, delivery.redeliverable_identity());
        Self {
            queues: queues.clone(),
            config,
            key,
            turn,
            delivery,
            timer: None,
            is_running: false,
            has_left: false,
        }
    }

    /// Starts the message if no earlier message is in its way. Returns `true` if it may run.
    pub(super) fn try_start(&mut self) -> bool {
        self.is_running = self.next_step(Waker::noop()) == NextStep::Run;
        self.is_running
    }

    fn next_step(&self, waker: &Waker) -> NextStep {
        let can_be_put_off = self.delivery.redeliverable_identity().is_some();
        (self.queues).next_step(&self.key, self.turn, can_be_put_off, waker)
    }

    /// Leaves the queue. `redelivered_after` is the time until the redelivery of the message, or
    /// `None` if the message is not delivered again. A message that is delivered again keeps its
    /// turn.
    fn end(&mut self, redelivered_after: Option<Duration>) {
        self.has_left = true;
        let deferred = redelivered_after.and_then(|wait| self.deferral(wait));
        let is_deferred = deferred.is_some();
        let keeps_turn = (self.queues).end(&self.key, self.turn, deferred, self.config.max_put_off);
        if is_deferred && !keeps_turn {
            tracing::warn!(
                id = self.delivery.identity.as_ref().map(tracing::field::display),
                max_put_off = self.config.max_put_off,
                "a message lost its turn: too many messages wait for their redelivery"
            );
        }
    }

    /// Returns the times of a message that is delivered again after `wait`. `None` if the message
    /// cannot keep its turn.
    fn deferral(&self, wait: Duration) -> Option<Deferred> {
        // A message whose times overflow does not keep its turn.
        let due_at = Instant::now().checked_add(wait)?;
        let expires_at = due_at.checked_add(self.config.redelivery_timeout)?;
        let expires_at = match self.delivery.deadline {
            // No worker starts the message after its deadline, so later messages wait no longer.
            Some(deadline) => expires_at.min(deadline.0),
            None => expires_at,
        };
        let identity = self.delivery.redeliverable_identity()?.clone();
        Some(Deferred {
            identity,
            due_at,
            expires_at,
        })
    }

    /// Returns the delay of the redelivery, or `None` after the last attempt. `after` is the delay
    /// that the failure sets, if it sets one.
    fn redelivery_delay(&self, after: Option<Duration>, counted: bool) -> Option<Duration> {
        let attempt = self.delivery.attempt.0;
        if counted && self.delivery.is_last_attempt {
            return None;
        }
        Some(after.unwrap_or_else(|| self.config.backoff.after(attempt)))
    }

    /// Leaves the queue after a failure. Returns the error for the transport, which sets the delay
    /// of the redelivery if the message is delivered again.
    fn fail(&mut self, error: BoxError) -> BoxError {
        let without_route = find::<NotFound>(&*error).is_some();
        if without_route || self.delivery.redeliverable_identity().is_none() {
            self.end(None);
            return error;
        }
        let Some(FailureVerdict::Redeliver { after, counted }) =
            FailureVerdict::of(self.delivery.kind, &*error)
        else {
            self.end(None);
            return error;
        };
        let wait = self.redelivery_delay(after, counted);
        self.end(wait);
        match wait {
            // The error sets no delay. The transport must use the delay that this queue expects.
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

impl Admission for QueuedMessage {
    fn poll_admitted(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        loop {
            if self.is_running {
                return Poll::Ready(Ok(()));
            }
            match self.next_step(cx.waker()) {
                NextStep::Run => {
                    self.timer = None;
                    self.is_running = true;
                }
                NextStep::PutOff(wait) => {
                    self.end(Some(wait));
                    let failure = Failure::redeliver_after(wait).uncounted();
                    return Poll::Ready(Err(failure.because(PutOff).into()));
                }
                NextStep::Wait(None) => return Poll::Pending,
                NextStep::Wait(Some(until)) => {
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

    fn finish(mut self, outcome: Outcome) -> Outcome {
        match outcome {
            Ok(reply) => {
                self.end(None);
                Ok(reply)
            }
            Err(error) => Err(self.fail(error)),
        }
    }
}

impl Drop for QueuedMessage {
    fn drop(&mut self) {
        if self.has_left {
            return;
        }
        // The inner service panicked, or an outer layer dropped the future. This layer cannot
        // return an error that sets a delay, so a task is delivered again after the source's
        // back-off. A request is answered with an error.
        let redelivered_after = match self.delivery.kind {
            Kind::Task => self.redelivery_delay(None, true),
            Kind::Rpc | Kind::Event => None,
        };
        self.end(redelivered_after);
    }
}
