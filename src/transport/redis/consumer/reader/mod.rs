//! The task that fetches.

mod ahead;
mod overrun;
mod recovery;
mod riders;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::{FutureExt, future::join_all};
use redis::{Cmd, RedisResult};
use tokio::time::{Instant, error::Elapsed, timeout, timeout_at};

use self::{ahead::Ahead, recovery::Recovery};
use super::{
    entry::{self, Entry, Lane},
    inbox::Wanted,
    riders::Riders,
    settle::RedisSettle,
    take_over::Scan,
    worker::Worker,
};
use crate::{
    error::Error,
    sync::Clock,
    transport::{
        Delivery, SettleDelivery, Verdict,
        redis::{
            connection::Connection,
            entry_size::EntrySize,
            error,
            response::{Value, integer},
            server::BACKOFF,
            server::Limit,
        },
    },
};

/// How much longer than a read may block its connection may be silent. Then it is given up: the read
/// stays parked at the server otherwise, and takes the next entries for nobody.
const GRACE: Duration = Duration::from_secs(5);

/// Fetches what is asked for, on a connection of its own.
pub(super) struct Reader {
    worker: Arc<Worker>,
    connection: Option<BlockingConnection>,
    /// Whether it is not the first.
    connected: bool,
    scan: Scan,
    /// Whether the retry stream may hold more than the last read has shown. It is then read alone:
    /// a read of two streams brings up to twice as much as it asks for.
    retries: bool,
    /// When to look for entries that came with an answer that was lost.
    recovery: Option<Recovery>,
    /// Whether the last read brought as much as it asked for, so that there is probably more.
    full: bool,
    size: EntrySize,
    /// The read that was sent before what the last one brought was looked at.
    ahead: Option<Ahead>,
    /// What goes along with the next read.
    riders: Option<Riders>,
    /// How long it is waited for.
    clock: Clock,
    /// For how many reads more none is waited for, and for how many after the next wait in vain.
    hurry: u32,
    next_hurry: u32,
    failures: u32,
    warnings: Limit,
}

struct BlockingConnection {
    line: Connection,
    /// By which another connection can end its blocked read; 0 where that is not known.
    id: i64,
}

impl Reader {
    pub(super) fn new(worker: Arc<Worker>) -> Self {
        Self {
            scan: Scan::new(),
            worker,
            connection: None,
            connected: false,
            retries: true,
            recovery: None,
            full: false,
            size: EntrySize::default(),
            ahead: None,
            riders: None,
            clock: Clock::new(Duration::ZERO),
            hurry: 0,
            next_hurry: riders::HURRY,
            failures: 0,
            warnings: Limit::default(),
        }
    }

    /// Fetches until the source is stopped. A read is never broken off: it may have taken entries.
    pub(super) async fn run(mut self) {
        loop {
            let worker = self.worker.clone();
            let (mut asked, mut fetched) = match self.ahead.take() {
                Some(ahead) => (ahead.asked, self.arrival(ahead).await),
                None => {
                    let room = match self.wanted().await {
                        Some(Wanted::Deliveries(room)) => room,
                        Some(Wanted::Nothing(surplus)) => {
                            give_back(surplus).await;
                            continue;
                        }
                        Some(Wanted::Stop) => break,
                        None => {
                            self.look_unasked().await;
                            continue;
                        }
                    };
                    worker.reading.begin();
                    (Instant::now(), self.fetch(room).await)
                }
            };
            if asked.elapsed() > worker.settings.lease / 2 {
                asked = Instant::now();
                fetched = match fetched {
                    Ok(entries) => self.still_ours(entries).await,
                    Err(error) => Err(error),
                };
            }
            worker.reading.end(fetched.is_ok());
            match fetched {
                Ok(entries) => {
                    self.failures = 0;
                    self.size.note(entries.iter().map(Entry::weight));
                    self.read_ahead(entries.len());
                    let deliveries = worker.deliver(entries, asked);
                    let expected = self.expect_riders(deliveries.len());
                    worker.inbox.put(deliveries);
                    if expected {
                        self.gather_riders().await;
                    }
                }
                Err(error) => self.overcome(error).await,
            }
        }
        if self.worker.closed.is_cancelled() {
            // The source was dropped while this read was under way.
            give_back(self.worker.inbox.rest().0).await;
        }
    }

