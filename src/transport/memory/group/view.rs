//! The counts, the statistics and the lists of a group's messages.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    super::{
        clock::BrokerClock,
        log::{Log, LogEntry},
    },
    DeliveryNumber, Group, QueuedMessage, SourceNumber,
};
use crate::{
    message::Name,
    transport::{Backlog, GroupStats, Waiting},
};

/// A message of a group, for lists.
pub(in super::super) struct GroupMessage<'a> {
    pub(in super::super) entry: &'a Arc<LogEntry>,
    /// `true` for an entry of the stream, `false` for a redelivery.
    pub(in super::super) on_stream: bool,
    /// The number of the running attempt, or of the next attempt if none runs.
    pub(in super::super) attempt: u32,
    /// The source that fetched the message. `None` if it is not running.
    pub(in super::super) consumer: Option<SourceNumber>,
    /// The time at which the next attempt is due. `None` if the message runs, or could be delivered
    /// now.
    pub(in super::super) due: Option<Instant>,
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

impl Group {
    /// Returns the index before which this group has finished all entries.
    pub(in super::super) fn finished_before(&self) -> u64 {
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
    pub(in super::super) fn backlog(
        &self,
        log: &Log,
        clock: &BrokerClock,
        horizon: Instant,
    ) -> Backlog {
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

    /// Returns the messages that could be delivered now, the redeliveries first.
    pub(in super::super) fn waiting_messages<'a>(
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
    pub(in super::super) fn delayed_messages(&self) -> impl Iterator<Item = GroupMessage<'_>> {
        let not_due = self.delayed.range((Instant::now(), DeliveryNumber::MAX)..);
        not_due.map(|((at, _), queued)| GroupMessage::of(queued, Some(*at)))
    }

    /// Returns the deliveries that are not settled, in the order of the deliveries.
    pub(in super::super) fn running_messages(&self) -> Vec<GroupMessage<'_>> {
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
    pub(in super::super) fn consumers(&self) -> Vec<(SourceNumber, usize)> {
        let mut consumers: Vec<_> = self.members.keys().map(|member| (*member, 0)).collect();
        for pending in self.pending.values() {
            match consumers.iter_mut().find(|(it, _)| *it == pending.consumer) {
                Some((_, count)) => *count += 1,
                None => consumers.push((pending.consumer, 1)),
            }
        }
        consumers
    }

    pub(in super::super) fn stats(
        &self,
        name: &Name,
        log: &Log,
        clock: &BrokerClock,
    ) -> GroupStats {
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

    /// Returns `true` if the group has workers.
    pub(in super::super) fn is_served(&self) -> bool {
        !self.members.is_empty()
    }

    /// Returns the number of messages that wait for this group, and the age of the oldest message.
    /// `name` is the group's name.
    pub(in super::super) fn waiting(&self, name: &Name, log: &Log, clock: &BrokerClock) -> Waiting {
        Waiting {
            group: name.clone(),
            messages: self.deliverable(log),
            oldest: self.oldest_waiting(log, clock),
            entries_read: Some(self.next_index),
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
    pub(in super::super) fn queued(&self, log: &Log) -> usize {
        let now = (Instant::now(), DeliveryNumber::MAX);
        if self.ownership.is_used() {
            return self.queued_in_order(log, self.delayed.range(..=now).count());
        }
        self.deliverable(log) as usize + self.ending_leases.range(..=now).count()
    }
}
