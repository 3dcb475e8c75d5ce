//! Statistics for metrics.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::future::{try_join, try_join_all};
use redis::Cmd;

use super::{
    Redis, error,
    keys::{CONSUMER_PREFIX, Keys},
    pipeline::Resend,
    response::{Value, array, bytes, count, fixed_array, integers, map_value, text},
    scripts,
};
use crate::{
    error::Error,
    message::Name,
    transport::{ConsumerStats, GroupStats, StreamStats},
};

impl Redis {
    /// Returns the statistics of the stream and all of its groups. A stream that does not exist has
    /// no groups. A group whose name is empty, longer than [`Name::MAX_LEN`] or not UTF-8 is left
    /// out, since no worker can join it.
    ///
    /// Sends a few commands for the stream, and then one script for each group. The server's work
    /// for them does not grow with the length of the stream.
    ///
    /// # Errors
    /// If the server cannot be reached or refuses a command.
    pub async fn stats(&self) -> Result<StreamStats, Error> {
        let (stream, parts) = self.settings.stream_and_parts()?;
        let mut stats = try_join_all(parts.iter().map(|part| self.stream_stats(part))).await?;
        Ok(match self.settings.partitions() {
            Some(_) => StreamStats::of_partitions(stream, stats),
            None => stats.swap_remove(0),
        })
    }

    async fn stream_stats(&self, stream: &Name) -> Result<StreamStats, Error> {
        let keys = Keys::new(&self.options.namespace, stream, &self.settings.group)?;
        let pipeline = self.shared.pipeline.for_key(&keys.stream_key);
        let ask = |words: [&str; 2]| {
            let mut cmd = redis::cmd(words[0]);
            cmd.arg(words[1]);
            pipeline.command(cmd, Resend::Never)
        };
        let mut list_groups = redis::cmd("XINFO");
        list_groups.arg("GROUPS").arg(keys.stream_key.as_str());
        let (entries, delayed, groups) = futures_util::future::try_join3(
            ask(["XLEN", &keys.stream_key]),
            ask(["ZCARD", &keys.stream_due]),
            pipeline.submit(list_groups, Resend::Never),
        )
        .await?;
        let mut stats = StreamStats::new(&keys.stream, count(&entries)?, count(&delayed)?);
        let names = decode_list(groups)?
            .unwrap_or_default()
            .into_iter()
            .filter_map(|group| name(group).transpose());
        let group_stats = names.map(async |group| self.group_stats(stream, group?).await);
        let group_stats = try_join_all(group_stats).await?;
        stats.groups = group_stats.into_iter().flatten().collect();
        stats.groups.sort_by(|a, b| a.group.cmp(&b.group));
        stats.set_kept_entries();
        Ok(stats)
    }

    /// Returns the groups of the stream, sorted by name; `None` if the stream does not exist.
    /// Groups that no worker can join are left out, as in [`stats`](Self::stats).
    ///
    /// Uses only [`XINFO GROUPS`](https://redis.io/docs/latest/commands/xinfo-groups/).
    ///
    /// # Errors
    /// If the server cannot be reached or refuses a command.
    pub async fn groups(&self) -> Result<Option<Vec<Name>>, Error> {
        let (_, parts) = self.settings.stream_and_parts()?;
        let listed = try_join_all(parts.iter().map(|part| self.groups_of(part))).await?;
        let mut listed = listed.into_iter().flatten().peekable();
        if listed.peek().is_none() {
            return Ok(None);
        }
        let names: BTreeSet<_> = listed.flatten().collect();
        Ok(Some(names.into_iter().collect()))
    }

    async fn groups_of(&self, stream: &Name) -> Result<Option<Vec<Name>>, Error> {
        let mut cmd = redis::cmd("XINFO");
        let key = self.options.namespace.apply(stream);
        cmd.arg("GROUPS").arg(key.as_str());
        let pipeline = self.shared.pipeline.for_key(&key);
        let Some(groups) = decode_list(pipeline.submit(cmd, Resend::Never).await?)? else {
            return Ok(None);
        };
        let names = groups
            .into_iter()
            .filter_map(|group| name(group).transpose());
        names.collect::<Result<Vec<_>, _>>().map(Some)
    }

    /// Returns the consumers of the group, sorted by name; `None` if the stream or the group does
    /// not exist. A consumer that has ended is listed until a worker of this library deletes it.
    ///
    /// Uses only [`XINFO CONSUMERS`](https://redis.io/docs/latest/commands/xinfo-consumers/).
    ///
    /// # Errors
    /// If the server cannot be reached or refuses a command.
    pub async fn consumers(&self) -> Result<Option<Vec<ConsumerStats>>, Error> {
        let (_, parts) = self.settings.stream_and_parts()?;
        let listed = try_join_all(parts.iter().map(|part| self.consumers_of(part))).await?;
        let mut listed = listed.into_iter().flatten().peekable();
        if listed.peek().is_none() {
            return Ok(None);
        }
        // A consumer may be on several partitions, and on their retry streams.
        let mut by_name = BTreeMap::<String, ConsumerStats>::new();
        for stats in listed.flatten() {
            by_name
                .entry(stats.consumer.clone())
                .and_modify(|known| {
                    known.pending += stats.pending;
                    known.idle = known.idle.min(stats.idle);
                })
                .or_insert(stats);
        }
        Ok(Some(by_name.into_values().collect()))
    }

