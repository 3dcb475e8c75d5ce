//! The recorded status of tasks, and the unique keys that tasks hold.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use tokio::{sync::Notify, time::Instant};

use super::{
    clock::{BrokerClock, instant_after},
    log::LogEntry,
    task_lists::TaskLists,
};
use crate::{
    message::{MessageId, Name, Parts, UniqueKey},
    sync::lock,
    transport::{Settings, TaskChange, TaskOutcome, TaskState, TaskStatus, codec},
};

/// A stream and a group.
pub(super) type GroupKey = (Name, Name);

/// The records of all streams and groups of a broker.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// Set when the first task is recorded. Until then, the methods that handle an entry return
    /// without a lock on `contents`.
    is_used: AtomicBool,
    contents: Mutex<Contents>,
    /// Notified when a task has changed its state.
    pub(super) changed: Notify,
}

#[derive(Debug, Default)]
pub(super) struct Contents {
    by_id: HashMap<(GroupKey, MessageId), StoredTask>,
    holders: HashMap<(GroupKey, UniqueKey), MessageId>,
    pub(super) lists: HashMap<GroupKey, TaskLists>,
    /// The times at which the records of ended tasks are removed.
    removals: BTreeSet<(Instant, GroupKey, MessageId)>,
}

/// The record of a task.
#[derive(Debug)]
struct StoredTask {
    status: TaskStatus,
    checkpoint: Option<Bytes>,
    /// The number of the last change of the state.
    last_change_number: u64,
}

/// The end of a task.
#[derive(Debug)]
pub(super) struct TaskEnd<'a> {
    pub(super) state: TaskState,
    pub(super) reason: &'a str,
    pub(super) outcome: TaskOutcome,
}

impl<'a> TaskEnd<'a> {
    pub(super) fn new(state: TaskState, reason: &'a str) -> Self {
        Self {
            state,
            reason,
            outcome: TaskOutcome::default(),
        }
    }
}

impl Records {
    /// Changes the status of an entry's task, if the entry names this group as the one that records
    /// it. If the group is `None`, any group will do.
    pub(super) fn change(
        &self,
        (stream, group): (&Name, Option<&Name>),
        fields: &[(Bytes, Bytes)],
        clock: &BrokerClock,
        change: impl FnOnce(&mut TaskStatus),
    ) {
        let recorded = self
            .lock_if_used()
            .and_then(|it| Some((it, record_key(fields)?)));
        if let Some((mut contents, (owner, id))) = recorded
            && group.is_none_or(|group| *group == owner)
        {
            contents.change(&(stream.clone(), owner), &id, clock, change);
            self.changed.notify_waiters();
        }
    }

    /// Records that an entry's task waits to be delivered to the group.
    pub(super) fn set_waiting(&self, settings: &Settings, entry: &LogEntry, clock: &BrokerClock) {
        let of_group = (&settings.stream, Some(&settings.group));
        self.change(of_group, &entry.fields, clock, |status| {
            status.state = TaskState::Waiting;
        });
    }

    /// Records the end of an entry's task, and frees its key.
    pub(super) fn end(
        &self,
        settings: &Settings,
        fields: &[(Bytes, Bytes)],
        end: TaskEnd<'_>,
        clock: &BrokerClock,
    ) {
        let recorded = self
            .lock_if_used()
            .and_then(|it| Some((it, record_key(fields)?)));
        if let Some((mut contents, (group, id))) = recorded
            && group == settings.group
        {
            contents.end(&(settings.stream.clone(), group), &id, end, clock);
            self.changed.notify_waiters();
        }
    }

    /// Returns the id of an entry's task, if this group records its status.
    pub(super) fn recorded_id(
        &self,
        settings: &Settings,
        fields: &[(Bytes, Bytes)],
    ) -> Option<MessageId> {
        self.state(settings, fields).map(|(id, _)| id)
    }

    /// If an entry's task was cancelled, schedules the removal of the task's record and returns
    /// `true`. The caller then skips the entry.
    pub(super) fn skip_cancelled(&self, settings: &Settings, fields: &[(Bytes, Bytes)]) -> bool {
        match self.state(settings, fields) {
            Some((id, TaskState::Cancelled)) => {
                self.lock_and_expire()
                    .remove_later(&group_key_of(settings), &id);
                true
            }
            _ => false,
        }
    }

