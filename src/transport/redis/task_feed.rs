//! Reads feeds: the streams of changes of tasks. `scripts/tasks.lua` writes them.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::{future::join_all, stream};
use tokio::{
    sync::mpsc::{self, Sender},
    time::sleep,
};

use super::{
    Redis,
    connection::Connection,
    dead_letters,
    entry::{StreamEntryId, value_of},
    error,
    keys::Keys,
    pipeline::{Pipeline, Resend},
    response::{Value, array, bytes, fixed_array, unexpected, wrong_length},
    scripts,
    server::{Connector, HashSlot, Outage},
};
use crate::{
    error::{Error, ErrorKind},
    message::{Attempt, MessageId, Name},
    transport::{Feed, FeedItem, FeedStep, TaskChange, TaskState},
};

/// The maximum number of changes of a feed that one read returns.
const MAX_CHANGES: usize = 100;
/// The time for which a read blocks.
const BLOCK: Duration = Duration::from_secs(2);
/// A connection counts as lost if the server is silent for this long after a read should have
/// ended.
const GRACE: Duration = Duration::from_secs(5);
/// The maximum number of steps in the queue to the application.
const BUFFER: usize = 2 * MAX_CHANGES;

/// Returns the id of the last change of each feed. The id of a feed without changes is empty.
pub(super) async fn last_ids(redis: &Redis, keys: &[Keys]) -> Result<Vec<String>, Error> {
    let last_ids = keys.iter().map(async |keys| {
        let mut cmd = redis::cmd("XREVRANGE");
        cmd.arg(keys.feed()).arg("+").arg("-").arg("COUNT").arg(1);
        let pipeline = redis.shared.pipeline.for_key(&keys.stream_key);
        let found = dead_letters::decode_entries(pipeline.command(cmd, Resend::Never).await?)?;
        let last = found.into_iter().next();
        Ok(last.map_or_else(String::new, |(id, _)| id.to_string()))
    });
    join_all(last_ids).await.into_iter().collect()
}

/// Reads the feeds of these streams. Each cursor is the id of the last change that was read from a
/// feed. On a cluster, there is one reader for each slot.
pub(super) fn open(redis: &Redis, keys: &[Keys], cursors: &[String]) -> Result<Feed, Error> {
    let (step_sender, step_receiver) = mpsc::channel(BUFFER);
    let mut readers: Vec<(Option<HashSlot>, TaskFeedReader)> = Vec::new();
    for (index, (keys, cursor)) in keys.iter().zip(cursors).enumerate() {
        let connector = redis.shared.connector.for_key(&keys.stream_key);
        let slot = connector.slot();
        let feed = PartitionFeed {
            index,
            key: keys.feed(),
            cursor: parse_cursor(cursor)?,
        };
        match readers
            .iter_mut()
            .find(|(reader_slot, _)| *reader_slot == slot)
        {
            Some((_, reader)) => reader.feeds.push(feed),
            None => {
                let reader = TaskFeedReader {
                    connector,
                    pipeline: redis.shared.pipeline.for_key(&keys.stream_key),
                    feeds: vec![feed],
                    step_sender: step_sender.clone(),
                };
                readers.push((slot, reader));
            }
        }
    }
    for (_, reader) in readers {
        tokio::spawn(reader.run());
    }
    let steps = stream::unfold(step_receiver, async |mut receiver| {
        Some((receiver.recv().await?, receiver))
    });
    Ok(Box::pin(steps))
}

/// Parses a cursor. An empty cursor is the beginning of a feed.
fn parse_cursor(cursor: &str) -> Result<StreamEntryId, Error> {
    if cursor.is_empty() {
        return Ok(StreamEntryId::ZERO);
    }
    StreamEntryId::parse(cursor.as_bytes()).ok_or_else(|| {
        let text = format!("`{cursor}` is no position in a feed; one looks like 1795430237570-0");
        Error::new(ErrorKind::Invalid, text)
    })
}

/// Reads the feeds of one slot, or all feeds if there is no cluster. Ends once the receiver of the
/// steps is dropped.
struct TaskFeedReader {
    connector: Connector,
    pipeline: Pipeline,
    feeds: Vec<PartitionFeed>,
    step_sender: Sender<Result<FeedStep, Error>>,
}

/// The feed of one partition, or of a stream without partitions.
struct PartitionFeed {
    /// The index of the partition. Zero if the stream has no partitions.
    index: usize,
    key: String,
    /// The id of the last change that was read. Zero at the beginning of the feed.
    cursor: StreamEntryId,
}

impl TaskFeedReader {
    async fn run(mut self) {
        let (step_sender, mut outage) = (self.step_sender.clone(), Outage::default());
        let reading = async {
            let mut connection = None;
            loop {
                match self.step(&mut connection).await {
                    Ok(()) => outage.record_success(),
                    Err(error) => {
                        connection = None;
                        outage.record_failed_attempt(
                            &self.connector.address(),
                            "read changes of tasks",
                            &error,
                        );
                        // The error is queued only if the application has taken all earlier steps,
                        // so that errors do not fill the queue.
                        let is_queue_empty = self.step_sender.capacity() == BUFFER;
                        if !error::is_temporary(&error) && is_queue_empty {
                            self.send(Err(error)).await;
                        }
                        sleep(outage.delay()).await;
                    }
                }
            }
        };
        tokio::select! {
            biased;
            () = step_sender.closed() => {}
            () = reading => {}
        }
    }

