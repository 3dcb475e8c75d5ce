//! Sends the tasks that need a script: those with a delay, an idempotency key or a record.

use std::{
    borrow::Cow,
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
    ids::random_id,
    keys::Keys,
    pipeline::{Pipeline, Resend, Submit},
    response::{Value, integers},
    scripts,
};
use crate::{
    error::{Error, ErrorKind},
    message::{Due, Message, Name, OnConflict, Parts},
    transport::codec,
};

/// The fields of an outbox entry for the values of [`AcceptCall::record_args`].
pub(in crate::transport::redis) const RECORD_ARGS: [&str; 5] =
    ["keep", "conflict", "unique", "group", "digest"];
/// The maximum number of due messages that one call of the script `PROMOTE` moves.
pub(in crate::transport::redis) const MAX_PROMOTED_MESSAGES: usize = 100;
/// A call of `PROMOTE` stops after it has moved this many bytes.
pub(in crate::transport::redis) const MAX_PROMOTED_BYTES: usize = 4 << 20;
/// The maximum number of headers of a task that a script stores. A script cannot pass many more
/// arguments to a command.
const MAX_HEADERS: usize = 1_000;
/// If a task is due within this time, the sender starts a timer to move the task to its stream.
/// Idle workers look for due messages only about once a second.
const SOON: Duration = Duration::from_secs(2);
/// The maximum number of running timers of a sender. One timer moves all due messages of its
/// stream.
const MAX_TIMERS: usize = 64;

impl Redis {
    /// Sends a task with a delay, an idempotency key or a record.
    pub(in crate::transport::redis) fn accept(&self, message: Message) -> Result<Submit, Error> {
        check_headers(&message)?;
        let stream = self.settings.target_stream(message.parts())?;
        let keys = Keys::new(&self.options.namespace, stream, &self.settings.group)?;
        let (due, replicas) = (message.parts().due, message.parts().replicas);
        let accept = AcceptCall::new(&keys, self.settings.idempotency_window, message);
        let pipeline = self.task_pipeline(&keys.stream_key, replicas);
        let submit = pipeline.submit_owned(accept, Resend::Never, Some(&scripts::ACCEPT));
        self.promote_soon(keys, due);
        Ok(submit)
    }

    /// If a delayed task is due soon, starts a timer that moves the task to its stream.
    pub(in crate::transport::redis) fn promote_soon(&self, keys: Keys, due: Option<Due>) {
        if let Some(wait) = due.map(Due::wait).filter(|wait| *wait < SOON) {
            let pipeline = self.shared.pipeline.for_key(&keys.stream_key);
            self.shared.promoters.start(&pipeline, keys, wait);
        }
    }
}

/// Returns `true` if the task must be sent by a script, because it has a delay, an idempotency key
/// or a record.
pub(super) fn needs_script(parts: &Parts) -> bool {
    parts.due.is_some()
        || parts.idempotency_key.is_some()
        || parts.unique.is_some()
        || parts.tracked.is_some()
}

/// Refuses a message with more headers than a script can pass to a command.
pub(in crate::transport::redis) fn check_headers(message: &Message) -> Result<(), Error> {
    if message.headers().len() > MAX_HEADERS {
        return Err(Error::new(
            ErrorKind::Invalid,
            "a task that is delayed, has an idempotency key or is in an outbox can have 1000 headers \
             at most",
        ));
    }
    Ok(())
}

/// The keys and arguments of the Lua function `accept`. The function stores a task on its stream
/// or, until it is due, among the delayed tasks. For each idempotency key, the function stores only
/// one task.
#[derive(Debug)]
pub(in crate::transport::redis) struct AcceptCall {
    keys: Vec<String>,
    /// The meaning of `time`: `now` ignores it, `after` is a delay, `at` is the time since 1970.
    when: &'static str,
    /// The delay or the due time, in milliseconds.
    time: u64,
    /// The id of the task if it is delayed or has a record. Any other task has the id of its entry.
    own_id: String,
    /// The time in milliseconds for which the idempotency key is kept once the task is due.
    window: u64,
    /// Set if replicas confirm the task. For a known idempotency key, the script then writes the
    /// record of the key again, so that the replicas have a write to confirm.
    must_confirm: bool,
    /// The group that records the status of a unique or tracked task.
    group: Name,
    message: Message,
}

impl AcceptCall {
    pub(in crate::transport::redis) fn new(
        keys: &Keys,
        window: Duration,
        message: Message,
    ) -> Self {
        let parts = message.parts();
        let (when, time) = match parts.due {
            None => ("now", 0),
            Some(Due::After(delay)) => ("after", milliseconds(delay).max(1)),
            Some(Due::At(time)) => {
                let time = time.duration_since(UNIX_EPOCH).unwrap_or_default();
                ("at", milliseconds(time))
            }
        };
        let key = parts.idempotency_key.as_ref();
        let of_stream = [&*keys.stream_key, &keys.stream_due, &keys.stream_bodies];
        let mut script_keys = of_stream.map(str::to_owned).to_vec();
        script_keys.extend(key.map(|key| keys.idempotency(key)));
        Self {
            keys: script_keys,
            when,
            time,
            own_id: random_id().to_string(),
            window: milliseconds(window).clamp(1, LONGEST_WINDOW),
            must_confirm: parts.replicas.is_some(),
            group: keys.group.clone(),
            message,
        }
    }

