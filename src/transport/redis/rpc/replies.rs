//! The reader of a client's reply streams.
//!
//! There is one reply stream beside each stream that a client sends reliable requests to. The client
//! makes it and keeps it alive by a time to live; workers only add to a stream that exists, so that
//! nothing is left of a client that has gone. It is read from the client's own cursor, so a lost
//! connection loses no reply.
//!
//! One connection reads all of them: those with a request outstanding, and a few that had one lately.
//! The others are left, and expire. A stream that joins while a read blocks ends that read by an
//! entry without a reply, which needs no other right than the one that makes the streams.

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

use super::{Pending, Ready};
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
            pipeline::{Pipeline, Retry},
            response::{self, Value},
            server::{Connector, Limit, Outage},
        },
    },
};

/// How long a stream outlives its client, and so the longest outage that loses no reply.
const TIME_TO_LIVE: Duration = Duration::from_secs(300);
/// How often the time to live is renewed at most.
const RENEW: Duration = Duration::from_secs(1);
/// How long one read waits for a reply at the server.
const BLOCK: Duration = Duration::from_secs(2);
/// How long the last of several reads waits: the streams of the others are not looked at meanwhile.
const SHORT_BLOCK: Duration = Duration::from_millis(20);
/// How much longer than that the connection may be silent before it counts as lost.
const GRACE: Duration = Duration::from_secs(5);
/// How many streams one command reads at most.
const MAX_KEYS: usize = 128;
/// How many replies one read takes at most.
const COUNT: usize = 256;
/// After how many replies those that were read are trimmed away.
const TRIM: usize = 512;
/// How long a stream without a request is read on, so that the next request finds it ready.
const LINGER: Duration = Duration::from_secs(60);
/// How long a stream that the server refuses is left alone.
const PAUSE: Duration = Duration::from_secs(1);

/// The reply streams of a client.
pub(super) struct ReplyStreams {
    client: Uuid,
    pipeline: Pipeline,
    table: Mutex<Table>,
    /// Notified when a stream has joined.
    joined: Notify,
}

#[derive(Default)]
struct Table {
    streams: HashMap<Name, Arc<Stream>>,
    /// Those that the reader does not know yet.
    joined: Vec<Arc<Stream>>,
    /// A stream of the read that blocks, or is about to. An entry there ends the read.
    blocked: Option<Arc<Stream>>,
}

struct Stream {
    name: Name,
    key: String,
    /// How many requests wait for a reply here. Raised under the lock of the table only, so that no
    /// stream is left which a request has just found.
    outstanding: AtomicUsize,
    ready: watch::Sender<Ready>,
}

/// A request that waits for its reply on a stream: that is read until this is dropped.
pub(super) struct Outstanding(Arc<Stream>);

impl Outstanding {
    pub(super) fn ready(&self) -> watch::Receiver<Ready> {
        self.0.ready.subscribe()
    }
}

