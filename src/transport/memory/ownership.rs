//! Owned partitions: one worker of the group reads the partition at a time, and keeps the order of
//! its keys.
//!
//! Each message that was read has a *position*. The messages with one key run one at a time, in the
//! order of their positions. A message that fails keeps its position and holds its key until it has
//! ended. A *term* is the time of one owner. It begins with the messages that earlier terms have
//! left. They run one at a time, even if their keys differ.
//!
//! ```text
//!        assigned
//!  free ──────────► owned
//!   ▲                 │ assigned to another worker, or its order is broken; its source was dropped
//!   │                 ▼
//!   └───────────── leaving: starts no deliveries until the running ones have ended or, if its
//!                  source was dropped, until its lease has ended
//! ```

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use foldhash::HashMap;
use tokio::time::Instant;

use super::{
    context::GroupContext,
    group::{DeliveryNumber, Group, QueuedMessage, SourceNumber},
    log::{Log, LogEntry},
};
use crate::transport::{Claims, PartitionTerm, Settings, codec};

/// The place of a message in the order of a partition.
pub(super) type Position = u64;

/// The owner of a partition, and the order of its messages. Has no effect until a worker may own
/// the partition.
#[derive(Debug, Default)]
pub(super) struct GroupOwnership {
    /// The number of the partition.
    partition: usize,
    /// The open sources among which the partitions are divided.
    candidates: BTreeSet<SourceNumber>,
    owner: Option<SourceNumber>,
    /// The number of terms so far.
    term: u64,
    /// The time at which the owner counts as dead. `None` while its source is open.
    dies_at: Option<Instant>,
    /// `true` if a delivery was dropped without a verdict. Only the next term can deliver its
    /// message again in order.
    is_broken: bool,
    last_position: Position,
    /// The messages that earlier terms have left, and that have not ended.
    inherited: BTreeSet<Position>,
    /// The position of the message that holds each key.
    holders: HashMap<Bytes, Position>,
    /// The deliveries of this term that run, even if their tasks were cancelled.
    running: HashMap<DeliveryNumber, OrderedMessage>,
    /// The maximum number of messages that wait for their keys. At this number, no further messages
    /// are read.
    max_held: usize,
}

/// The position of a message, and its key.
#[derive(Debug)]
pub(super) struct OrderedMessage {
    position: Position,
    key: Option<Bytes>,
}

impl OrderedMessage {
    /// Returns `None` if the message has no position.
    fn of(queued: &QueuedMessage) -> Option<Self> {
        Some(Self {
            position: queued.position?,
            key: key_of(&queued.entry).cloned(),
        })
    }
}

fn key_of(entry: &LogEntry) -> Option<&Bytes> {
    entry.field(codec::PARTITION_KEY)
}

impl GroupOwnership {
    /// Returns `true` if the partition has an owner, or a worker may own it. Then only the owner
    /// reads the partition.
    pub(super) fn is_used(&self) -> bool {
        !self.candidates.is_empty() || self.owner.is_some()
    }

    /// Returns the current term.
    pub(super) fn term(&self) -> Option<PartitionTerm> {
        self.owner?;
        Some(PartitionTerm::new(self.partition, self.term))
    }

    /// Returns the time at which the owner counts as dead, if its source was dropped.
    pub(super) fn dies_at(&self) -> Option<Instant> {
        self.dies_at
    }

    /// Returns the worker that should own the partition. Each candidate has an equal share of the
    /// partitions.
    fn assigned_owner(&self) -> Option<SourceNumber> {
        let number = self.partition.checked_rem(self.candidates.len())?;
        self.candidates.iter().nth(number).copied()
    }

    /// Returns `true` while the owner may start deliveries.
    fn can_start(&self) -> bool {
        self.owner == self.assigned_owner() && self.dies_at.is_none() && !self.is_broken
    }

    fn next_position(&mut self) -> Position {
        self.last_position += 1;
        self.last_position
    }

    /// Begins the term of `owner`. `None` leaves the partition free.
    fn begin(&mut self, owner: Option<SourceNumber>, inherited: BTreeSet<Position>) {
        self.owner = owner;
        self.term += u64::from(owner.is_some());
        self.dies_at = None;
        self.is_broken = false;
        self.inherited = inherited;
        self.holders.clear();
        self.running.clear();
    }

    /// Returns `true` if no other message holds the key of this one.
    fn is_free_for(&self, queued: &QueuedMessage) -> bool {
        let holder = key_of(&queued.entry).and_then(|key| self.holders.get(key));
        holder.is_none_or(|holder| Some(*holder) == queued.position)
    }

