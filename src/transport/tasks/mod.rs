//! The status of tasks, their lists and changes, and their cancellation.

mod changes;
mod list;
mod status;
mod wait;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, Weak},
};

use futures_util::{StreamExt, TryStreamExt, stream};

pub(crate) use self::status::TaskOutcome;
use self::wait::Waiters;
pub use self::{
    changes::{Changes, ChangesFrom, Feed, FeedItem, FeedStep, TaskChange},
    list::{ListStep, Listed, TaskPage, TaskQuery},
    status::{TaskState, TaskStatus},
};
use super::{StoreFuture, check_key};
use crate::{
    error::{Error, ErrorKind},
    message::{MessageId, UniqueKey},
    sync::lock,
};

/// The maximum number of tasks that are cancelled at the same time.
const MAX_CONCURRENT_CANCELLATIONS: usize = 32;
/// The maximum size of the reason of a cancellation, in bytes.
const MAX_REASON: usize = 4 << 10;

/// The tasks of a stream, as one group sees them: their status and results, lists, a feed of their
/// changes, and their cancellation. Returned by the `tasks` method of a transport's handle.
///
/// A transport records the status of a task that is [tracked](crate::client::Call::tracked) or
/// [unique](crate::client::Call::unique). Only the group of the sender's handle records this
/// status.
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
pub struct Tasks(Arc<TasksInner>);

struct TasksInner {
    store: Box<dyn TaskStore>,
    waiters: Waiters,
}

impl Tasks {
    /// Creates a handle of a store. For transports.
    pub fn new(store: impl TaskStore + 'static) -> Self {
        Self(Arc::new(TasksInner {
            store: Box::new(store),
            waiters: Waiters::default(),
        }))
    }

    /// Returns the status of a task. `None` if the status is not recorded, or no longer kept.
    ///
    /// # Errors
    /// If the store cannot be reached, or the id is empty or longer than 1024 bytes.
    pub async fn status(&self, id: &MessageId) -> Result<Option<TaskStatus>, Error> {
        check_key("id of a task", id)?;
        self.0.store.status(id).await
    }

    /// Waits until a task has ended, and returns its last status, with its
    /// [result](TaskStatus::read_result).
    ///
    /// Does not poll: all waiting calls of a handle share one reader of the [feed](Self::changes),
    /// which is open as long as a call waits. On a Redis Cluster there is one reader for each hash
    /// slot of the stream. A lost connection is no error: the call continues once the server can be
    /// reached again.
    ///
    /// If the recorded status expires before this call reads it, the returned status has no result.
    ///
    /// # Errors
    /// If the status of the task is not recorded, or no longer kept. If the server cannot be
    /// reached at the start, or does not allow the feed to be read.
    ///
    /// # Cancel safety
    /// The future can be dropped at any time. For a time limit, use `tokio::time::timeout`.
    pub async fn wait(&self, id: &MessageId) -> Result<TaskStatus, Error> {
        check_key("id of a task", id)?;
        wait::wait(&self.0, id).await
    }

    /// Lists a page of tasks, without their results. The order is that of [`TaskPage::tasks`]. Of
    /// the tasks that have ended, the last 10,000 of each state are listed, for as long as their
    /// status is kept.
    ///
    /// ```
    /// use std::time::Duration;
    /// use campanile::{Client, transport::{TaskQuery, TaskState, memory::Memory}};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), campanile::Error> {
    /// let memory = Memory::new();
    /// let client = Client::new(memory.clone());
    /// client.enqueue("report.make", "7").tracked(Duration::from_secs(3600)).await?;
    ///
    /// let waiting = TaskQuery::all().state(TaskState::Waiting).named("report.make");
    /// let page = memory.tasks().list(waiting).await?;
    /// assert_eq!(page.tasks.len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the store cannot be reached, or the position of the query is invalid.
    pub async fn list(&self, query: TaskQuery) -> Result<TaskPage, Error> {
        let max = query.max.max(1);
        let mut steps = query.steps(self.0.store.partition_count())?.into_iter();
        let mut tasks = Vec::new();
        while let Some(mut step) = steps.next() {
            loop {
                step.max = max - tasks.len();
                let listed = self.0.store.list(step.clone()).await?;
                tasks.extend(listed.tasks);
                let is_over = listed.next.is_none();
                step.after = listed.next;
                // The page is full: the next page starts at the next step.
                if tasks.len() >= max {
                    let next = if is_over { steps.next() } else { Some(step) };
                    let next = next.map(|next| query.after(next.position()));
                    return Ok(TaskPage { tasks, next });
                }
                if is_over {
                    break;
                }
            }
        }
        Ok(TaskPage { tasks, next: None })
    }

