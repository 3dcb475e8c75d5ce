//! Chooses the next read: of one stream or of several, blocking or not, within the limit of the group.

use std::time::Duration;

use redis::Cmd;

use super::{super::prefetch::ExpectedEntries, Fetch, FetchParts};
use crate::{
    error::Error,
    transport::redis::{
        entry::Entry,
        error,
        pipeline::Resend,
        response::integer,
        scripts::{self, Script},
    },
};

/// The mean time between two checks of a group that has reached its limit. The wait ends early when
/// a delivery of this worker ends.
const LIMIT_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// A read of one stream or of several.
pub(super) struct ReadCommand {
    pub(super) cmd: Cmd,
    /// The maximum number of entries that the read requests.
    pub(super) room: usize,
    pub(super) kind: ReadKind,
}

/// The kind of a read. It decides how the response is decoded.
pub(super) enum ReadKind {
    /// One `XREADGROUP` of all streams.
    Plain,
    /// One `XREADGROUP` of some of the streams, between calls of the script.
    Part,
    /// The script that reads several streams in this order.
    Script(Vec<u32>),
}

impl ReadCommand {
    pub(super) fn script(&self) -> Option<&'static Script> {
        matches!(self.kind, ReadKind::Script(_)).then_some(&scripts::FETCH)
    }
}

impl Fetch {
    /// Returns `true` if there is a single listed stream, which plain commands read.
    pub(super) fn reads_one_stream(&self) -> bool {
        self.parts.changes.is_none() && self.set.len() == 1 && self.parts.group_limit.is_none()
    }

    /// Reads as many entries as the limit of the group admits.
    pub(super) async fn read_within(
        &mut self,
        limit: usize,
        room: usize,
    ) -> Result<Vec<Entry>, Error> {
        let max_block = self.parts.member.max_block();
        self.try_failing_again().await;
        let room = room.min(self.max_per_read());
        let member = &self.parts.member;
        let Some((cmd, order)) = self.set.fetch_command(member, room, Some(limit)) else {
            self.wait_for_streams(self.set.until_next_try(max_block))
                .await;
            return Ok(Vec::new());
        };
        let kind = ReadKind::Script(order);
        let entries = self
            .run_read(&ReadCommand { cmd, room, kind }, None)
            .await?;
        if !entries.is_empty() {
            return Ok(entries);
        }
        if self.at_limit {
            let wait = LIMIT_CHECK_INTERVAL.mul_f64(0.5 + fastrand::f64());
            self.parts.buffer.put(Vec::new());
            tokio::select! {
                biased;
                () = self.parts.buffer.stopped() => {}
                () = self.parts.in_flight.freed() => {}
                () = tokio::time::sleep(wait) => {}
            }
            return Ok(Vec::new());
        }
        let streams = self.set.blocked_on();
        if streams.is_empty() {
            return Ok(Vec::new());
        }
        let longest = self.set.until_next_try(max_block);
        let keys: Vec<_> = streams
            .iter()
            .flat_map(|stream| {
                [
                    stream.keys.retry_key.clone(),
                    stream.keys.stream_key.to_string(),
                ]
            })
            .collect();
        let keys: Vec<_> = keys.iter().map(String::as_str).collect();
        let entries = self.await_entries(1, longest, &keys).await?;
        if !entries.is_empty() {
            // If several workers were blocked, each may have got an entry, so the group may exceed
            // its limit.
            let FetchParts {
                pipeline, member, ..
            } = &self.parts;
            let args = |cmd: &mut Cmd| {
                cmd.arg(member.group.as_str());
            };
            let (script, resend) = (&scripts::COUNT_PENDING, Resend::UntilAnswered);
            let pending = pipeline.script(script, &keys, args, resend).await?;
            self.over_limit = usize::try_from(integer(&pending)?).is_ok_and(|it| it > limit);
        }
        Ok(entries)
    }

