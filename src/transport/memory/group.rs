//! A consumer group: its position, its pending deliveries and its redeliveries.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use foldhash::HashMap;
use tokio::{sync::Notify, time::Instant};

use super::{
    clock::{BrokerClock, EntryId, instant_after},
    context::GroupContext,
    dead::DeadLetterLog,
    limits::Limits,
    log::{Log, LogEntry},
    observer::{MessageEvent, ObservedDelivery, ObservedMessage},
    ownership::{GroupOwnership, Position},
    records::TaskEnd,
};
use crate::{
    error::RpcError,
    message::{
        Attempt, FollowUp, Lease, MessageId, Name, PermitRequest, holder, parking_key_of_newer,
        parking_key_of_paused,
    },
    transport::{
        Backlog, Claims, Discarded, DroppedLetters, GroupStats, PartitionTerm, Settings,
        TaskOutcome, TaskState, Verdict, Waiting, codec,
    },
};

/// The number of a delivery within its group. It fences verdicts: a verdict has no effect if the
/// delivery with this number is not pending.
pub(super) type DeliveryNumber = u64;
/// The number of a source within its broker.
pub(super) type SourceNumber = u64;

/// Returns the name of a source, for the log.
pub(super) fn name_of(consumer: SourceNumber) -> String {
    format!("memory-{consumer}")
}

/// A consumer group of a stream.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// The index of the first unread entry.
    pub(super) next_index: u64,
    /// The id of the last entry that was read.
    last_read: Option<EntryId>,
    /// The indices of entries that were read, and whose first delivery is neither settled nor
    /// claimed.
    pub(super) unfinished_indices: BTreeSet<u64>,
    /// The redeliveries that are due, each with the time at which it became due. In an owned
    /// partition, this queue also has new messages that wait for their keys, and is ordered by
    /// position.
    pub(super) ready: VecDeque<(Instant, QueuedMessage)>,
    /// Redeliveries that are not moved to `ready` yet, by the time at which they are due.
    pub(super) delayed: BTreeMap<(Instant, DeliveryNumber), QueuedMessage>,
    /// Deliveries that are not settled.
    pub(super) pending: HashMap<DeliveryNumber, Pending>,
    /// Deliveries whose leases are no longer renewed, by the time at which the leases end.
    ending_leases: BTreeSet<(Instant, DeliveryNumber)>,
    pub(super) dead: DeadLetterLog,
    /// The messages that have ended without success. The stream frees their idempotency keys.
    pub(super) given_up: Vec<MessageId>,
    /// Logs how many dead letters were dropped.
    dropped_letters: DroppedLetters,
    /// The open sources.
    members: HashMap<SourceNumber, GroupMember>,
    last_serial: DeliveryNumber,
    last_was_a_retry: bool,
    pub(super) limits: Limits,
    pub(super) ownership: GroupOwnership,
}

/// A worker parks a message whose payload has a version that it does not know. If another worker
/// knows the version, the message is not parked: it is delivered again after this time.
const NEWER_WORKER_DELAY: Duration = Duration::from_secs(1);

/// An open source of the group.
#[derive(Debug)]
struct GroupMember {
    wake: Arc<Notify>,
    /// The names of tasks, each with the newest version of its payload that the source knows.
    versions: Arc<[(Name, u32)]>,
}

impl GroupMember {
    fn knows(&self, name: &str, version: u32) -> bool {
        let mut versions = self.versions.iter();
        versions.any(|(known, newest)| *known == *name && version <= *newest)
    }
}

/// A message to deliver, and the number of its attempts so far.
#[derive(Debug)]
pub(super) struct QueuedMessage {
    pub(super) entry: Arc<LogEntry>,
    attempts: u32,
    /// The number of redeliveries in a row that did not count as attempts.
    uncounted_redeliveries: u32,
    /// The place of the message in the order of an owned partition. `None` if it was not read
    /// there.
    pub(super) position: Option<Position>,
}

impl QueuedMessage {
    /// Creates a message that has had no attempt.
    pub(super) fn first(entry: Arc<LogEntry>) -> Self {
        let (attempts, uncounted_redeliveries) = (0, 0);
        Self {
            entry,
            attempts,
            uncounted_redeliveries,
            position: None,
        }
    }
}

/// A delivery as the holder of a permit.
pub(super) trait Holder {
    /// Returns the name of the holder.
    fn holder(&self) -> String;
}

