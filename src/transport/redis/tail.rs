//! Reads a stream without any effect on it.

use std::{
    collections::VecDeque,
    fmt,
    time::{Duration, SystemTime},
};

use bytes::Bytes;

use super::{
    Redis,
    connection::Connection,
    dead_letters,
    entry::{self, StreamEntryId},
    error, keys,
    pipeline::Resend,
    response::{Value, fields, unexpected},
    server::Connector,
};
use crate::{
    error::{Error, ErrorKind},
    message::{Message, MessageId, Name},
    transport::{Undecodable, codec},
};

/// The time for which a read blocks.
const BLOCK: Duration = Duration::from_secs(2);
/// A connection counts as lost if the server is silent for this long after a read should have
/// ended.
const GRACE: Duration = Duration::from_secs(5);
/// The maximum number of entries that one read returns.
const MAX_ENTRIES: usize = 100;
/// The approximate maximum number of bytes that one read returns.
const MAX_BYTES: usize = 4 << 20;

impl Redis {
    /// Opens a [`Tail`], which reads the entries of the handle's stream one by one. Reading has no
    /// effect: it creates no group or consumer, and claims and acknowledges nothing, so workers get
    /// their messages as before. A tail is meant for inspecting a stream, not for handling
    /// messages.
    ///
    /// [`TailFrom::Now`] means the time of this call. Redeliveries and delayed tasks are not on the
    /// stream, so a tail does not return them: see [`stats`](Self::stats). Entries that every group
    /// has finished are trimmed even if the tail has not read them.
    ///
    /// ```no_run
    /// use campanile::{Redis, transport::redis::TailFrom};
    ///
    /// # async fn run(redis: Redis) -> Result<(), campanile::Error> {
    /// let mut tail = redis.tail(TailFrom::Beginning).await?;
    /// loop {
    ///     let entry = tail.next().await?;
    ///     match entry.content {
    ///         Ok(message) => println!("{} {} {}", entry.id, message.kind(), message.name()),
    ///         Err(undecodable) => println!("{} {}", entry.id, undecodable.reason),
    ///     }
    /// }
    /// # }
    /// ```
    ///
    /// Uses only [`XREAD`](https://redis.io/docs/latest/commands/xread/), and
    /// [`XREVRANGE`](https://redis.io/docs/latest/commands/xrevrange/) to find [`TailFrom::Now`].
    ///
    /// # Errors
    /// If the server cannot be reached or refuses the command, or if the id is malformed.
    pub async fn tail(&self, from: TailFrom) -> Result<Tail, Error> {
        let stream = self.settings.one_stream()?.clone();
        let namespace = &self.options.namespace;
        keys::check(namespace, &stream)?;
        let key = namespace.apply(&stream);
        let last_read_id = match from {
            TailFrom::Now => self.newest_id(&key).await?,
            TailFrom::Beginning => StreamEntryId::ZERO,
            TailFrom::Id(id) => parse_start(&id)?.before(),
        };
        Ok(Tail {
            connector: self.shared.connector.for_key(&key),
            key,
            stream,
            last_read_id,
            connection: None,
            buffer: VecDeque::new(),
            largest_size: MAX_BYTES,
        })
    }

    /// Returns the id of the newest entry; zero if the stream is empty.
    async fn newest_id(&self, key: &Name) -> Result<StreamEntryId, Error> {
        let mut cmd = redis::cmd("XREVRANGE");
        cmd.arg(key.as_str()).arg("+").arg("-").arg("COUNT").arg(1);
        let pipeline = self.shared.pipeline.for_key(key);
        let response = pipeline.command(cmd, Resend::Never).await?;
        let newest = dead_letters::decode_entries(response)?.into_iter().next();
        let newest_id = newest.and_then(|(id, _)| StreamEntryId::parse(id.as_bytes()));
        Ok(newest_id.unwrap_or(StreamEntryId::ZERO))
    }
}

/// The first entry to read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum TailFrom {
    /// The next entry that is added.
    #[default]
    Now,
    /// The oldest entry.
    Beginning,
    /// The entry with this id, `<milliseconds>-<sequence>`, or the first entry after it. The
    /// sequence can be left out: then it is zero. The milliseconds are the time since 1970.
    Id(String),
}

/// Parses an id. An id without a sequence is the lowest id with these milliseconds.
fn parse_start(text: &str) -> Result<StreamEntryId, Error> {
    let id = StreamEntryId::parse(text.as_bytes());
    id.or_else(|| StreamEntryId::parse(format!("{text}-0").as_bytes()))
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!("`{text}` is no id of an entry; one looks like 1795430237570-0"),
            )
        })
}

/// Reads a stream without any effect on it: see [`Redis::tail`].
pub struct Tail {
    connector: Connector,
    /// The stream, in the namespace of the handle.
    key: Name,
    /// The stream's name without the namespace.
    stream: Name,
    /// The id of the last entry that was read.
    last_read_id: StreamEntryId,
    /// A separate connection, since a blocking read delays all other commands. `None` during a
    /// read. If the read is cancelled, its connection is closed, so that a late response is not
    /// taken for the response to the next read.
    connection: Option<Connection>,
    /// Entries that were read and not returned yet.
    buffer: VecDeque<TailEntry>,
    /// The size in bytes of the largest recent entry. A read requests as many entries of this size
    /// as fit in [`MAX_BYTES`]. At first the size is [`MAX_BYTES`], so that one entry is requested.
    largest_size: usize,
}

