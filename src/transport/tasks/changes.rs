//! The feed of changes of tasks.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::SystemTime,
};

use futures_util::{Stream, StreamExt};

use super::TaskState;
use crate::{
    error::{Error, ErrorKind},
    message::{Attempt, MessageId, Name},
};

/// A change of the state of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TaskChange {
    /// The id of the task, as in its receipt.
    pub id: MessageId,
    /// The name of the task.
    pub name: Name,
    /// The new state.
    pub state: TaskState,
    /// The number of the last attempt. Zero if no attempt was started.
    pub attempt: Attempt,
    /// The reason of the last failure, of the end, or of the cancellation. Empty if there is none.
    pub reason: String,
    /// The time of the change, on the server's clock.
    pub at: SystemTime,
}

impl TaskChange {
    /// Creates a change. For transports.
    pub fn new(id: MessageId, name: Name, state: TaskState, at: SystemTime) -> Self {
        Self {
            id,
            name,
            state,
            attempt: Attempt(0),
            reason: String::new(),
            at,
        }
    }
}

/// An item of the feed of changes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FeedItem {
    /// A task has changed its state.
    Change(TaskChange),
    /// Changes were dropped before they were read, since the feed is bounded. To see the states as
    /// they are now, [list](super::Tasks::list) the tasks.
    Gap,
}

/// The position at which a reader of the feed starts.
///
/// ```
/// use campanile::transport::{ChangesFrom, memory::Memory};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let tasks = Memory::new().tasks();
/// let changes = tasks.changes(ChangesFrom::Beginning);
/// # let _ = changes;
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ChangesFrom {
    /// The next change.
    #[default]
    Now,
    /// The oldest change that is kept.
    Beginning,
    /// The changes after this [cursor](Changes::cursor).
    Cursor(String),
}

impl ChangesFrom {
    /// Returns one cursor for each partition of the stream, or one if the stream has no partitions.
    /// Returns `None` if the reader starts with the next change.
    pub(super) fn cursors(&self, partitions: usize) -> Result<Option<Vec<String>>, Error> {
        match self {
            Self::Now => Ok(None),
            Self::Beginning => Ok(Some(vec![String::new(); partitions])),
            Self::Cursor(text) => {
                let cursors: Vec<_> = text.split(',').map(str::to_owned).collect();
                if cursors.len() != partitions {
                    return Err(Error::new(
                        ErrorKind::Invalid,
                        format!(
                            "the cursor is of a feed with {} partitions, and the stream has {partitions}; \
                             start at the beginning or with the next change",
                            cursors.len()
                        ),
                    ));
                }
                Ok(Some(cursors))
            }
        }
    }
}

/// A step of a feed. For [`TaskStore::feed`](super::TaskStore::feed).
#[derive(Debug, Clone)]
pub struct FeedStep {
    /// The number of the partition, from zero. Zero if the stream has no partitions.
    pub partition: usize,
    /// The position after this step in the feed of the partition.
    pub cursor: String,
    /// The item.
    pub item: FeedItem,
}

/// The changes from all partitions of a stream, in one feed that never ends.
pub type Feed = Pin<Box<dyn Stream<Item = Result<FeedStep, Error>> + Send>>;

/// Follows the changes of tasks: see [`Tasks::changes`](super::Tasks::changes). This type is also a
/// `Stream`, which never ends.
#[must_use = "nothing is read until `next` is called"]
pub struct Changes {
    feed: Feed,
    cursors: Vec<String>,
}

impl Changes {
    pub(super) fn new(feed: Feed, cursors: Vec<String>) -> Self {
        Self { feed, cursors }
    }

    /// Waits for the next item. A lost connection is no error: the feed connects again, and
    /// continues after the last item.
    ///
    /// # Errors
    /// If the server does not allow the feed to be read. The next call tries again.
    ///
    /// # Cancel safety
    /// No item is skipped if the future is dropped.
    pub async fn next(&mut self) -> Result<FeedItem, Error> {
        let next = StreamExt::next(self).await;
        next.unwrap_or_else(|| Err(Error::closed()))
    }

    /// Returns the position after the last item that was returned, for [`ChangesFrom::Cursor`]:
    /// another process can continue from here.
    pub fn cursor(&self) -> String {
        self.cursors.join(",")
    }
}

impl Stream for Changes {
    type Item = Result<FeedItem, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let step = ready!(self.feed.as_mut().poll_next(cx));
        Poll::Ready(step.map(|step| {
            step.map(|step| {
                if let Some(cursor) = self.cursors.get_mut(step.partition) {
                    *cursor = step.cursor;
                }
                step.item
            })
        }))
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes")
            .field("cursor", &self.cursor())
            .finish_non_exhaustive()
    }
}
