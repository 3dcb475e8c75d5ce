//! The entries of a stream.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;

use super::clock::EntryId;
use crate::{
    message::MessageId,
    transport::{Settings, codec},
};

/// An entry, with its fields as on the wire.
#[derive(Debug)]
pub(super) struct LogEntry {
    pub(super) id: EntryId,
    pub(super) fields: Vec<(Bytes, Bytes)>,
}

impl LogEntry {
    /// Returns the first value of a field.
    pub(super) fn field(&self, name: &str) -> Option<&Bytes> {
        self.fields
            .iter()
            .find_map(|(field, value)| (field == name).then_some(value))
    }

    /// Returns the number of attempts after which the message is given up.
    pub(super) fn max_attempts(&self, settings: &Settings) -> u32 {
        let chosen = self.field(codec::MAX_ATTEMPTS);
        let chosen = chosen.and_then(|max| std::str::from_utf8(max).ok()?.parse().ok());
        chosen.unwrap_or(settings.max_deliveries)
    }

    /// Returns the id of the message: the field [`RECEIPT_ID`](codec::RECEIPT_ID), or the id of the
    /// entry if there is no such field. Delayed, tracked and unique tasks have the field.
    pub(super) fn message_id(&self) -> MessageId {
        let id = self
            .field(codec::RECEIPT_ID)
            .cloned()
            .and_then(codec::given_id);
        id.unwrap_or_else(|| MessageId::from(self.id.to_string()))
    }
}

/// The entries of a stream, in order. The index of an entry is the number of entries that were
/// added before it, so trimming does not change it.
#[derive(Debug, Default)]
pub(super) struct Log {
    entries: VecDeque<Arc<LogEntry>>,
    /// The index of the oldest entry that was not trimmed.
    first_index: u64,
    last_id: EntryId,
}

impl Log {
    pub(super) fn append(&mut self, now: u64, fields: Vec<(Bytes, Bytes)>) -> Arc<LogEntry> {
        self.last_id = self.last_id.following(now);
        let entry = Arc::new(LogEntry {
            id: self.last_id,
            fields,
        });
        self.entries.push_back(Arc::clone(&entry));
        entry
    }

    pub(super) fn get(&self, index: u64) -> Option<&Arc<LogEntry>> {
        let position = index.checked_sub(self.first_index)?;
        self.entries.get(usize::try_from(position).ok()?)
    }

    /// Returns the index of the oldest entry.
    pub(super) fn start(&self) -> u64 {
        self.first_index
    }

    /// Returns the index of the next new entry.
    pub(super) fn end(&self) -> u64 {
        self.first_index + self.entries.len() as u64
    }

    /// Returns the index of the first entry after this id.
    pub(super) fn index_after(&self, id: EntryId) -> u64 {
        self.first_index + self.entries.partition_point(|entry| entry.id <= id) as u64
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Removes the entries before this index.
    pub(super) fn trim(&mut self, before: u64) {
        while self.first_index < before && self.entries.pop_front().is_some() {
            self.first_index += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_by_index_after_trimming() {
        let mut log = Log::default();
        let ids: Vec<_> = (0..4).map(|_| log.append(7, Vec::new()).id).collect();
        log.trim(2);
        assert_eq!((log.start(), log.end(), log.len()), (2, 4, 2));
        assert!(log.get(1).is_none());
        assert_eq!(log.get(2).unwrap().id, ids[2]);
        assert_eq!(log.index_after(ids[0]), 2, "a trimmed entry cannot be read");
        assert_eq!(log.index_after(ids[2]), 3);
        assert_eq!(log.index_after(ids[3]), 4);
        log.trim(9);
        assert_eq!((log.start(), log.end()), (4, 4));
    }
}