    fn state(
        &self,
        settings: &Settings,
        fields: &[(Bytes, Bytes)],
    ) -> Option<(MessageId, TaskState)> {
        let contents = self.lock_if_used()?;
        let (_, id) = record_key(fields).filter(|(group, _)| *group == settings.group)?;
        let state = contents.status(settings, &id)?.state;
        Some((id, state))
    }

    /// Returns the contents, or `None` if no task was ever recorded.
    pub(super) fn lock_if_used(&self) -> Option<MutexGuard<'_, Contents>> {
        self.is_used
            .load(Ordering::Acquire)
            .then(|| self.lock_and_expire())
    }

    pub(super) fn lock_and_expire(&self) -> MutexGuard<'_, Contents> {
        let mut contents = lock(&self.contents);
        contents.expire();
        contents
    }

    /// Records a task that was accepted.
    pub(super) fn accept(
        &self,
        group_key: (&Name, &Name),
        id: MessageId,
        parts: &Parts,
        state: TaskState,
        clock: &BrokerClock,
    ) {
        self.is_used.store(true, Ordering::Release);
        let group_key = (group_key.0.clone(), group_key.1.clone());
        let mut status = TaskStatus::waiting(id.clone(), parts.name.clone(), clock.now());
        status.state = state;
        status.keep = parts.tracked.unwrap_or_default();
        status.unique = parts.unique.as_ref().map(|unique| unique.key.clone());
        let mut contents = self.lock_and_expire();
        if let Some(key) = &status.unique {
            let unique_key = (group_key.clone(), key.clone());
            contents.holders.insert(unique_key, id.clone());
        }
        let last_change = contents.add_change(&group_key, &status, clock);
        let record = StoredTask {
            status,
            checkpoint: None,
            last_change_number: last_change,
        };
        contents.by_id.insert((group_key, id), record);
        self.changed.notify_waiters();
    }

    /// Records that a dead letter is replayed. The task takes its unique key again, if the key is
    /// free.
    pub(super) fn replay(
        &self,
        settings: &Settings,
        fields: &[(Bytes, Bytes)],
        clock: &BrokerClock,
    ) {
        let Some((group, id)) = record_key(fields) else {
            return;
        };
        let mut contents = self.lock_and_expire();
        let group_key = (settings.stream.clone(), group);
        contents.cancel_removal(&group_key, &id);
        let mut unique = None;
        contents.change(&group_key, &id, clock, |status| {
            status.state = TaskState::Waiting;
            status.attempt.0 = 0;
            status.reason.clear();
            status.progress = None;
            status.ended_at = None;
            unique.clone_from(&status.unique);
        });
        if let Some(key) = unique {
            contents.holders.entry((group_key, key)).or_insert(id);
        }
        self.changed.notify_waiters();
    }
}

impl Contents {
    pub(super) fn status(&self, settings: &Settings, id: &MessageId) -> Option<&TaskStatus> {
        let record = self.by_id.get(&(group_key_of(settings), id.clone()));
        record.map(|record| &record.status)
    }

    pub(super) fn holder(&self, group_key: (&Name, &Name), key: &UniqueKey) -> Option<&MessageId> {
        let group_key = (group_key.0.clone(), group_key.1.clone());
        self.holders.get(&(group_key, key.clone()))
    }

    /// Returns the checkpoint of a task.
    pub(super) fn checkpoint(&self, group_key: &GroupKey, id: &MessageId) -> Option<Bytes> {
        let record = self.by_id.get(&(group_key.clone(), id.clone()));
        record.and_then(|record| record.checkpoint.clone())
    }

    /// Stores the progress or the checkpoint of a running task. Returns `false` if the task has no
    /// record.
    pub(super) fn note(&mut self, group_key: &GroupKey, id: &MessageId, note: Note) -> bool {
        let Some(record) = self.by_id.get_mut(&(group_key.clone(), id.clone())) else {
            return false;
        };
        match note {
            Note::Progress(progress) => record.status.progress = Some(progress),
            Note::Checkpoint(checkpoint) => record.checkpoint = Some(checkpoint),
        }
        true
    }

