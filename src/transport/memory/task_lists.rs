//! Lists a group's tasks by state, and keeps the feed of their changes.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::{
    message::MessageId,
    transport::{ListStep, TaskChange, TaskState},
};

/// The maximum number of tasks in each list of ended tasks.
const MAX_ENDED: usize = 10_000;
/// The maximum number of changes in a feed.
const MAX_CHANGES: usize = 10_000;

/// The lists and the feed of one group of a stream.
#[derive(Debug, Default)]
pub(super) struct TaskLists {
    /// The tasks of each state, by the number of their last change.
    by_state: HashMap<TaskState, BTreeMap<u64, MessageId>>,
    /// The last changes, the oldest first.
    feed: VecDeque<TaskChange>,
    /// The number of the last change. Numbers start at 1.
    last_number: u64,
}

impl TaskLists {
    /// Adds a change to the feed, and the task to the list of its new state. Returns the number of
    /// the change.
    pub(super) fn add(&mut self, change: TaskChange, is_listed: bool) -> u64 {
        self.last_number += 1;
        if is_listed {
            let list = self.by_state.entry(change.state).or_default();
            list.insert(self.last_number, change.id.clone());
            if change.state.has_ended() && list.len() > MAX_ENDED {
                list.pop_first();
            }
        }
        self.feed.push_back(change);
        if self.feed.len() > MAX_CHANGES {
            self.feed.pop_front();
        }
        self.last_number
    }

    /// Removes a task from the list of its state.
    pub(super) fn remove(&mut self, state: TaskState, number: u64) {
        if let Some(list) = self.by_state.get_mut(&state) {
            list.remove(&number);
        }
    }

    /// Returns one page of the list of a state. Passes tasks to `show`, from the newest change to
    /// the oldest, until `show` has returned `step.max` values. Returns these values, and the
    /// position of the next step.
    pub(super) fn list<T>(
        &self,
        step: &ListStep,
        mut show: impl FnMut(&MessageId) -> Option<T>,
    ) -> (Vec<T>, Option<String>) {
        let before = step.after.as_deref().and_then(|after| after.parse().ok());
        let mut found = Vec::new();
        let list = self.by_state.get(&step.state).into_iter();
        let list = list.flat_map(|list| list.range(..before.unwrap_or(u64::MAX)).rev());
        for (number, id) in list {
            found.extend(show(id));
            if found.len() == step.max {
                return (found, Some(number.to_string()));
            }
        }
        (found, None)
    }

    /// Returns the number of the last change.
    pub(super) fn last_number(&self) -> u64 {
        self.last_number
    }

    /// Returns the change after change `number`. `None` if there is none yet.
    pub(super) fn change_after(&self, number: u64) -> Option<NextChange> {
        if number >= self.last_number {
            return None;
        }
        let first = self.last_number + 1 - self.feed.len() as u64;
        if number + 1 < first && number > 0 {
            return Some(NextChange::Dropped);
        }
        let next = (number + 1).max(first);
        let change = self.feed.get((next - first) as usize)?;
        Some(NextChange::Change(next, change.clone()))
    }
}

/// The next change of a feed, for a reader of the feed.
#[derive(Debug)]
pub(super) enum NextChange {
    /// The feed has dropped changes that the reader has not read.
    Dropped,
    /// The change, with its number.
    Change(u64, TaskChange),
}