impl Holder for QueuedMessage {
    /// Names the next delivery.
    fn holder(&self) -> String {
        holder(&self.entry.message_id(), Attempt(self.attempts + 1))
    }
}

impl Holder for Pending {
    fn holder(&self) -> String {
        holder(&self.entry.message_id(), Attempt(self.attempt))
    }
}

/// A delivery that is not settled.
#[derive(Debug)]
pub(super) struct Pending {
    entry: Arc<LogEntry>,
    /// The number of the attempt.
    attempt: u32,
    /// The number of earlier redeliveries in a row that did not count as attempts.
    uncounted_redeliveries: u32,
    /// As for [`QueuedMessage`].
    position: Option<Position>,
    /// The entry's index in the log. `None` for a redelivery.
    index: Option<u64>,
    consumer: SourceNumber,
    lease: Lease,
    /// `true` until the right to settle the delivery is dropped.
    is_held: bool,
    /// The time at which the lease ends, if it is no longer renewed.
    ends_at: Option<Instant>,
}

/// A delivery for a source.
#[derive(Debug)]
pub(super) struct TakenDelivery {
    pub(super) serial: DeliveryNumber,
    pub(super) entry: Arc<LogEntry>,
    pub(super) attempt: u32,
    pub(super) lease: Lease,
    /// The term of the owner of the partition.
    pub(super) term: Option<PartitionTerm>,
    /// The id of the task, if the group records its status.
    pub(super) task: Option<MessageId>,
    /// Set if the broker is observed. Boxed, because few brokers are observed.
    pub(super) observed: Option<Box<ObservedDelivery>>,
}

impl Group {
    /// Creates a group that starts at the entry with this index.
    pub(super) fn starting_at(next_index: u64) -> Self {
        Self {
            next_index,
            ..Self::default()
        }
    }

    /// Adds a worker that knows these versions of payloads. Delivers the parked messages that wait
    /// for one of these versions.
    pub(super) fn join(
        &mut self,
        consumer: SourceNumber,
        wake: Arc<Notify>,
        versions: Arc<[(Name, u32)]>,
    ) {
        let member = GroupMember { wake, versions };
        for key in self.limits.parked_keys() {
            if let (Some(name), Some(version)) = (&key.name, key.version)
                && member.knows(name, version)
            {
                let parked = self
                    .limits
                    .take_parked(&parking_key_of_newer(name, version));
                self.deliver_now(parked);
            }
        }
        self.members.insert(consumer, member);
    }

    /// Wakes all workers, because a message can be delivered, or [`next_due`](Self::next_due) has
    /// changed.
    pub(super) fn wake(&self) {
        for member in self.members.values() {
            member.wake.notify_one();
        }
    }

    /// Removes a worker. It is no longer woken. It owns its partition until its running deliveries
    /// have ended.
    pub(super) fn leave(
        &mut self,
        consumer: SourceNumber,
        settings: &Settings,
        context: &GroupContext,
    ) {
        self.members.remove(&consumer);
        self.leave_owners(consumer, settings, context);
    }