    pub(in crate::transport::redis) fn keys(&self) -> &[String] {
        &self.keys
    }

    /// Calls `put` with each argument of the follow-up that forwards this task: when it is due, and
    /// then the fields of an outbox entry. `Forwarder` decodes the entry.
    pub(in crate::transport::redis) fn forward_args(
        &self,
        target: &Name,
        mut put: impl FnMut(&[u8]),
    ) {
        put(self.when.as_bytes());
        put(self.time.to_string().as_bytes());
        put(b"to");
        put(target.as_bytes());
        put(b"window");
        put(self.window.to_string().as_bytes());
        for (field, value) in RECORD_ARGS.iter().zip(self.record_args()) {
            put(field.as_bytes());
            put(value.as_bytes());
        }
        codec::encode(&self.message, |field, value| {
            put(field);
            put(value);
        });
    }

    /// Returns the arguments for the task's record and the digest of its content, in the order of
    /// [`RECORD_ARGS`].
    fn record_args(&self) -> [Cow<'_, str>; 5] {
        let parts = self.message.parts();
        let unique = parts.unique.as_ref();
        let keep = match (parts.tracked, unique) {
            (None, None) => Cow::Borrowed(""),
            (keep, _) => milliseconds(keep.unwrap_or_default()).to_string().into(),
        };
        let conflict = unique.map_or("", |unique| match unique.on_conflict {
            OnConflict::Keep => "keep",
            OnConflict::Replace => "replace",
            OnConflict::Refuse => "refuse",
        });
        let key = unique.map_or("", |unique| unique.key.as_str());
        let digest = parts.content_digest.map(|digest| format!("{digest:x}"));
        [
            keep,
            conflict.into(),
            key.into(),
            self.group.as_str().into(),
            digest.unwrap_or_default().into(),
        ]
    }

    /// Calls `put` with each argument of the Lua function `accept`, in order.
    pub(in crate::transport::redis) fn args(&self, mut put: impl FnMut(&[u8])) {
        put(self.when.as_bytes());
        put(self.time.to_string().as_bytes());
        put(self.own_id.as_bytes());
        put(self.window.to_string().as_bytes());
        put(u8::from(self.must_confirm).to_string().as_bytes());
        for arg in self.record_args() {
            put(arg.as_bytes());
        }
        codec::encode(&self.message, |field, value| {
            put(field);
            put(value);
        });
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Encode for AcceptCall {
    fn encode(&self, out: &mut Vec<u8>) {
        let keys: Vec<_> = self.keys.iter().map(String::as_str).collect();
        let call = scripts::ACCEPT.call(&keys, |cmd| {
            self.args(|arg| {
                cmd.arg(arg);
            });
        });
        call.encode(out);
    }

    fn size_hint(&self) -> usize {
        size_hint(&self.message)
    }
}

/// The longest time for which an idempotency key is kept, in milliseconds: a hundred years. Redis
/// accepts this expiry without overflow.
const LONGEST_WINDOW: u64 = 3_155_760_000_000;

/// The timers of a sender. Each timer moves the due messages of one stream to that stream. Contains
/// the number of running timers.
#[derive(Debug, Default)]
pub(in crate::transport::redis) struct Promoters(Arc<AtomicUsize>);

impl Promoters {
    /// After `wait`, moves due messages to the stream, and again while the next message is due
    /// within [`SOON`]. Does nothing if [`MAX_TIMERS`] are running. Errors are ignored, since
    /// workers move due messages, too.
    fn start(&self, pipeline: &Pipeline, keys: Keys, wait: Duration) {
        let running = self.0.clone();
        if running.fetch_add(1, Ordering::Relaxed) >= MAX_TIMERS {
            running.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let pipeline = pipeline.clone();
        tokio::spawn(async move {
            let mut next_wait = Some(wait);
            while let Some(wait) = next_wait {
                // Rounded up, since Redis counts whole milliseconds.
                sleep(wait + Duration::from_millis(1)).await;
                let names = [&*keys.stream_due, &keys.stream_bodies, &keys.stream_key];
                let args = |cmd: &mut Cmd| {
                    cmd.arg(MAX_PROMOTED_MESSAGES)
                        .arg(MAX_PROMOTED_BYTES)
                        .arg("");
                };
                let response = pipeline
                    .script(&scripts::PROMOTE, &names, args, Resend::Never)
                    .await;
                let promoted = response.and_then(Promoted::decode).ok();
                next_wait = promoted.and_then(|promoted| promoted.next_due_in);
                next_wait = next_wait.filter(|wait| *wait < SOON);
            }
            running.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// The result of the script `PROMOTE`.
#[derive(Debug, PartialEq)]
pub(in crate::transport::redis) struct Promoted {
    /// The number of messages that were moved.
    pub(in crate::transport::redis) moved: u64,
    /// The number of messages whose bodies were missing or malformed.
    pub(in crate::transport::redis) lost: u64,
    /// The time until the next message is due; `None` if there is no delayed message.
    pub(in crate::transport::redis) next_due_in: Option<Duration>,
}

impl Promoted {
    /// Decodes the script's response.
    pub(in crate::transport::redis) fn decode(response: Value) -> Result<Self, Error> {
        let [moved, lost, next] = integers(response)?;
        Ok(Self {
            moved: moved.unsigned_abs(),
            lost: lost.unsigned_abs(),
            next_due_in: u64::try_from(next).ok().map(Duration::from_millis),
        })
    }
}
