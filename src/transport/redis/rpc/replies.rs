//! Reads a client's reply streams.
//!
//! A client has one reply stream for each stream that it sends reliable requests to. The client
//! creates the reply stream and renews its time to live. Workers add only to existing reply
//! streams, so the reply streams of a dead client expire. After a lost connection, the client reads
//! its streams again from their beginning, so no reply is lost.
//!
//! One connection reads all reply streams with outstanding or recent requests. A stream without
//! recent requests is not read any more, and expires. A blocking read must end before a new stream
//! can be read. To end the read, the client adds an entry without a reply to one of the streams
//! that it reads. Adding this entry needs only the permissions for creating reply streams.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use redis::{Cmd, RedisError, RedisResult};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{PendingRequests, Readiness};
use crate::{
    error::Error,
    message::Name,
    sync::lock,
    transport::{
        Counters,
        redis::{
            connection::Connection,
            entry,
            entry_size::EntrySize,
            error, keys,
            namespace::Namespace,
            pipeline::{Pipeline, Resend},
            response::{self, Value},
            server::{Connector, LogLimit, Outage},
        },
    },
};

/// The time to live of a reply stream. Stored replies survive an outage of at most this length.
const TIME_TO_LIVE: Duration = Duration::from_secs(300);
/// The minimum time between two renewals of the time to live.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(1);
/// The position before the first entry of a stream.
const BEFORE_FIRST: Bytes = Bytes::from_static(b"0-0");
/// The time for which a read blocks.
const BLOCK: Duration = Duration::from_secs(2);
/// If several commands are needed to read all streams, the last command blocks for this time. The
/// time is short, because the block delays the next reads of the other streams.
const SHORT_BLOCK: Duration = Duration::from_millis(20);
/// A connection counts as lost if the server is silent for this long after a read should have
/// ended.
const GRACE: Duration = Duration::from_secs(5);
/// The maximum number of streams that one command reads.
const MAX_KEYS: usize = 128;
/// The maximum number of entries that one read returns.
const MAX_ENTRIES: usize = 256;
/// A stream is trimmed after this many of its entries were read, or earlier when it is idle.
const TRIM_THRESHOLD: usize = 512;
/// The time for which a stream is still read after its last request, so that the next request need
/// not wait for the creation of the stream.
const LINGER: Duration = Duration::from_secs(60);
/// The time for which a stream is not read after the server has refused it. Also the longest time
/// for which a read of other streams then blocks.
const PAUSE: Duration = Duration::from_secs(1);

/// The reply streams of a client.
pub(super) struct ReplyStreams {
    client: Uuid,
    pipeline: Pipeline,
    table: Mutex<ReplyStreamTable>,
    /// Notified when a stream was added.
    stream_added: Notify,
}

#[derive(Default)]
struct ReplyStreamTable {
    streams: HashMap<Name, Arc<ReplyStream>>,
    /// New streams that the reader does not read yet.
    new_streams: Vec<Arc<ReplyStream>>,
    /// A stream of the current blocking read. An entry that is added to this stream ends the read,
    /// so that the reader can create a new stream.
    blocked_on: Option<Arc<ReplyStream>>,
}

/// One reply stream of the client.
struct ReplyStream {
    /// The stream that the requests are sent to.
    name: Name,
    /// The key of the reply stream.
    key: String,
    /// The number of requests that wait for a reply on this stream. Incremented only under the lock
    /// of the table. The reader holds the same lock while it removes streams without requests, so
    /// it removes no stream that has just got a request.
    outstanding_requests: AtomicUsize,
    readiness: watch::Sender<Readiness>,
}

/// A request that waits for its reply on a stream. The stream is read at least until this value is
/// dropped.
pub(super) struct OutstandingRequest(Arc<ReplyStream>);

impl OutstandingRequest {
    pub(super) fn readiness(&self) -> watch::Receiver<Readiness> {
        self.0.readiness.subscribe()
    }
}

