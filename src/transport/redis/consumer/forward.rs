//! Moves tasks from the outbox of a stream to streams in other slots of a cluster.
//!
//! A task that a delivery sends to another slot cannot be stored in the step that acknowledges the
//! delivery. So that step adds the task to the outbox of the delivery's stream. Any worker of that
//! stream then sends the task with an idempotency key, and deletes it from the outbox once the
//! server has confirmed it. If the worker crashes in between, another worker sends the task again
//! and deletes it. The idempotency key prevents a second copy on the target stream.

use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use redis::Cmd;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::streams::{ServedStream, StreamSet};
use crate::{
    error::{Error, ErrorKind},
    message::{Due, Name},
    transport::{
        codec,
        redis::{
            Redis, dead_letters, entry::value_of, ids::random_id, keys::Keys, pipeline::Resend,
            producer::schedule::RECORD_ARGS, scripts, server::LogLimit,
        },
    },
};

/// The maximum number of tasks that are read at a time. Small, since tasks may be large.
const READ_AT_ONCE: usize = 8;

/// Forwards the tasks in the outboxes of one consumer's streams.
pub(super) struct Forwarder {
    pub(super) redis: Redis,
    pub(super) streams: Arc<StreamSet>,
    /// The time between two reads of the outboxes, for tasks that other workers have left there.
    pub(super) interval: Duration,
    pub(super) warnings: LogLimit,
    pub(super) closed: CancellationToken,
}

impl Forwarder {
    /// Forwards tasks until the consumer is closed: whenever `added` is notified, and at each
    /// interval.
    pub(super) async fn run(mut self, added: Arc<Notify>) {
        let closed = self.closed.clone();
        let forward = async {
            loop {
                for stream in &*self.streams.all() {
                    if let Err(error) = self.forward(stream).await
                        && let Some(withheld) = self.warnings.admit()
                    {
                        tracing::warn!(
                            stream = %stream.keys.stream, error = error.chain(), withheld,
                            "tasks for other streams stay in the outbox; trying again"
                        );
                    }
                }
                let _ = tokio::time::timeout(self.interval, added.notified()).await;
            }
        };
        closed.run_until_cancelled(forward).await;
    }

    /// Forwards all tasks in the outbox of a stream. Skips those that cannot be sent, and returns
    /// the first error.
    async fn forward(&self, stream: &ServedStream) -> Result<(), Error> {
        let outbox = stream.keys.outbox();
        let pipeline = self.redis.shared.pipeline.for_key(&outbox);
        let (mut from, mut result) = ("-".to_owned(), Ok(()));
        loop {
            let mut read = redis::cmd("XRANGE");
            read.arg(&outbox).arg(&from).arg("+");
            read.arg("COUNT").arg(READ_AT_ONCE);
            let found = dead_letters::decode_entries(pipeline.command(read, Resend::Never).await?)?;
            let Some((last, _)) = found.last() else {
                return result;
            };
            from = format!("({last}");
            for (id, fields) in found {
                let key = format!("outbox:{}:{id}", stream.keys.stream_key);
                let sent = async {
                    self.send(&fields, &key).await?;
                    let mut delete = redis::cmd("XDEL");
                    delete.arg(&outbox).arg(id.as_str());
                    pipeline.command(delete, Resend::Never).await.map(drop)
                };
                result = result.and(sent.await);
            }
        }
    }

    /// Sends a task of the outbox to its stream. Uses `key` as the idempotency key if the task has
    /// none.
    async fn send(&self, fields: &[(Bytes, Bytes)], key: &str) -> Result<(), Error> {
        let Redis {
            settings,
            options,
            shared,
            ..
        } = &self.redis;
        let malformed = || Error::new(ErrorKind::Decode, "an entry of the outbox is malformed");
        let [(_, due), (_, target), (_, window), rest @ ..] = fields else {
            return Err(malformed());
        };
        let Some((record_args, task)) = rest.split_at_checked(RECORD_ARGS.len()) else {
            return Err(malformed());
        };
        let target = Name::from_utf8(target).map_err(|_| malformed())?;
        if let Some(registration) = self.redis.registration(&target) {
            registration.await?;
        }
        let keys = Keys::new(&options.namespace, &target, &settings.group)?;
        let record = match value_of(task, codec::IDEMPOTENCY_KEY) {
            Some(own) => keys.idempotency(String::from_utf8_lossy(own)),
            None => keys.idempotency(key),
        };
        let names = [
            &*keys.stream_key,
            &keys.stream_due,
            &keys.stream_bodies,
            &record,
        ];
        let args = |cmd: &mut Cmd| {
            // A due time in the past means now.
            cmd.arg("at").arg(&due[..]).arg(random_id().to_string());
            cmd.arg(&window[..]).arg(0);
            for (_, arg) in record_args {
                cmd.arg(&arg[..]);
            }
            for (field, value) in task {
                cmd.arg(&field[..]).arg(&value[..]);
            }
        };
        let pipeline = shared.pipeline.for_key(&keys.stream_key);
        let sent = pipeline.script_until_known(&scripts::ACCEPT, &names, args);
        sent.await?;
        let due = std::str::from_utf8(due)
            .ok()
            .and_then(|due| due.parse().ok());
        let due = UNIX_EPOCH.checked_add(Duration::from_millis(due.unwrap_or(0)));
        let due = due.unwrap_or(UNIX_EPOCH);
        self.redis.promote_soon(keys, Some(Due::At(due)));
        Ok(())
    }
}
