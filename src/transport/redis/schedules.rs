//! Scheduled tasks on Redis. `scripts/schedules.lua` describes the hash that stores them.

use std::{collections::HashMap, time::SystemTime};

use bytes::Bytes;
use redis::Cmd;

use super::{
    Redis,
    keys::Keys,
    pipeline::Resend,
    producer::schedule::{AcceptCall, check_headers},
    response::{
        Value, array, bytes, count, fields, fixed_array, integer, unexpected, wrong_length,
    },
    scripts,
};
use crate::{
    error::Error,
    message::{Message, MessageId, Name},
    schedule::{ScheduledTask, from_milliseconds, milliseconds},
    transport::{
        FireOutcome, Fired, ScheduleChange, ScheduleList, ScheduleRun, ScheduleStatus,
        ScheduleStore, Schedules, StoreFuture,
    },
};

impl Redis {
    /// Returns access to the scheduled tasks of the stream. On a cluster, they are stored in the
    /// slot of the stream. Each method of [`Schedules`] fails if the handle has a set of streams,
    /// or a partitioned stream. For a partitioned stream, use a handle of one partition.
    pub fn schedules(&self) -> Schedules {
        Schedules::new(RedisSchedules(self.clone()))
    }
}

/// The scheduled tasks of a handle's stream.
struct RedisSchedules(Redis);

impl RedisSchedules {
    fn keys(&self, group: &Name) -> Result<Keys, Error> {
        let stream = self.0.settings.one_stream()?;
        Keys::new(&self.0.options.namespace, stream, group)
    }

    /// Runs a script. If the outcome is unknown, runs the script again, so a second run must change
    /// nothing.
    async fn call(
        &self,
        script: &'static scripts::Script,
        args: impl Fn(&mut Cmd),
    ) -> Result<Value, Error> {
        let keys = self.keys(&self.0.settings.group)?;
        let pipeline = self.0.shared.pipeline.for_key(&keys.stream_key);
        let key = keys.schedules();
        pipeline.script_until_known(script, &[&*key], args).await
    }

    async fn put_task(&self, task: &ScheduledTask) -> Result<bool, Error> {
        check_headers(&task.message(None).map_err(Error::invalid)?)?;
        let (json, ticks) = (task.to_json(), task.schedule().to_string());
        let args = |cmd: &mut Cmd| {
            cmd.arg(task.name().as_str())
                .arg(task.version_number())
                .arg(&json)
                .arg(&ticks)
                .arg(self.0.settings.group.as_str());
        };
        let stored = self.call(&scripts::PUT_SCHEDULE, args).await?;
        Ok(integer(&stored)? == 1)
    }

    async fn fire_at(
        &self,
        schedule: &ScheduleStatus,
        message: Message,
        tick: Option<SystemTime>,
    ) -> Result<Fired, Error> {
        let redis = &self.0;
        let keys = self.keys(&schedule.group)?;
        // The workers of a registry do not serve the stream before it is registered.
        if let Some(registration) = redis.registration(&keys.stream) {
            registration.await?;
        }
        let due = message.parts().due;
        let accept = AcceptCall::new(&keys, redis.settings.idempotency_window, message);
        let key = keys.schedules();
        let mut script_keys = vec![&*key];
        script_keys.extend(accept.keys().iter().map(String::as_str));
        let args = |cmd: &mut Cmd| {
            cmd.arg(schedule.name.as_str())
                .arg(schedule.revision)
                .arg(milliseconds(schedule.last_tick));
            // Empty for a task between two ticks.
            match tick {
                Some(tick) => cmd.arg(milliseconds(tick)),
                None => cmd.arg(""),
            };
            cmd.arg(ScheduleStatus::MAX_RUNS);
            accept.args(|arg| {
                cmd.arg(arg);
            });
        };
        let pipeline = redis.shared.pipeline.for_key(&keys.stream_key);
        let script = &scripts::FIRE_SCHEDULE;
        let response = pipeline.script(script, &script_keys, args, Resend::Never);
        let fired = decode_fired(response.await?)?;
        if let FireOutcome::Sent(_) = fired.outcome {
            redis.shared.counters.sent.increment();
            redis.promote_soon(keys, due);
        }
        Ok(fired)
    }
}

impl ScheduleStore for RedisSchedules {
    fn put<'a>(&'a self, task: &'a ScheduledTask) -> StoreFuture<'a, bool> {
        Box::pin(self.put_task(task))
    }

    fn change<'a>(&'a self, name: &'a Name, change: ScheduleChange) -> StoreFuture<'a, bool> {
        let change = match change {
            ScheduleChange::Remove => "remove",
            ScheduleChange::Pause => "pause",
            ScheduleChange::Resume => "resume",
        };
        Box::pin(async move {
            let args = |cmd: &mut Cmd| {
                cmd.arg(name.as_str()).arg(change);
            };
            // Never sent again: a second removal would find no schedule and return `false`.
            let (script, keys) = (
                &scripts::CHANGE_SCHEDULE,
                self.keys(&self.0.settings.group)?,
            );
            let pipeline = self.0.shared.pipeline.for_key(&keys.stream_key);
            let changed = pipeline
                .script(script, &[&keys.schedules()], args, Resend::Never)
                .await?;
            Ok(integer(&changed)? == 1)
        })
    }

