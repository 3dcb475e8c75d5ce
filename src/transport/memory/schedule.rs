//! What senders want on a stream later, and what they want there once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::clock::instant_after;
use crate::message::{IdempotencyKey, MessageId};

type Fields = Vec<(Bytes, Bytes)>;
type Place = (Instant, u64);

/// Tasks that are not due yet.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    waiting: BTreeMap<Place, (MessageId, Fields)>,
    places: HashMap<MessageId, Place>,
    last: u64,
}

impl Schedule {
    pub(super) fn add(&mut self, at: Instant, id: MessageId, fields: Fields) {
        self.last += 1;
        let place = (at, self.last);
        self.places.insert(id.clone(), place);
        self.waiting.insert(place, (id, fields));
    }

    /// Takes a task back; `None` when it is not here, or not any more.
    pub(super) fn cancel(&mut self, id: &MessageId) -> Option<Fields> {
        let place = self.places.remove(id)?;
        self.waiting.remove(&place).map(|(_, fields)| fields)
    }

    /// The next task that is due by now.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Fields> {
        let first = self
            .waiting
            .first_entry()
            .filter(|first| first.key().0 <= now)?;
        let (id, fields) = first.remove();
        self.places.remove(&id);
        Some(fields)
    }

    /// When the next task is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((at, _), _)| *at)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

/// The idempotency keys that are remembered.
#[derive(Debug, Default)]
pub(super) struct Known {
    ids: HashMap<IdempotencyKey, (MessageId, Instant)>,
    ends: BTreeSet<(Instant, IdempotencyKey)>,
}

impl Known {
    /// The id of the task that was sent with this key.
    pub(super) fn get(&mut self, key: &IdempotencyKey) -> Option<MessageId> {
        let now = Instant::now();
        while let Some((ends, _)) = self.ends.first()
            && *ends <= now
        {
            let (_, key) = self.ends.pop_first().expect("looked at just above");
            self.ids.remove(&key);
        }
        self.ids.get(key).map(|(id, _)| id.clone())
    }

    pub(super) fn remember(&mut self, key: IdempotencyKey, id: MessageId, window: Duration) {
        let ends = instant_after(window);
        self.ends.insert((ends, key.clone()));
        self.ids.insert(key, (id, ends));
    }

    /// Forgets the key of a task that was taken back.
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
    async fn a_key_is_forgotten_after_its_window_and_with_its_own_task_only() {
        let mut known = Known::default();
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