    /// Follows the changes of the tasks' states, as a dashboard does. The transport keeps about the
    /// last 10,000 changes. So a reader that starts at the [cursor](Changes::cursor) of an earlier
    /// reader misses nothing, unless changes were dropped meanwhile. The feed reports dropped
    /// changes as a [gap](FeedItem::Gap).
    ///
    /// ```
    /// use std::time::Duration;
    /// use campanile::{Client, transport::{ChangesFrom, FeedItem, TaskState, memory::Memory}};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), campanile::Error> {
    /// let memory = Memory::new();
    /// let mut changes = memory.tasks().changes(ChangesFrom::Now).await?;
    /// let client = Client::new(memory);
    /// client.enqueue("report.make", "7").tracked(Duration::from_secs(3600)).await?;
    /// let FeedItem::Change(change) = changes.next().await? else { panic!("nothing was dropped") };
    /// assert_eq!(change.state, TaskState::Waiting);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the store cannot be reached, or the cursor is invalid.
    pub async fn changes(&self, from: ChangesFrom) -> Result<Changes, Error> {
        let store = &self.0.store;
        let cursors = match from.cursors(store.partition_count())? {
            Some(cursors) => cursors,
            None => store.feed_ends().await?,
        };
        Ok(Changes::new(store.feed(cursors.clone())?, cursors))
    }

    /// Cancels a task, and frees its keys. Returns `false` if the task has ended, or is unknown.
    ///
    /// A delayed task can always be cancelled. Any other task must be recorded. If the task waits,
    /// it is not started. If the task is running, its worker notices the cancellation within about
    /// a second, and cancels the task's [lease](crate::Lease). The handler is then dropped, unless
    /// it has taken the lease's [token](crate::Lease::token): such a handler must end by itself. If
    /// the server gets the acknowledgement of a handler first, the task is done, and is not
    /// cancelled.
    ///
    /// The cancellation applies to this group. Other groups of the stream still handle the task.
    ///
    /// # Errors
    /// If the store cannot be reached, the id is empty or longer than 1024 bytes, or the reason is
    /// longer than 4 KiB.
    pub async fn cancel(&self, id: &MessageId, reason: &str) -> Result<bool, Error> {
        check_key("id of a task", id)?;
        check_reason(reason)?;
        self.0.store.cancel(id, reason).await
    }

    /// Cancels the task that holds a [unique](crate::client::Call::unique) key, as
    /// [`cancel`](Self::cancel) does. Returns the id of the task, or `None` if no task holds the
    /// key.
    ///
    /// # Errors
    /// If the store cannot be reached, the key is empty or longer than 1024 bytes, or the reason is
    /// longer than 4 KiB.
    pub async fn cancel_key(
        &self,
        key: &UniqueKey,
        reason: &str,
    ) -> Result<Option<MessageId>, Error> {
        let mut last_holder = None;
        // If the holder ends before it is cancelled, another task may take the key. The next round
        // cancels that task.
        while let Some(holder) = self.holder(key).await?
            && last_holder.as_ref() != Some(&holder)
        {
            if self.cancel(&holder, reason).await? {
                return Ok(Some(holder));
            }
            last_holder = Some(holder);
        }
        Ok(None)
    }