    /// Returns the consumers of a stream, and then those of its retry stream. A consumer of both
    /// streams is listed twice.
    pub(super) async fn consumers_of(
        &self,
        stream: &Name,
    ) -> Result<Option<Vec<ConsumerStats>>, Error> {
        let keys = Keys::new(&self.options.namespace, stream, &self.settings.group)?;
        let pipeline = self.shared.pipeline.for_key(&keys.stream_key);
        let ask = |stream: &str| {
            let mut cmd = redis::cmd("XINFO");
            cmd.arg("CONSUMERS").arg(stream).arg(&*keys.group);
            pipeline.submit(cmd, Resend::Never)
        };
        let (primary, retry) = try_join(ask(&keys.stream_key), ask(&keys.retry_key)).await?;
        let Some(primary) = decode_list(primary)? else {
            return Ok(None);
        };
        let consumers = primary
            .into_iter()
            .chain(decode_list(retry)?.unwrap_or_default());
        consumers.map(consumer).collect::<Result<_, _>>().map(Some)
    }

    /// Returns the statistics of a group; `None` if the group was just deleted.
    async fn group_stats(&self, stream: &Name, group: Name) -> Result<Option<GroupStats>, Error> {
        let keys = Keys::new(&self.options.namespace, stream, &group)?;
        let parking = keys.parking();
        let names = [
            &*keys.stream_key,
            &keys.retry_key,
            &keys.due,
            &keys.dead,
            &parking,
        ];
        let args = |cmd: &mut Cmd| {
            cmd.arg(group.as_str())
                .arg(CONSUMER_PREFIX)
                .arg(self.settings.lease.as_millis() as u64)
                .arg(self.options.foreign_lease.as_millis() as u64);
        };
        let pipeline = self.shared.pipeline.for_key(&keys.stream_key);
        let response = pipeline
            .script(&scripts::STATS, &names, args, Resend::Never)
            .await?;
        decode(response, group)
    }
}

/// Decodes the response of the script `STATS`; `None` if the group does not exist.
pub(super) fn decode(response: Value, group: Name) -> Result<Option<GroupStats>, Error> {
    if response == Value::Nil {
        return Ok(None);
    }
    let [numbers @ .., last_delivered] = fixed_array::<12>(response)?;
    let (first, others) = numbers.split_at(7);
    let [lag, pending, oldest, delayed, dead, consumers, parked] =
        integers(Value::Array(first.to_vec()))?;
    let [unfinished, idle, foreign, foreign_pending] = integers(Value::Array(others.to_vec()))?;
    let mut stats = GroupStats::new(group);
    stats.lag = u64::try_from(lag).ok();
    stats.pending = pending.unsigned_abs();
    stats.oldest_pending = u64::try_from(oldest).ok().map(Duration::from_millis);
    stats.delayed = delayed.unsigned_abs();
    stats.dead = dead.unsigned_abs();
    stats.consumers = consumers.unsigned_abs();
    stats.parked = parked.unsigned_abs();
    stats.unfinished = u64::try_from(unfinished).ok();
    stats.idle = u64::try_from(idle).ok().map(Duration::from_millis);
    stats.foreign = foreign.unsigned_abs();
    stats.foreign_pending = foreign_pending.unsigned_abs();
    let last_delivered = text(last_delivered)?;
    stats.last_delivered = (last_delivered != "0-0").then_some(last_delivered);
    Ok(Some(stats))
}

/// Decodes the list in a response to `XINFO`; `None` if the stream or the group does not exist.
fn decode_list(response: Value) -> Result<Option<Vec<Value>>, Error> {
    match response {
        Value::ServerError(refusal) if is_missing(&refusal) => Ok(None),
        response => array(error::check(response)?).map(Some),
    }
}

/// Returns `true` if the stream or the group does not exist.
fn is_missing(refusal: &redis::ServerError) -> bool {
    let text = refusal.details();
    refusal.code() == "NOGROUP" || text.is_some_and(|text| text.contains("no such key"))
}

/// Decodes the name in an element of `XINFO GROUPS`; `None` if no worker can join that group.
pub(super) fn name(group: Value) -> Result<Option<Name>, Error> {
    let name = Name::from_utf8(&bytes(map_value(group, "name")?)?).ok();
    Ok(name.filter(|name| name.fault().is_none()))
}

/// Decodes an element of `XINFO CONSUMERS`.
pub(super) fn consumer(consumer: Value) -> Result<ConsumerStats, Error> {
    let value = |key| map_value(consumer.clone(), key);
    let name = text(value("name")?)?;
    Ok(ConsumerStats {
        pending: count(&value("pending")?)?,
        idle: Duration::from_millis(count(&value("idle")?)?),
        foreign: !name.starts_with(CONSUMER_PREFIX),
        consumer: name,
    })
}
