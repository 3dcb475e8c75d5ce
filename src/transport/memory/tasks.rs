//! The status of tasks in memory, and their cancellation.

use std::future::ready;

use super::{
    broker::{Broker, Shared},
    records::place_of,
};
use crate::{
    message::{MessageId, UniqueKey},
    transport::{Settings, StoreFuture, TaskState, TaskStatus, TaskStore},
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
        let records = self.broker.context.records.lock();
        let mut streams = self.streams.iter();
        let holder = streams.find_map(|settings| {
            let holder = records.holder((&settings.stream, &settings.group), key);
            holder.cloned()
        });
        Box::pin(ready(Ok(holder)))
    }
}

impl Shared {
    fn status(&self, settings: &Settings, id: &MessageId) -> Option<TaskStatus> {
        // A task may have become due.
        self.with_stream(&settings.stream, |stream| {
            stream.promote(&self.context, &settings.stream);
        });
        self.context.records.lock().status(settings, id).cloned()
    }

    /// Cancels a task. Returns `false` if it has ended or is unknown.
    fn cancel(&self, settings: &Settings, id: &MessageId, reason: &str) -> bool {
        self.with_stream(&settings.stream, |stream| {
            stream.promote(&self.context, &settings.stream);
            let (records, now) = (&self.context.records, self.context.clock.now());
            // Other groups may want an entry of the stream, so it stays. This group skips it.
            let end = |skips: bool| {
                let (place, state) = (place_of(settings), TaskState::Cancelled);
                let mut records = records.lock();
                records.end(place.clone(), id, state, reason, now);
                if skips {
                    records.keep(&place, id);
                }
            };
            if stream.schedule.cancel(id).is_some() {
                stream.idempotency_keys.forget(id);
                end(false);
                return true;
            }
            let state = records
                .lock()
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
