//! Carries out verdicts.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    super::{
        clock::instant_after, context::GroupContext, log::LogEntry, observer::MessageEvent,
        records::TaskEnd,
    },
    DeliveryNumber, Group, Holder, Pending, QueuedMessage,
};
use crate::{
    error::RpcError,
    message::PermitRequest,
    reply::Reply,
    transport::{Discarded, Settings, TaskOutcome, TaskState, Verdict, codec},
};

/// A worker parks a message whose payload has a version that it does not know. If another worker
/// knows the version, the message is not parked: it is delivered again after this time.
const NEWER_WORKER_DELAY: Duration = Duration::from_secs(1);

/// A delivery that is not pending any more, while its verdict is carried out.
struct SettledDelivery<'a> {
    pending: Pending,
    settings: &'a Settings,
    context: &'a GroupContext,
}

impl SettledDelivery<'_> {
    /// Returns the message, to be delivered again after this many attempts.
    fn message(&self, attempts: u32, uncounted_redeliveries: u32) -> QueuedMessage {
        QueuedMessage {
            entry: Arc::clone(&self.pending.entry),
            attempts,
            uncounted_redeliveries,
            position: self.pending.position,
        }
    }

    /// Reports the verdict to the observer. Called before the reply is sent, so that the observer's
    /// record is complete when the sender of the request continues.
    fn observe(&self, event: impl Fn() -> MessageEvent) {
        let Pending { entry, attempt, .. } = &self.pending;
        let observation = &self.context.observation;
        observation.report_delivery(self.settings, entry, *attempt, event);
    }

    fn outcome(&self) -> TaskOutcome {
        TaskOutcome {
            progress: self.pending.lease.take_progress(),
            ..TaskOutcome::default()
        }
    }

    /// Writes the end to the record of the task.
    fn record_end(&self, state: TaskState, outcome: TaskOutcome) {
        let end = TaskEnd {
            outcome,
            ..TaskEnd::new(state, "")
        };
        let GroupContext { records, clock, .. } = self.context;
        records.end(self.settings, &self.pending.entry.fields, end, clock);
    }

    /// Writes to the record of the task that its next attempt starts after this time.
    fn record_wait(&self, after: Duration, reason: &str) {
        let of_group = (&self.settings.stream, Some(&self.settings.group));
        let GroupContext { records, clock, .. } = self.context;
        records.change(of_group, &self.pending.entry.fields, clock, |status| {
            status.state = match after.is_zero() {
                true => TaskState::Waiting,
                false => TaskState::Delayed,
            };
            reason.clone_into(&mut status.reason);
        });
    }

    /// Ends the delivery as done, and answers a request.
    fn complete(&self, reply: Result<Reply, RpcError>) {
        self.context.counters.done.increment();
        let outcome = match &reply {
            Ok(reply) if self.pending.lease.record().is_some() => self.outcome().with_result(reply),
            _ => self.outcome(),
        };
        self.record_end(TaskState::Done, outcome);
        self.observe(|| MessageEvent::answered(&reply));
        self.context.answer(&self.pending.entry, || reply);
    }

    /// Answers a request with an error, if there is one.
    fn answer_error(&self, error: Option<RpcError>) {
        if let Some(error) = error {
            self.context.answer(&self.pending.entry, || Err(error));
        }
    }
}

impl Group {
    /// Carries out a verdict, unless the lease was lost. Returns the entry, so that its memory is
    /// freed after the caller has released the lock.
    pub(in super::super) fn settle(
        &mut self,
        serial: DeliveryNumber,
        verdict: Verdict,
        settings: &Settings,
        context: &GroupContext,
    ) -> Option<Arc<LogEntry>> {
        let in_order = self.ownership.stop(serial);
        let Some(pending) = self.remove_pending(serial) else {
            if let Some(message) = in_order {
                // The task was cancelled while it ran.
                self.stopped_in_order(&message, true, settings, context);
            }
            return None;
        };
        self.end_reservation(&pending);
        // The group has fewer deliveries in flight now, so its workers may fetch again.
        if settings.max_in_flight_of_group.is_some() {
            self.wake();
        }
        // After the last attempt, a failure becomes a dead letter. In an owned partition, a parking
        // becomes a redelivery.
        let max_attempts = pending.entry.max_attempts(settings);
        let mut verdict = verdict.limited(pending.attempt, max_attempts);
        if in_order.is_some() {
            verdict = verdict.without_parking(pending.attempt, &settings.backoff);
        }
        let has_ended = !matches!(verdict, Verdict::Redeliver { .. } | Verdict::Release);
        let settled = SettledDelivery {
            pending,
            settings,
            context,
        };
        match verdict {
            Verdict::Done(reply) => settled.complete(reply),
            Verdict::Redeliver {
                after,
                counted,
                reason,
            } => self.redeliver(&settled, after, counted, &reason),
            Verdict::DeadLetter { reason, answer } => {
                let Pending { entry, attempt, .. } = &settled.pending;
                let letter = (reason, settled.outcome());
                self.add_dead_letter(entry, *attempt, letter, settings, context);
                settled.answer_error(answer);
            }
            Verdict::Discard { reason, answer } => self.discard(&settled, reason, answer),
            Verdict::Park(request) => self.park(&settled, request),
            Verdict::Release => self.release(&settled),
        }
        // If the message has ended, the next message with its key can start.
        if let Some(message) = in_order {
            self.stopped_in_order(&message, has_ended, settings, context);
        }
        Some(settled.pending.entry)
    }

