//! Delayed tasks and idempotency keys of a stream.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::clock::instant_after;
use crate::message::{IdempotencyKey, MessageId};

type Fields = Vec<(Bytes, Bytes)>;
/// The time at which a task is due, and a serial number, which orders tasks with the same time.
type DueKey = (Instant, u64);

/// The delayed tasks of a stream, until they are moved to its log.
#[derive(Debug, Default)]
pub(super) struct DelayedTasks {
    waiting: BTreeMap<DueKey, (MessageId, Fields)>,
    due_keys: HashMap<MessageId, DueKey>,
    last_number: u64,
}

impl DelayedTasks {
    /// Adds a task that is due at `at`.
    pub(super) fn add(&mut self, at: Instant, id: MessageId, fields: Fields) {
        self.last_number += 1;
        let due_key = (at, self.last_number);
        self.due_keys.insert(id.clone(), due_key);
        self.waiting.insert(due_key, (id, fields));
    }

    /// Removes a task and returns its fields. Returns `None` if no delayed task has this id.
    pub(super) fn cancel(&mut self, id: &MessageId) -> Option<Fields> {
        let due_key = self.due_keys.remove(id)?;
        self.waiting.remove(&due_key).map(|(_, fields)| fields)
    }

    /// Removes the first task if it is due, and returns its fields.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Fields> {
        let first = self
            .waiting
            .first_entry()
            .filter(|first| first.key().0 <= now)?;
        let (id, fields) = first.remove();
        self.due_keys.remove(&id);
        Some(fields)
    }

    /// Returns the time at which the first task is due. `None` if there is no task.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((at, _), _)| *at)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Returns the tasks with the times at which they are due, in the order of these times.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Instant, &MessageId, &Fields)> {
        let waiting = self.waiting.iter();
        waiting.map(|((at, _), (id, fields))| (*at, id, fields))
    }

    /// Returns the number of tasks that are due by this time.
    pub(super) fn count_due_by(&self, time: Instant) -> usize {
        self.waiting.range(..=(time, u64::MAX)).count()
    }
}

/// The task that was sent with an idempotency key.
#[derive(Debug, Clone)]
pub(super) struct KeyHolder {
    pub(super) id: MessageId,
    /// The digest of the task's content, if its sender has given one.
    pub(super) digest: Option<u64>,
    /// The end of the key's window.
    ends_at: Instant,
}

/// The idempotency keys of a stream, each with its task. A key is remembered until its time window
/// ends.
#[derive(Debug, Default)]
pub(super) struct IdempotencyKeys {
    holders: HashMap<IdempotencyKey, KeyHolder>,
    /// The same keys, by the ids of their tasks.
    by_task: HashMap<MessageId, IdempotencyKey>,
    /// The same keys, ordered by the ends of their windows.
    by_end: BTreeSet<(Instant, IdempotencyKey)>,
}

impl IdempotencyKeys {
    /// Removes all keys whose windows have ended. Returns the task that was sent with this key, or
    /// `None` if the key is not remembered.
    pub(super) fn get(&mut self, key: &IdempotencyKey) -> Option<&KeyHolder> {
        let now = Instant::now();
        while let Some((ends_at, _)) = self.by_end.first()
            && *ends_at <= now
        {
            let (_, key) = self.by_end.pop_first().expect("checked above");
            self.remove(&key);
        }
        self.holders.get(key)
    }

    /// Remembers a key for `window`. The caller must have checked with [`get`](Self::get) that the
    /// key is not remembered.
    pub(super) fn remember(
        &mut self,
        key: IdempotencyKey,
        id: MessageId,
        digest: Option<u64>,
        window: Duration,
    ) {
        let ends_at = instant_after(window);
        self.by_end.insert((ends_at, key.clone()));
        self.by_task.insert(id.clone(), key.clone());
        let holder = KeyHolder {
            id,
            digest,
            ends_at,
        };
        self.holders.insert(key, holder);
    }

    /// Forgets the key of a task that has ended without success, so that the task can be sent
    /// again.
    pub(super) fn forget(&mut self, id: &MessageId) {
        if let Some(key) = self.by_task.get(id).cloned()
            && let Some(ends_at) = self.remove(&key)
        {
            self.by_end.remove(&(ends_at, key));
        }
    }

    /// Removes a key, but not its end in `by_end`. Returns the end of the key's window.
    fn remove(&mut self, key: &IdempotencyKey) -> Option<Instant> {
        let holder = self.holders.remove(key)?;
        self.by_task.remove(&holder.id);
        Some(holder.ends_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_forgotten_after_its_window_or_with_its_task() {
        let mut known = IdempotencyKeys::default();
        let (key, id) = (IdempotencyKey::from("k"), MessageId::from("1"));
        known.remember(key.clone(), id.clone(), None, Duration::from_secs(1));
        known.forget(&"2".into());
        assert_eq!(known.get(&key).map(|holder| &holder.id), Some(&id));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(known.get(&key).is_none());
        known.remember(key.clone(), id.clone(), None, Duration::from_secs(1));
        known.forget(&id);
        assert!(known.get(&key).is_none() && known.by_end.is_empty());
        assert!(known.by_task.is_empty());
    }
}
