//! The recorded tasks: their status, their lists, and their cancellation. `scripts/tasks.lua`
//! describes the records.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use redis::Cmd;

use super::{
    Redis,
    entry::value_of,
    keys::Keys,
    msgpack,
    pipeline::Resend,
    response::{self, Value, array, bytes, fields, fixed_array, integer, unexpected},
    scripts, task_feed,
};
use crate::{
    error::Error,
    message::{Attempt, MessageId, Name, UniqueKey},
    transport::{
        Feed, ListStep, Listed, PAGE_BYTES, StoreFuture, TaskState, TaskStatus, TaskStore, Tasks,
        codec,
    },
};

/// The maximum number of tasks that one step of a list examines. A step that may return more tasks
/// examines that many.
const MAX_EXAMINED: usize = 500;

impl Redis {
    /// Returns access to the tasks of the stream, as this handle's group sees them.
    pub fn tasks(&self) -> Tasks {
        let store = || RedisTasks(self.clone());
        match self.all_keys() {
            Ok(keys) => {
                // All handles with the same feeds share their readers.
                let feeds: Vec<_> = keys.iter().map(Keys::feed).collect();
                self.shared.tasks.get(feeds.join(" "), store)
            }
            // The error is not lost: each method of `Tasks` returns it.
            Err(_) => Tasks::new(store()),
        }
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
        let pipeline = self.shared.pipeline.for_key(&keys.stream_key);
        status(id, pipeline.command(cmd, Resend::Never).await?)
    }

    async fn list_on(&self, keys: &Keys, step: ListStep) -> Result<Listed, Error> {
        let ListStep { state, .. } = step;
        // The position after the last task that was listed: the task's time and id.
        let after = step
            .after
            .as_deref()
            .and_then(|after| after.split_once(' '));
        let (time, id) = after.unwrap_or_default();
        let args = |cmd: &mut Cmd| {
            cmd.arg(keys.group.as_str())
                .arg(state.as_str())
                .arg(step.name.as_deref().unwrap_or_default())
                .arg(time)
                .arg(id)
                .arg(step.max)
                .arg(step.max.max(MAX_EXAMINED))
                .arg(PAGE_BYTES);
        };
        let pipeline = self.shared.pipeline.for_key(&keys.stream_key);
        let (script, list) = (&scripts::LIST_TASKS, keys.tasks(state));
        listed(
            pipeline
                .script(script, &[&list], args, Resend::Never)
                .await?,
        )
    }

    async fn cancel_on(&self, keys: &Keys, id: &MessageId, reason: &str) -> Result<bool, Error> {
        let pipeline = self.shared.pipeline.for_key(&keys.stream_key);
        let mut get = redis::cmd("HGET");
        get.arg(&keys.stream_bodies).arg(id.as_str());
        let body = match pipeline.command(get, Resend::Never).await? {
            Value::Nil => None,
            body => msgpack::unpack(&response::bytes(body)?),
        };
        // The body of a delayed task shows whether the task has a record. Any other task can be
        // cancelled only if it has a record, so the script looks for one.
        let may_have_record =
            (body.as_ref()).is_none_or(|fields| value_of(fields, codec::RECORDING_GROUP).is_some());
        let names = [&*keys.stream_due, &keys.stream_bodies];
        let args = |cmd: &mut Cmd| {
            cmd.arg(keys.group.as_str())
                .arg(id.as_str())
                .arg(reason)
                .arg(u8::from(may_have_record))
                .arg(keys.stream_key.as_str());
        };
        let cancelled = pipeline.script(&scripts::CANCEL, &names, args, Resend::Never);
        Ok(integer(&cancelled.await?)? == 1)
    }
}

/// The tasks of the handle's group.
struct RedisTasks(Redis);

impl TaskStore for RedisTasks {
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

    fn partition_count(&self) -> usize {
        self.0
            .settings
            .stream_and_parts()
            .map_or(1, |(_, partitions)| partitions.len())
    }

