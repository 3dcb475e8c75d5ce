//! A stream and its groups, as far as Campanile uses them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Bound,
};

/// The id of an entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct Id(pub(in super::super) u64, pub(in super::super) u64);

impl Id {
    const LAST: Id = Id(u64::MAX, u64::MAX);

    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (milliseconds, sequence) = text.split_once('-').unwrap_or((text, "0"));
        Some(Self(milliseconds.parse().ok()?, sequence.parse().ok()?))
    }

    /// Parses one end of a range: `-`, `+`, an id, or an id with `(`, which is excluded.
    pub(super) fn bound(text: &[u8]) -> Option<Bound<Self>> {
        match text {
            b"-" => Some(Bound::Included(Self::default())),
            b"+" => Some(Bound::Included(Self::LAST)),
            [b'(', id @ ..] => Some(Bound::Excluded(Self::parse(id)?)),
            id => Some(Bound::Included(Self::parse(id)?)),
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

/// A flat list of fields and values.
pub(in super::super) type Fields = Vec<Vec<u8>>;

#[derive(Debug, Clone, Default)]
pub(in super::super) struct Stream {
    pub(in super::super) entries: BTreeMap<Id, Fields>,
    pub(super) last_id: Id,
    pub(in super::super) groups: BTreeMap<Vec<u8>, Group>,
}

#[derive(Debug, Clone, Default)]
pub(in super::super) struct Group {
    pub(in super::super) last_delivered_id: Id,
    pub(in super::super) pending: BTreeMap<Id, PendingEntry>,
    /// The consumers, each with the time at which it was last seen.
    pub(in super::super) consumers: BTreeMap<Vec<u8>, u64>,
}

/// An entry that was delivered and not acknowledged.
#[derive(Debug, Clone)]
pub(in super::super) struct PendingEntry {
    pub(in super::super) consumer: Vec<u8>,
    /// The time of the last delivery, claim or renewal, in milliseconds.
    pub(in super::super) last_delivered_at: u64,
    pub(in super::super) deliveries: i64,
}

impl Group {
    /// Sets the last-seen time of each consumer back to the time of its last delivery. This
    /// imitates a failover: a read that returns no entries is not replicated, so the replica does
    /// not know of it.
    pub(super) fn reset_last_seen(&mut self) {
        for (name, seen) in &mut self.consumers {
            let held = self.pending.values().filter(|it| it.consumer == *name);
            *seen = held
                .map(|it| it.last_delivered_at)
                .max()
                .unwrap_or_default();
        }
    }
}

/// The number of entries in a node of a stream. An approximate trim drops only whole nodes.
pub(in super::super) const NODE_ENTRIES: usize = 4;

impl Stream {
    pub(super) fn add(&mut self, now: u64, fields: Fields) -> Id {
        let id = match now > self.last_id.0 {
            true => Id(now, 0),
            false => Id(self.last_id.0, self.last_id.1 + 1),
        };
        self.last_id = id;
        self.entries.insert(id, fields);
        id
    }

    /// Delivers the next undelivered entries of the group to a consumer.
    pub(super) fn read_group(
        &mut self,
        group: &[u8],
        consumer: &[u8],
        count: usize,
        now: u64,
    ) -> Vec<(Id, Fields)> {
        let Some(group) = self.groups.get_mut(group) else {
            return Vec::new();
        };
        let unread = (Bound::Excluded(group.last_delivered_id), Bound::Unbounded);
        let read: Vec<_> = self.entries.range(unread).take(count).collect();
        for (id, _) in &read {
            group.last_delivered_id = **id;
            group.pending.insert(
                **id,
                PendingEntry {
                    consumer: consumer.to_vec(),
                    last_delivered_at: now,
                    deliveries: 1,
                },
            );
        }
        read.into_iter()
            .map(|(id, fields)| (*id, fields.clone()))
            .collect()
    }

    /// Returns `true` if the group has undelivered entries.
    pub(super) fn has_unread(&self, group: &[u8]) -> bool {
        self.groups
            .get(group)
            .is_some_and(|group| self.last_entry_id() > Some(group.last_delivered_id))
    }

    /// Returns at most `count` entries after this id.
    pub(super) fn after(&self, id: Id, count: usize) -> Vec<(Id, Fields)> {
        let after = (Bound::Excluded(id), Bound::Unbounded);
        let found = self.entries.range(after).take(count);
        found.map(|(id, fields)| (*id, fields.clone())).collect()
    }

    pub(super) fn last_entry_id(&self) -> Option<Id> {
        self.entries.last_key_value().map(|(id, _)| *id)
    }

    /// Drops the oldest entries until `max_len` remain.
    pub(super) fn trim_to(&mut self, max_len: usize) -> usize {
        let dropped = self.entries.len().saturating_sub(max_len);
        self.drop_oldest(dropped)
    }

    /// Drops the entries before `min_id`. If `exactly` is `false`, drops only whole nodes.
    pub(super) fn trim_before(&mut self, min_id: Id, exactly: bool) -> usize {
        let older = self.entries.range(..min_id).count();
        self.drop_oldest(if exactly {
            older
        } else {
            older - older % NODE_ENTRIES
        })
    }

    fn drop_oldest(&mut self, count: usize) -> usize {
        let dropped: BTreeSet<_> = self.entries.keys().take(count).copied().collect();
        self.entries.retain(|id, _| !dropped.contains(id));
        dropped.len()
    }
}