impl Drop for Outstanding {
    fn drop(&mut self) {
        self.0.outstanding.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ReplyStreams {
    pub(super) fn new(client: Uuid, pipeline: Pipeline) -> Self {
        Self {
            client,
            pipeline,
            table: Mutex::default(),
            joined: Notify::new(),
        }
    }

    /// Has the reply stream beside `stream` read.
    pub(super) fn join(&self, stream: &Name) -> Result<Outstanding, Error> {
        let mut table = lock(&self.table);
        if let Some(stream) = table.streams.get(stream) {
            stream.outstanding.fetch_add(1, Ordering::Relaxed);
            return Ok(Outstanding(stream.clone()));
        }
        let joining = Arc::new(Stream {
            name: stream.clone(),
            key: keys::replies(&keys::base(stream)?, self.client),
            outstanding: AtomicUsize::new(1),
            ready: watch::Sender::new(Ready::No),
        });
        table.streams.insert(stream.clone(), joining.clone());
        table.joined.push(joining.clone());
        let blocked = table.blocked.take();
        drop(table);
        self.joined.notify_one();
        if let Some(blocked) = blocked {
            let mut end = redis::cmd("XADD");
            end.arg(&blocked.key)
                .arg("NOMKSTREAM")
                .arg("*")
                .arg("h")
                .arg("");
            // Nobody waits for the answer, and yet it is sent.
            drop(self.pipeline.submit(end, Retry::UntilAnswered));
        }
        Ok(Outstanding(joining))
    }
}

/// A stream that is read.
struct Reading {
    stream: Arc<Stream>,
    /// The last entry that was read; `None` before there is a stream.
    cursor: Option<Bytes>,
    renewed: Option<Instant>,
    /// How many entries up to the cursor were not trimmed yet.
    untrimmed: usize,
    /// The last read has brought nothing.
    idle: bool,
    /// Since when no request waits here.
    unused: Option<Instant>,
    /// Until when it is left alone, since the server refuses it.
    refused: Option<Instant>,
}

impl Reading {
    fn new(stream: Arc<Stream>) -> Self {
        Self {
            stream,
            cursor: None,
            renewed: None,
            untrimmed: 0,
            idle: false,
            unused: None,
            refused: None,
        }
    }

    fn is_allowed(&self, now: Instant) -> bool {
        self.refused.is_none_or(|until| until <= now)
    }

    fn renewal(&self) -> Cmd {
        let mut renew = redis::cmd("PEXPIRE");
        let milliseconds = TIME_TO_LIVE.as_millis() as u64;
        renew.arg(&self.stream.key).arg(milliseconds);
        renew
    }

    /// Trims the entries that were read, where there are many, or nothing else is to be done.
    fn trim(&mut self) -> Option<Cmd> {
        let cursor = self.cursor.as_ref()?;
        if self.untrimmed < TRIM && !(self.idle && self.untrimmed > 0) {
            return None;
        }
        let mut trim = redis::cmd("XTRIM");
        trim.arg(&self.stream.key)
            .arg("MINID")
            .arg(if self.idle { "=" } else { "~" })
            .arg(after(cursor));
        self.untrimmed = 0;
        Some(trim)
    }
}

/// Reads the reply streams of a client.
pub(super) struct Reader {
    streams: Arc<ReplyStreams>,
    connector: Connector,
    pending: Arc<Pending>,
    counters: Arc<Counters>,
    /// The streams that are read, by their keys.
    reading: HashMap<String, Reading>,
    /// How many streams one command reads at most. One after the server has refused a command, so
    /// that it shows which stream it refuses.
    max_keys: usize,
    /// The server refuses to read several streams with one command, and refuses none of them: they are
    /// of several slots of a cluster, or allowed by several selectors of an ACL.
    one_by_one: bool,
    /// Where the streams begin that are read next, if one command does not read all.
    turn: usize,
    size: EntrySize,
    refusals: Limit,
}

impl Reader {
    pub(super) fn new(
        streams: Arc<ReplyStreams>,
        connector: Connector,
        pending: Arc<Pending>,
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
            turn: 0,
            size: EntrySize::default(),
            refusals: Limit::default(),
        }
    }

    /// Reads until it is told to end, and removes the streams then.
    pub(super) async fn run(mut self, end: CancellationToken) {
        if end.run_until_cancelled(self.keep_reading()).await.is_some() {
            return;
        }
        let removed = self.reading.keys().map(|key| {
            let mut remove = redis::cmd("UNLINK");
            remove.arg(key);
            self.streams.pipeline.submit(remove, Retry::Never)
        });
        // Where that fails, the time to live does it.
        let removed = join_all(removed);
        let _ = timeout(Duration::from_secs(1), removed).await;
    }

    async fn keep_reading(&mut self) {
        let mut outage = Outage::default();
        loop {
            while self.reading.is_empty() && lock(&self.streams.table).joined.is_empty() {
                self.streams.joined.notified().await;
            }
            match self.connector.connection().await {
                Ok(connection) => {
                    let error = self.read(connection, &mut outage).await;
                    let what = "the connection that reads replies";
                    outage.lost(self.connector.address(), what, &error);
                    self.counters.reconnects.increment();
                }
                Err(error) => outage.refused(self.connector.address(), "read replies", &error),
            }
            sleep(outage.wait()).await;
        }
    }

    /// Reads until the connection is lost.
    async fn read(&mut self, mut connection: Connection, outage: &mut Outage) -> RedisError {
        for reading in self.reading.values_mut() {
            (reading.renewed, reading.refused) = (None, None);
        }
        (self.one_by_one, self.max_keys) = (false, MAX_KEYS);
        loop {
            match self.step(&mut connection).await {
                Ok(()) => outage.answered(),
                Err(error) => return error,
            }
        }
    }

    /// Makes the streams that are not there yet, or else reads once.
    async fn step(&mut self, connection: &mut Connection) -> RedisResult<()> {
        self.update();
        let now = Instant::now();
        let allowed = self.reading.values().filter(|it| it.is_allowed(now));
        let (known, new): (Vec<_>, Vec<_>) = allowed.partition(|it| it.cursor.is_some());
        let keys = |streams: Vec<&Reading>| -> Vec<_> {
            let keys = streams.into_iter().map(|it| it.stream.key.clone());
            keys.collect()
        };
        if !new.is_empty() {
            let new = keys(new);
            return self
                .create(connection, &new[..new.len().min(MAX_KEYS)])
                .await;
        }
        if known.is_empty() {
            // A connection that has nothing to read still shows that it is lost.
            return tokio::select! {
                biased;
                () = self.streams.joined.notified() => Ok(()),
                () = sleep(PAUSE) => Ok(()),
                unasked = connection.answer() => Err(unasked.err().unwrap_or_else(unexpected)),
            };
        }
        let mut keys = keys(known);
        let max_keys = self.max_keys;
        if keys.len() > max_keys {
            // The last of the reads blocks: each stream has its turn there.
            keys.sort_unstable();
            self.turn = (self.turn + max_keys) % keys.len();
            keys.rotate_left(self.turn);
        }
        let block = match (keys.len() > max_keys, keys.len() < self.reading.len()) {
            (true, _) => SHORT_BLOCK,
            (false, true) => PAUSE,
            (false, false) => BLOCK,
        };

        if !self.announce(&keys) {
            return Ok(());
        }
        let renewed = |it: &&String| {
            let renewed = self.reading[*it].renewed;
            renewed.is_none_or(|last| now - last >= RENEW)
        };
        let renewed: Vec<_> = keys.iter().filter(renewed).cloned().collect();
        let renewals = renewed.iter().map(|key| self.reading[key].renewal());
        let mut commands: Vec<_> = renewals.collect();
        for key in &keys {
            commands.extend(self.reading.get_mut(key).and_then(Reading::trim));
        }
        let upkeep = commands.len();
        let mut reads = keys.chunks(max_keys).peekable();
        while let Some(keys) = reads.next() {
            let block = reads.peek().is_none().then_some(block);
            commands.push(self.command(keys, block));
        }

        let answers = ask(connection, &commands, block + GRACE).await;
        lock(&self.streams.table).blocked = None;
        let mut answers = answers?;
        let replies = answers.split_off(upkeep);
        for (key, answer) in renewed.into_iter().zip(answers) {
            self.note_renewal(&key, now, answer)?;
        }
        let mut sizes = Vec::new();
        let mut has_refused = false;
        for (keys, answer) in keys.chunks(max_keys).zip(replies) {
            match (answer.refused(), keys) {
                (Ok(replies), _) => self.hand_out(keys, replies, &mut sizes)?,
                // Another connection may reach a server that is ready.
                (Err(refusal), _) if refusal.code().is_none_or(error::is_passing) => {
                    return Err(refusal);
                }
                (Err(refusal), [key]) => {
                    has_refused = true;
                    self.refuse(key, refusal);
                }
                (Err(_), _) => has_refused = true,
            }
        }
        self.size.note(sizes);
        // Which of several streams is refused shows when each is read by itself.
        self.one_by_one |= max_keys == 1 && keys.len() > 1 && !has_refused;
        self.max_keys = match self.one_by_one || (has_refused && max_keys > 1) {
            true => 1,
            false => MAX_KEYS,
        };
        Ok(())
    }

    /// Takes in the streams that have joined, and leaves those that no request waits at any more.
    fn update(&mut self) {
        let mut table = lock(&self.streams.table);
        for stream in table.joined.drain(..) {
            self.reading
                .insert(stream.key.clone(), Reading::new(stream));
        }
        let now = Instant::now();
        let linger = match self.reading.len() > MAX_KEYS {
            true => PAUSE,
            false => LINGER,
        };
        self.reading.retain(|_, it| {
            if it.stream.outstanding.load(Ordering::Relaxed) > 0 {
                it.unused = None;
                return true;
            }
            let is_read = now - *it.unused.get_or_insert(now) < linger;
            if !is_read {
                table.streams.remove(&it.stream.name);
            }
            is_read
        });
    }

    /// Says which read blocks, so that a stream that joins can end it. Returns `false` if one has
    /// joined already.
    fn announce(&self, keys: &[String]) -> bool {
        let mut table = lock(&self.streams.table);
        if !table.joined.is_empty() {
            return false;
        }
        let last = keys.last().and_then(|key| self.reading.get(key));
        table.blocked = last.map(|it| it.stream.clone());
        true
    }

    /// The command that reads these streams.
    fn command(&self, keys: &[String], block: Option<Duration>) -> Cmd {
        let mut read = redis::cmd("XREAD");
        let count = (self.size.fit(COUNT) / keys.len()).max(1);
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

    /// Makes streams. The two commands for each are not one transaction, which would need more
    /// rights: they reach the server together.
    async fn create(&mut self, connection: &mut Connection, keys: &[String]) -> RedisResult<()> {
        let commands = keys.iter().flat_map(|key| {
            let mut add = redis::cmd("XADD");
            add.arg(key).arg("*").arg("h").arg("");
            [add, self.reading[key].renewal()]
        });
        let commands: Vec<_> = commands.collect();
        let now = Instant::now();
        let answers = ask(connection, &commands, GRACE).await?;
        let mut answers = answers.into_iter();
        for key in keys {
            let [added, kept] = [answers.next(), answers.next()].map(Option::unwrap_or_default);
            let refusal = match (added.refused(), kept.refused()) {
                (Err(refusal), _) => refusal,
                (Ok(_), Err(refusal)) => {
                    // It would be there for ever.
                    let mut remove = redis::cmd("UNLINK");
                    remove.arg(key);
                    ask(connection, &[remove], GRACE).await?;
                    refusal
                }
                (Ok(id), Ok(_)) => {
                    let id = response::bytes(id).map_err(|_| unexpected())?;
                    if let Some(reading) = self.reading.get_mut(key) {
                        reading.cursor = Some(id);
                        reading.renewed = Some(now);
                        reading.untrimmed = 1;
                        reading.stream.ready.send_replace(Ready::Yes);
                    }
                    continue;
                }
            };
            // A refusal is an answer for those who wait; a server that is only not ready is none.
            if refusal.code().is_none_or(error::is_passing) {
                return Err(refusal);
            }
            self.refuse(key, refusal);
        }
        Ok(())
    }

    /// Leaves a stream alone for a moment. The others are read on.
    fn refuse(&mut self, key: &str, refusal: RedisError) {
        let Some(reading) = self.reading.get_mut(key) else {
            return;
        };
        reading.refused = Some(Instant::now() + PAUSE);
        if let Some(withheld) = self.refusals.admit() {
            let (address, error) = (self.connector.address(), &refusal);
            tracing::warn!(address, key, %error, withheld, "cannot read replies; trying again");
        }
        if reading.cursor.is_none() {
            reading.stream.ready.send_replace(Ready::Refused(refusal));
        }
    }

    fn note_renewal(&mut self, key: &str, now: Instant, answer: Value) -> RedisResult<()> {
        let Some(reading) = self.reading.get_mut(key) else {
            return Ok(());
        };
        reading.renewed = Some(now);
        match answer {
            // It has expired, or the server was flushed.
            Value::Int(0) => {
                reading.cursor = None;
                reading.stream.ready.send_replace(Ready::No);
            }
            // A replica serves reads on: this alone shows that workers reply elsewhere.
            Value::ServerError(refusal) if error::is_demoted(&refusal) => {
                return Err(refusal.into());
            }
            _ => {}
        }
        Ok(())
    }

    /// Hands the replies in the answer to a read of these streams to their requests.
    fn hand_out(
        &mut self,
        keys: &[String],
        answer: Value,
        sizes: &mut Vec<usize>,
    ) -> RedisResult<()> {
        for key in keys {
            if let Some(reading) = self.reading.get_mut(key) {
                reading.idle = true;
            }
        }
        let handed_out = entry::each(answer, |key, id, list| {
            for (field, envelopes) in response::fields(list)? {
                if field == "r" {
                    sizes.push(envelopes.len());
                    let envelopes = envelopes.split(|&byte| byte == b'\n');
                    envelopes.for_each(|envelope| self.pending.resolve(envelope));
                }
            }
            let key = std::str::from_utf8(key).unwrap_or_default();
            if let Some(reading) = self.reading.get_mut(key) {
                reading.untrimmed += 1;
                reading.idle = false;
                // A stream that has just expired is made again.
                if reading.cursor.is_some() {
                    reading.cursor = Some(id);
                }
            }
            Ok(())
        });
        handed_out.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error).into())
    }
}

/// Sends commands, and gives up on a server that is silent.
async fn ask(
    connection: &mut Connection,
    commands: &[Cmd],
    limit: Duration,
) -> RedisResult<Vec<Value>> {
    let progress = connection.progress();
    let answers = connection.pipeline(commands);
    (progress.watch(limit, GRACE, answers).await)
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}

fn unexpected() -> RedisError {
    io::Error::from(io::ErrorKind::InvalidData).into()
}

/// The least id after this one.
fn after(id: &[u8]) -> String {
    let id = String::from_utf8_lossy(id);
    let next = id.split_once('-').and_then(|(milliseconds, sequence)| {
        let sequence = sequence.parse::<u64>().ok()?.checked_add(1)?;
        Some(format!("{milliseconds}-{sequence}"))
    });
    // The id itself trims one entry less.
    next.unwrap_or_else(|| id.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_id_is_one_sequence_further() {
        assert_eq!(after(b"1795430237570-0"), "1795430237570-1");
        assert_eq!(after(b"5-18446744073709551615"), "5-18446744073709551615");
    }
}