    /// Records that a message runs, and that it holds its key.
    pub(super) fn start(&mut self, serial: DeliveryNumber, queued: &QueuedMessage) {
        if self.is_used()
            && let Some(message) = OrderedMessage::of(queued)
        {
            if let Some(key) = &message.key {
                self.holders.insert(key.clone(), message.position);
            }
            self.running.insert(serial, message);
        }
    }

    /// Records that a delivery does not run any more, and returns its message. `None` if the
    /// delivery is of an earlier term, or if the partition is not owned.
    pub(super) fn stop(&mut self, serial: DeliveryNumber) -> Option<OrderedMessage> {
        self.running.remove(&serial)
    }

    /// Records that a delivery was dropped without a verdict, so the order is broken. No further
    /// delivery starts in this term.
    pub(super) fn break_off(&mut self) {
        self.is_broken = true;
    }

    /// Records that a message has ended, and frees its key.
    pub(super) fn end(&mut self, message: &OrderedMessage) {
        self.inherited.remove(&message.position);
        if let Some(key) = &message.key
            && self.holders.get(key) == Some(&message.position)
        {
            self.holders.remove(key);
        }
    }
}

/// Methods for owned partitions.
impl Group {
    /// Adds a worker that may own the partition with this number.
    pub(super) fn join_owners(
        &mut self,
        consumer: SourceNumber,
        partition: usize,
        settings: &Settings,
        context: &GroupContext,
    ) {
        self.ownership.partition = partition;
        self.ownership.max_held = settings.max_in_flight;
        self.ownership.candidates.insert(consumer);
        self.hand_over(settings, context);
    }

    /// Returns `true` if the partition has an owner, or a worker may own it. A worker that has died
    /// counts as the owner until its term ends.
    pub(super) fn has_owners(&mut self, settings: &Settings, context: &GroupContext) -> bool {
        self.hand_over(settings, context);
        self.ownership.is_used()
    }

    /// Removes a worker that may own the partition.
    pub(super) fn leave_owners(
        &mut self,
        consumer: SourceNumber,
        settings: &Settings,
        context: &GroupContext,
    ) {
        self.ownership.candidates.remove(&consumer);
        self.hand_over(settings, context);
    }

    /// Lets the owner of the partition count as dead from `at` on. `None` as the consumer means any
    /// owner. If the consumer is not the owner, changes nothing. Returns `false` if the partition
    /// is not owned.
    pub(super) fn end_ownership(&mut self, consumer: Option<SourceNumber>, at: Instant) -> bool {
        let ownership = &mut self.ownership;
        if !ownership.is_used() {
            return false;
        }
        if consumer.is_none() || ownership.owner == consumer {
            let dies_at = ownership.dies_at.get_or_insert(at);
            *dies_at = at.min(*dies_at);
            self.wake();
        }
        true
    }

    /// Ends the owner's term if it is over, and begins that of the next owner.
    pub(super) fn hand_over(&mut self, settings: &Settings, context: &GroupContext) {
        let ownership = &self.ownership;
        let assigned = ownership.assigned_owner();
        let is_over = match (ownership.owner, ownership.dies_at) {
            (None, _) => assigned.is_some(),
            (Some(_), Some(dies_at)) => dies_at <= Instant::now(),
            (Some(_), None) => !ownership.can_start() && ownership.running.is_empty(),
        };
        if is_over {
            self.change_owner(assigned, settings, context);
        }
    }

    /// Ends the term. The next owner inherits all messages that were read and have not ended.
    fn change_owner(
        &mut self,
        owner: Option<SourceNumber>,
        settings: &Settings,
        context: &GroupContext,
    ) {
        let now = Instant::now();
        let mut left = Vec::new();
        let mut serials: Vec<_> = self.pending.keys().copied().collect();
        serials.sort_unstable();
        let mut claims = Claims::default();
        for serial in serials {
            let queued = self.take_back(serial, &mut claims, settings, context);
            left.push((now, queued));
        }
        claims.log(&settings.stream, &settings.group);
        // A message with a position is delivered again without its back-off, because the messages
        // after it would have to wait for the back-off.
        for (due, queued) in std::mem::take(&mut self.delayed) {
            if queued.position.is_some() {
                context
                    .records
                    .set_waiting(settings, &queued.entry, &context.clock);
                left.push((now, queued));
            } else {
                self.delayed.insert(due, queued);
            }
        }
        left.extend(self.ready.drain(..));
        // Messages without a position were read before the partition was owned.
        left.sort_by_key(|(_, queued)| (queued.position.is_none(), queued.position));
        let ownership = &mut self.ownership;
        let mut inherited = BTreeSet::new();
        for (_, queued) in &mut left {
            let position = queued
                .position
                .get_or_insert_with(|| ownership.next_position());
            inherited.insert(*position);
        }
        self.ready = VecDeque::from(left);
        ownership.begin(owner, inherited);
        if let Some(term) = ownership.term() {
            let stream = &settings.stream;
            tracing::debug!(%stream, term = term.term, "a worker owns the partition");
        }
        self.wake();
    }

