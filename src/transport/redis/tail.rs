//! A look at a stream that changes nothing there.

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
    entry::{self, EntryId},
    error, keys,
    pipeline::Retry,
    response::{Value, fields, unexpected},
    server::Connector,
};
use crate::{
    error::{Error, ErrorKind},
    message::{Message, MessageId, Name},
    transport::{Undecodable, codec},
};

/// How long one read waits for an entry at the server.
const BLOCK: Duration = Duration::from_secs(2);
/// How much longer than that its answer may take before the connection counts as lost.
const GRACE: Duration = Duration::from_secs(5);
/// How many entries one read brings at most.
const COUNT: usize = 100;
/// About how many bytes one read brings at most.
const BYTES: usize = 4 << 20;

impl Redis {
    /// Looks at the entries of the handle's stream, one after the other, without disturbing anybody:
    /// no group and no consumer is made, nothing is taken or acknowledged, and every worker gets
    /// what it would have got. For people who want to see what is on a stream, not for work.
    ///
    /// "Now" is when this returns. What is delivered again, and what waits for its time, is not on
    /// the stream: see [`stats`](Self::stats). What every group has finished is trimmed from it, be
    /// it looked at or not.
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
    /// Only [`XREAD`](https://redis.io/docs/latest/commands/xread/) is used, and
    /// [`XREVRANGE`](https://redis.io/docs/latest/commands/xrevrange/) to find out what "now" is.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses, or where the id is none.
    pub async fn tail(&self, from: TailFrom) -> Result<Tail, Error> {
        let stream = self.settings.one_stream()?.clone();
        keys::check(&stream)?;
        let seen = match from {
            TailFrom::Now => self.newest(&stream).await?,
            TailFrom::Beginning => EntryId::ZERO,
            TailFrom::Id(id) => first(&id)?.before(),
        };
        Ok(Tail {
            connector: self.shared.connector.clone(),
            stream,
            seen,
            connection: None,
            read: VecDeque::new(),
            largest: BYTES,
        })
    }

    /// The id of the newest entry.
    async fn newest(&self, stream: &Name) -> Result<EntryId, Error> {
        let mut cmd = redis::cmd("XREVRANGE");
        cmd.arg(stream.as_str())
            .arg("+")
            .arg("-")
            .arg("COUNT")
            .arg(1);
        let answer = self.shared.pipeline.command(cmd, Retry::Never).await?;
        let newest = dead_letters::entries(answer)?.into_iter().next();
        let newest = newest.and_then(|(id, _)| EntryId::parse(id.as_bytes()));
        Ok(newest.unwrap_or(EntryId::ZERO))
    }
}

/// Where a look at a stream begins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum TailFrom {
    /// With what comes from now on.
    #[default]
    Now,
    /// With the oldest entry that is there.
    Beginning,
    /// With the entry of this id, `<milliseconds>-<sequence>`, or the first behind it. Milliseconds
    /// alone are a time, counted from 1970.
    Id(String),
}

/// The least id that this text can mean.
fn first(text: &str) -> Result<EntryId, Error> {
    let id = EntryId::parse(text.as_bytes());
    id.or_else(|| EntryId::parse(format!("{text}-0").as_bytes()))
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!("`{text}` is no id of an entry; one looks like 1795430237570-0"),
            )
        })
}

/// A look at a stream that changes nothing there: see [`Redis::tail`].
pub struct Tail {
    connector: Connector,
    stream: Name,
    /// The last entry that was read.
    seen: EntryId,
    /// Its own, since a read that waits would hold up everything else. Taken out while it is used: a
    /// read that is dropped half-way would be in the way of the next one.
    connection: Option<Connection>,
    /// What was read and not yet returned.
    read: VecDeque<TailEntry>,
    /// The size in bytes of the largest entry that was read lately. `XREAD` brings whole entries of
    /// any size, so the next read asks for as many of this size as are allowed at once. Before the
    /// first read it is the limit itself, and one entry is asked for.
    largest: usize,
}

/// An entry of a stream, looked at.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TailEntry {
    /// Its id on the stream. The message's own id is another one where the task was delayed by its
    /// sender.
    pub id: String,
    /// The message, or what could not be read as one. It is no delivery: its attempt is always the
    /// first, and it has neither group, deadline nor lease.
    pub content: Result<Message, Undecodable>,
}

impl TailEntry {
    fn bytes(&self) -> usize {
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
    /// When the connection is lost it is [disconnected](Error::is_disconnected), or when the server
    /// refuses. The next call connects again, and goes on where this one was.
    ///
    /// # Cancel safety
    /// Nothing is passed over when the future is dropped.
    pub async fn next(&mut self) -> Result<TailEntry, Error> {
        loop {
            if let Some(entry) = self.read.pop_front() {
                return Ok(entry);
            }
            self.fetch(Some(BLOCK)).await?;
        }
    }

    /// The next entry, if it is there already; `None` at the end of the stream.
    ///
    /// # Errors
    /// As those of [`next`](Self::next).
    ///
    /// # Cancel safety
    /// Nothing is passed over when the future is dropped.
    pub async fn next_present(&mut self) -> Result<Option<TailEntry>, Error> {
        if self.read.is_empty() {
            self.fetch(None).await?;
        }
        Ok(self.read.pop_front())
    }

    async fn fetch(&mut self, block: Option<Duration>) -> Result<(), Error> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connector.connection().await?,
        };
        let mut cmd = redis::cmd("XREAD");
        let count = (BYTES / self.largest.max(1)).clamp(1, COUNT);
        cmd.arg("COUNT").arg(count);
        if let Some(block) = block {
            cmd.arg("BLOCK").arg(block.as_millis() as u64);
        }
        cmd.arg("STREAMS").arg(self.stream.as_str()).arg(self.seen);
        let progress = connection.progress();
        let answer = connection.command(&cmd);
        let limit = block.unwrap_or_default() + GRACE;
        let answer = match progress.watch(limit, GRACE, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(cause)) => return Err(self.lost().with_source(cause)),
            Err(_) => return Err(self.lost()),
        };
        let entries = read(error::check(answer)?)?;
        if let Some(largest) = entries.iter().map(|(_, entry)| entry.bytes()).max() {
            // It shrinks slowly: a large entry is followed by others more often than not.
            self.largest = largest.max(self.largest / 2);
        }
        if let Some((last, _)) = entries.last() {
            self.seen = *last;
        }
        self.read.extend(entries.into_iter().map(|(_, mut entry)| {
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
            "the connection to Redis at {} was lost; what comes next on the stream can be read \
             once it is there again",
            self.connector.address()
        ))
    }
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tail")
            .field("stream", &self.stream)
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}

/// The entries in the answer to `XREAD`.
pub(super) fn read(answer: Value) -> Result<Vec<(EntryId, TailEntry)>, Error> {
    let mut entries = Vec::new();
    entry::each(answer, |_, text, list| {
        let id = EntryId::parse(&text)
            .ok_or_else(|| unexpected("the id of an entry", "another text"))?;
        entries.push((id, decoded(id, fields(list)?)));
        Ok(())
    })?;
    Ok(entries)
}

fn decoded(id: EntryId, fields: Vec<(Bytes, Bytes)>) -> TailEntry {
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
        assert_eq!(first("7-3").unwrap().to_string(), "7-3");
        assert_eq!(first("7").unwrap().to_string(), "7-0");
        for text in ["", "now", "$", "7-", "7-x", "-", "+", "7-1-1"] {
            let error = first(text).unwrap_err();
            assert!(error.is_invalid());
            assert!(error.to_string().contains("1795430237570-0"), "{error}");
        }
    }
}
