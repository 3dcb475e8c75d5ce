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
/// The time at which a task is due, and a number that orders tasks with the same time.
type DueKey = (Instant, u64);

/// The tasks that are not due.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    waiting: BTreeMap<DueKey, (MessageId, Fields)>,
    due_keys: HashMap<MessageId, DueKey>,
    last: u64,
}

impl Schedule {
    pub(super) fn add(&mut self, at: Instant, id: MessageId, fields: Fields) {
        self.last += 1;
        let due_key = (at, self.last);
        self.due_keys.insert(id.clone(), due_key);
        self.waiting.insert(due_key, (id, fields));
    }

    /// Removes a task and returns its fields. `None` if the task does not exist.
    pub(super) fn cancel(&mut self, id: &MessageId) -> Option<Fields> {
        let due_key = self.due_keys.remove(id)?;
        self.waiting.remove(&due_key).map(|(_, fields)| fields)
    }

    /// Removes the next task that is due, and returns its fields.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Fields> {
        let first = self
            .waiting
            .first_entry()
            .filter(|first| first.key().0 <= now)?;
        let (id, fields) = first.remove();
        self.due_keys.remove(&id);
        Some(fields)
    }

    /// Returns the time at which the next task is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((at, _), _)| *at)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

/// The idempotency keys of a stream, with the tasks that were sent with them.
#[derive(Debug, Default)]
pub(super) struct IdempotencyKeys {
    ids: HashMap<IdempotencyKey, (MessageId, Instant)>,
    ends: BTreeSet<(Instant, IdempotencyKey)>,
}

impl IdempotencyKeys {
    /// Returns the id of the task that was sent with this key, if the key is remembered.
    pub(super) fn get(&mut self, key: &IdempotencyKey) -> Option<MessageId> {
        let now = Instant::now();
        while let Some((ends, _)) = self.ends.first()
            && *ends <= now
        {
            let (_, key) = self.ends.pop_first().expect("checked above");
            self.ids.remove(&key);
        }
        self.ids.get(key).map(|(id, _)| id.clone())
    }

    pub(super) fn remember(&mut self, key: IdempotencyKey, id: MessageId, window: Duration) {
        let ends = instant_after(window);
        self.ends.insert((ends, key.clone()));
        self.ids.insert(key, (id, ends));
    }

    /// Forgets the key of a cancelled task.
    pub(super) fn forget(&mut self, key: &IdempotencyKey, id: &MessageId) {
        if let Some((_, ends)) = self.ids.get(key).filter(|(known, _)| known == id) {
            self.ends.remove(&(*ends, key.clone()));
            self.ids.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_forgotten_after_its_window_or_with_its_task() {
        let mut known = IdempotencyKeys::default();
        let (key, id) = (IdempotencyKey::from("k"), MessageId::from("1"));
        known.remember(key.clone(), id.clone(), Duration::from_secs(1));
        known.forget(&key, &"2".into());
        assert_eq!(known.get(&key), Some(id.clone()));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(known.get(&key), None);
        known.remember(key.clone(), id.clone(), Duration::from_secs(1));
        known.forget(&key, &id);
        assert_eq!((known.get(&key), known.ends.len()), (None, 0));
    }
}
