//! A consumer group: its position, its pending deliveries and its redeliveries.

mod change;
mod deliver;
mod settle;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use foldhash::HashMap;
use tokio::{sync::Notify, time::Instant};

pub(super) use self::{deliver::TakenDelivery, view::GroupMessage};
use super::{
    clock::{EntryId, instant_after},
    context::GroupContext,
    dead::DeadLetterLog,
    limits::Limits,
    log::LogEntry,
    observer::MessageEvent,
    ownership::{GroupOwnership, Position},
};
use crate::{
    message::{Attempt, Lease, MessageId, Name, holder_name, parking_key_of_newer},
    transport::{DroppedLetters, Settings},
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
        holder_name(&self.entry.message_id(), Attempt(self.attempts + 1))
    }
}

impl Holder for Pending {
    fn holder(&self) -> String {
        holder_name(&self.entry.message_id(), Attempt(self.attempt))
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
}