    fn redeliver(
        &mut self,
        settled: &SettledDelivery<'_>,
        after: Option<Duration>,
        counted: bool,
        reason: &str,
    ) {
        let (counters, pending) = (&settled.context.counters, &settled.pending);
        counters.redelivered.increment();
        if !counted {
            counters.uncounted.increment();
        }
        // The wait also grows with each uncounted redelivery in a row, so that a message that is
        // put off again and again costs little.
        let uncounted = pending.uncounted_redeliveries;
        let failures = pending.attempt.saturating_add(uncounted);
        let after = after.unwrap_or_else(|| settled.settings.backoff.after(failures));
        settled.observe(|| MessageEvent::Redelivered {
            after,
            counted,
            reason: reason.to_owned(),
        });
        let message = match counted {
            true => settled.message(pending.attempt, 0),
            false => settled.message(pending.attempt - 1, uncounted + 1),
        };
        settled.record_wait(after, reason);
        self.deliver_again(message, after);
    }

    fn discard(
        &mut self,
        settled: &SettledDelivery<'_>,
        reason: Discarded,
        answer: Option<RpcError>,
    ) {
        let counters = &settled.context.counters;
        match reason {
            Discarded::Expired => counters.expired.increment(),
            Discarded::Requested => counters.discarded.increment(),
            Discarded::Ignored => counters.ignored.increment(),
        }
        settled.record_end(TaskState::Discarded, settled.outcome());
        // A task that this group ignores belongs to other groups, so its idempotency key is kept.
        if reason != Discarded::Ignored {
            self.free_idempotency_key(&settled.pending.entry);
        }
        settled.observe(|| MessageEvent::Discarded(reason));
        settled.answer_error(answer);
    }

    fn park(&mut self, settled: &SettledDelivery<'_>, request: PermitRequest) {
        settled.context.counters.parked.increment();
        settled.record_wait(Duration::ZERO, "");
        settled.observe(|| MessageEvent::Parked);
        let message = settled.message(settled.pending.attempt - 1, 0);
        let has_newer_worker = request.awaited_version().is_some_and(|(name, version)| {
            let mut members = self.members.values();
            members.any(|member| member.knows(name, version))
        });
        if has_newer_worker {
            // The newer worker may take the message next time.
            self.deliver_again(message, NEWER_WORKER_DELAY);
        } else {
            let delivered = self.limits.park(request.key, request.permits, message);
            self.deliver_now(delivered);
        }
    }

    fn release(&mut self, settled: &SettledDelivery<'_>) {
        let pending = &settled.pending;
        settled.context.counters.released.increment();
        settled.record_wait(Duration::ZERO, "");
        settled.observe(|| MessageEvent::Released);
        let message = settled.message(pending.attempt - 1, pending.uncounted_redeliveries);
        self.deliver_again(message, Duration::ZERO);
    }

    /// Releases a permit of a limit that workers share.
    pub(in super::super) fn release_permit(&mut self, permit: &PermitRequest) {
        let delivered = self.limits.release(&permit.key, &permit.holder);
        self.deliver_now(delivered);
    }

    /// Releases the permit that is reserved for a delivery, if there is one. Called when the
    /// delivery has ended, or does not start.
    pub(super) fn end_reservation(&mut self, delivery: &impl Holder) {
        let delivered = self.limits.end_reservation(|| delivery.holder());
        self.deliver_now(delivered);
    }

    /// Queues messages that can be delivered now.
    pub(super) fn deliver_now(&mut self, messages: impl IntoIterator<Item = QueuedMessage>) {
        for message in messages {
            self.deliver_again(message, Duration::ZERO);
        }
    }

    /// Queues a message that can be delivered after this time.
    pub(super) fn deliver_again(&mut self, queued: QueuedMessage, after: Duration) {
        if after.is_zero() {
            self.make_ready(Instant::now(), queued);
        } else {
            self.last_serial += 1;
            let at = instant_after(after);
            self.delayed.insert((at, self.last_serial), queued);
        }
        self.wake();
    }

    /// Turns a message into a dead letter, and records the end of its task.
    pub(super) fn add_dead_letter(
        &mut self,
        entry: &Arc<LogEntry>,
        attempts: u32,
        (reason, outcome): (String, TaskOutcome),
        settings: &Settings,
        context: &GroupContext,
    ) {
        context.counters.dead.increment();
        self.free_idempotency_key(entry);
        let end = TaskEnd {
            outcome,
            ..TaskEnd::new(TaskState::Dead, &reason)
        };
        let GroupContext { records, clock, .. } = context;
        records.end(settings, &entry.fields, end, clock);
        context
            .observation
            .report_delivery(settings, entry, attempts, || MessageEvent::DeadLettered {
                reason: reason.clone(),
            });
        let (entry, max) = (Arc::clone(entry), settings.max_dead_letters);
        let dropped = (self.dead).add(entry, attempts, reason, max, &context.clock);
        context.counters.dead_dropped.add(dropped);
        let Settings {
            stream,
            group,
            max_dead_letters,
            ..
        } = settings;
        self.dropped_letters
            .report(dropped, stream, group, *max_dead_letters);
    }

    /// Frees the idempotency key of a task, if it has one.
    fn free_idempotency_key(&mut self, entry: &LogEntry) {
        if entry.field(codec::IDEMPOTENCY_KEY).is_some() {
            self.given_up.push(entry.message_id());
        }
    }
}