impl Drop for OutstandingRequest {
    fn drop(&mut self) {
        self.0.outstanding_requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ReplyStreams {
    pub(super) fn new(client: Uuid, pipeline: Pipeline) -> Self {
        Self {
            client,
            pipeline,
            table: Mutex::default(),
            stream_added: Notify::new(),
        }
    }

    /// Registers a request to `stream`, a name with its namespace. If the reply stream is not read
    /// yet, the reader creates it and starts to read it.
    pub(super) fn join(&self, stream: &Name) -> Result<OutstandingRequest, Error> {
        let mut table = lock(&self.table);
        if let Some(known) = table.streams.get(stream) {
            known.outstanding_requests.fetch_add(1, Ordering::Relaxed);
            return Ok(OutstandingRequest(known.clone()));
        }
        let joining = Arc::new(ReplyStream {
            name: stream.clone(),
            key: keys::replies(&keys::base(&Namespace::NONE, stream)?, self.client),
            outstanding_requests: AtomicUsize::new(1),
            readiness: watch::Sender::new(Readiness::No),
        });
        table.streams.insert(stream.clone(), joining.clone());
        table.new_streams.push(joining.clone());
        let blocked_on = table.blocked_on.take();
        drop(table);
        self.stream_added.notify_one();
        if let Some(blocked_on) = blocked_on {
            let mut end_read = redis::cmd("XADD");
            end_read
                .arg(&blocked_on.key)
                .arg("NOMKSTREAM")
                .arg("*")
                .arg("h")
                .arg("");
            // The pipeline sends the command although nobody waits for its response.
            drop(self.pipeline.submit(end_read, Resend::UntilAnswered));
        }
        Ok(OutstandingRequest(joining))
    }
}

/// A reply stream that the reader reads, or creates next.
struct Reading {
    stream: Arc<ReplyStream>,
    /// The id of the last entry that was read, or `None` until the reader has created the stream.
    cursor: Option<Bytes>,
    /// The time of the last renewal of the stream's time to live.
    renewed_at: Option<Instant>,
    /// The number of entries up to the cursor that were not trimmed yet.
    untrimmed_entries: usize,
    /// Set if the last read returned no entries.
    is_idle: bool,
    /// The time since which no request waits for a reply on this stream. `None` while a request
    /// waits.
    unused_since: Option<Instant>,
    /// The end of the pause after the server has refused the stream. `None` without a refusal.
    paused_until: Option<Instant>,
}

impl Reading {
    fn new(stream: Arc<ReplyStream>) -> Self {
        Self {
            stream,
            cursor: None,
            renewed_at: None,
            untrimmed_entries: 0,
            is_idle: false,
            unused_since: None,
            paused_until: None,
        }
    }

    /// Returns `true` unless the stream is paused after a refusal.
    fn is_allowed(&self, now: Instant) -> bool {
        self.paused_until.is_none_or(|end| end <= now)
    }

    /// Makes the command that renews the stream's time to live.
    fn renewal_command(&self) -> Cmd {
        let mut renew = redis::cmd("PEXPIRE");
        let milliseconds = TIME_TO_LIVE.as_millis() as u64;
        renew.arg(&self.stream.key).arg(milliseconds);
        renew
    }

    /// Makes the command that trims the entries that were read. The caller must send it. Returns
    /// `None` if there are no such entries, or fewer than [`TRIM_THRESHOLD`] while the stream is
    /// not idle.
    fn trim_command(&mut self) -> Option<Cmd> {
        let cursor = self.cursor.as_ref()?;
        if self.untrimmed_entries < TRIM_THRESHOLD && !(self.is_idle && self.untrimmed_entries > 0)
        {
            return None;
        }
        let mut trim = redis::cmd("XTRIM");
        trim.arg(&self.stream.key)
            .arg("MINID")
            .arg(if self.is_idle { "=" } else { "~" })
            .arg(next_id(cursor));
        self.untrimmed_entries = 0;
        Some(trim)
    }
}

/// Reads the reply streams of a client.
pub(super) struct ReplyReader {
    streams: Arc<ReplyStreams>,
    connector: Connector,
    pending: Arc<PendingRequests>,
    counters: Arc<Counters>,
    /// The streams that are read, by key.
    reading: HashMap<String, Reading>,
    /// The maximum number of streams that one command reads. It is 1 after the server has refused a
    /// command, so that the reader finds the refused stream.
    max_keys: usize,
    /// Set if the server refuses a command that reads several streams, but accepts a command for
    /// each stream. This happens if the streams are in several slots of a cluster, or if different
    /// selectors of an ACL allow them.
    one_by_one: bool,
    /// The index of the stream with which the next read begins, if one command cannot read all
    /// streams.
    first_index: usize,
    /// Limits the number of entries that a read requests.
    entry_size: EntrySize,
    refusal_log_limit: LogLimit,
}

impl ReplyReader {
    pub(super) fn new(
        streams: Arc<ReplyStreams>,
        connector: Connector,
        pending: Arc<PendingRequests>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            streams,
            connector,
            pending,
            counters,
            reading: HashMap::new(),
            max_keys: MAX_KEYS,
            one_by_one: false,
            first_index: 0,
            entry_size: EntrySize::default(),
            refusal_log_limit: LogLimit::default(),
        }
    }

    /// Reads until `end` is cancelled, and then removes the streams.
    pub(super) async fn run(mut self, end: CancellationToken) {
        if end.run_until_cancelled(self.keep_reading()).await.is_some() {
            return;
        }
        let removals = self.reading.keys().map(|key| {
            let mut remove = redis::cmd("UNLINK");
            remove.arg(key);
            self.streams.pipeline.submit(remove, Resend::Never)
        });
        // If the commands fail or take too long, the streams expire.
        let removed = join_all(removals);
        let _ = timeout(Duration::from_secs(1), removed).await;
    }

    /// Connects and reads, and retries after each failure or loss. Never returns.
    async fn keep_reading(&mut self) {
        let mut outage = Outage::default();
        loop {
            while self.reading.is_empty() && lock(&self.streams.table).new_streams.is_empty() {
                self.streams.stream_added.notified().await;
            }
            match self.connector.connection().await {
                Ok(connection) => {
                    let Some(error) = self.read(connection, &mut outage).await else {
                        continue;
                    };
                    let what = "the connection that reads replies";
                    outage.record_loss(&self.connector.address(), what, &error);
                    self.counters.reconnects.increment();
                }
                Err(error) => {
                    outage.record_failed_attempt(&self.connector.address(), "read replies", &error)
                }
            }
            sleep(outage.delay()).await;
        }
    }

    /// Reads until the connection is lost, and returns the error. On a cluster, closes the
    /// connection and returns `None` when no stream of the slot is in use.
    async fn read(
        &mut self,
        mut connection: Connection,
        outage: &mut Outage,
    ) -> Option<RedisError> {
        for reading in self.reading.values_mut() {
            (reading.renewed_at, reading.paused_until) = (None, None);
            // After a failover, the new primary may assign lower ids than the cursor. So each
            // stream is read from its beginning, and replies that were received before are ignored.
            reading.cursor = reading.cursor.take().map(|_| BEFORE_FIRST);
            reading.untrimmed_entries = 0;
        }
        (self.one_by_one, self.max_keys) = (false, MAX_KEYS);
        loop {
            self.update_streams();
            if self.reading.is_empty() && self.connector.slot().is_some() {
                return None;
            }
            match self.step(&mut connection).await {
                Ok(()) => outage.record_success(),
                Err(error) => return Some(error),
            }
        }
    }

    /// Creates the new streams. If there are none, reads all streams once.
    async fn step(&mut self, connection: &mut Connection) -> RedisResult<()> {
        let now = Instant::now();
        // A stream without a cursor is not created yet.
        let allowed = self.reading.values().filter(|it| it.is_allowed(now));
        let (created, new): (Vec<_>, Vec<_>) = allowed.partition(|it| it.cursor.is_some());
        let keys_of = |streams: Vec<&Reading>| -> Vec<_> {
            let keys = streams.into_iter().map(|it| it.stream.key.clone());
            keys.collect()
        };
        if !new.is_empty() {
            let new_keys = keys_of(new);
            return self
                .create(connection, &new_keys[..new_keys.len().min(MAX_KEYS)])
                .await;
        }
        if created.is_empty() {
            // All streams are paused, or there are none. A lost connection is still detected.
            return tokio::select! {
                biased;
                () = self.streams.stream_added.notified() => Ok(()),
                () = sleep(PAUSE) => Ok(()),
                surplus = connection.response() => Err(surplus.err().unwrap_or_else(unexpected)),
            };
        }
        let mut keys = keys_of(created);
        if keys.len() > self.max_keys {
            // Only the last of the reads blocks. The order rotates, so that the last read contains
            // each stream in turn.
            keys.sort_unstable();
            self.first_index = (self.first_index + self.max_keys) % keys.len();
            keys.rotate_left(self.first_index);
        }
        match self.prepare_read(&keys) {
            true => self.read_streams(connection, &keys).await,
            false => Ok(()),
        }
    }

    /// Renews the streams that are due, trims streams, and reads these streams, in one round trip.
    async fn read_streams(
        &mut self,
        connection: &mut Connection,
        keys: &[String],
    ) -> RedisResult<()> {
        let now = Instant::now();
        let is_due = |it: &&String| {
            let renewed_at = self.reading[*it].renewed_at;
            renewed_at.is_none_or(|last| now - last >= RENEWAL_INTERVAL)
        };
        let due: Vec<_> = keys.iter().filter(is_due).cloned().collect();
        let renewals = due.iter().map(|key| self.reading[key].renewal_command());
        let mut commands: Vec<_> = renewals.collect();
        for key in keys {
            commands.extend(self.reading.get_mut(key).and_then(Reading::trim_command));
        }
        let index_of_reads = commands.len();
        // A read is shorter while some streams are paused, so that these are soon read again.
        let block = match (keys.len() > self.max_keys, keys.len() < self.reading.len()) {
            (true, _) => SHORT_BLOCK,
            (false, true) => PAUSE,
            (false, false) => BLOCK,
        };
        let mut reads = keys.chunks(self.max_keys).peekable();
        while let Some(keys) = reads.next() {
            let block = reads.peek().is_none().then_some(block);
            commands.push(self.read_command(keys, block));
        }

        let responses = run_commands(connection, &commands, block + GRACE).await;
        lock(&self.streams.table).blocked_on = None;
        let mut responses = responses?;
        let read_responses = responses.split_off(index_of_reads);
        // The responses to the trims, which follow those to the renewals, are ignored.
        for (key, response) in due.into_iter().zip(responses) {
            self.note_renewal(&key, now, response)?;
        }
        self.deliver_all(keys, read_responses)
    }

    /// Delivers the entries of the reads of these keys. Pauses a stream that the server refuses to
    /// read.
    fn deliver_all(&mut self, keys: &[String], responses: Vec<Value>) -> RedisResult<()> {
        let max_keys = self.max_keys;
        let mut sizes = Vec::new();
        let mut has_refused = false;
        for (keys, response) in keys.chunks(max_keys).zip(responses) {
            match (response.into_result(), keys) {
                (Ok(entries), _) => self.deliver(keys, entries, &mut sizes)?,
                // The server is not ready. The caller makes a new connection, perhaps to another
                // server.
                (Err(refusal), _) if refusal.code().is_none_or(error::is_transient_code) => {
                    return Err(refusal);
                }
                (Err(refusal), [key]) => {
                    has_refused = true;
                    self.pause_refused(key, refusal);
                }
                (Err(_), _) => has_refused = true,
            }
        }
        self.entry_size.note(sizes);
        // After a refused command, each stream is read by a separate command, to find the refused
        // stream. If the server refuses none of these commands, the streams are read separately as
        // long as this connection lasts.
        self.one_by_one |= max_keys == 1 && keys.len() > 1 && !has_refused;
        self.max_keys = match self.one_by_one || (has_refused && max_keys > 1) {
            true => 1,
            false => MAX_KEYS,
        };
        Ok(())
    }

    /// Adds new streams to `reading`, and removes streams that have had no request for a while.
    fn update_streams(&mut self) {
        let mut table = lock(&self.streams.table);
        for stream in table.new_streams.drain(..) {
            self.reading
                .insert(stream.key.clone(), Reading::new(stream));
        }
        let now = Instant::now();
        // If one command cannot read all streams, unused streams are removed sooner.
        let linger = match self.reading.len() > MAX_KEYS {
            true => PAUSE,
            false => LINGER,
        };
        self.reading.retain(|_, it| {
            if it.stream.outstanding_requests.load(Ordering::Relaxed) > 0 {
                it.unused_since = None;
                return true;
            }
            let is_read = now - *it.unused_since.get_or_insert(now) < linger;
            if !is_read {
                table.streams.remove(&it.stream.name);
            }
            is_read
        });
    }

    /// Records a stream on which the next read blocks, so that an entry can end the read. Returns
    /// `false` if a new stream was added meanwhile. The caller must then create this stream before
    /// it reads.
    fn prepare_read(&self, keys: &[String]) -> bool {
        let mut table = lock(&self.streams.table);
        if !table.new_streams.is_empty() {
            return false;
        }
        let last = keys.last().and_then(|key| self.reading.get(key));
        table.blocked_on = last.map(|it| it.stream.clone());
        true
    }

    /// Makes the command that reads these streams.
    fn read_command(&self, keys: &[String], block: Option<Duration>) -> Cmd {
        let mut read = redis::cmd("XREAD");
        let count = (self.entry_size.fitting_entries(MAX_ENTRIES) / keys.len()).max(1);
        read.arg("COUNT").arg(count);
        if let Some(block) = block {
            read.arg("BLOCK").arg(block.as_millis() as u64);
        }
        read.arg("STREAMS").arg(keys);
        for key in keys {
            read.arg(self.reading[key].cursor.as_deref());
        }
        read
    }

    /// Creates streams, by two commands for each. The commands are sent together, but not as a
    /// transaction, because a transaction would need more permissions.
    async fn create(&mut self, connection: &mut Connection, keys: &[String]) -> RedisResult<()> {
        let commands = keys.iter().flat_map(|key| {
            let mut add = redis::cmd("XADD");
            add.arg(key).arg("*").arg("h").arg("");
            [add, self.reading[key].renewal_command()]
        });
        let commands: Vec<_> = commands.collect();
        let now = Instant::now();
        let responses = run_commands(connection, &commands, GRACE).await?;
        let mut responses = responses.into_iter();
        for key in keys {
            let [added, renewed] =
                [responses.next(), responses.next()].map(Option::unwrap_or_default);
            let refusal = match (added.into_result(), renewed.into_result()) {
                (Err(refusal), _) => refusal,
                (Ok(_), Err(refusal)) => {
                    // Without a time to live the stream would never be deleted.
                    let mut remove = redis::cmd("UNLINK");
                    remove.arg(key);
                    run_commands(connection, &[remove], GRACE).await?;
                    refusal
                }
                (Ok(id), Ok(_)) => {
                    let id = response::bytes(id).map_err(|_| unexpected())?;
                    if let Some(reading) = self.reading.get_mut(key) {
                        reading.cursor = Some(id);
                        reading.renewed_at = Some(now);
                        reading.untrimmed_entries = 1;
                        reading.stream.readiness.send_replace(Readiness::Yes);
                    }
                    continue;
                }
            };
            // If the server is not ready, the requests keep waiting. If the server refuses the
            // stream, the requests fail.
            if refusal.code().is_none_or(error::is_transient_code) {
                return Err(refusal);
            }
            self.pause_refused(key, refusal);
        }
        Ok(())
    }

    /// Pauses a stream that the server has refused, and fails the requests that wait for its
    /// creation. The other streams are still read.
    fn pause_refused(&mut self, key: &str, refusal: RedisError) {
        let Some(reading) = self.reading.get_mut(key) else {
            return;
        };
        reading.paused_until = Some(Instant::now() + PAUSE);
        if let Some(withheld) = self.refusal_log_limit.admit() {
            let (address, error) = (self.connector.address(), &refusal);
            tracing::warn!(address, key, %error, withheld, "cannot read replies; trying again");
        }
        if reading.cursor.is_none() {
            reading
                .stream
                .readiness
                .send_replace(Readiness::Refused(refusal));
        }
    }

    /// Records the response to a renewal. Fails if the server has become a replica.
    fn note_renewal(&mut self, key: &str, now: Instant, response: Value) -> RedisResult<()> {
        let Some(reading) = self.reading.get_mut(key) else {
            return Ok(());
        };
        reading.renewed_at = Some(now);
        match response {
            // The stream has expired, or the server was flushed.
            Value::Int(0) => {
                reading.cursor = None;
                reading.stream.readiness.send_replace(Readiness::No);
            }
            // A replica still serves reads. Only a refused write shows that workers now reply on
            // another server.
            Value::ServerError(refusal) if error::is_demoted(&refusal) => {
                return Err(refusal.into());
            }
            _ => {}
        }
        Ok(())
    }

    /// Delivers the replies in the response to a read of these streams.
    fn deliver(
        &mut self,
        keys: &[String],
        response: Value,
        sizes: &mut Vec<usize>,
    ) -> RedisResult<()> {
        for key in keys {
            if let Some(reading) = self.reading.get_mut(key) {
                reading.is_idle = true;
            }
        }
        let delivered = entry::for_each_entry(response, |key, id, list| {
            for (field, envelopes) in response::fields(list)? {
                if field == "r" {
                    sizes.push(envelopes.len());
                    let envelopes = envelopes.split(|&byte| byte == b'\n');
                    envelopes.for_each(|envelope| self.pending.resolve(envelope));
                }
            }
            let key = std::str::from_utf8(key).unwrap_or_default();
            if let Some(reading) = self.reading.get_mut(key) {
                reading.untrimmed_entries += 1;
                reading.is_idle = false;
                // A stream without a cursor has just expired, and is created again.
                if reading.cursor.is_some() {
                    reading.cursor = Some(id);
                }
            }
            Ok(())
        });
        delivered.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error).into())
    }
}