    fn list(&self, step: ListStep) -> StoreFuture<'_, Listed> {
        Box::pin(async move {
            let keys = self.0.all_keys()?;
            match keys.get(step.partition) {
                Some(keys) => self.0.list_on(keys, step).await,
                None => Ok(Listed::default()),
            }
        })
    }

    fn feed_ends(&self) -> StoreFuture<'_, Vec<String>> {
        Box::pin(async move { task_feed::last_ids(&self.0, &self.0.all_keys()?).await })
    }

    fn feed(&self, cursors: Vec<String>) -> Result<Feed, Error> {
        task_feed::open(&self.0, &self.0.all_keys()?, &cursors)
    }

    fn holder<'a>(&'a self, key: &'a UniqueKey) -> StoreFuture<'a, Option<MessageId>> {
        Box::pin(async move {
            for keys in self.0.all_keys()? {
                let mut cmd = redis::cmd("GET");
                cmd.arg(keys.unique(key));
                let pipeline = self.0.shared.pipeline.for_key(&keys.stream_key);
                match pipeline.command(cmd, Resend::Never).await? {
                    Value::Nil => {}
                    id => return Ok(MessageId::from_utf8(&bytes(id)?).ok()),
                }
            }
            Ok(None)
        })
    }
}

/// Decodes the record of a task. `None` if there is no record.
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
    decode_record(id.clone(), &record).map(Some)
}

/// The fields of a record that `list_tasks.lua` returns.
const LISTED_FIELDS: [&str; 11] = [
    "state",
    "name",
    "attempt",
    "reason",
    "unique",
    "keep",
    "accepted",
    "started",
    "ended",
    "progress",
    "result_too_large",
];

/// Decodes the response of the script `LIST_TASKS`: the position of the next step, and the tasks.
pub(super) fn listed(response: Value) -> Result<Listed, Error> {
    let [position, found] = fixed_array(response)?;
    let next = match position {
        Value::Text(text) if text.is_empty() => None,
        position => {
            let [time, id] = fixed_array(position)?;
            let text = |value| Ok::<_, Error>(String::from_utf8_lossy(&bytes(value)?).into_owned());
            Some(format!("{} {}", text(time)?, text(id)?))
        }
    };
    let mut found = array(found)?.into_iter();
    let mut tasks = Vec::new();
    while let (Some(id), Some(record)) = (found.next(), found.next()) {
        let record: [Value; LISTED_FIELDS.len()] = fixed_array(record)?;
        let record = record
            .map(bytes)
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?;
        let record: Vec<_> = LISTED_FIELDS
            .map(Bytes::from)
            .into_iter()
            .zip(record)
            .collect();
        // An id that is not UTF-8 was added by another program, so it is skipped.
        if let Ok(id) = MessageId::from_utf8(&bytes(id)?) {
            tasks.push(decode_record(id, &record)?);
        }
    }
    Ok(Listed { tasks, next })
}

/// Decodes a record from its fields.
fn decode_record(id: MessageId, record: &[(Bytes, Bytes)]) -> Result<TaskStatus, Error> {
    let value = |field| value_of(record, field);
    let text = |field| {
        let value = value(field).map(Bytes::as_ref);
        String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
    };
    let number = |field| text(field).parse::<u64>().ok();
    let time = |field| UNIX_EPOCH.checked_add(Duration::from_millis(number(field)?));
    let non_empty = |field| value(field).filter(|value| !value.is_empty()).cloned();
    let state = TaskState::from_name(&text("state"));
    let malformed = || unexpected("the record of a task", "another hash");
    let accepted_at: SystemTime = time("accepted").ok_or_else(malformed)?;
    let mut status = TaskStatus::waiting(id, Name::from(text("name")), accepted_at);
    status.state = state.ok_or_else(malformed)?;
    let attempt = number("attempt").unwrap_or(0);
    status.attempt = Attempt(attempt.try_into().unwrap_or(u32::MAX));
    status.reason = text("reason");
    status.progress = non_empty("progress");
    status.result = non_empty("result");
    status.result_too_large = number("result_too_large");
    status.unique = Some(text("unique"))
        .filter(|key| !key.is_empty())
        .map(UniqueKey::from);
    status.keep = Duration::from_millis(number("keep").unwrap_or(0));
    status.started_at = time("started");
    status.ended_at = time("ended");
    Ok(status)
}