    /// Waits until something is asked for. `None` when it is time for a look that does not wait for
    /// that.
    async fn wanted(&mut self) -> Option<Wanted> {
        let wanted = self.worker.inbox.wanted();
        tokio::pin!(wanted);
        if self.riders.is_some() {
            if let Some(wanted) = (&mut wanted).now_or_never() {
                return Some(wanted);
            }
            // There is nothing that they could go along with.
            self.riders = None;
        }
        match self.recovery {
            None => Some(wanted.await),
            Some(recovery) => timeout_at(recovery.next, wanted).await.ok(),
        }
    }

    async fn fetch(&mut self, room: usize) -> Result<Vec<Entry>, Error> {
        // Where this becomes anything but a read that blocks, they go their own way.
        let riders = self.riders.take();
        self.full = false;
        if self.must_look() {
            let lost = self.recover(room).await?;
            if !lost.is_empty() {
                return Ok(lost);
            }
        }
        // Each step of a scan brings the entries that it takes over.
        let part = room.min(self.part());
        match self.scan.take_over(&self.worker, part).await {
            Ok(taken) if taken.is_empty() => {}
            Ok(taken) => return Ok(taken),
            // Not every error there is one of reading, too: a server that has no memory left still
            // hands out what it has.
            Err(error) => {
                // It may have been taken over all the same.
                self.look_for_lost();
                tracing::warn!(
                    error = error.chain(),
                    "cannot take over; trying again later"
                );
            }
        }
        let worker = self.worker.clone();
        let retry = (&*worker.keys.retry, ">");
        if self.retries {
            let entries = self.read(part, None, &[retry], None).await?;
            self.retries = entries.len() == part;
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
        let main = (&*worker.keys.stream, ">");
        let count = room.min(self.part());
        let entries = self
            .read(count, Some(worker.interval()), &[main, retry], riders)
            .await?;
        self.note(count, &entries);
        Ok(entries)
    }

    /// Whether something else comes before the next read of both streams.
    fn is_busy_otherwise(&mut self) -> bool {
        self.retries || self.must_look() || self.scan.is_due(&self.worker)
    }

    /// Notes what a read of both streams says about the next one.
    fn note(&mut self, count: usize, entries: &[Entry]) {
        self.retries = entries.iter().any(|entry| entry.lane == Lane::Retry);
        self.full = entries.len() >= count;
    }

    /// How many entries one read asks for at most. Not all that there is room for: while one part is
    /// handled and another acknowledged, the next is fetched. An answer of many large ones would take
    /// long to arrive, and its entries belong to no table whose leases are renewed meanwhile.
    fn part(&self) -> usize {
        let many = self.worker.settings.max_in_flight.div_ceil(4).max(32);
        self.size.fit(many)
    }

    async fn read(
        &mut self,
        count: usize,
        block: Option<Duration>,
        streams: &[(&str, &str)],
        riders: Option<Riders>,
    ) -> Result<Vec<Entry>, Error> {
        let worker = self.worker.clone();
        if self.connection.is_none() {
            self.connection = Some(self.connect().await?);
            if std::mem::replace(&mut self.connected, true) {
                worker.counters.reconnects.increment();
            }
        }
        let connection = self.connection.as_mut().expect("made just above");
        let cmd = worker.reading(count, block, streams);
        if block.is_some() {
            worker.blocked.store(connection.id, Ordering::SeqCst);
            if worker.inbox.is_stopped() {
                worker.blocked.store(0, Ordering::SeqCst);
                return Ok(Vec::new());
            }
            worker.inbox.set_reading(true);
        }
        let limit = block.unwrap_or_default() + GRACE;
        let progress = connection.line.progress();
        let line = &mut connection.line;
        let id = connection.id;
        let answer = async {
            match riders {
                None => line.command(&cmd).await,
                Some(riders) => riders.carry(line, &cmd).await,
            }
        };
        let answer = async {
            let Some(block) = block else {
                return answer.await;
            };
            tokio::select! {
                biased;
                answer = answer => answer,
                never = worker.end_overrun(id, block) => match never {},
            }
        };
        let answer = progress.watch(limit, GRACE, answer).await;
        worker.blocked.store(0, Ordering::SeqCst);
        worker.inbox.set_reading(false);
        self.entries(answer)
    }

    /// What an answer says, or a timeout in its place.
    fn entries(
        &mut self,
        answer: Result<RedisResult<Value>, Elapsed>,
    ) -> Result<Vec<Entry>, Error> {
        match answer {
            Ok(Ok(answer)) => {
                // Not a failure: a key that was deleted, or another client's `CLIENT UNBLOCK`.
                if error::code(&answer) == Some("UNBLOCKED") {
                    return Ok(Vec::new());
                }
                let entries = entry::read(self.checked(answer)?, &self.worker.keys.retry);
                let _ = entries
                    .as_ref()
                    .map(|entries| self.worker.note_entries(entries));
                if entries.is_err() {
                    // What could not be read of it is pending for us.
                    self.look_for_lost();
                }
                entries
            }
            Ok(Err(cause)) => Err(self.lost().with_source(cause)),
            Err(_) => Err(self.lost()),
        }
    }

    /// Gives up the connection. What was read on it last may be pending for us and unknown to us.
    fn lost(&mut self) -> Error {
        self.connection = None;
        self.look_for_lost();
        error::unanswered(self.worker.connector.address())
    }

    fn checked(&mut self, answer: Value) -> Result<Value, Error> {
        if let Value::ServerError(refusal) = &answer
            && error::is_demoted(refusal)
        {
            // The new primary is found by connecting again.
            self.connection = None;
        }
        error::check(answer)
    }

    async fn connect(&mut self) -> Result<BlockingConnection, Error> {
        let connecting = async {
            let mut line = self.worker.connector.connection().await?;
            let id = redis::cmd("CLIENT").arg("ID").to_owned();
            // Without the right to ask, a blocked read just runs to its end.
            let id = timeout(GRACE, line.command(&id)).await;
            let id = id.ok().and_then(Result::ok);
            let id = id.and_then(|id| integer(&id).ok());
            Ok(BlockingConnection {
                line,
                id: id.unwrap_or(0),
            })
        };
        tokio::select! {
            biased;
            made = connecting => made,
            () = self.worker.inbox.stopped() => Err(Error::closed()),
        }
    }

    /// Does about an error what can be done, or waits.
    async fn overcome(&mut self, error: Error) {
        if self.worker.inbox.is_stopped() {
            return;
        }
        self.failures += 1;
        if has_code(&error, "NOGROUP") {
            match self.worker.rejoin().await {
                Ok(()) => {
                    tracing::warn!(
                        stream = %self.worker.keys.stream,
                        group = %self.worker.keys.group,
                        "the stream or its group had vanished; the group was made again, behind the last entry that it is known to have delivered or, on an emptied stream, at the beginning"
                    );
                    self.retries = true;
                    return;
                }
                Err(error) => tracing::warn!(error = error.chain(), "cannot make the group again"),
            }
        } else if let Some(withheld) = self.warnings.admit() {
            tracing::warn!(
                error = error.chain(),
                withheld,
                "cannot read from the stream; trying again"
            );
        }
        self.worker.inbox.pause(BACKOFF.after(self.failures)).await;
    }
}

impl Worker {
    /// `XREADGROUP` for this consumer.
    pub(super) fn reading(
        &self,
        count: usize,
        block: Option<Duration>,
        streams: &[(&str, &str)],
    ) -> Cmd {
        let mut cmd = redis::cmd("XREADGROUP");
        cmd.arg("GROUP")
            .arg(self.keys.group.as_str())
            .arg(&self.consumer);
        cmd.arg("COUNT").arg(count);
        if let Some(block) = block {
            cmd.arg("BLOCK").arg(block.as_millis().max(1) as u64);
        }
        cmd.arg("STREAMS");
        for (stream, _) in streams {
            cmd.arg(stream);
        }
        for (_, from) in streams {
            cmd.arg(from);
        }
        cmd
    }
}

/// Gives back what was not handed out.
pub(super) async fn give_back(deliveries: Vec<Delivery<RedisSettle>>) {
    let settle = |delivery: Delivery<RedisSettle>| delivery.settle.settle(Verdict::GiveBack);
    for given in join_all(deliveries.into_iter().map(settle)).await {
        if let Err(error) = given {
            tracing::warn!(
                error = error.chain(),
                "a delivery could not be given back; its lease will end"
            );
        }
    }
}

/// Whether the server's error has this code. The code of a command inside a script stands in front
/// by then, see `error::unwrapped`.
pub(super) fn has_code(error: &Error, code: &str) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<redis::RedisError>())
        .is_some_and(|source| source.code() == Some(code))
}