    /// Cancels all recorded tasks that a query selects, from its position on, as
    /// [`cancel`](Self::cancel) does. Returns the number of tasks that were cancelled. States of
    /// ended tasks in the query are ignored.
    ///
    /// Tasks that are sent during the call may be cancelled or not. A task that changes its state
    /// during the call may be missed: another call finds it.
    ///
    /// # Errors
    /// If the store cannot be reached, the position of the query is invalid, or the reason is
    /// longer than 4 KiB. Some of the tasks may have been cancelled.
    ///
    /// # Cancel safety
    /// If the future is dropped, some of the tasks may have been cancelled.
    pub async fn cancel_all(&self, query: TaskQuery, reason: &str) -> Result<u64, Error> {
        check_reason(reason)?;
        // Visits the states in the order in which a task goes through them, so that few tasks are
        // missed.
        let live = [TaskState::Delayed, TaskState::Waiting, TaskState::Running];
        let selects = |state| query.states.is_empty() || query.states.contains(&state);
        let mut cancelled = 0;
        for state in live.into_iter().filter(|state| selects(*state)) {
            let mut next = Some(TaskQuery {
                states: vec![state],
                ..query.clone()
            });
            while let Some(query) = next {
                let page = self.list(query).await?;
                next = page.next;
                let cancelling = stream::iter(page.tasks)
                    .map(async |task| self.cancel(&task.id, reason).await)
                    .buffer_unordered(MAX_CONCURRENT_CANCELLATIONS);
                let count = async |count, was_live| Ok(count + u64::from(was_live));
                cancelled += cancelling.try_fold(0, count).await?;
            }
        }
        Ok(cancelled)
    }

    /// Returns the id of the task that holds a [unique](crate::client::Call::unique) key. `None` if
    /// no task holds it.
    ///
    /// # Errors
    /// If the store cannot be reached, or the key is empty or longer than 1024 bytes.
    pub async fn holder(&self, key: &UniqueKey) -> Result<Option<MessageId>, Error> {
        check_key("unique key", key)?;
        self.0.store.holder(key).await
    }
}

fn check_reason(reason: &str) -> Result<(), Error> {
    if reason.len() <= MAX_REASON {
        return Ok(());
    }
    let text = format!("the reason of a cancellation is longer than {MAX_REASON} bytes");
    Err(Error::new(ErrorKind::Invalid, text))
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks").finish_non_exhaustive()
    }
}

/// The handles that are in use, by the name of their feed. All waiting calls on a feed share one
/// handle, and so they share its reader.
#[derive(Default)]
pub(crate) struct SharedTasks(Mutex<HashMap<String, Weak<TasksInner>>>);

impl SharedTasks {
    /// Returns the handle with this name, or creates it.
    pub(crate) fn get<S: TaskStore + 'static>(
        &self,
        name: String,
        make: impl FnOnce() -> S,
    ) -> Tasks {
        let mut shared = lock(&self.0);
        if let Some(inner) = shared.get(&name).and_then(Weak::upgrade) {
            return Tasks(inner);
        }
        shared.retain(|_, inner| inner.strong_count() > 0);
        let tasks = Tasks::new(make());
        shared.insert(name, Arc::downgrade(&tasks.0));
        tasks
    }
}

impl fmt::Debug for SharedTasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedTasks").finish_non_exhaustive()
    }
}

/// The recorded tasks of a transport. Implemented by transports, for [`Tasks`].
///
/// The partitions of a stream are numbered from 0. A stream that is not partitioned has one.
pub trait TaskStore: Send + Sync {
    /// See [`Tasks::status`].
    fn status<'a>(&'a self, id: &'a MessageId) -> StoreFuture<'a, Option<TaskStatus>>;

    /// See [`Tasks::cancel`].
    fn cancel<'a>(&'a self, id: &'a MessageId, reason: &'a str) -> StoreFuture<'a, bool>;

    /// See [`Tasks::holder`].
    fn holder<'a>(&'a self, key: &'a UniqueKey) -> StoreFuture<'a, Option<MessageId>>;

    /// Returns the number of partitions of the stream.
    fn partition_count(&self) -> usize;

    /// Lists tasks in one state on one partition. May return fewer tasks than there are, with the
    /// position at which the next step continues.
    fn list(&self, step: ListStep) -> StoreFuture<'_, Listed>;

    /// Returns the positions of the ends of the feeds of all partitions. The position of a feed without
    /// changes is empty.
    fn feed_ends(&self) -> StoreFuture<'_, Vec<String>>;

    /// Reads the feeds of all partitions after these positions. An empty position is the beginning of a
    /// feed.
    ///
    /// # Errors
    /// If a position is invalid.
    fn feed(&self, cursors: Vec<String>) -> Result<Feed, Error>;
}