    /// Changes the status of a task. If its state or attempt changed, moves it to the right list
    /// and adds the change to the feed. [`TaskLists`] has both.
    fn change(
        &mut self,
        group_key: &GroupKey,
        id: &MessageId,
        clock: &BrokerClock,
        change: impl FnOnce(&mut TaskStatus),
    ) {
        let key = (group_key.clone(), id.clone());
        let Some(mut record) = self.by_id.remove(&key) else {
            return;
        };
        let before = (record.status.state, record.status.attempt);
        change(&mut record.status);
        if (record.status.state, record.status.attempt) != before {
            let lists = self.lists.entry(group_key.clone()).or_default();
            lists.remove(before.0, record.last_change_number);
            record.last_change_number = self.add_change(group_key, &record.status, clock);
        }
        self.by_id.insert(key, record);
    }

    /// Adds the current state of a task to the feed, and the task to the list of that state.
    /// Returns the number of the change.
    fn add_change(
        &mut self,
        group_key: &GroupKey,
        status: &TaskStatus,
        clock: &BrokerClock,
    ) -> u64 {
        let TaskStatus {
            id, name, state, ..
        } = status;
        let mut change = TaskChange::new(id.clone(), name.clone(), *state, clock.now());
        change.attempt = status.attempt;
        change.reason.clone_from(&status.reason);
        let is_listed = !state.has_ended() || !status.keep.is_zero();
        let lists = self.lists.entry(group_key.clone()).or_default();
        lists.add(change, is_listed)
    }

    /// Records the end of a task, and frees its key.
    pub(super) fn end(
        &mut self,
        group_key: &GroupKey,
        id: &MessageId,
        end: TaskEnd<'_>,
        clock: &BrokerClock,
    ) {
        let mut unique = None;
        self.change(group_key, id, clock, |status| {
            status.state = end.state;
            end.reason.clone_into(&mut status.reason);
            status.ended_at = Some(clock.now());
            status.result = end.outcome.result;
            status.result_too_large = end.outcome.result_too_large;
            if end.outcome.progress.is_some() {
                status.progress = end.outcome.progress;
            }
            unique.clone_from(&status.unique);
        });
        if let Some(record) = self.by_id.get_mut(&(group_key.clone(), id.clone())) {
            record.checkpoint = None;
        }
        if let Some(key) = unique {
            let unique_key = (group_key.clone(), key);
            if self.holders.get(&unique_key) == Some(id) {
                self.holders.remove(&unique_key);
            }
        }
        self.remove_later(group_key, id);
    }

    /// Schedules the removal of an ended task's record, after the time in `TaskStatus::keep`.
    fn remove_later(&mut self, group_key: &GroupKey, id: &MessageId) {
        if let Some(record) = self.by_id.get(&(group_key.clone(), id.clone())) {
            let removed_at = instant_after(record.status.keep);
            self.removals
                .insert((removed_at, group_key.clone(), id.clone()));
        }
    }

    /// Cancels the scheduled removal of a task's record.
    pub(super) fn cancel_removal(&mut self, group_key: &GroupKey, id: &MessageId) {
        self.removals
            .retain(|(_, of_group, ended)| (of_group, ended) != (group_key, id));
    }

    /// Removes the records whose scheduled removal is due.
    fn expire(&mut self) {
        let now = Instant::now();
        while let Some((removed_at, ..)) = self.removals.first()
            && *removed_at <= now
        {
            let (_, group_key, id) = self.removals.pop_first().expect("checked above");
            let lists = self.lists.get_mut(&group_key);
            let removed = self.by_id.remove(&(group_key, id));
            if let Some((lists, record)) = lists.zip(removed) {
                lists.remove(record.status.state, record.last_change_number);
            }
        }
    }
}

/// A value that the handler of a running task stores in the task's record.
#[derive(Debug)]
pub(super) enum Note {
    Progress(Bytes),
    Checkpoint(Bytes),
}

pub(super) fn group_key_of(settings: &Settings) -> GroupKey {
    (settings.stream.clone(), settings.group.clone())
}

/// Returns the group that records the status of an entry's task, and the id of the task.
fn record_key(fields: &[(Bytes, Bytes)]) -> Option<(Name, MessageId)> {
    let value = |name: &str| {
        let mut fields = fields.iter();
        fields.find_map(|(field, value)| (field == name).then_some(value))
    };
    let group = Name::from_utf8(value(codec::RECORDING_GROUP)?).ok()?;
    let id = value(codec::RECEIPT_ID)
        .cloned()
        .and_then(codec::given_id)?;
    Some((group, id))
}
