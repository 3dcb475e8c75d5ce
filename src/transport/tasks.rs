//! The status of tasks, and their cancellation.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::StoreFuture;
use crate::{
    error::Error,
    message::{Attempt, MessageId, Name, UniqueKey},
};

/// The tasks of a stream, as one group sees them: their status, and their cancellation. Returned by
/// the `tasks` method of a transport's handle.
///
/// A transport records the status of a task that is [tracked](crate::client::Call::tracked) or
/// [unique](crate::client::Call::unique). Only the group of the sender's handle records it.
///
/// ```
/// use std::time::Duration;
/// use campanile::{Client, transport::{TaskState, memory::Memory}};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), campanile::Error> {
/// let memory = Memory::new();
/// let client = Client::new(memory.clone());
/// let receipt = client.enqueue("report.make", "7").tracked(Duration::from_secs(3600)).await?;
/// let id = receipt.id().expect("it is stored");
///
/// let status = memory.tasks().status(id).await?.expect("it is tracked");
/// assert_eq!(status.state, TaskState::Waiting);
///
/// assert!(memory.tasks().cancel(id, "no longer needed").await?);
/// let status = memory.tasks().status(id).await?.expect("it is kept for an hour");
/// assert_eq!(status.state, TaskState::Cancelled);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Tasks(Arc<dyn TaskStore>);

impl Tasks {
    /// Creates a handle of a store. For transports.
    pub fn new(store: impl TaskStore + 'static) -> Self {
        Self(Arc::new(store))
    }

    /// Returns the status of a task. `None` if it is not recorded, or no longer kept.
    ///
    /// # Errors
    /// If the store cannot be reached.
    pub async fn status(&self, id: &MessageId) -> Result<Option<TaskStatus>, Error> {
        self.0.status(id).await
    }

    /// Cancels a task, and frees its keys. Returns `false` if the task has ended, or is unknown.
    ///
    /// A delayed task can always be cancelled. Any other task must be recorded. A task that waits is
    /// not started. If the task is running, its worker learns about it within about a second: the
    /// task's [lease](crate::Lease) is cancelled, and its handler is dropped, unless the handler has
    /// taken the lease's [token](crate::Lease::token), and so ends by itself. A handler that has
    /// already succeeded wins if the server gets its acknowledgement first.
    ///
    /// Only this group does not handle the task. Other groups of the stream do.
    ///
    /// # Errors
    /// If the store cannot be reached.
    pub async fn cancel(&self, id: &MessageId, reason: &str) -> Result<bool, Error> {
        self.0.cancel(id, reason).await
    }

    /// Returns the id of the task that holds a [unique](crate::client::Call::unique) key. `None` if no
    /// task holds it.
    ///
    /// # Errors
    /// If the store cannot be reached.
    pub async fn holder(&self, key: &UniqueKey) -> Result<Option<MessageId>, Error> {
        self.0.holder(key).await
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks").finish_non_exhaustive()
    }
}

/// The status of tasks in a transport. Implemented by transports, for [`Tasks`].
pub trait TaskStore: Send + Sync {
    /// See [`Tasks::status`].
    fn status<'a>(&'a self, id: &'a MessageId) -> StoreFuture<'a, Option<TaskStatus>>;

    /// See [`Tasks::cancel`].
    fn cancel<'a>(&'a self, id: &'a MessageId, reason: &'a str) -> StoreFuture<'a, bool>;

    /// See [`Tasks::holder`].
    fn holder<'a>(&'a self, key: &'a UniqueKey) -> StoreFuture<'a, Option<MessageId>>;
}

/// The state of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TaskState {
    /// The task waits for a worker.
    Waiting,
    /// The task is not due: its sender has delayed it, or it waits for its next attempt.
    Delayed,
    /// A worker has fetched the task.
    Running,
    /// The task was handled.
    Done,
    /// The task became a dead letter.
    Dead,
    /// The task was discarded, by its handler, or because it has expired.
    Discarded,
    /// The task was cancelled.
    Cancelled,
}

impl TaskState {
    const ALL: [Self; 7] = [
        Self::Waiting,
        Self::Delayed,
        Self::Running,
        Self::Done,
        Self::Dead,
        Self::Discarded,
        Self::Cancelled,
    ];

    /// Returns the name of the state, in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Delayed => "delayed",
            Self::Running => "running",
            Self::Done => "done",
            Self::Dead => "dead",
            Self::Discarded => "discarded",
            Self::Cancelled => "cancelled",
        }
    }

    /// Returns the state with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// Returns `true` if the task will not run any more, unless its dead letter is replayed.
    pub const fn has_ended(self) -> bool {
        !matches!(self, Self::Waiting | Self::Delayed | Self::Running)
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The recorded status of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TaskStatus {
    /// The id of the task, as in its receipt.
    pub id: MessageId,
    /// The name of the task.
    pub name: Name,
    /// The state.
    pub state: TaskState,
    /// The number of the last attempt. Zero if no attempt was started.
    pub attempt: Attempt,
    /// The reason of the last failure, of the end, or of the cancellation. Empty if there is none.
    pub reason: String,
    /// The unique key of the task.
    pub unique: Option<UniqueKey>,
    /// The time for which the status is kept after the end.
    pub keep: Duration,
    /// The time at which the task was accepted, on the server's clock, as all times here.
    pub accepted_at: SystemTime,
    /// The time at which the last attempt was started.
    pub started_at: Option<SystemTime>,
    /// The time at which the task ended.
    pub ended_at: Option<SystemTime>,
}

impl TaskStatus {
    /// Creates the status of a task that was accepted at this time and waits. For transports.
    pub fn waiting(id: MessageId, name: Name, accepted_at: SystemTime) -> Self {
        Self {
            id,
            name,
            state: TaskState::Waiting,
            attempt: Attempt(0),
            reason: String::new(),
            unique: None,
            keep: Duration::ZERO,
            accepted_at,
            started_at: None,
            ended_at: None,
        }
    }
}