    /// Reads the next changes. If there are none, waits until there may be some.
    async fn step(&mut self, connection: &mut Option<Connection>) -> Result<(), Error> {
        let keys: Vec<_> = self.feeds.iter().map(|feed| feed.key.as_str()).collect();
        let args = |cmd: &mut redis::Cmd| {
            cmd.arg(MAX_CHANGES);
            for feed in &self.feeds {
                cmd.arg(feed.cursor);
            }
        };
        let (script, retry) = (&scripts::CHANGES, Resend::Never);
        let response = self.pipeline.script(script, &keys, args, retry).await?;
        let reads = decode(response, keys.len())?;
        let mut is_empty = true;
        for (index, read) in reads.into_iter().enumerate() {
            // A gap comes before the changes that follow it.
            let gap = read.gap.map(|after| (after, Some(FeedItem::Gap)));
            let changes = read.changes.into_iter();
            let changes = changes.map(|(id, change)| (id, change.map(FeedItem::Change)));
            for (cursor, item) in gap.into_iter().chain(changes) {
                is_empty = false;
                let feed = &mut self.feeds[index];
                feed.cursor = cursor;
                // There is no item for an entry that cannot be decoded, such as one that another
                // program has added.
                if let Some(item) = item {
                    let (partition, cursor) = (feed.index, cursor.to_string());
                    self.send(Ok(FeedStep {
                        partition,
                        cursor,
                        item,
                    }))
                    .await;
                }
            }
        }
        match is_empty {
            true => self.wait(connection).await,
            false => Ok(()),
        }
    }

    async fn send(&self, step: Result<FeedStep, Error>) {
        // Fails only if the receiver was dropped. The reader then ends.
        let _ = self.step_sender.send(step).await;
    }

    /// Waits until there is a change after a cursor, for at most [`BLOCK`].
    async fn wait(&self, connection: &mut Option<Connection>) -> Result<(), Error> {
        let mut blocked = match connection.take() {
            Some(connection) => connection,
            None => self.connector.connection().await?,
        };
        let mut cmd = redis::cmd("XREAD");
        cmd.arg("COUNT").arg(1);
        cmd.arg("BLOCK").arg(BLOCK.as_millis() as u64);
        cmd.arg("STREAMS");
        for feed in &self.feeds {
            cmd.arg(&feed.key);
        }
        for feed in &self.feeds {
            cmd.arg(feed.cursor);
        }
        let progress = blocked.progress();
        let response = blocked.command(&cmd);
        let lost = || Error::disconnected("the connection that waits for changes was lost");
        match progress.watch(BLOCK + GRACE, GRACE, response).await {
            // The server has ended the read, for example because the server has become a replica.
            Ok(Ok(response)) if error::code(&response) == Some("UNBLOCKED") => return Err(lost()),
            Ok(Ok(response)) => error::check(response).map(drop)?,
            Ok(Err(cause)) => return Err(lost().with_source(cause)),
            Err(_) => return Err(lost()),
        }
        *connection = Some(blocked);
        Ok(())
    }
}

/// The changes that were read from one feed.
#[derive(Debug)]
pub(super) struct FeedRead {
    /// Set if changes before the first of `changes` may have been deleted unread. The id after
    /// which the reader continues.
    gap: Option<StreamEntryId>,
    /// `None` for an entry that cannot be decoded.
    changes: Vec<(StreamEntryId, Option<TaskChange>)>,
}

/// Decodes the response of the script `CHANGES`: for each feed, its gap and its changes.
pub(super) fn decode(response: Value, feed_count: usize) -> Result<Vec<FeedRead>, Error> {
    let feeds = array(response)?;
    if feeds.len() != feed_count {
        return Err(wrong_length(feed_count, feeds.len()));
    }
    let reads = feeds.into_iter().map(|feed| {
        let [gap, entries] = fixed_array(feed)?;
        let changes = dead_letters::decode_entries(entries)?.into_iter();
        let changes = changes.filter_map(|(id, fields)| {
            let id = StreamEntryId::parse(id.as_bytes())?;
            Some((id, decode_change(id, &fields)))
        });
        let gap = match bytes(gap)? {
            none if none.is_empty() => None,
            id => Some(
                StreamEntryId::parse(&id)
                    .ok_or_else(|| unexpected("the id of an entry", "another text"))?,
            ),
        };
        Ok(FeedRead {
            gap,
            changes: changes.collect(),
        })
    });
    reads.collect()
}

/// Decodes a change from the fields of its entry.
fn decode_change(entry: StreamEntryId, fields: &[(Bytes, Bytes)]) -> Option<TaskChange> {
    let value = |name| value_of(fields, name).map(Bytes::as_ref);
    let text = |name| std::str::from_utf8(value(name)?).ok();
    let id = MessageId::from_utf8(value("id")?).ok()?;
    let name = Name::from_utf8(value("name")?).ok()?;
    let state = TaskState::from_name(text("state")?)?;
    let at = UNIX_EPOCH.checked_add(Duration::from_millis(entry.milliseconds))?;
    let mut change = TaskChange::new(id, name, state, at);
    change.attempt = Attempt(text("attempt")?.parse().ok()?);
    change.reason = String::from_utf8_lossy(value("reason")?).into_owned();
    Some(change)
}
