//! Hands deliveries out to sources, and claims those of dead sources.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    super::{
        context::GroupContext,
        control::GroupPauses,
        log::{Log, LogEntry},
        observer::{ObservedDelivery, ObservedMessage},
    },
    DeliveryNumber, Group, Pending, QueuedMessage, SourceNumber, name_of,
};
use crate::{
    error::RpcError,
    message::{Attempt, FollowUp, Lease, MessageId},
    transport::{Claims, PartitionTerm, Settings, TaskOutcome, TaskState},
};

/// A delivery for a source.
#[derive(Debug)]
pub(in super::super) struct TakenDelivery {
    pub(in super::super) serial: DeliveryNumber,
    pub(in super::super) entry: Arc<LogEntry>,
    pub(in super::super) attempt: u32,
    pub(in super::super) lease: Lease,
    /// The term of the owner of the partition.
    pub(in super::super) term: Option<PartitionTerm>,
    /// The id of the task, if the group records its status.
    pub(in super::super) task: Option<MessageId>,
    /// Set if the broker is observed. Boxed, because few brokers are observed.
    pub(in super::super) observed: Option<Box<ObservedDelivery>>,
}

impl Group {
    /// Delivers up to `max` messages to a worker.
    pub(in super::super) fn take(
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
        while taken.len() < max
            && let Some((queued, index)) = self.pick(log, consumer)
        {
            taken.extend(self.start(queued, index, consumer, settings, &pauses, context));
        }
        taken
    }

    /// Starts a picked message. Returns `None` if the message becomes a dead letter or is parked,
    /// or if its task was cancelled.
    fn start(
        &mut self,
        queued: QueuedMessage,
        index: Option<u64>,
        consumer: SourceNumber,
        settings: &Settings,
        pauses: &GroupPauses,
        context: &GroupContext,
    ) -> Option<TakenDelivery> {
        // The attempts are checked before the message is decoded, because decoding it may kill the
        // worker.
        if queued.attempts >= queued.entry.max_attempts(settings) {
            self.end_exhausted(&queued, settings, context);
            return None;
        }
        let records = &context.records;
        if records.skip_cancelled(settings, &queued.entry.fields) {
            index.map(|index| self.unfinished_indices.remove(&index));
            self.end_reservation(&queued);
            self.end_in_order(&queued);
            return None;
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
            return None;
        }
        let mut delivery = self.hand_out(queued, index, consumer);
        let fields = &delivery.entry.fields;
        let of_group = (&settings.stream, Some(&settings.group));
        let attempt = Attempt(delivery.attempt);
        records.change(of_group, fields, &context.clock, |status| {
            status.state = TaskState::Running;
            status.attempt = attempt;
            status.started_at = Some(context.clock.now());
        });
        delivery.task = records.recorded_id(settings, fields);
        context.counters.delivered.increment();
        // The start is reported under the lock, so that the observer always sees an entry either
        // waiting or in flight.
        delivery.observed = context.observation.report_start(|| {
            ObservedMessage::delivery(settings, &delivery.entry, delivery.attempt)
        });
        Some(delivery)
    }

    /// Makes a message a dead letter that was delivered as often as allowed, and answers its
    /// requester.
    fn end_exhausted(
        &mut self,
        queued: &QueuedMessage,
        settings: &Settings,
        context: &GroupContext,
    ) {
        let reason = format!("delivered {} times and never settled", queued.attempts);
        tracing::warn!(
            id = %queued.entry.id, stream = %settings.stream, group = %settings.group,
            "a dead letter: {reason}"
        );
        let end = (reason, TaskOutcome::default());
        self.add_dead_letter(&queued.entry, queued.attempts, end, settings, context);
        self.end_in_order(queued);
        let error = "the request could not be handled";
        context.answer(&queued.entry, || Err(RpcError::unavailable(error)));
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
    pub(in super::super) fn take_back(
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
    pub(in super::super) fn read(&mut self, log: &Log) -> Option<(Arc<LogEntry>, u64)> {
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
    pub(in super::super) fn is_pending(&self, serial: DeliveryNumber) -> bool {
        self.pending.contains_key(&serial)
    }

    /// Removes a pending delivery.
    pub(super) fn remove_pending(&mut self, serial: DeliveryNumber) -> Option<Pending> {
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
    pub(in super::super) fn take_follow_ups(&self, serial: DeliveryNumber) -> Vec<FollowUp> {
        let pending = self.pending.get(&serial);
        pending.map_or_else(Vec::new, |pending| pending.lease.take_follow_ups())
    }
}
