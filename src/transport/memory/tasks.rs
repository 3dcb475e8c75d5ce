//! The recorded tasks in memory: their status, their lists and changes, and their cancellation.

use std::{
    future::ready,
    sync::{Arc, Weak},
};

use bytes::Bytes;
use futures_util::stream;

use super::{
    broker::{Broker, BrokerState},
    context::GroupContext,
    group::DeliveryNumber,
    records::{Note, TaskEnd, group_key_of},
    task_lists::NextChange,
};
use crate::{
    error::{Error, ErrorKind},
    message::{MessageId, RecordFuture, TaskRecord, UniqueKey},
    transport::{
        Feed, FeedItem, FeedStep, ListStep, Listed, Settings, StoreFuture, TaskState, TaskStatus,
        TaskStore,
    },
};

/// The tasks of a handle's group, on one stream or on all partitions of a stream.
pub(super) struct MemoryTasks {
    pub(super) broker: Broker,
    pub(super) streams: Vec<Settings>,
}

impl TaskStore for MemoryTasks {
    fn status<'a>(&'a self, id: &'a MessageId) -> StoreFuture<'a, Option<TaskStatus>> {
        let mut streams = self.streams.iter();
        let status = streams.find_map(|settings| self.broker.status(settings, id));
        Box::pin(ready(Ok(status)))
    }

    fn cancel<'a>(&'a self, id: &'a MessageId, reason: &'a str) -> StoreFuture<'a, bool> {
        let mut streams = self.streams.iter();
        let cancelled = streams.any(|settings| self.broker.cancel(settings, id, reason));
        Box::pin(ready(Ok(cancelled)))
    }

    fn holder<'a>(&'a self, key: &'a UniqueKey) -> StoreFuture<'a, Option<MessageId>> {
        let records = self.broker.context.records.lock_and_expire();
        let mut streams = self.streams.iter();
        let holder = streams.find_map(|settings| {
            let holder = records.holder((&settings.stream, &settings.group), key);
            holder.cloned()
        });
        Box::pin(ready(Ok(holder)))
    }

    fn partition_count(&self) -> usize {
        self.streams.len()
    }

    fn list(&self, step: ListStep) -> StoreFuture<'_, Listed> {
        let listed = self.streams.get(step.partition);
        let listed = listed.map(|settings| self.broker.list(settings, &step));
        Box::pin(ready(Ok(listed.unwrap_or_default())))
    }

    fn feed_ends(&self) -> StoreFuture<'_, Vec<String>> {
        let records = self.broker.context.records.lock_and_expire();
        let ends = self.streams.iter().map(|settings| {
            let lists = records.lists.get(&group_key_of(settings));
            let last = lists.map_or(0, |lists| lists.last_number());
            cursor_of(last)
        });
        Box::pin(ready(Ok(ends.collect())))
    }

    fn feed(&self, cursors: Vec<String>) -> Result<Feed, Error> {
        let parts = self.streams.iter().zip(&cursors);
        let parts = parts.map(|(settings, cursor)| Ok((settings.clone(), number_of(cursor)?)));
        let reader = FeedReader {
            broker: self.broker.clone(),
            partitions: parts.collect::<Result<_, Error>>()?,
        };
        let steps = stream::unfold(reader, async |mut reader| {
            Some((Ok(reader.next().await), reader))
        });
        Ok(Box::pin(steps))
    }
}

/// Returns the position after the change with this number.
fn cursor_of(number: u64) -> String {
    match number {
        0 => String::new(),
        number => number.to_string(),
    }
}

fn number_of(cursor: &str) -> Result<u64, Error> {
    if cursor.is_empty() {
        return Ok(0);
    }
    cursor.parse().map_err(|_| {
        let text = format!("`{cursor}` is no position in a feed; one looks like 1234");
        Error::new(ErrorKind::Invalid, text)
    })
}

/// Reads the feeds of all parts of a stream.
struct FeedReader {
    broker: Broker,
    /// The settings of each part, and the number of the last change that was read.
    partitions: Vec<(Settings, u64)>,
}

impl FeedReader {
    /// Waits for the next change.
    async fn next(&mut self) -> FeedStep {
        let broker = self.broker.clone();
        loop {
            let changed = broker.context.records.changed.notified();
            tokio::pin!(changed);
            // Registers before the read, so that a change right after the read is not missed.
            changed.as_mut().enable();
            if let Some(step) = self.read() {
                return step;
            }
            changed.await;
        }
    }

