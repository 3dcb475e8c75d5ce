//! The status of tasks, and their cancellation. `scripts/tasks.lua` describes the records.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use redis::Cmd;

use super::{
    Redis,
    entry::value_of,
    keys::Keys,
    msgpack,
    pipeline::Resend,
    response::{self, Value, bytes, fields, integer, unexpected},
    scripts,
};
use crate::{
    error::Error,
    message::{Attempt, MessageId, Name, UniqueKey},
    transport::{StoreFuture, TaskState, TaskStatus, TaskStore, Tasks, codec},
};

impl Redis {
    /// Returns access to the tasks of the stream, as this handle's group sees them.
    pub fn tasks(&self) -> Tasks {
        Tasks::new(Store(self.clone()))
    }

    /// Returns the keys of the handle's stream, or of all its partitions.
    pub(super) fn all_keys(&self) -> Result<Vec<Keys>, Error> {
        let (_, parts) = self.settings.stream_and_parts()?;
        let keys = |stream| Keys::new(&self.options.namespace, stream, &self.settings.group);
        parts.iter().map(keys).collect()
    }

    async fn status_on(&self, keys: &Keys, id: &MessageId) -> Result<Option<TaskStatus>, Error> {
        let mut cmd = redis::cmd("HGETALL");
        cmd.arg(keys.task(id));
        let pipeline = self.shared.pipeline.of(&keys.primary);
        status(id, pipeline.command(cmd, Resend::Never).await?)
    }

    async fn cancel_on(&self, keys: &Keys, id: &MessageId, reason: &str) -> Result<bool, Error> {
        let pipeline = self.shared.pipeline.of(&keys.primary);
        let mut get = redis::cmd("HGET");
        get.arg(&keys.stream_bodies).arg(id.as_str());
        let body = match pipeline.command(get, Resend::Never).await? {
            Value::Nil => None,
            body => msgpack::unpack(&response::bytes(body)?),
        };
        // A task that is not delayed by its sender can be cancelled only if it has a record.
        let may_have_record =
            (body.as_ref()).is_none_or(|fields| value_of(fields, codec::RECORD).is_some());
        let names = [&*keys.stream_due, &keys.stream_bodies];
        let args = |cmd: &mut Cmd| {
            cmd.arg(keys.group.as_str())
                .arg(id.as_str())
                .arg(reason)
                .arg(u8::from(may_have_record))
                .arg(keys.primary.as_str());
        };
        let cancelled = pipeline.script(&scripts::CANCEL, &names, args, Resend::Never);
        Ok(integer(&cancelled.await?)? == 1)
    }
}

/// The tasks of the handle's group.
struct Store(Redis);

impl TaskStore for Store {
    fn status<'a>(&'a self, id: &'a MessageId) -> StoreFuture<'a, Option<TaskStatus>> {
        Box::pin(async move {
            for keys in self.0.all_keys()? {
                if let Some(status) = self.0.status_on(&keys, id).await? {
                    return Ok(Some(status));
                }
            }
            Ok(None)
        })
    }

    fn cancel<'a>(&'a self, id: &'a MessageId, reason: &'a str) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            for keys in self.0.all_keys()? {
                if self.0.cancel_on(&keys, id, reason).await? {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    fn holder<'a>(&'a self, key: &'a UniqueKey) -> StoreFuture<'a, Option<MessageId>> {
        Box::pin(async move {
            for keys in self.0.all_keys()? {
                let mut cmd = redis::cmd("GET");
                cmd.arg(keys.unique(key));
                let pipeline = self.0.shared.pipeline.of(&keys.primary);
                match pipeline.command(cmd, Resend::Never).await? {
                    Value::Nil => {}
                    id => return Ok(MessageId::from_utf8(&bytes(id)?).ok()),
                }
            }
            Ok(None)
        })
    }
}

/// Decodes the record of a task. `None` if it does not exist.
pub(super) fn status(id: &MessageId, record: Value) -> Result<Option<TaskStatus>, Error> {
    let record = match record {
        Value::Map(pairs) => pairs
            .into_iter()
            .map(|(field, value)| Ok((bytes(field)?, bytes(value)?)))
            .collect::<Result<Vec<_>, Error>>()?,
        list => fields(list)?,
    };
    if record.is_empty() {
        return Ok(None);
    }
    let text = |field| {
        let value = value_of(&record, field).map(Bytes::as_ref);
        String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
    };
    let number = |field| text(field).parse::<u64>().ok();
    let time = |field| Some(UNIX_EPOCH + Duration::from_millis(number(field)?));
    let state = TaskState::from_name(&text("state"));
    let unknown = || unexpected("the record of a task", "another hash");
    let accepted_at: SystemTime = time("accepted").ok_or_else(unknown)?;
    let mut status = TaskStatus::waiting(id.clone(), Name::from(text("name")), accepted_at);
    status.state = state.ok_or_else(unknown)?;
    status.attempt = Attempt(
        number("attempt")
            .unwrap_or(0)
            .try_into()
            .unwrap_or(u32::MAX),
    );
    status.reason = text("reason");
    status.unique = Some(text("unique"))
        .filter(|key| !key.is_empty())
        .map(UniqueKey::from);
    status.keep = Duration::from_millis(number("keep").unwrap_or(0));
    status.started_at = time("started");
    status.ended_at = time("ended");
    Ok(Some(status))
}
