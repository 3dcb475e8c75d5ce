//! Tasks that are sent with more to say than the task: when, and whether again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

use redis::Cmd;
use tokio::time::sleep;

use super::size_hint;
use crate::transport::redis::{
    Redis,
    connection::Encode,
    entry::value_of,
    ids::unique,
    keys::Keys,
    msgpack,
    pipeline::{Pipeline, Retry, Submit},
    response::{self, Value, integer, integers},
    scripts,
};
use crate::{
    error::{Error, ErrorKind},
    message::{Due, Message, MessageId},
    transport::codec,
};

/// How many due messages are moved by one call.
pub(in crate::transport::redis) const MOVED_AT_ONCE: usize = 100;
/// How many bytes are moved in one step, but for the last message of it.
pub(in crate::transport::redis) const MOVED_BYTES: usize = 4 << 20;
/// How many headers such a task can have: a script cannot hand on many more.
const MOST_HEADERS: usize = 1_000;
/// Workers look at what is due once a second. What is due sooner than they might look is moved by
/// its sender.
const SOON: Duration = Duration::from_secs(2);
/// How many timers a sender has for that. Each moves whatever is due.
const TIMERS: usize = 64;

impl Redis {
    /// Takes a task back that its sender has delayed, by the id in its receipt. `false` when it is
    /// on the stream already, or there is no such task. Its idempotency key is forgotten with it.
    ///
    /// The handle must have the stream that the task was sent to.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn cancel(&self, id: &MessageId) -> Result<bool, Error> {
        let keys = Keys::new(self.settings.one_stream()?, &self.settings.group)?;
        let pipeline = &self.shared.pipeline;
        let mut get = redis::cmd("HGET");
        get.arg(&keys.stream_bodies).arg(id.as_str());
        let fields = match pipeline.command(get, Retry::Never).await? {
            Value::Nil => None,
            body => msgpack::unpack(&response::bytes(body)?),
        };
        let fields = fields.unwrap_or_default();
        // All keys of a script have to be declared, so this one has to be known.
        let key = value_of(&fields, codec::IDEMPOTENCY_KEY);
        let key = key.map(|key| keys.idempotency(String::from_utf8_lossy(key)));
        let mut names = vec![&*keys.stream_due, &keys.stream_bodies];
        names.extend(key.as_deref());
        let args = |cmd: &mut Cmd| {
            cmd.arg(id.as_str());
        };
        let answer = pipeline
            .script(&scripts::CANCEL, &names, args, Retry::Never)
            .await?;
        Ok(integer(&answer)? == 1)
    }

    /// Sends a task that is delayed or has an idempotency key.
    pub(in crate::transport::redis) fn accept(&self, message: Message) -> Result<Submit, Error> {
        if message.headers().len() > MOST_HEADERS {
            return Err(Error::new(
                ErrorKind::Invalid,
                "a task that is delayed or has an idempotency key can have 1000 headers at most",
            ));
        }
        let parts = message.parts();
        let keys = Keys::new(self.settings.target(parts)?, &self.settings.group)?;
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (when, time) = match parts.due {
            None => ("now", 0),
            Some(Due::After(delay)) => ("after", milliseconds(delay).max(1)),
            Some(Due::At(time)) => {
                let time = time.duration_since(UNIX_EPOCH).unwrap_or_default();
                ("at", milliseconds(time))
            }
        };
        let window = milliseconds(self.settings.idempotency_window).clamp(1, LONGEST_WINDOW);
        let key = parts.idempotency_key.as_ref();
        let key = key.map(|key| keys.idempotency(key));
        let due = parts.due;
        let names = [&*keys.stream, &keys.stream_due, &keys.stream_bodies];
        let mut names = names.map(str::to_owned).to_vec();
        names.extend(key);
        let pipeline = &self.shared.pipeline;
        let accept = Accept {
            names,
            when,
            time,
            token: unique().to_string(),
            window,
            message,
        };
        let sent = pipeline.submit_owned(accept, Retry::Never, Some(&scripts::ACCEPT));
        if let Some(wait) = due.map(Due::wait).filter(|wait| *wait < SOON) {
            self.shared.promoters.start(pipeline, keys, wait);
        }
        Ok(sent)
    }
}

/// The call of the script that accepts a task with a delay or an idempotency key.
struct Accept {
    names: Vec<String>,
    when: &'static str,
    time: u64,
    /// Tells a repetition of this call from another call.
    token: String,
    window: u64,
    message: Message,
}

impl Encode for Accept {
    fn encode(&self, out: &mut Vec<u8>) {
        let names: Vec<_> = self.names.iter().map(String::as_str).collect();
        let call = scripts::ACCEPT.call(&names, |cmd| {
            cmd.arg(self.when)
                .arg(self.time)
                .arg(&self.token)
                .arg(self.window);
            codec::encode(&self.message, |field, value| {
                cmd.arg(field).arg(value);
            });
        });
        call.encode(out);
    }

    fn size_hint(&self) -> usize {
        size_hint(&self.message)
    }
}

/// What Redis takes as an expiry without an overflow: a hundred years.
const LONGEST_WINDOW: u64 = 3_155_760_000_000;

/// The timers of a sender.
#[derive(Debug, Default)]
pub(in crate::transport::redis) struct Promoters(Arc<AtomicUsize>);

impl Promoters {
    /// Moves what is due to the stream after `wait`. Whether or not that works: workers do it too.
    fn start(&self, pipeline: &Pipeline, keys: Keys, wait: Duration) {
        let running = self.0.clone();
        if running.fetch_add(1, Ordering::Relaxed) >= TIMERS {
            running.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let pipeline = pipeline.clone();
        tokio::spawn(async move {
            let mut wait = Some(wait);
            while let Some(time) = wait {
                // A millisecond later: Redis counts whole ones.
                sleep(time + Duration::from_millis(1)).await;
                let names = [&*keys.stream_due, &keys.stream_bodies, &keys.stream];
                let args = |cmd: &mut Cmd| {
                    cmd.arg(MOVED_AT_ONCE).arg(MOVED_BYTES);
                };
                let answer = pipeline
                    .script(&scripts::PROMOTE, &names, args, Retry::Never)
                    .await;
                let promoted = answer.and_then(Promoted::read).ok();
                wait = promoted.and_then(|promoted| promoted.next);
                wait = wait.filter(|wait| *wait < SOON);
            }
            running.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// What [`PROMOTE`] has done.
#[derive(Debug, PartialEq)]
pub(in crate::transport::redis) struct Promoted {
    /// How many messages it has moved.
    pub(in crate::transport::redis) moved: u64,
    /// How many it could not read any more.
    pub(in crate::transport::redis) lost: u64,
    /// How long it is until the next is due.
    pub(in crate::transport::redis) next: Option<Duration>,
}

impl Promoted {
    pub(in crate::transport::redis) fn read(answer: Value) -> Result<Self, Error> {
        let [moved, lost, next] = integers(answer)?;
        Ok(Self {
            moved: moved.unsigned_abs(),
            lost: lost.unsigned_abs(),
            next: u64::try_from(next).ok().map(Duration::from_millis),
        })
    }
}