    fn list(&self, known: Option<u64>) -> StoreFuture<'_, ScheduleList> {
        // The script lists the schedules only if the number of changes differs from this one.
        let known_changes = known.map_or_else(String::new, |known| known.to_string());
        Box::pin(async move {
            let args = |cmd: &mut Cmd| {
                cmd.arg(&known_changes);
            };
            decode_list(self.call(&scripts::LIST_SCHEDULES, args).await?)
        })
    }

    fn fire<'a>(
        &'a self,
        schedule: &'a ScheduleStatus,
        message: Message,
        tick: Option<SystemTime>,
    ) -> StoreFuture<'a, Fired> {
        Box::pin(self.fire_at(schedule, message, tick))
    }
}

/// Decodes the response of the script `FIRE_SCHEDULE`.
pub(super) fn decode_fired(response: Value) -> Result<Fired, Error> {
    let [outcome, now, text] = fixed_array(response)?;
    let (outcome, now) = (bytes(outcome)?, from_milliseconds(count(&now)?));
    let id = |text: Value| {
        let id = MessageId::from_utf8(&bytes(text)?);
        id.map_err(|_| unexpected("an id", "another text"))
    };
    let outcome = match &outcome[..] {
        b"sent" => FireOutcome::Sent(id(text)?),
        b"skipped" => FireOutcome::Skipped(id(text)?),
        b"early" => FireOutcome::Early,
        b"taken" => FireOutcome::Taken(from_milliseconds(count(&text)?)),
        b"changed" => FireOutcome::Changed,
        _ => return Err(unexpected("the outcome of a tick", "another text")),
    };
    Ok(Fired { now, outcome })
}

/// Decodes the response of the script `LIST_SCHEDULES`.
pub(super) fn decode_list(response: Value) -> Result<ScheduleList, Error> {
    let mut response = array(response)?.into_iter();
    let (Some(now), Some(changes)) = (response.next(), response.next()) else {
        return Err(wrong_length(3, 0));
    };
    let now = from_milliseconds(count(&now)?);
    let schedules = response.next().map(|hash| schedules_of(hash, now));
    Ok(ScheduleList {
        now,
        changes: count(&changes)?,
        schedules: schedules.transpose()?,
    })
}

/// Decodes the hash of all schedules. A field is named `<field of a schedule>:<name of the
/// schedule>`.
fn schedules_of(hash: Value, now: SystemTime) -> Result<Vec<ScheduleStatus>, Error> {
    let mut by_name: HashMap<Name, HashMap<Bytes, Bytes>> = HashMap::new();
    for (field, value) in fields(hash)? {
        // Skips fields that belong to no schedule, such as `changes`.
        let Some(colon) = field.iter().position(|byte| *byte == b':') else {
            continue;
        };
        if let Ok(name) = Name::from_utf8(&field[colon + 1..]) {
            let values = by_name.entry(name).or_default();
            values.insert(field.slice(..colon), value);
        }
    }
    let schedules = by_name.into_iter();
    Ok(schedules
        .filter_map(|(name, values)| schedule_of(name, &values, now))
        .collect())
}

/// Decodes a schedule from the values of its fields. `None` if a required field is missing or
/// malformed.
fn schedule_of(
    name: Name,
    values: &HashMap<Bytes, Bytes>,
    now: SystemTime,
) -> Option<ScheduleStatus> {
    let text = |field: &str| std::str::from_utf8(values.get(field.as_bytes())?).ok();
    let version = text("version")?.parse().ok()?;
    let revision = text("revision")?.parse().ok()?;
    let last_tick = from_milliseconds(text("last")?.parse().ok()?);
    let definition = values.get(&b"definition"[..]).cloned().unwrap_or_default();
    Some(ScheduleStatus {
        task: ScheduledTask::from_json(name.clone(), version, &definition),
        name,
        version,
        revision,
        group: Name::from(text("group")?),
        paused: text("paused").is_some(),
        last_tick,
        runs: text("runs")
            .unwrap_or_default()
            .lines()
            .filter_map(run_of)
            .collect(),
        as_of: now,
    })
}

/// Parses a run: its time in milliseconds, its outcome, its kind, and the id of its task.
fn run_of(line: &str) -> Option<ScheduleRun> {
    let mut words = line.splitn(4, ' ');
    let at = from_milliseconds(words.next()?.parse().ok()?);
    let (outcome, kind) = (words.next()?, words.next()?);
    let mut run = ScheduleRun::new(at, MessageId::from(words.next()?));
    (run.is_skipped, run.is_manual) = (outcome == "skipped", kind == "manual");
    Some(run)
}