    fn read(&mut self) -> Option<FeedStep> {
        let records = self.broker.context.records.lock_and_expire();
        for (partition, (settings, read)) in self.partitions.iter_mut().enumerate() {
            let lists = records.lists.get(&group_key_of(settings));
            let Some(next) = lists.and_then(|lists| lists.change_after(*read)) else {
                continue;
            };
            let item = match next {
                NextChange::Dropped => {
                    *read = 0;
                    FeedItem::Gap
                }
                NextChange::Change(number, change) => {
                    *read = number;
                    FeedItem::Change(change)
                }
            };
            let cursor = cursor_of(*read);
            return Some(FeedStep {
                partition,
                cursor,
                item,
            });
        }
        None
    }
}

/// The record of a running task, for its handler.
pub(super) struct MemoryRecord {
    /// Weak, because the broker owns the leases, and the leases own the records.
    broker: Weak<BrokerState>,
    settings: Arc<Settings>,
    serial: DeliveryNumber,
    task: MessageId,
}

impl MemoryRecord {
    pub(super) fn new(
        broker: &Broker,
        settings: &Arc<Settings>,
        serial: DeliveryNumber,
        task: MessageId,
    ) -> Self {
        Self {
            broker: Arc::downgrade(broker),
            settings: settings.clone(),
            serial,
            task,
        }
    }

    fn note(&self, note: Note) -> RecordFuture<'_, bool> {
        let noted = self.broker.upgrade().and_then(|broker| {
            broker.with_group(&self.settings, |group, _| {
                let is_held = group.is_pending(self.serial);
                let mut records = broker.context.records.lock_and_expire();
                is_held && records.note(&group_key_of(&self.settings), &self.task, note)
            })
        });
        Box::pin(ready(Ok(noted.unwrap_or_default())))
    }
}

impl TaskRecord for MemoryRecord {
    fn set_progress(&self, progress: Bytes) -> RecordFuture<'_, bool> {
        self.note(Note::Progress(progress))
    }

    fn set_checkpoint(&self, checkpoint: Bytes) -> RecordFuture<'_, bool> {
        self.note(Note::Checkpoint(checkpoint))
    }

    fn checkpoint(&self) -> RecordFuture<'_, Option<Bytes>> {
        let checkpoint = self.broker.upgrade().and_then(|broker| {
            let records = broker.context.records.lock_and_expire();
            records.checkpoint(&group_key_of(&self.settings), &self.task)
        });
        Box::pin(ready(Ok(checkpoint)))
    }
}

impl BrokerState {
    fn status(&self, settings: &Settings, id: &MessageId) -> Option<TaskStatus> {
        // Delayed tasks that are due are moved to the stream first, so that the state is current.
        self.with_stream(&settings.stream, |stream| {
            stream.promote(&self.context, &settings.stream);
        });
        self.context
            .records
            .lock_and_expire()
            .status(settings, id)
            .cloned()
    }

    fn list(&self, settings: &Settings, step: &ListStep) -> Listed {
        self.with_stream(&settings.stream, |stream| {
            stream.promote(&self.context, &settings.stream);
        });
        let records = self.context.records.lock_and_expire();
        let Some(lists) = records.lists.get(&group_key_of(settings)) else {
            return Listed::default();
        };
        let (tasks, next) = lists.list(step, |id| {
            let status = records.status(settings, id)?;
            let is_listed = step.name.as_ref().is_none_or(|name| *name == status.name);
            is_listed.then(|| TaskStatus {
                result: None,
                ..status.clone()
            })
        });
        Listed { tasks, next }
    }

    /// Cancels a task. Returns `false` if the task has ended or is unknown.
    fn cancel(&self, settings: &Settings, id: &MessageId, reason: &str) -> bool {
        self.with_stream(&settings.stream, |stream| {
            stream.promote(&self.context, &settings.stream);
            let GroupContext { records, clock, .. } = &self.context;
            // An entry that this group has not read stays on the stream, because other groups may
            // handle it. This group skips the entry later, so the record must not be removed
            // before.
            let end = |is_unread: bool| {
                let (group_key, end) = (
                    group_key_of(settings),
                    TaskEnd::new(TaskState::Cancelled, reason),
                );
                let mut contents = records.lock_and_expire();
                contents.end(&group_key, id, end, clock);
                if is_unread {
                    contents.cancel_removal(&group_key, id);
                }
                records.changed.notify_waiters();
            };
            if stream.delayed.cancel(id).is_some() {
                stream.idempotency_keys.forget(id);
                end(false);
                return true;
            }
            let state = records
                .lock_and_expire()
                .status(settings, id)
                .map(|status| status.state);
            if state.is_none_or(TaskState::has_ended) {
                return false;
            }
            let group = stream.groups.get_mut(&settings.group);
            let found = group.is_some_and(|group| group.cancel(id, reason));
            stream.idempotency_keys.forget(id);
            end(!found);
            true
        })
    }
}