    /// Adds a message to those that can be delivered, at its place in the order.
    pub(super) fn make_ready(&mut self, since: Instant, mut queued: QueuedMessage) {
        if !self.ownership.is_used() {
            self.ready.push_back((since, queued));
            return;
        }
        let ownership = &mut self.ownership;
        let position = *queued
            .position
            .get_or_insert_with(|| ownership.next_position());
        let is_before = |(_, other): &(Instant, QueuedMessage)| other.position < Some(position);
        let at = self.ready.partition_point(is_before);
        self.ready.insert(at, (since, queued));
    }

    /// As [`pick`](Self::pick), in an owned partition. `None` if the worker is not the owner.
    pub(super) fn pick_in_order(
        &mut self,
        log: &Log,
        consumer: SourceNumber,
    ) -> Option<(QueuedMessage, Option<u64>)> {
        if self.ownership.owner != Some(consumer) || !self.ownership.can_start() {
            return None;
        }
        let index = self.startable().next();
        if let Some(index) = index {
            return Some((self.ready.remove(index)?.1, None));
        }
        // New entries are read only after all inherited messages have ended.
        if !self.ownership.inherited.is_empty() {
            return None;
        }
        while self.ready.len() < self.ownership.max_held {
            let (entry, index) = self.read(log)?;
            let mut queued = QueuedMessage::first(entry);
            queued.position = Some(self.ownership.next_position());
            if self.ownership.is_free_for(&queued) {
                self.unfinished_indices.insert(index);
                return Some((queued, Some(index)));
            }
            // The key is held, so the message waits, and the next entry is tried.
            self.ready.push_back((Instant::now(), queued));
        }
        None
    }

    /// Returns the indices of the ready messages that the order lets start now.
    fn startable(&self) -> impl Iterator<Item = usize> {
        let ownership = &self.ownership;
        // While there are inherited messages, only the first of them runs.
        let first = ownership.inherited.first();
        let may_start = move |queued: &QueuedMessage| match first {
            Some(first) => queued.position == Some(*first),
            None => ownership.is_free_for(queued),
        };
        let ready = self.ready.iter().enumerate();
        ready.filter_map(move |(at, (_, queued))| may_start(queued).then_some(at))
    }

    /// Records the end of a message that does not run. In an owned partition, the next message with
    /// its key can start.
    pub(super) fn end_in_order(&mut self, queued: &QueuedMessage) {
        if let Some(message) = OrderedMessage::of(queued) {
            self.ownership.end(&message);
            self.wake_if_ready();
        }
    }

    /// Records that a delivery was settled, or that the right to settle it was dropped. If
    /// `has_ended` is `false`, the message keeps its place in the order, and its key.
    pub(super) fn stopped_in_order(
        &mut self,
        message: &OrderedMessage,
        has_ended: bool,
        settings: &Settings,
        context: &GroupContext,
    ) {
        if has_ended {
            self.ownership.end(message);
        }
        self.wake_if_ready();
        self.hand_over(settings, context);
    }

    fn wake_if_ready(&self) {
        if !self.ready.is_empty() {
            self.wake();
        }
    }
}

/// Methods for the test kit.
#[cfg(feature = "testing")]
impl Group {
    /// As [`queued`](Self::queued), in an owned partition.
    pub(super) fn queued_in_order(&self, log: &Log, due: usize) -> usize {
        let ownership = &self.ownership;
        if ownership
            .dies_at
            .is_some_and(|dies_at| dies_at > Instant::now())
        {
            return 0;
        }
        let reads = ownership.inherited.is_empty() && self.ready.len() < ownership.max_held;
        let unread = log.end().saturating_sub(self.next_index) as usize;
        self.startable().count() + due + if reads { unread } else { 0 }
    }
}
