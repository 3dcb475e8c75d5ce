//! Pauses, and the purge of waiting messages.

use std::time::{Duration, UNIX_EPOCH};

use futures_util::future::try_join_all;
use redis::Cmd;

use super::{
    Redis,
    keys::Keys,
    pipeline::Resend,
    response::{count, fields, fixed_array, integer, text},
    scripts,
};
use crate::{
    error::Error,
    message::parking_key_of_paused,
    transport::{Control, ControlStore, Pause, PauseTarget, PurgeStep, StoreFuture},
};

/// The maximum number of messages that one script call removes, of each sort: unread, waiting for
/// redelivery, delayed, parked. A call with this number blocks the server for about 3 ms.
const PURGED_AT_ONCE: usize = 100;

impl Redis {
    /// Returns access to the pauses of the stream, and to the purge of its waiting messages.
    pub fn control(&self) -> Control {
        Control::new(RedisControl(self.clone()))
    }
}

/// Pauses and purges the handle's stream, for its group.
struct RedisControl(Redis);

impl RedisControl {
    /// Begins a pause on all partitions, or ends it if there is no `reason`. Returns `true` if this
    /// has changed the pause on any partition.
    async fn set_pause(&self, target: &PauseTarget, reason: Option<&str>) -> Result<bool, Error> {
        let all = self.0.all_keys()?;
        let set = all
            .iter()
            .map(|keys| self.set_pause_on(keys, target, reason));
        Ok(try_join_all(set).await?.contains(&true))
    }

    async fn set_pause_on(
        &self,
        keys: &Keys,
        target: &PauseTarget,
        reason: Option<&str>,
    ) -> Result<bool, Error> {
        let control_key = keys.pauses();
        let args = |cmd: &mut Cmd| {
            cmd.arg(u8::from(reason.is_some()))
                .arg(keys.pause_field(target))
                .arg(reason.unwrap_or_default());
            if let PauseTarget::Name(name) = target {
                cmd.arg(keys.group.as_str())
                    .arg(parking_key_of_paused(name));
            }
        };
        let pipeline = self.0.shared.pipeline.for_key(&keys.stream_key);
        let script_keys = [control_key.as_str()];
        let set = pipeline.script(
            &scripts::SET_PAUSE,
            &script_keys,
            args,
            Resend::UntilAnswered,
        );
        let is_changed = integer(&set.await?)? == 1;
        if let PauseTarget::Name(name) = target
            && reason.is_none()
        {
            self.move_parked(keys, &parking_key_of_paused(name)).await?;
        }
        Ok(is_changed)
    }

    /// Moves all messages that are parked for `parking_key` to the retry stream. Calls the script
    /// until no message is left.
    async fn move_parked(&self, keys: &Keys, parking_key: &str) -> Result<(), Error> {
        let permits_key = keys.permits(parking_key);
        let script_keys = [permits_key.as_str()];
        let pipeline = self.0.shared.pipeline.for_key(&keys.stream_key);
        loop {
            // The empty text stands for the holder of a permit: no delivery holds a permit of this
            // key. Each call moves some of the parked messages.
            let args = |cmd: &mut Cmd| {
                cmd.arg("")
                    .arg(keys.base())
                    .arg(keys.group.as_str())
                    .arg(parking_key);
            };
            let script = &scripts::RETURN_PERMIT;
            let moved = pipeline.script(script, &script_keys, args, Resend::UntilAnswered);
            if integer(&moved.await?)? == 0 {
                return Ok(());
            }
        }
    }

    async fn pauses_on(&self, keys: &Keys) -> Result<Vec<Pause>, Error> {
        let mut cmd = redis::cmd("HGETALL");
        cmd.arg(keys.pauses());
        let pipeline = self.0.shared.pipeline.for_key(&keys.stream_key);
        let found = fields(pipeline.command(cmd, Resend::Never).await?)?;
        let pauses = found.into_iter().filter_map(|(field, value)| {
            let target = keys.parse_pause(&field).ok().flatten()?;
            let value = String::from_utf8_lossy(&value);
            let (since, reason) = value.split_once(' ').unwrap_or((&value, ""));
            let since = Duration::from_millis(since.parse().unwrap_or(0));
            let since = UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH);
            Some(Pause::new(target, reason, since))
        });
        Ok(pauses.collect())
    }

    /// Removes some of the waiting messages of one stream, up to the entry `last`. If `last` is
    /// empty, the newest entry is the last one. Returns the number of removed messages and, if
    /// there may be more, the value of `last` for the next step.
    async fn purge_on(&self, keys: &Keys, last: &str) -> Result<(u64, Option<String>), Error> {
        let script_keys = [&*keys.stream_key, &keys.retry_key, &keys.due, &keys.bodies];
        let args = |cmd: &mut Cmd| {
            cmd.arg(keys.group.as_str()).arg(PURGED_AT_ONCE).arg(last);
        };
        let pipeline = self.0.shared.pipeline.for_key(&keys.stream_key);
        let response = pipeline.script(&scripts::PURGE, &script_keys, args, Resend::Never);
        let [removed, until, more] = fixed_array(response.await?)?;
        let next = match integer(&more)? {
            0 => None,
            _ => Some(text(until)?),
        };
        Ok((count(&removed)?, next))
    }
}

impl ControlStore for RedisControl {
    fn pause<'a>(&'a self, target: &'a PauseTarget, reason: &'a str) -> StoreFuture<'a, bool> {
        Box::pin(self.set_pause(target, Some(reason)))
    }

    fn resume<'a>(&'a self, target: &'a PauseTarget) -> StoreFuture<'a, bool> {
        Box::pin(self.set_pause(target, None))
    }

    fn pauses(&self) -> StoreFuture<'_, Vec<Pause>> {
        Box::pin(async move {
            let all = self.0.all_keys()?;
            let pauses = all.iter().map(|keys| self.pauses_on(keys));
            Ok(try_join_all(pauses).await?.concat())
        })
    }

    fn purge_step<'a>(&'a self, position: Option<&'a str>) -> StoreFuture<'a, PurgeStep> {
        Box::pin(async move {
            // A position has two parts: the number of the partition, and the last entry to remove
            // there.
            let (index, last) = position
                .and_then(|it| it.split_once(' '))
                .unwrap_or(("0", ""));
            let index: usize = index.parse().unwrap_or(0);
            let all = self.0.all_keys()?;
            let Some(keys) = all.get(index) else {
                return Ok(PurgeStep::new(0, None));
            };
            let (removed, next_last) = self.purge_on(keys, last).await?;
            let next = match next_last {
                Some(last) => Some(format!("{index} {last}")),
                None => (index + 1 < all.len()).then(|| format!("{} ", index + 1)),
            };
            Ok(PurgeStep::new(removed, next))
        })
    }
}