/// An entry of a stream.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TailEntry {
    /// The entry's id on the stream. The message of a delayed task has another id.
    pub id: String,
    /// The message, or the fields that could not be decoded. The message is not a delivery: its
    /// attempt is always the first, and it has no group, deadline or lease.
    pub content: Result<Message, Undecodable>,
}

impl TailEntry {
    /// Returns the size of the content in bytes.
    fn size(&self) -> usize {
        match &self.content {
            Ok(message) => {
                let headers = message.headers().iter();
                let headers = headers.map(|(name, value)| name.as_str().len() + value.len());
                message.payload().len() + headers.sum::<usize>()
            }
            Err(undecodable) => {
                let fields = undecodable.fields.iter();
                fields.map(|(field, value)| field.len() + value.len()).sum()
            }
        }
    }
}

impl Tail {
    /// Waits for the next entry.
    ///
    /// # Errors
    /// If the server refuses the command, or the connection is lost. After a lost connection the
    /// error is [disconnected](Error::is_disconnected). The next call connects again, and continues
    /// at the same entry.
    ///
    /// # Cancel safety
    /// No entry is skipped if the future is dropped.
    pub async fn next(&mut self) -> Result<TailEntry, Error> {
        loop {
            if let Some(entry) = self.buffer.pop_front() {
                return Ok(entry);
            }
            self.fetch(Some(BLOCK)).await?;
        }
    }

    /// Returns the next entry without waiting for a new one; `None` at the end of the stream.
    ///
    /// # Errors
    /// The errors of [`next`](Self::next).
    ///
    /// # Cancel safety
    /// No entry is skipped if the future is dropped.
    pub async fn next_present(&mut self) -> Result<Option<TailEntry>, Error> {
        if self.buffer.is_empty() {
            self.fetch(None).await?;
        }
        Ok(self.buffer.pop_front())
    }

    /// Reads the next entries into the buffer. Waits for at most `block` if there are none.
    async fn fetch(&mut self, block: Option<Duration>) -> Result<(), Error> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connector.connection().await?,
        };
        let mut cmd = redis::cmd("XREAD");
        let count = (MAX_BYTES / self.largest_size.max(1)).clamp(1, MAX_ENTRIES);
        cmd.arg("COUNT").arg(count);
        if let Some(block) = block {
            cmd.arg("BLOCK").arg(block.as_millis() as u64);
        }
        cmd.arg("STREAMS")
            .arg(self.key.as_str())
            .arg(self.last_read_id);
        let progress = connection.progress();
        let response = connection.command(&cmd);
        let limit = block.unwrap_or_default() + GRACE;
        let response = match progress.watch(limit, GRACE, response).await {
            Ok(Ok(response)) => response,
            Ok(Err(cause)) => return Err(self.lost().with_source(cause)),
            Err(_) => return Err(self.lost()),
        };
        let entries = decode(error::check(response)?)?;
        if let Some(largest) = entries.iter().map(|(_, entry)| entry.size()).max() {
            // The size shrinks slowly, since large entries often follow each other.
            self.largest_size = largest.max(self.largest_size / 2);
        }
        if let Some((last, _)) = entries.last() {
            self.last_read_id = *last;
        }
        self.buffer
            .extend(entries.into_iter().map(|(_, mut entry)| {
                if let Ok(message) = &mut entry.content {
                    message.parts_mut().stream = Some(self.stream.clone());
                }
                entry
            }));
        self.connection = Some(connection);
        Ok(())
    }

    fn lost(&self) -> Error {
        Error::disconnected(format!(
            "the connection to Redis at {} was lost; the next entries can be read once the server \
             can be reached again",
            self.connector.address()
        ))
    }
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tail")
            .field("stream", &self.stream)
            .field("seen", &self.last_read_id)
            .finish_non_exhaustive()
    }
}

/// Decodes the entries in a response to `XREAD`.
pub(super) fn decode(response: Value) -> Result<Vec<(StreamEntryId, TailEntry)>, Error> {
    let mut entries = Vec::new();
    entry::for_each_entry(response, |_, text, list| {
        let id = StreamEntryId::parse(&text)
            .ok_or_else(|| unexpected("the id of an entry", "another text"))?;
        entries.push((id, decode_entry(id, fields(list)?)));
        Ok(())
    })?;
    Ok(entries)
}

/// Decodes an entry from its fields.
fn decode_entry(id: StreamEntryId, fields: Vec<(Bytes, Bytes)>) -> TailEntry {
    let text = id.to_string();
    let content = codec::decode(fields).map(|decoded| {
        let mut message = decoded.message;
        let parts = message.parts_mut();
        parts.id = decoded.id.or_else(|| Some(MessageId::from(text.as_str())));
        let accepted = Duration::from_millis(id.milliseconds);
        parts.accepted_at = SystemTime::UNIX_EPOCH.checked_add(accepted);
        message
    });
    TailEntry { id: text, content }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_two_numbers_or_a_time_and_anything_else_is_refused_with_an_example() {
        assert_eq!(parse_start("7-3").unwrap().to_string(), "7-3");
        assert_eq!(parse_start("7").unwrap().to_string(), "7-0");
        for text in ["", "now", "$", "7-", "7-x", "-", "+", "7-1-1"] {
            let error = parse_start(text).unwrap_err();
            assert!(error.is_invalid());
            assert!(error.to_string().contains("1795430237570-0"), "{error}");
        }
    }
}
