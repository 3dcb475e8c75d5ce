//! Deletes groups and single consumers.

use redis::Cmd;

use super::{
    Redis,
    keys::{CONSUMER_PREFIX, Keys},
    pipeline::Resend,
    response::{Value, integers},
    scripts,
};
use crate::{
    error::{Error, ErrorKind},
    transport::{TaskQuery, TaskState},
};

/// The recorded reason of tasks that were cancelled because their group was deleted.
const DROP_REASON: &str = "the group was dropped";

impl Redis {
    /// Deletes this handle's group from the stream. A group that no worker serves any more prevents
    /// the trimming of the stream. The group's waiting messages are removed as by
    /// [`purge_waiting`](crate::transport::Control::purge_waiting). Its pending messages are lost
    /// for this group. Other groups are not affected. Dead letters and the records of tasks are
    /// kept.
    ///
    /// Returns the number of messages that were lost: those that waited or were pending.
    ///
    /// With `force`, the group is deleted even if it has live workers. Live workers of Campanile
    /// then create the group again, and continue after the last entry that they have read.
    ///
    /// # Errors
    /// - If the group does not exist, or if it has live workers and `force` is not set. In both
    ///   cases nothing was changed.
    /// - If a worker starts during the call and `force` is not set. Some messages may have been
    ///   removed, and the group may still exist.
    /// - If the server cannot be reached or refuses a command.
    ///
    /// # Cancel safety
    /// If the future is dropped, some messages may have been removed.
    pub async fn drop_group(&self, force: bool) -> Result<u64, Error> {
        let all = self.all_keys()?;
        let group = &self.settings.group;
        let stats = self.stats().await?;
        let Some(stats) = stats.group(group) else {
            let text = format!("the stream has no group `{group}`");
            return Err(Error::new(ErrorKind::Invalid, text));
        };
        if stats.consumers > 0 && !force {
            return Err(still_served_error(group, stats.consumers));
        }
        let mut lost = self.control().purge_waiting().await?;
        let running = TaskQuery::all().state(TaskState::Running);
        lost += self.tasks().cancel_all(running, DROP_REASON).await?;
        for keys in &all {
            lost += self.drop_group_on(keys, force).await?;
        }
        Ok(lost)
    }

    async fn drop_group_on(&self, keys: &Keys, force: bool) -> Result<u64, Error> {
        let group = keys.group.as_str();
        let names = [
            &*keys.stream_key,
            &keys.retry_key,
            &keys.due,
            &keys.bodies,
            &keys.served_names,
        ];
        let args = |cmd: &mut Cmd| {
            cmd.arg(group);
            self.push_lease_args(cmd);
            cmd.arg(u8::from(force));
        };
        let pipeline = self.shared.pipeline.for_key(&keys.stream_key);
        let dropped = pipeline.script(&scripts::DROP_GROUP, &names, args, Resend::Never);
        // The script returns three numbers: 1 if it has deleted the group, the live consumers, and
        // the pending entries. All are zero if this stream has no such group.
        match integers(dropped.await?)? {
            [0, live, _] if live > 0 => Err(still_served_error(group, live.unsigned_abs())),
            [_, _, pending] => Ok(pending.unsigned_abs()),
        }
    }

    /// Deletes a consumer from this handle's group. Returns the number of messages that were
    /// pending for the consumer. They are lost for the group.
    ///
    /// # Errors
    /// - If the group has no such consumer.
    /// - If the consumer is live or has pending messages, and `force` is not set. The consumer is
    ///   not deleted. On a partitioned stream, it may have been deleted from some partitions.
    /// - If the server cannot be reached or refuses a command.
    pub async fn drop_consumer(&self, consumer: &str, force: bool) -> Result<u64, Error> {
        let (mut is_found, mut lost) = (false, 0);
        for keys in self.all_keys()? {
            let workers = keys.workers();
            let names = [&*keys.stream_key, &keys.retry_key, &workers];
            let args = |cmd: &mut Cmd| {
                cmd.arg(keys.group.as_str()).arg(consumer);
                self.push_lease_args(cmd);
                cmd.arg(u8::from(force));
            };
            let pipeline = self.shared.pipeline.for_key(&keys.stream_key);
            let script = &scripts::DROP_CONSUMER;
            let dropped = pipeline.script(script, &names, args, Resend::Never);
            let (live, pending) = match dropped.await? {
                // The group has no such consumer on this stream.
                Value::Nil => continue,
                // The first number is 1 if the script has deleted the consumer.
                response => match integers(response)? {
                    [0, live, pending] => (live, pending),
                    [_, _, pending] => {
                        (is_found, lost) = (true, lost + pending.unsigned_abs());
                        continue;
                    }
                },
            };
            let text = match live {
                0 => format!(
                    "{pending} messages are pending for the consumer `{consumer}` and would be lost; \
                     workers claim them once its lease has ended"
                ),
                _ => format!("the consumer `{consumer}` is live, with {pending} pending messages"),
            };
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        match is_found {
            true => Ok(lost),
            false => Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "the group `{}` has no consumer `{consumer}`",
                    self.settings.group
                ),
            )),
        }
    }

    /// Appends the arguments with which scripts decide whether a consumer is live.
    fn push_lease_args(&self, cmd: &mut Cmd) {
        cmd.arg(CONSUMER_PREFIX)
            .arg(self.settings.lease.as_millis() as u64)
            .arg(self.options.foreign_lease.as_millis() as u64);
    }
}

fn still_served_error(group: &str, live: u64) -> Error {
    Error::new(
        ErrorKind::Invalid,
        format!(
            "the group `{group}` has {live} live workers, so it was not dropped; stop them first, or \
             wait until their leases have ended"
        ),
    )
}
