//! Stores the progress and the checkpoint of a running task in the task's record.

use std::sync::Arc;

use bytes::Bytes;
use redis::Cmd;

use super::{in_flight, member::Member, settlement::Unsettled, streams::ServedStream};
use crate::{
    error::Error,
    message::{RecordFuture, TaskRecord},
    transport::redis::{
        pipeline::{Pipeline, Resend},
        response::{Value, bytes, integer},
        scripts,
    },
};

/// Gives handlers access to the records of one consumer's tasks.
#[derive(Clone)]
pub(super) struct TaskRecords {
    pub(super) member: Arc<Member>,
    pub(super) pipeline: Pipeline,
}

impl TaskRecords {
    /// Returns the handle to the record of a task, for the task's handler.
    pub(super) fn record(&self, delivery: &Unsettled, task_id: &str) -> impl TaskRecord + use<> {
        RecordHandle {
            notes: self.clone(),
            stream: delivery.stream.clone(),
            delivery_key: delivery.guard.delivery_key,
            task_id: task_id.into(),
        }
    }
}

/// The handle to the record of one task.
struct RecordHandle {
    notes: TaskRecords,
    stream: Arc<ServedStream>,
    delivery_key: in_flight::DeliveryKey,
    task_id: Box<str>,
}

impl RecordHandle {
    /// Stores a field of the record. Returns `false` if the delivery is not pending for this
    /// consumer.
    async fn store(&self, field: &str, value: Bytes, resend: Resend) -> Result<bool, Error> {
        let TaskRecords { member, pipeline } = &self.notes;
        let (which, entry) = self.delivery_key;
        let keys = [self.stream.key_of(which), &self.stream.keys.dead];
        let args = |cmd: &mut Cmd| {
            cmd.arg(member.group.as_str())
                .arg(&member.consumer)
                .arg(entry)
                .arg(&*self.task_id)
                .arg(field)
                .arg(&value[..]);
        };
        let stored = pipeline.script(&scripts::STORE_PROGRESS, &keys, args, resend);
        Ok(integer(&stored.await?)? == 1)
    }
}

impl TaskRecord for RecordHandle {
    fn set_progress(&self, progress: Bytes) -> RecordFuture<'_, bool> {
        Box::pin(self.store("progress", progress, Resend::Never))
    }

    fn set_checkpoint(&self, checkpoint: Bytes) -> RecordFuture<'_, bool> {
        Box::pin(self.store("checkpoint", checkpoint, Resend::UntilAnswered))
    }

    fn checkpoint(&self) -> RecordFuture<'_, Option<Bytes>> {
        Box::pin(async {
            let mut get = redis::cmd("HGET");
            get.arg(self.stream.keys.task(&self.task_id))
                .arg("checkpoint");
            let pipeline = &self.notes.pipeline;
            match pipeline.command(get, Resend::UntilAnswered).await? {
                Value::Nil => Ok(None),
                checkpoint => bytes(checkpoint).map(Some),
            }
        })
    }
}