    /// Lets all leases of a worker end after `lease`. A lease that ends earlier does not change.
    pub(super) fn abandon(&mut self, consumer: SourceNumber, lease: Duration) {
        if self.end_ownership(Some(consumer), instant_after(lease)) {
            return;
        }
        let serials: Vec<_> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.consumer == consumer)
            .map(|(serial, _)| *serial)
            .collect();
        self.end_leases(serials, instant_after(lease));
    }

    /// Lets the lease of a delivery end, because the right to settle the delivery was dropped.
    pub(super) fn abandon_delivery(
        &mut self,
        serial: DeliveryNumber,
        settings: &Settings,
        context: &GroupContext,
    ) {
        let in_order = self.ownership.stop(serial);
        let pending = self.pending.get_mut(&serial);
        let is_pending = pending.is_some();
        if let Some(pending) = pending {
            pending.is_held = false;
            let Pending { entry, attempt, .. } = pending;
            context
                .observation
                .report_delivery(settings, entry, *attempt, || MessageEvent::Abandoned);
        }
        match in_order {
            Some(message) => {
                if is_pending {
                    self.ownership.break_off();
                }
                self.stopped_in_order(&message, !is_pending, settings, context);
            }
            None => self.end_leases([serial], instant_after(settings.lease)),
        }
    }

    /// Ends every lease now.
    pub(super) fn end_all_leases(&mut self) {
        if self.end_ownership(None, Instant::now()) {
            return;
        }
        let serials: Vec<_> = self.pending.keys().copied().collect();
        for serial in &serials {
            if let Some(ends_at) = self.pending[serial].ends_at {
                self.ending_leases.remove(&(ends_at, *serial));
            }
            self.pending.get_mut(serial).expect("just listed").ends_at = None;
        }
        self.end_leases(serials, Instant::now());
    }

    /// Lets the leases of these deliveries end at `at`.
    fn end_leases(&mut self, serials: impl IntoIterator<Item = DeliveryNumber>, at: Instant) {
        for serial in serials {
            // An end that is set already is earlier than `at`, and does not change.
            if let Some(pending) = self.pending.get_mut(&serial)
                && pending.ends_at.is_none()
            {
                pending.ends_at = Some(at);
                self.ending_leases.insert((at, serial));
                self.wake();
            }
        }
    }

    /// Returns the next time at which a redelivery is due, a lease ends or an owner dies. The group
    /// does not wake workers at that time, so they set a timer.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let due = self.delayed.first_key_value().map(|((at, _), _)| *at);
        let ending = self.ending_leases.first().map(|(at, _)| *at);
        let times = [due, ending, self.ownership.dies_at()];
        times.into_iter().flatten().min()
    }

    /// Delivers up to `max` messages to a worker.
    pub(super) fn take(
        &mut self,
        log: &Log,
        max: usize,
        consumer: SourceNumber,
        settings: &Settings,
        context: &GroupContext,
    ) -> Vec<TakenDelivery> {
        self.promote(settings, context);
        self.claim(settings, context);
        self.hand_over(settings, context);
        let pauses = context.pauses.of_group(settings);
        if pauses.is_paused() {
            return Vec::new();
        }
        // Applies the limit of the group.
        let max = match settings.max_in_flight_of_group {
            Some(max_of_group) => max.min(max_of_group.saturating_sub(self.pending.len())),
            None => max,
        };
        let ahead = self.ready.len() + log.end().saturating_sub(self.next_index) as usize;
        let mut taken = Vec::with_capacity(max.min(ahead));
        while taken.len() < max {
            let Some((queued, index)) = self.pick(log, consumer) else {
                break;
            };
            // The attempts are checked before the message is decoded, because decoding it may kill
            // the worker.
            if queued.attempts >= queued.entry.max_attempts(settings) {
                let reason = format!("delivered {} times and never settled", queued.attempts);
                tracing::warn!(
                    id = %queued.entry.id, stream = %settings.stream, group = %settings.group,
                    "a dead letter: {reason}"
                );
                let end = (reason, TaskOutcome::default());
                self.add_dead_letter(&queued.entry, queued.attempts, end, settings, context);
                self.end_in_order(&queued);
                let error = "the request could not be handled";
                context.answer(&queued.entry, || Err(RpcError::unavailable(error)));
                continue;
            }
            if context
                .records
                .take_cancelled(settings, &queued.entry.fields)
            {
                index.map(|index| self.unfinished_indices.remove(&index));
                self.end_reservation(&queued);
                self.end_in_order(&queued);
                continue;
            }
            // A message of an owned partition is not parked, because it would lose its place in the
            // order.
            if !self.ownership.is_used()
                && let Some(key) = pauses.parking_key(&queued.entry)
            {
                context.counters.parked.increment();
                index.map(|index| self.unfinished_indices.remove(&index));
                self.end_reservation(&queued);
                let delivered = self.limits.park(key, 0, queued);
                self.deliver_now(delivered);
                continue;
            }
            // Delivers the message, and records that its task runs.
            let mut delivery = self.hand_out(queued, index, consumer);
            let GroupContext { records, clock, .. } = context;
            let fields = &delivery.entry.fields;
            let of_group = (&settings.stream, Some(&settings.group));
            let attempt = Attempt(delivery.attempt);
            records.change(of_group, fields, clock, |status| {
                status.state = TaskState::Running;
                status.attempt = attempt;
                status.started_at = Some(clock.now());
            });
            delivery.task = records.recorded_id(settings, fields);
            context.counters.delivered.increment();
            // The start is reported under the lock, so that the observer always sees an entry
            // either waiting or in flight.
            delivery.observed = context.observation.report_start(|| {
                ObservedMessage::delivery(settings, &delivery.entry, delivery.attempt)
            });
            taken.push(delivery);
        }
        taken
    }

    /// Moves the delayed redeliveries that are due to `ready`.
    fn promote(&mut self, settings: &Settings, context: &GroupContext) {
        if self.delayed.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some(first) = self.delayed.first_entry()
            && first.key().0 <= now
        {
            let (at, _) = *first.key();
            let queued = first.remove();
            let GroupContext { records, clock, .. } = context;
            records.set_waiting(settings, &queued.entry, clock);
            self.make_ready(at, queued);
        }
    }

    /// Claims the deliveries whose leases have ended.
    fn claim(&mut self, settings: &Settings, context: &GroupContext) {
        if self.ending_leases.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut claims = Claims::default();
        while let Some(&(ends_at, serial)) = self.ending_leases.first()
            && ends_at <= now
        {
            let queued = self.take_back(serial, &mut claims, settings, context);
            self.ready.push_back((now, queued));
        }
        claims.log(&settings.stream, &settings.group);
    }

    /// Takes a pending delivery from its worker. If the worker still handles it, its lease is lost.
    pub(super) fn take_back(
        &mut self,
        serial: DeliveryNumber,
        claims: &mut Claims,
        settings: &Settings,
        context: &GroupContext,
    ) -> QueuedMessage {
        let pending = self
            .remove_pending(serial)
            .expect("only a pending delivery is taken back");
        let GroupContext {
            counters,
            records,
            clock,
            ..
        } = context;
        counters.claimed.increment();
        records.set_waiting(settings, &pending.entry, clock);
        claims.add(&name_of(pending.consumer), || pending.entry.id.to_string());
        if pending.is_held {
            counters.lost_leases.increment();
            pending.lease.lose();
        }
        self.end_reservation(&pending);
        QueuedMessage {
            entry: pending.entry,
            attempts: pending.attempt,
            uncounted_redeliveries: pending.uncounted_redeliveries,
            position: pending.position,
        }
    }

    /// Removes and returns the next message to deliver, with its index if it is a new entry.
    /// Redeliveries and new entries alternate, so that neither starves.
    fn pick(&mut self, log: &Log, consumer: SourceNumber) -> Option<(QueuedMessage, Option<u64>)> {
        if self.ownership.is_used() {
            return self.pick_in_order(log, consumer);
        }
        let retry_first = !self.last_was_a_retry || log.get(self.next_index).is_none();
        if retry_first && let Some((_, queued)) = self.ready.pop_front() {
            self.last_was_a_retry = true;
            return Some((queued, None));
        }
        self.last_was_a_retry = false;
        let (entry, index) = self.read(log)?;
        self.unfinished_indices.insert(index);
        Some((QueuedMessage::first(entry), Some(index)))
    }

    /// Reads the next entry of the stream, if there is one. Returns it with its index.
    pub(super) fn read(&mut self, log: &Log) -> Option<(Arc<LogEntry>, u64)> {
        let index = self.next_index;
        let entry = Arc::clone(log.get(index)?);
        self.next_index += 1;
        self.last_read = Some(entry.id);
        Some((entry, index))
    }

    /// Starts a delivery of a message. The delivery is pending until it is settled or claimed.
    fn hand_out(
        &mut self,
        queued: QueuedMessage,
        index: Option<u64>,
        consumer: SourceNumber,
    ) -> TakenDelivery {
        self.last_serial += 1;
        self.ownership.start(self.last_serial, &queued);
        let QueuedMessage {
            uncounted_redeliveries,
            position,
            ..
        } = queued;
        let taken = TakenDelivery {
            serial: self.last_serial,
            entry: queued.entry,
            attempt: queued.attempts + 1,
            lease: Lease::with_outbox(),
            term: self.ownership.term(),
            task: None,
            observed: None,
        };
        self.pending.insert(
            taken.serial,
            Pending {
                entry: Arc::clone(&taken.entry),
                attempt: taken.attempt,
                uncounted_redeliveries,
                position,
                index,
                consumer,
                lease: taken.lease.clone(),
                is_held: true,
                ends_at: None,
            },
        );
        taken
    }

    /// Returns `true` if a delivery is not settled, and no other worker has claimed it.
    pub(super) fn is_pending(&self, serial: DeliveryNumber) -> bool {
        self.pending.contains_key(&serial)
    }

    /// Removes a pending delivery.
    fn remove_pending(&mut self, serial: DeliveryNumber) -> Option<Pending> {
        let pending = self.pending.remove(&serial)?;
        if let Some(ends_at) = pending.ends_at {
            self.ending_leases.remove(&(ends_at, serial));
        }
        if let Some(index) = pending.index {
            self.unfinished_indices.remove(&index);
        }
        Some(pending)
    }

    /// Closes the outbox of a pending delivery, and returns its follow-ups.
    pub(super) fn take_follow_ups(&self, serial: DeliveryNumber) -> Vec<FollowUp> {
        let pending = self.pending.get(&serial);
        pending.map_or_else(Vec::new, |pending| pending.lease.take_follow_ups())
    }

    /// Carries out a verdict, unless the lease was lost. Returns the entry, so that its memory is
    /// freed after the caller has released the lock.
    pub(super) fn settle(
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
        let Pending {
            entry,
            attempt,
            uncounted_redeliveries,
            position,
            lease,
            ..
        } = pending;
        let retry_with = |attempts, uncounted_redeliveries| QueuedMessage {
            entry: Arc::clone(&entry),
            attempts,
            uncounted_redeliveries,
            position,
        };
        // The group has fewer deliveries in flight now, so its workers may fetch again.
        if settings.max_in_flight_of_group.is_some() {
            self.wake();
        }
        // The closures below report the verdict to the observer, and to the record of the task. The
        // observer is called before the reply is sent, so that the observer's record is complete
        // when the sender of the request continues.
        let counters = &context.counters;
        let observe = |what: &dyn Fn() -> MessageEvent| {
            context
                .observation
                .report_delivery(settings, &entry, attempt, what);
        };
        let GroupContext { records, clock, .. } = context;
        let outcome = || TaskOutcome {
            progress: lease.take_progress(),
            ..TaskOutcome::default()
        };
        let record_end = |state, outcome| {
            let end = TaskEnd {
                outcome,
                ..TaskEnd::new(state, "")
            };
            records.end(settings, &entry.fields, end, clock);
        };
        let record_wait = |after: Duration, reason: &str| {
            let of_group = (&settings.stream, Some(&settings.group));
            records.change(of_group, &entry.fields, clock, |status| {
                status.state = match after.is_zero() {
                    true => TaskState::Waiting,
                    false => TaskState::Delayed,
                };
                reason.clone_into(&mut status.reason);
            });
        };
        // After the last attempt, a failure becomes a dead letter. In an owned partition, a parking
        // becomes a redelivery.
        let mut verdict = verdict.limited(attempt, entry.max_attempts(settings));
        if in_order.is_some() {
            verdict = verdict.without_parking(attempt, &settings.backoff);
        }
        let has_ended = !matches!(verdict, Verdict::Redeliver { .. } | Verdict::Release);
        match verdict {
            Verdict::Done(answer) => {
                counters.done.increment();
                let outcome = match &answer {
                    Ok(reply) if lease.record().is_some() => outcome().with_result(reply),
                    _ => outcome(),
                };
                record_end(TaskState::Done, outcome);
                observe(&|| MessageEvent::answered(&answer));
                context.answer(&entry, || answer);
            }
            Verdict::Redeliver {
                after,
                counted,
                reason,
            } => {
                counters.redelivered.increment();
                if !counted {
                    counters.uncounted.increment();
                }
                // The wait also grows with each uncounted redelivery in a row, so that a message
                // that is put off again and again costs little.
                let failures = attempt.saturating_add(uncounted_redeliveries);
                let after = after.unwrap_or_else(|| settings.backoff.after(failures));
                observe(&|| MessageEvent::Redelivered {
                    after,
                    counted,
                    reason: reason.clone(),
                });
                let message = match counted {
                    true => retry_with(attempt, 0),
                    false => retry_with(attempt - 1, uncounted_redeliveries + 1),
                };
                record_wait(after, &reason);
                self.deliver_again(message, after);
            }
            Verdict::DeadLetter { reason, answer } => {
                self.add_dead_letter(&entry, attempt, (reason, outcome()), settings, context);
                if let Some(answer) = answer {
                    context.answer(&entry, || Err(answer));
                }
            }
            Verdict::Discard { reason, answer } => {
                match reason {
                    Discarded::Expired => counters.expired.increment(),
                    Discarded::Requested => counters.discarded.increment(),
                    Discarded::Ignored => counters.ignored.increment(),
                }
                record_end(TaskState::Discarded, outcome());
                // A task that this group ignores belongs to other groups, so its idempotency key is
                // kept.
                if reason != Discarded::Ignored {
                    self.give_up(&entry);
                }
                observe(&|| MessageEvent::Discarded(reason));
                if let Some(answer) = answer {
                    context.answer(&entry, || Err(answer));
                }
            }
            Verdict::Park(request) => {
                counters.parked.increment();
                record_wait(Duration::ZERO, "");
                observe(&|| MessageEvent::Parked);
                let message = retry_with(attempt - 1, 0);
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
            Verdict::Release => {
                counters.released.increment();
                record_wait(Duration::ZERO, "");
                observe(&|| MessageEvent::Released);
                self.deliver_again(
                    retry_with(attempt - 1, uncounted_redeliveries),
                    Duration::ZERO,
                );
            }
        }
        // If the message has ended, the next message with its key can start.
        if let Some(message) = in_order {
            self.stopped_in_order(&message, has_ended, settings, context);
        }
        Some(entry)
    }

    /// Releases a permit of a limit that workers share.
    pub(super) fn release_permit(&mut self, permit: &PermitRequest) {
        let delivered = self.limits.release(&permit.key, &permit.holder);
        self.deliver_now(delivered);
    }

    /// Releases the permit that is reserved for a delivery, if there is one. Called when the
    /// delivery has ended, or does not start.
    fn end_reservation(&mut self, delivery: &impl Holder) {
        let delivered = self.limits.end_reservation(|| delivery.holder());
        self.deliver_now(delivered);
    }

    /// Queues messages that can be delivered now.
    fn deliver_now(&mut self, messages: impl IntoIterator<Item = QueuedMessage>) {
        for message in messages {
            self.deliver_again(message, Duration::ZERO);
        }
    }

    /// Queues a message that can be delivered after this time.
    fn deliver_again(&mut self, queued: QueuedMessage, after: Duration) {
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
    fn add_dead_letter(
        &mut self,
        entry: &Arc<LogEntry>,
        attempts: u32,
        (reason, outcome): (String, TaskOutcome),
        settings: &Settings,
        context: &GroupContext,
    ) {
        context.counters.dead.increment();
        self.give_up(entry);
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
    fn give_up(&mut self, entry: &LogEntry) {
        if entry.field(codec::IDEMPOTENCY_KEY).is_some() {
            self.given_up.push(entry.message_id());
        }
    }

    /// Cancels a task that is running, is parked, or waits for a redelivery. Returns `false` if the
    /// task is in none of these states.
    pub(super) fn cancel(&mut self, id: &MessageId, reason: &str) -> bool {
        let is_it = |entry: &LogEntry| entry.message_id() == *id;
        if self.limits.remove_parked(|queued| is_it(&queued.entry)) {
            return true;
        }
        let mut ready = self.ready.iter();
        let index = ready.position(|(_, queued)| is_it(&queued.entry));
        if let Some((_, queued)) = index.and_then(|index| self.ready.remove(index)) {
            self.end_reservation(&queued);
            self.end_in_order(&queued);
            return true;
        }
        let mut delayed = self.delayed.iter();
        let key = delayed.find_map(|(key, queued)| is_it(&queued.entry).then_some(*key));
        if let Some(queued) = key.and_then(|key| self.delayed.remove(&key)) {
            self.end_in_order(&queued);
            return true;
        }
        let mut pending = self.pending.iter();
        let running = pending.find(|(_, pending)| is_it(&pending.entry));
        let running = running.map(|(serial, _)| *serial);
        if let Some(pending) = running.and_then(|serial| self.remove_pending(serial)) {
            self.end_reservation(&pending);
            pending.lease.cancel(reason);
            return true;
        }
        false
    }

    /// Delivers the messages that were parked because this name was paused.
    pub(super) fn resume(&mut self, name: &Name) {
        let parked = self.limits.take_parked(&parking_key_of_paused(name));
        self.deliver_now(parked);
    }

    /// Removes and returns all messages that wait.
    pub(super) fn take_waiting(&mut self, log: &Log) -> Vec<Arc<LogEntry>> {
        let mut waiting: Vec<_> = self.ready.drain(..).map(|(_, queued)| queued).collect();
        waiting.extend(std::mem::take(&mut self.delayed).into_values());
        waiting.extend(self.limits.take_all_parked());
        // A released permit goes to a parked message, so the permits are released only after all
        // messages were removed.
        for queued in &waiting {
            self.end_reservation(queued);
            self.end_in_order(queued);
        }
        let mut entries: Vec<_> = waiting.into_iter().map(|queued| queued.entry).collect();
        while let Some((entry, _)) = self.read(log) {
            entries.push(entry);
        }
        self.given_up
            .extend(entries.iter().map(|entry| entry.message_id()));
        entries
    }

    /// Delivers the message of a dead letter again, as its first attempt.
    pub(super) fn replay(&mut self, entry: Arc<LogEntry>) {
        // A replayed task loses its time to live, so that it does not expire immediately. A request
        // keeps its time to live, because its caller does not wait longer.
        let is_task = entry.field("type").is_some_and(|kind| kind == "task");
        let fields = entry.fields.iter();
        let fields = fields.filter(|(field, _)| !is_task || field != codec::TIME_TO_LIVE);
        let entry = Arc::new(LogEntry {
            id: entry.id,
            fields: fields.cloned().collect(),
        });
        self.deliver_again(QueuedMessage::first(entry), Duration::ZERO);
    }

    /// Returns the index before which this group has finished all entries.
    pub(super) fn finished_before(&self) -> u64 {
        self.unfinished_indices
            .first()
            .copied()
            .unwrap_or(self.next_index)
    }

    /// Returns the number of messages that could be delivered now.
    fn deliverable(&self, log: &Log) -> u64 {
        let due = self
            .delayed
            .range(..=(Instant::now(), DeliveryNumber::MAX))
            .count();
        (self.ready.len() + due) as u64 + (log.end() - self.next_index)
    }

    /// Returns the backlog of the group, without delayed tasks. Redeliveries that are due by
    /// `horizon` count as due soon.
    pub(super) fn backlog(&self, log: &Log, clock: &BrokerClock, horizon: Instant) -> Backlog {
        let now = Instant::now();
        let due = self.delayed.range(..=(now, DeliveryNumber::MAX)).count();
        let soon = self
            .delayed
            .range(..=(horizon.max(now), DeliveryNumber::MAX))
            .count();
        let unclaimed = self
            .ending_leases
            .range(..=(now, DeliveryNumber::MAX))
            .count();
        let waiting = self.deliverable(log);
        Backlog {
            waiting,
            unclaimed: unclaimed as u64,
            running: (self.pending.len() - unclaimed) as u64,
            retrying: (self.delayed.len() - due) as u64,
            due_soon: (soon - due) as u64,
            parked: self.limits.parked_count() as u64,
            oldest_waiting: (waiting > 0).then(|| self.oldest_waiting(log, clock)),
            workers: self.members.len() as u64,
            ..Backlog::default()
        }
    }
}

/// A message of a group, for lists.
pub(super) struct GroupMessage<'a> {
    pub(super) entry: &'a Arc<LogEntry>,
    /// `true` for an entry of the stream, `false` for a redelivery.
    pub(super) on_stream: bool,
    /// The number of the running attempt, or of the next attempt if none runs.
    pub(super) attempt: u32,
    /// The source that fetched the message. `None` if it is not running.
    pub(super) consumer: Option<SourceNumber>,
    /// The time at which the next attempt is due. `None` if the message runs, or could be delivered
    /// now.
    pub(super) due: Option<Instant>,
}

impl<'a> GroupMessage<'a> {
    fn of(queued: &'a QueuedMessage, due: Option<Instant>) -> Self {
        Self {
            entry: &queued.entry,
            on_stream: false,
            attempt: queued.attempts + 1,
            consumer: None,
            due,
        }
    }
}

/// Lists of messages.
impl Group {
    /// Returns the messages that could be delivered now, the redeliveries first.
    pub(super) fn waiting_messages<'a>(
        &'a self,
        log: &'a Log,
    ) -> impl Iterator<Item = GroupMessage<'a>> {
        let due = self.delayed.range(..=(Instant::now(), DeliveryNumber::MAX));
        let ready = self.ready.iter().map(|(_, queued)| queued);
        let again = ready.chain(due.map(|(_, queued)| queued));
        let fresh = (self.next_index..log.end()).filter_map(|index| log.get(index));
        let fresh = fresh.map(|entry| GroupMessage {
            entry,
            on_stream: true,
            attempt: 1,
            consumer: None,
            due: None,
        });
        again
            .map(|queued| GroupMessage::of(queued, None))
            .chain(fresh)
    }

    /// Returns the messages that wait for their next attempt.
    pub(super) fn delayed_messages(&self) -> impl Iterator<Item = GroupMessage<'_>> {
        let not_due = self.delayed.range((Instant::now(), DeliveryNumber::MAX)..);
        not_due.map(|((at, _), queued)| GroupMessage::of(queued, Some(*at)))
    }

    /// Returns the deliveries that are not settled, in the order of the deliveries.
    pub(super) fn running_messages(&self) -> Vec<GroupMessage<'_>> {
        let mut serials: Vec<_> = self.pending.keys().collect();
        serials.sort_unstable();
        let running = serials.into_iter().map(|serial| {
            let pending = &self.pending[serial];
            GroupMessage {
                entry: &pending.entry,
                on_stream: pending.index.is_some(),
                attempt: pending.attempt,
                consumer: Some(pending.consumer),
                due: None,
            }
        });
        running.collect()
    }

    /// Returns the open sources, and the number of deliveries of each that are not settled.
    pub(super) fn consumers(&self) -> Vec<(SourceNumber, usize)> {
        let mut consumers: Vec<_> = self.members.keys().map(|member| (*member, 0)).collect();
        for pending in self.pending.values() {
            match consumers.iter_mut().find(|(it, _)| *it == pending.consumer) {
                Some((_, count)) => *count += 1,
                None => consumers.push((pending.consumer, 1)),
            }
        }
        consumers
    }
}

