//! Lists of tasks.

use super::{TaskState, TaskStatus};
use crate::{
    error::{Error, ErrorKind},
    message::Name,
};

/// The maximum number of tasks on a page.
const MAX_ON_PAGE: usize = 1_000;

/// Selects tasks by their states and their name, and a page of the list of these tasks. The default
/// selects all tasks, in pages of 100.
///
/// ```
/// use campanile::transport::{TaskQuery, TaskState, memory::Memory};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), campanile::Error> {
/// let running = TaskQuery::all().state(TaskState::Running);
/// for task in Memory::new().tasks().list(running).await?.tasks {
///     println!("{}", task.id);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct TaskQuery {
    /// The states of the tasks. Empty for all states.
    pub states: Vec<TaskState>,
    /// The name of the tasks. `None` for all names.
    pub name: Option<Name>,
    /// The maximum number of tasks on a page, from 1 to 1,000.
    pub max: usize,
    /// The position in the list at which the page starts, from the query in [`TaskPage::next`].
    /// `None` for the start of the list.
    pub after: Option<String>,
}

impl TaskQuery {
    /// Selects all tasks.
    pub fn all() -> Self {
        Self {
            states: Vec::new(),
            name: None,
            max: 100,
            after: None,
        }
    }

    /// Selects tasks in this state. If called several times, selects tasks in any of the states.
    pub fn state(mut self, state: TaskState) -> Self {
        self.states.push(state);
        self
    }

    /// Selects tasks with this name.
    pub fn named(mut self, name: impl Into<Name>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the maximum number of tasks on a page, from 1 to 1,000. A lower number becomes 1, and a
    /// higher number becomes 1,000.
    pub fn max(mut self, max: usize) -> Self {
        self.max = max.clamp(1, MAX_ON_PAGE);
        self
    }

    /// Starts at this position in the list.
    pub fn after(mut self, position: impl Into<String>) -> Self {
        self.after = Some(position.into());
        self
    }

    fn selects(&self, state: TaskState) -> bool {
        self.states.is_empty() || self.states.contains(&state)
    }

    /// Returns the steps of the list from the query's position on. There is one step for each state
    /// on each partition of the stream.
    pub(super) fn steps(&self, partitions: usize) -> Result<Vec<ListStep>, Error> {
        let start = self.after.as_deref().map(Position::parse).transpose()?;
        let (first_state, first_partition, position) = match start {
            Some(start) => (start.state, start.partition, start.position),
            None => (TaskState::ALL[0], 0, None),
        };
        let states = TaskState::ALL.into_iter();
        let states = states.skip_while(|state| *state != first_state);
        let all = states.flat_map(|state| (0..partitions).map(move |partition| (state, partition)));
        // The list starts with the state and the partition in the query's position. Only this first
        // step starts after a task.
        let rest = all.skip_while(|at| *at != (first_state, first_partition));
        let steps = rest
            .enumerate()
            .map(|(index, (state, partition))| ListStep {
                state,
                partition,
                name: self.name.clone(),
                after: position.clone().filter(|_| index == 0),
                max: self.max.clamp(1, MAX_ON_PAGE),
            });
        Ok(steps.filter(|step| self.selects(step.state)).collect())
    }
}

impl Default for TaskQuery {
    fn default() -> Self {
        Self::all()
    }
}

/// A page of a list of tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TaskPage {
    /// The tasks, sorted by state, then by partition, then from the newest change to the oldest.
    pub tasks: Vec<TaskStatus>,
    /// The query for the next page, or `None` at the end.
    pub next: Option<TaskQuery>,
}

/// A position in a list: `<state>/<partition>/<position in the list of the state>`.
#[derive(Debug, PartialEq)]
struct Position {
    state: TaskState,
    partition: usize,
    position: Option<String>,
}

impl Position {
    fn parse(text: &str) -> Result<Self, Error> {
        let parsed = || {
            let mut parts = text.splitn(3, '/');
            Some(Self {
                state: TaskState::from_name(parts.next()?)?,
                partition: parts.next()?.parse().ok()?,
                position: Some(parts.next()?.to_owned()).filter(|text| !text.is_empty()),
            })
        };
        parsed().ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                "this is no position in a list of tasks; pass the one of the page before",
            )
        })
    }
}

/// A step of a list: the tasks in one state, on one partition of the stream. For [`TaskStore::list`].
///
/// [`TaskStore::list`]: super::TaskStore::list
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListStep {
    /// The state.
    pub state: TaskState,
    /// The number of the partition, from 0.
    pub partition: usize,
    /// The name of the tasks. `None` for all names.
    pub name: Option<Name>,
    /// The position that the previous step of this state and partition has returned. `None` for the
    /// first step.
    pub after: Option<String>,
    /// The maximum number of tasks to return.
    pub max: usize,
}

impl ListStep {
    /// Returns the position of this step in the whole list.
    pub(super) fn position(&self) -> String {
        let after = self.after.as_deref().unwrap_or_default();
        format!("{}/{}/{after}", self.state, self.partition)
    }
}

/// The result of a [`ListStep`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// The tasks, from the newest change to the oldest.
    pub tasks: Vec<TaskStatus>,
    /// The position of the next step of this state and partition. `None` at the end.
    pub next: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_goes_on_at_its_position_with_the_states_that_are_selected() {
        let query = TaskQuery::all()
            .state(TaskState::Done)
            .state(TaskState::Dead);
        let places = |query: &TaskQuery| -> Vec<_> {
            let steps = query.steps(2).unwrap().into_iter();
            steps.map(|step| step.position()).collect()
        };
        assert_eq!(places(&query), ["done/0/", "done/1/", "dead/0/", "dead/1/"]);
        let query = query.after("done/1/7 a/b");
        assert_eq!(places(&query), ["done/1/7 a/b", "dead/0/", "dead/1/"]);
        for text in ["", "done", "done/x/", "gone/1/", "\0/0/0"] {
            let error = TaskQuery::all().after(text).steps(1).unwrap_err();
            assert!(error.is_invalid(), "{text}");
        }
    }
}