    /// Reads the only stream.
    pub(super) async fn read_one(&mut self, room: usize) -> Result<Vec<Entry>, Error> {
        let stream = self.set.first_mut().stream.clone();
        let (retry, primary) = (&*stream.keys.retry_key, &*stream.keys.stream_key);
        let part = room.min(self.max_per_read());
        if self.poll_first {
            let command = self.plain_read(part, None, [retry]);
            let entries = self.run_read(&command, None).await?;
            self.poll_first = entries.len() == part;
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
        let count = room.min(self.max_per_read());
        let longest = self.parts.member.max_block();
        let entries = self
            .await_entries(count, longest, &[primary, retry])
            .await?;
        self.note_read(count, &entries);
        Ok(entries)
    }

    /// Reads several streams. A read blocks only after a read without entries.
    pub(super) async fn read_set(&mut self, room: usize) -> Result<Vec<Entry>, Error> {
        let max_block = self.parts.member.max_block();
        if self.poll_first {
            self.try_failing_again().await;
            let Some(command) = self.next_command(room) else {
                // No stream can be read now.
                self.wait_for_streams(self.set.until_next_try(max_block))
                    .await;
                return Ok(Vec::new());
            };
            let entries = self.run_read(&command, None).await?;
            self.note_read(command.room, &entries);
            // Only the script reads all streams, so only its empty response shows that no stream
            // has entries.
            self.poll_first = !entries.is_empty() || command.script().is_none();
            if self.poll_first {
                return Ok(entries);
            }
        }
        let streams = self.set.blocked_on();
        if streams.is_empty() {
            // All streams are skipped. The next call waits until one of them is due for another
            // try.
            self.poll_first = true;
            return Ok(Vec::new());
        }
        let longest = self.set.until_next_try(max_block);
        let streams: Vec<_> = streams.into_iter().cloned().collect();
        let keys = streams
            .iter()
            .flat_map(|stream| [&*stream.keys.retry_key, &*stream.keys.stream_key]);
        let keys: Vec<_> = keys.collect();
        match self.await_entries(1, longest, &keys).await {
            Ok(entries) => {
                self.finding_refused_stream = false;
                self.poll_first = !entries.is_empty()
                    || self.set.is_too_large_to_block()
                    || !self.set.to_try_again().is_empty();
                Ok(entries)
            }
            // One of the streams caused the error. The script finds this stream.
            Err(error) if error.is_refused() && !self.finding_refused_stream => {
                self.poll_first = true;
                self.finding_refused_stream = true;
                Ok(Vec::new())
            }
            // After the back-off the streams are read as if there was no error, since the next
            // error may have another cause.
            Err(error) => {
                self.poll_first = true;
                self.finding_refused_stream = false;
                Err(error)
            }
        }
    }

    /// Reads at most `count` entries of each of these keys, and waits for entries if there are
    /// none. The wait takes at most `longest`.
    async fn await_entries(
        &mut self,
        count: usize,
        longest: Duration,
        keys: &[&str],
    ) -> Result<Vec<Entry>, Error> {
        let keys = keys.iter().copied();
        let Some(woken) = &self.parts.woken else {
            // A blocked read would withhold its part of the demand from the other tasks.
            let block = (!self.parts.buffer.shares_demand()).then_some(longest);
            let command = self.plain_read(count, block, keys);
            return self.run_read(&command, block).await;
        };
        if woken.expected() == ExpectedEntries::None {
            self.wait_for_signal(longest).await;
            return Ok(Vec::new());
        }
        let tracking = woken.track(keys.clone());
        let command = self.plain_read(count, None, keys);
        let entries = self.run_read(&command, None).await?;
        let tracked = match tracking {
            Some(tracking) => tracking.await.and_then(error::check).map(drop),
            None => Ok(()),
        };
        if let Some(woken) = &mut self.parts.woken {
            woken.note_read(!entries.is_empty(), entries.len() >= count);
            match tracked {
                // The error is dropped, since the entries that were read must not be lost.
                Err(_) if !entries.is_empty() => woken.failed(),
                tracked => tracked?,
            }
        }
        Ok(entries)
    }

    /// Waits until a stream of the slot was written, a pause has changed or the buffer is stopped,
    /// at most for `longest`.
    async fn wait_for_signal(&mut self, longest: Duration) {
        let FetchParts {
            buffer,
            pauses,
            woken,
            ..
        } = &mut self.parts;
        let Some(woken) = woken else { return };
        if pauses.change_count() != self.pause_count {
            return;
        }
        // Leaves the demand to the fetches of other slots during the wait.
        buffer.put(Vec::new());
        buffer.set_reading(true);
        tokio::select! {
            biased;
            () = buffer.stopped() => {}
            () = pauses.wait() => {}
            () = woken.wait(longest) => {}
        }
        buffer.set_reading(false);
    }

    /// Makes the next read that does not block. `None` if no stream can be read now.
    pub(super) fn next_command(&mut self, room: usize) -> Option<ReadCommand> {
        let room = room.min(self.max_per_read());
        if self.reads_one_stream() {
            let stream = self.set.first_mut().stream.clone();
            let keys = [&*stream.keys.stream_key, &*stream.keys.retry_key];
            return Some(self.plain_read(room, None, keys));
        }
        let member = &self.parts.member;
        if let Some((cmd, room)) = self.set.plain_command(member, room) {
            let kind = ReadKind::Part;
            return Some(ReadCommand { cmd, room, kind });
        }
        let (cmd, order) = self.set.fetch_command(member, room, None)?;
        let kind = ReadKind::Script(order);
        Some(ReadCommand { cmd, room, kind })
    }

    /// Makes a plain read of new entries of these keys.
    fn plain_read<'a>(
        &self,
        count: usize,
        block: Option<Duration>,
        keys: impl IntoIterator<Item = &'a str>,
    ) -> ReadCommand {
        ReadCommand {
            cmd: self.parts.member.read_group(count, block, keys, ">"),
            room: count,
            kind: ReadKind::Plain,
        }
    }

    /// Updates the state for the next read after a read that requested `count` entries.
    pub(super) fn note_read(&mut self, count: usize, entries: &[Entry]) {
        if self.reads_one_stream() {
            self.poll_first = entries.iter().any(|entry| entry.which.is_retry());
        }
        self.was_full = entries.len() >= count;
    }
}