impl Group {
    pub(super) fn stats(&self, name: &Name, log: &Log, clock: &BrokerClock) -> GroupStats {
        let backlog = self.backlog(log, clock, Instant::now());
        let mut stats = GroupStats::new(name);
        stats.lag = Some(backlog.waiting);
        stats.pending = self.pending.len() as u64;
        let oldest = self.pending.values().map(|pending| pending.entry.id).min();
        stats.oldest_pending = oldest.map(|oldest| {
            let age = clock.milliseconds().saturating_sub(oldest.milliseconds);
            Duration::from_millis(age)
        });
        stats.delayed = backlog.retrying;
        stats.parked = backlog.parked;
        stats.dead = self.dead.len() as u64;
        stats.consumers = self.members.len() as u64;
        stats.unfinished = Some(log.end() - self.finished_before());
        stats.last_delivered = self.last_read.map(|id| id.to_string());
        stats
    }
}

impl Group {
    /// Returns `true` if the group has workers.
    pub(super) fn is_served(&self) -> bool {
        !self.members.is_empty()
    }

    /// Returns the number of messages that wait for this group, and the age of the oldest message.
    /// `name` is the group's name.
    pub(super) fn waiting(&self, name: &Name, log: &Log, clock: &BrokerClock) -> Waiting {
        Waiting {
            group: name.clone(),
            messages: self.deliverable(log),
            oldest: self.oldest_waiting(log, clock),
            read: Some(self.next_index),
        }
    }

    /// Returns the time for which the oldest message has waited. Zero if no message waits.
    fn oldest_waiting(&self, log: &Log, clock: &BrokerClock) -> Duration {
        let now = Instant::now();
        let unread_age = log.get(self.next_index).map(|entry| {
            let age = clock.milliseconds().saturating_sub(entry.id.milliseconds);
            Duration::from_millis(age)
        });
        // The first message of each list has waited for the longest time.
        let ready = self.ready.front().map(|(since, _)| *since);
        let due = self.delayed.first_key_value().map(|((at, _), _)| *at);
        let since = [ready, due.filter(|at| *at <= now)];
        let again = since.into_iter().flatten().map(|at| now - at);
        again.chain(unread_age).max().unwrap_or_default()
    }
}

/// Methods for the test kit.
#[cfg(feature = "testing")]
impl Group {
    /// Returns the number of messages that could be delivered now, including deliveries whose
    /// leases have ended.
    pub(super) fn queued(&self, log: &Log) -> usize {
        let now = (Instant::now(), DeliveryNumber::MAX);
        if self.ownership.is_used() {
            return self.queued_in_order(log, self.delayed.range(..=now).count());
        }
        self.deliverable(log) as usize + self.ending_leases.range(..=now).count()
    }
}