/// Sends commands and returns the responses. Fails if the server is silent for `limit` at the
/// start, or for [`GRACE`] later.
async fn run_commands(
    connection: &mut Connection,
    commands: &[Cmd],
    limit: Duration,
) -> RedisResult<Vec<Value>> {
    let progress = connection.progress();
    let responses = connection.pipeline(commands);
    (progress.watch(limit, GRACE, responses).await)
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}

/// Returns the error for a response of an unexpected form.
fn unexpected() -> RedisError {
    io::Error::from(io::ErrorKind::InvalidData).into()
}

/// Returns the id that follows this one.
fn next_id(id: &[u8]) -> String {
    let id = String::from_utf8_lossy(id);
    let next = id.split_once('-').and_then(|(milliseconds, sequence)| {
        let sequence = sequence.parse::<u64>().ok()?.checked_add(1)?;
        Some(format!("{milliseconds}-{sequence}"))
    });
    // If the id is malformed or its sequence is the largest number, the id is returned unchanged.
    // `XTRIM` then keeps one more entry.
    next.unwrap_or_else(|| id.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_id_has_the_next_sequence() {
        assert_eq!(next_id(b"1795430237570-0"), "1795430237570-1");
        assert_eq!(next_id(b"5-18446744073709551615"), "5-18446744073709551615");
    }
}
