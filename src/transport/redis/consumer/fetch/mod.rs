//! The task that fetches.

mod ahead;
mod blocked;
mod last_read;
mod recovery;

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use redis::RedisResult;
use tokio::time::{Instant, error::Elapsed, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use self::{ahead::Ahead, recovery::MAX_LOOKED_AT};
pub(super) use self::{blocked::BlockedRead, last_read::LastRead, recovery::Recovery};
use super::{
    claim::Scan,
    clock::Clock,
    deliver::Deliverer,
    group::Group,
    member::Member,
    prefetch::{Demand, PrefetchBuffer},
    report::Report,
    settle::RedisSettle,
    settler::Settler,
};
use crate::{
    error::Error,
    transport::{
        Delivery, Verdict,
        redis::{
            connection::Connection,
            entry::{self, Entry, Lane},
            entry_size::EntrySize,
            error,
            pipeline::{Pipeline, Retry},
            response::{Value, integer},
            server::{BACKOFF, Connector, Limit},
            state::Beat,
        },
    },
};

/// How much longer than a read may block its connection may be silent. Then it is given up: the read
/// stays parked at the server otherwise, and takes the next entries for nobody.
const GRACE: Duration = Duration::from_secs(5);

/// The parts that a fetch is made of.
pub(super) struct Parts {
    pub(super) member: Arc<Member>,
    pub(super) connector: Connector,
    pub(super) group: Arc<Group>,
    pub(super) buffer: Arc<PrefetchBuffer>,
    pub(super) deliverer: Deliverer,
    pub(super) scan: Scan,
    pub(super) recovery: Recovery,
    pub(super) settler: Arc<Settler>,
    pub(super) last_read: Arc<LastRead>,
    pub(super) report: Arc<Report>,
    pub(super) clock: Arc<Clock>,
    pub(super) pipeline: Pipeline,
    pub(super) reading: Arc<Beat>,
    pub(super) blocked: Arc<BlockedRead>,
    pub(super) max_in_flight: usize,
    pub(super) closed: CancellationToken,
}

/// Fetches what is asked for, on a connection of its own.
pub(super) struct Fetch {
    parts: Parts,
    connection: Option<BlockingConnection>,
    /// Whether it is not the first.
    connected: bool,
    /// Whether the retry stream may hold more than the last read has shown. It is then read alone:
    /// a read of two streams brings up to twice as much as it asks for.
    retries: bool,
    /// Whether the last read brought as much as it asked for, so that there is probably more.
    full: bool,
    size: EntrySize,
    /// The read that was sent before what the last one brought was looked at.
    ahead: Option<Ahead>,
    /// The end of the time for which no read waits for acknowledgements.
    pause_until: Option<Instant>,
    failures: u32,
    warnings: Limit,
}

struct BlockingConnection {
    line: Connection,
    /// The id by which another connection can end its blocked read; 0 where that is not known.
    id: i64,
}

impl Fetch {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            parts,
            connection: None,
            connected: false,
            retries: true,
            full: false,
            size: EntrySize::default(),
            ahead: None,
            pause_until: None,
            failures: 0,
            warnings: Limit::default(),
        }
    }

    /// Fetches until the source is stopped. A read is never broken off: it may have taken entries.
    pub(super) async fn run(mut self) {
        loop {
            let (mut asked, mut fetched) = match self.ahead.take() {
                Some(ahead) => (ahead.asked, self.arrival(ahead).await),
                None => {
                    let room = match self.demanded().await {
                        Some(Demand::Deliveries(room)) => room,
                        Some(Demand::Nothing(surplus)) => {
                            give_back(surplus).await;
                            continue;
                        }
                        Some(Demand::Stop) => break,
                        None => {
                            self.look_unasked().await;
                            continue;
                        }
                    };
                    self.parts.reading.begin();
                    (Instant::now(), self.fetch(room).await)
                }
            };
            if asked.elapsed() > self.parts.member.lease / 2 {
                asked = Instant::now();
                fetched = match fetched {
                    Ok(entries) => self.parts.recovery.still_ours(entries).await,
                    Err(error) => Err(error),
                };
            }
            self.parts.reading.end(fetched.is_ok());
            match fetched {
                Ok(entries) => {
                    self.failures = 0;
                    if !entries.is_empty() {
                        self.read_clock().await;
                    }
                    self.size.note(entries.iter().map(Entry::weight));
                    self.read_ahead(entries.len());
                    let deliveries = self.parts.deliverer.deliver(entries, asked);
                    let waits = self.expect_settlements(deliveries.len());
                    self.parts.buffer.put(deliveries);
                    if waits {
                        self.acknowledge().await;
                    }
                }
                Err(error) => self.overcome(error).await,
            }
        }
        if self.parts.closed.is_cancelled() {
            // The source was dropped while this read was under way.
            give_back(self.parts.buffer.rest().0).await;
        }
    }

    /// Waits until something is asked for. `None` when it is time for a look that does not wait for
    /// that.
    async fn demanded(&mut self) -> Option<Demand> {
        let demanded = self.parts.buffer.demanded();
        match self.parts.recovery.next() {
            None => Some(demanded.await),
            Some(next) => timeout_at(next, demanded).await.ok(),
        }
    }

    /// Looks for lost entries where nobody asks for any: what it finds is given back.
    async fn look_unasked(&mut self) {
        let asked = Instant::now();
        let max = MAX_LOOKED_AT.min(self.part());
        match self.parts.recovery.recover(max).await {
            Ok(entries) => {
                let found = self.parts.deliverer.deliver(entries, asked);
                self.parts.buffer.put(found);
            }
            Err(error) => self.overcome(error).await,
        }
    }

    async fn fetch(&mut self, room: usize) -> Result<Vec<Entry>, Error> {
        self.full = false;
        if self.parts.recovery.is_due() {
            let lost = self.parts.recovery.recover(room.min(self.part())).await?;
            if !lost.is_empty() {
                return Ok(lost);
            }
        }
        // Each step of a scan brings the entries that it claims.
        let part = room.min(self.part());
        match self.parts.scan.claim(part).await {
            Ok(claimed) if claimed.is_empty() => {}
            Ok(claimed) => return Ok(claimed),
            // Not every error there is one of reading, too: a server that has no memory left still
            // hands out what it has.
            Err(error) => {
                // The entries may have been claimed all the same.
                self.parts.recovery.begin();
                tracing::warn!(
                    error = error.chain(),
                    "cannot take over; trying again later"
                );
            }
        }
        let member = self.parts.member.clone();
        let retry = (&*member.keys.retry, ">");
        if self.retries {
            let entries = self.read(part, None, &[retry]).await?;
            self.retries = entries.len() == part;
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
        let main = (&*member.keys.stream, ">");
        let count = room.min(self.part());
        let block = Some(member.interval());
        let entries = self.read(count, block, &[main, retry]).await?;
        self.note(count, &entries);
        Ok(entries)
    }

    /// Whether something else comes before the next read of both streams.
    fn is_busy_otherwise(&mut self) -> bool {
        self.retries || self.parts.recovery.is_due() || self.parts.scan.is_due()
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
        let many = self.parts.max_in_flight.div_ceil(4).max(32);
        self.size.fit(many)
    }

    /// Reads Redis's clock where no tick has for long, since the server stood still: the clock may have
    /// stepped meanwhile, and a request that was sent just now would look too old.
    async fn read_clock(&mut self) {
        let Parts {
            clock,
            member,
            pipeline,
            ..
        } = &self.parts;
        if clock.last_read() > member.max_between_renewals() {
            let time = pipeline.command(redis::cmd("TIME"), Retry::Never).await;
            if let Err(error) = time.and_then(|time| clock.set(time)) {
                tracing::warn!(error = error.chain(), "Redis's clock could not be read");
            }
        }
    }

    async fn read(
        &mut self,
        count: usize,
        block: Option<Duration>,
        streams: &[(&str, &str)],
    ) -> Result<Vec<Entry>, Error> {
        if self.connection.is_none() {
            self.connection = Some(self.connect().await?);
            if std::mem::replace(&mut self.connected, true) {
                self.parts.report.counters.reconnects.increment();
            }
        }
        let parts = &self.parts;
        let BlockingConnection { line, id } = self.connection.as_mut().expect("made just above");
        let cmd = parts.member.read_group(count, block, streams);
        if block.is_some() {
            parts.blocked.set(*id);
            if parts.buffer.is_stopped() {
                parts.blocked.set(0);
                return Ok(Vec::new());
            }
            parts.buffer.set_reading(true);
        }
        let limit = block.unwrap_or_default() + GRACE;
        let progress = line.progress();
        let answer = async {
            let answer = line.command(&cmd);
            let Some(block) = block else {
                return answer.await;
            };
            tokio::select! {
                biased;
                answer = answer => answer,
                never = parts.blocked.end_overrun(*id, block) => match never {},
            }
        };
        let answer = progress.watch(limit, GRACE, answer).await;
        parts.blocked.set(0);
        parts.buffer.set_reading(false);
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
                let entries = entry::read(self.checked(answer)?, &self.parts.member.keys.retry);
                let _ = entries
                    .as_ref()
                    .map(|entries| self.parts.group.note_entries(entries));
                if entries.is_err() {
                    // What could not be read of it is pending for us.
                    self.parts.recovery.begin();
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
        self.parts.recovery.begin();
        error::unanswered(self.parts.connector.address())
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
            let mut line = self.parts.connector.connection().await?;
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
            () = self.parts.buffer.stopped() => Err(Error::closed()),
        }
    }

    /// Does about an error what can be done, or waits.
    async fn overcome(&mut self, error: Error) {
        if self.parts.buffer.is_stopped() {
            return;
        }
        self.failures += 1;
        if has_code(&error, "NOGROUP") {
            match self.parts.group.rejoin().await {
                Ok(()) => {
                    tracing::warn!(
                        stream = %self.parts.member.keys.stream,
                        group = %self.parts.member.keys.group,
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
        self.parts.buffer.pause(BACKOFF.after(self.failures)).await;
    }
}

/// Gives back what was not handed out.
pub(super) async fn give_back(deliveries: Vec<Delivery<RedisSettle>>) {
    let settle = |delivery: Delivery<RedisSettle>| delivery.settle(Verdict::GiveBack);
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
