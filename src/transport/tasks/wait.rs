//! Waits for the ends of tasks. One reader of the feed serves all calls that wait.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::StreamExt;
use tokio::{
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Feed, FeedItem, TaskChange, TaskStatus, TasksInner};
use crate::{
    error::{Error, ErrorKind},
    message::MessageId,
    sync::lock,
};

/// The pause between two attempts while the store cannot be reached.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// A waiter that has received no signal for this time reads the record. This is needed only if
/// the server has refused a write to the feed, or has lost the record or the feed.
const MAX_SILENCE: Duration = Duration::from_secs(60);

/// The calls that wait for tasks of one group.
#[derive(Default)]
pub(super) struct Waiters(Mutex<WaiterTable>);

#[derive(Default)]
struct WaiterTable {
    /// The waiters for each task, with their numbers.
    waiting: HashMap<MessageId, Vec<(u64, UnboundedSender<Signal>)>>,
    last_number: u64,
    /// The reader of the feed. `None` while no call waits.
    reader: Option<FeedReaderState>,
}

struct FeedReaderState {
    /// Cancelled when the last waiter has left.
    end: CancellationToken,
    /// Set once the reader has its position in the feed. Waiters then receive all later changes.
    is_open: bool,
}

/// A message of the reader to a waiter.
enum Signal {
    /// The task has ended.
    Ended(TaskChange),
    /// The reader has its position in the feed, or has missed changes. The waiter must read the
    /// record.
    ReadRecord,
    /// The feed cannot be read, for this reason.
    Failed(String),
}

/// A call that waits. Dropping this value removes the call from the table. When the last waiter is
/// dropped, the reader ends.
struct Waiter {
    inner: Arc<TasksInner>,
    id: MessageId,
    number: u64,
    signals: UnboundedReceiver<Signal>,
}

/// Waits until a task has ended.
pub(super) async fn wait(inner: &Arc<TasksInner>, id: &MessageId) -> Result<TaskStatus, Error> {
    let mut last_status = recorded_status(inner.store.status(id).await?, id)?;
    if last_status.state.has_ended() {
        return Ok(last_status);
    }
    let mut waiter = Waiter::join(inner, id);
    loop {
        let signal = timeout(MAX_SILENCE, waiter.signals.recv()).await;
        let change = match signal {
            Ok(Some(Signal::Ended(change))) => Some(change),
            Ok(Some(Signal::ReadRecord)) | Err(_) => None,
            Ok(Some(Signal::Failed(reason))) => return Err(Error::refused(reason)),
            Ok(None) => return Err(Error::closed()),
        };
        let found = read_status(inner, id).await?;
        match (found, change) {
            (Some(status), _) if status.state.has_ended() => return Ok(status),
            // The record does not show the end: it has expired, or the task was replayed.
            (_, Some(change)) => {
                last_status.state = change.state;
                last_status.attempt = change.attempt;
                last_status.reason = change.reason;
                last_status.ended_at = Some(change.at);
                return Ok(last_status);
            }
            (found, None) => last_status = recorded_status(found, id)?,
        }
    }
}

/// Returns the status of a task, once the store can be reached.
async fn read_status(inner: &TasksInner, id: &MessageId) -> Result<Option<TaskStatus>, Error> {
    loop {
        match inner.store.status(id).await {
            Err(error) if is_temporary(&error) => sleep(RETRY_DELAY).await,
            found => return found,
        }
    }
}

fn is_temporary(error: &Error) -> bool {
    error.is_disconnected() || error.is_unknown_outcome()
}

fn recorded_status(status: Option<TaskStatus>, id: &MessageId) -> Result<TaskStatus, Error> {
    status.ok_or_else(|| {
        Error::new(
            ErrorKind::Invalid,
            format!(
                "no status of the task `{id}` is recorded: it was sent without `tracked`, to another \
                 stream or for another group, or it ended longer ago than its status is kept"
            ),
        )
    })
}

impl Waiter {
    /// Registers a waiter. The first waiter starts the reader.
    fn join(inner: &Arc<TasksInner>, id: &MessageId) -> Self {
        let (sender, signals) = mpsc::unbounded_channel();
        let mut table = lock(&inner.waiters.0);
        table.last_number += 1;
        let number = table.last_number;
        match &table.reader {
            Some(reader) if reader.is_open => drop(sender.send(Signal::ReadRecord)),
            Some(_) => {}
            None => {
                let end = CancellationToken::new();
                let reading = run_reader(inner.clone(), end.clone());
                tokio::spawn(end.clone().run_until_cancelled_owned(reading));
                table.reader = Some(FeedReaderState {
                    end,
                    is_open: false,
                });
            }
        }
        let waiters = table.waiting.entry(id.clone()).or_default();
        waiters.push((number, sender));
        Self {
            inner: inner.clone(),
            id: id.clone(),
            number,
            signals,
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut table = lock(&self.inner.waiters.0);
        if let Some(waiters) = table.waiting.get_mut(&self.id) {
            waiters.retain(|(number, _)| *number != self.number);
            if waiters.is_empty() {
                table.waiting.remove(&self.id);
            }
        }
        if table.waiting.is_empty()
            && let Some(reader) = table.reader.take()
        {
            reader.end.cancel();
        }
    }
}

/// Reads the feed until all waiters have left.
async fn run_reader(inner: Arc<TasksInner>, end: CancellationToken) {
    let mut feed = loop {
        match open_feed(&inner).await {
            Ok(feed) => break feed,
            Err(error) if is_temporary(&error) => sleep(RETRY_DELAY).await,
            Err(error) => return inner.waiters.fail_all(&error, &end),
        }
    };
    inner.waiters.mark_open(&end);
    while let Some(step) = feed.next().await {
        match step.map(|step| step.item) {
            Ok(FeedItem::Change(change)) => inner.waiters.signal_end(change),
            Ok(FeedItem::Gap) => inner.waiters.signal_read(),
            Err(error) => return inner.waiters.fail_all(&error, &end),
        }
    }
}

async fn open_feed(inner: &TasksInner) -> Result<Feed, Error> {
    let ends = inner.store.feed_ends().await?;
    inner.store.feed(ends)
}

impl Waiters {
    /// Marks the reader as open, and makes all waiters read their records.
    fn mark_open(&self, end: &CancellationToken) {
        // If the last waiter of this reader has left, the table may have another reader.
        if let Some(reader) = &mut lock(&self.0).reader
            && !end.is_cancelled()
        {
            reader.is_open = true;
        }
        self.signal_read();
    }

    /// Makes all waiters read their records.
    fn signal_read(&self) {
        for (_, waiter) in lock(&self.0).waiting.values().flatten() {
            drop(waiter.send(Signal::ReadRecord));
        }
    }

    /// Signals the waiters of a task if the task has ended.
    fn signal_end(&self, change: TaskChange) {
        if !change.state.has_ended() {
            return;
        }
        let waiting = &lock(&self.0).waiting;
        for (_, waiter) in waiting.get(&change.id).into_iter().flatten() {
            drop(waiter.send(Signal::Ended(change.clone())));
        }
    }

    /// Fails all waiters. The next waiter starts another reader.
    fn fail_all(&self, error: &Error, end: &CancellationToken) {
        let mut table = lock(&self.0);
        if end.is_cancelled() {
            return;
        }
        table.reader = None;
        for (_, waiter) in table.waiting.values().flatten() {
            drop(waiter.send(Signal::Failed(error.chain())));
        }
    }
}
