//! The recorded status of tasks, and the unique keys that tasks hold.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::clock::instant_after;
use crate::{
    message::{MessageId, Name, Parts, UniqueKey},
    sync::lock,
    transport::{Settings, TaskState, TaskStatus, codec},
};

/// A stream and a group.
type Place = (Name, Name);

/// The records of all streams and groups of a broker.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// Set once a task was recorded, so that a broker without such tasks takes no lock.
    used: AtomicBool,
    contents: Mutex<Contents>,
}

#[derive(Debug, Default)]
pub(super) struct Contents {
    by_id: HashMap<(Place, MessageId), TaskStatus>,
    holders: HashMap<(Place, UniqueKey), MessageId>,
    /// The times at which the records of ended tasks are removed.
    ends: BTreeSet<(Instant, Place, MessageId)>,
}

impl Records {
    /// Changes the record of an entry's task, if there is one.
    pub(super) fn change(
        &self,
        stream: &Name,
        fields: &[(Bytes, Bytes)],
        change: impl FnOnce(&mut TaskStatus),
    ) {
        let recorded = self.used().and_then(|it| Some((it, recorded(fields)?)));
        if let Some((mut contents, (group, id))) = recorded
            && let Some(status) = contents.by_id.get_mut(&((stream.clone(), group), id))
        {
            change(status);
        }
    }

    /// Records the end of an entry's task, and frees its key.
    pub(super) fn end(
        &self,
        settings: &Settings,
        fields: &[(Bytes, Bytes)],
        (state, reason): (TaskState, &str),
        now: SystemTime,
    ) {
        let recorded = self.used().and_then(|it| Some((it, recorded(fields)?)));
        if let Some((mut contents, (group, id))) = recorded
            && group == settings.group
        {
            contents.end((settings.stream.clone(), group), &id, state, reason, now);
        }
    }

    /// Returns `true` if the status of an entry's task is recorded by this group.
    pub(super) fn is_recorded(&self, settings: &Settings, fields: &[(Bytes, Bytes)]) -> bool {
        self.state(settings, fields).is_some()
    }

    /// Returns `true` if an entry's task was cancelled, so that the entry is skipped.
    pub(super) fn skips(&self, settings: &Settings, fields: &[(Bytes, Bytes)]) -> bool {
        let is_cancelled = self.state(settings, fields) == Some(TaskState::Cancelled);
        if is_cancelled && let Some((group, id)) = recorded(fields) {
            self.lock()
                .remove_later((settings.stream.clone(), group), &id);
        }
        is_cancelled
    }

    fn state(&self, settings: &Settings, fields: &[(Bytes, Bytes)]) -> Option<TaskState> {
        let contents = self.used()?;
        let (group, id) = recorded(fields).filter(|(group, _)| *group == settings.group)?;
        let place = (settings.stream.clone(), group);
        contents.by_id.get(&(place, id)).map(|status| status.state)
    }

    /// Returns the contents, or `None` if no task was ever recorded.
    pub(super) fn used(&self) -> Option<MutexGuard<'_, Contents>> {
        self.used.load(Ordering::Acquire).then(|| self.lock())
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Contents> {
        let mut contents = lock(&self.contents);
        contents.expire();
        contents
    }

    /// Records a task that was accepted.
    pub(super) fn accept(
        &self,
        place: (&Name, &Name),
        id: MessageId,
        parts: &Parts,
        state: TaskState,
        now: SystemTime,
    ) {
        self.used.store(true, Ordering::Release);
        let place = (place.0.clone(), place.1.clone());
        let mut status = TaskStatus::waiting(id.clone(), parts.name.clone(), now);
        status.state = state;
        status.keep = parts.tracked.unwrap_or_default();
        status.unique = parts.unique.as_ref().map(|unique| unique.key.clone());
        let mut contents = self.lock();
        if let Some(key) = &status.unique {
            let holder = (place.clone(), key.clone());
            contents.holders.insert(holder, id.clone());
        }
        contents.by_id.insert((place, id), status);
    }

    /// Records that a dead letter is replayed. The task takes its key again, if the key is free.
    pub(super) fn replay(&self, settings: &Settings, fields: &[(Bytes, Bytes)]) {
        let Some((group, id)) = recorded(fields) else {
            return;
        };
        let mut contents = self.lock();
        let place = (settings.stream.clone(), group);
        contents
            .ends
            .retain(|(_, of, ended)| (of, ended) != (&place, &id));
        let Some(status) = contents.by_id.get_mut(&(place.clone(), id.clone())) else {
            return;
        };
        status.state = TaskState::Waiting;
        status.attempt.0 = 0;
        status.reason.clear();
        status.ended_at = None;
        if let Some(key) = status.unique.clone() {
            contents.holders.entry((place, key)).or_insert(id);
        }
    }
}

impl Contents {
    pub(super) fn status(&self, settings: &Settings, id: &MessageId) -> Option<&TaskStatus> {
        self.by_id.get(&(place_of(settings), id.clone()))
    }

    pub(super) fn holder(&self, place: (&Name, &Name), key: &UniqueKey) -> Option<&MessageId> {
        let place = (place.0.clone(), place.1.clone());
        self.holders.get(&(place, key.clone()))
    }

    /// Records the end of a task, and frees its key.
    pub(super) fn end(
        &mut self,
        place: Place,
        id: &MessageId,
        state: TaskState,
        reason: &str,
        now: SystemTime,
    ) {
        let Some(status) = self.by_id.get_mut(&(place.clone(), id.clone())) else {
            return;
        };
        status.state = state;
        reason.clone_into(&mut status.reason);
        status.ended_at = Some(now);
        if let Some(key) = status.unique.clone() {
            let holder = (place.clone(), key);
            if self.holders.get(&holder) == Some(id) {
                self.holders.remove(&holder);
            }
        }
        self.remove_later(place, id);
    }

    /// Removes the record of a task that has ended, once the time is over for which it is kept.
    fn remove_later(&mut self, place: Place, id: &MessageId) {
        if let Some(status) = self.by_id.get(&(place.clone(), id.clone())) {
            let removed_at = instant_after(status.keep);
            self.ends.insert((removed_at, place, id.clone()));
        }
    }

    /// Keeps the record of a cancelled task until its entry is skipped.
    pub(super) fn keep(&mut self, place: &Place, id: &MessageId) {
        self.ends
            .retain(|(_, of, ended)| (of, ended) != (place, id));
    }

    /// Removes the records whose time is over.
    fn expire(&mut self) {
        let now = Instant::now();
        while let Some((removed_at, ..)) = self.ends.first()
            && *removed_at <= now
        {
            let (_, place, id) = self.ends.pop_first().expect("checked above");
            self.by_id.remove(&(place, id));
        }
    }
}

pub(super) fn place_of(settings: &Settings) -> Place {
    (settings.stream.clone(), settings.group.clone())
}

/// Returns the group that records the status of an entry's task, and the id of the task.
fn recorded(fields: &[(Bytes, Bytes)]) -> Option<(Name, MessageId)> {
    let value = |name: &str| {
        let mut fields = fields.iter();
        fields.find_map(|(field, value)| (field == name).then_some(value))
    };
    let group = Name::from_utf8(value(codec::RECORD)?).ok()?;
    let id = value(codec::ID).cloned().and_then(codec::given_id)?;
    Some((group, id))
}
