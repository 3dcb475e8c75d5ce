//! The task that fetches.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{self, BoxFuture, join_all},
};
use redis::{Cmd, RedisResult, Value, aio::MultiplexedConnection};
use tokio::time::{Instant, error::Elapsed, timeout, timeout_at};

use super::{
    entry::{self, Entry, EntryId, Lane},
    inbox::Wanted,
    scripts,
    settle::RedisSettle,
    take_over::Scan,
    worker::Worker,
};
use crate::{
    error::Error,
    transport::{
        Delivery, SettleDelivery, Verdict,
        redis::{connect::BACKOFF, error, link::Retry, value::integer},
    },
};

/// How much longer than it may block an answer may take. Then its connection is given up: the read
/// stays parked at the server otherwise, and takes the next entries for nobody.
const GRACE: Duration = Duration::from_secs(5);
/// How many pending entries are looked at in one step after a connection was lost.
const STEP: usize = 100;

/// Fetches what is asked for, on a connection of its own.
pub(super) struct Reader {
    worker: Arc<Worker>,
    connection: Option<Connection>,
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
    /// The read that was sent before what the last one brought was looked at.
    ahead: Option<Ahead>,
    failures: u32,
}

/// The looks for entries that are pending for this worker and not known to it. One is not enough:
/// a read that was on its way when its connection was lost may be carried out after it.
#[derive(Clone, Copy)]
struct Recovery {
    next: Instant,
    /// How long they go on: two leases from the first that the server has answered.
    until: Option<Instant>,
}

/// A read on its way, of as many deliveries as are asked for beyond those that have just come: the
/// server works on it while these are parsed and handled.
struct Ahead {
    asked: Instant,
    count: usize,
    answer: BoxFuture<'static, RedisResult<Value>>,
}

struct Connection {
    link: MultiplexedConnection,
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
            ahead: None,
            failures: 0,
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
                    self.read_ahead(entries.len());
                    let deliveries = worker.deliver(entries, asked);
                    worker.inbox.put(deliveries);
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
        match self.recovery {
            None => Some(wanted.await),
            Some(recovery) => timeout_at(recovery.next, wanted).await.ok(),
        }
    }

    /// Looks for lost entries where nobody asks for any: what it finds is given back.
    async fn look_unasked(&mut self) {
        let asked = Instant::now();
        match self.recover(STEP).await {
            Ok(entries) => {
                let found = self.worker.deliver(entries, asked);
                self.worker.inbox.put(found);
            }
            Err(error) => self.overcome(error).await,
        }
    }

    /// Whether it is time to look for lost entries.
    fn must_look(&self) -> bool {
        let now = Instant::now();
        self.recovery.is_some_and(|recovery| recovery.next <= now)
    }

    async fn fetch(&mut self, room: usize) -> Result<Vec<Entry>, Error> {
        self.full = false;
        if self.must_look() {
            let lost = self.recover(room).await?;
            if !lost.is_empty() {
                return Ok(lost);
            }
        }
        match self.scan.take_over(&self.worker, room).await {
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
            let entries = self.read(room, None, &[retry]).await?;
            self.retries = entries.len() == room;
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
        let main = (&*worker.keys.stream, ">");
        let count = room.min(worker.part());
        let entries = self
            .read(count, Some(worker.interval()), &[main, retry])
            .await?;
        self.note(count, &entries);
        Ok(entries)
    }

    /// Notes what a read of both streams says about the next one.
    fn note(&mut self, count: usize, entries: &[Entry]) {
        self.retries = entries.iter().any(|entry| entry.lane == Lane::Retry);
        self.full = entries.len() >= count;
    }

    /// Reads on, where more than what has just come is asked for and nothing else is to be looked
    /// at first. It does not block, so it is soon answered.
    fn read_ahead(&mut self, come: usize) {
        let worker = &self.worker;
        let count = worker
            .inbox
            .demand()
            .saturating_sub(come)
            .min(worker.part());
        let other = self.retries || self.must_look() || self.scan.is_due(&self.worker);
        let on = self.full && !other && !worker.inbox.is_stopped();
        let Some(connection) = self.connection.as_ref().filter(|_| on && count > 0) else {
            return;
        };
        let streams = [(&*worker.keys.stream, ">"), (&*worker.keys.retry, ">")];
        let cmd = worker.reading(count, None, &streams);
        let mut link = connection.link.clone();
        let mut answer = async move { link.send_packed_command(&cmd).await }.boxed();
        let asked = Instant::now();
        // Polled once, it is on its way.
        let answer = match (&mut answer).now_or_never() {
            Some(answer) => future::ready(answer).boxed(),
            None => answer,
        };
        worker.reading.begin();
        self.ahead = Some(Ahead {
            asked,
            count,
            answer,
        });
    }

    /// What a read that was sent ahead brings.
    async fn arrival(&mut self, ahead: Ahead) -> Result<Vec<Entry>, Error> {
        let answer = timeout(GRACE, ahead.answer).await;
        let entries = self.entries(answer)?;
        self.note(ahead.count, &entries);
        Ok(entries)
    }

    async fn read(
        &mut self,
        count: usize,
        block: Option<Duration>,
        streams: &[(&str, &str)],
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
        let answer = connection.link.send_packed_command(&cmd);
        let answer = timeout(block.unwrap_or_default() + GRACE, answer).await;
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

    /// Those of the entries that no other worker has taken over. An answer comes late when this
    /// process stood still: what it brings may have been handled by others meanwhile.
    async fn still_ours(&mut self, mut entries: Vec<Entry>) -> Result<Vec<Entry>, Error> {
        let mut lost = HashSet::new();
        for lane in Lane::BOTH {
            let of_lane = entries.iter().filter(|entry| entry.lane == lane);
            let ids: Vec<_> = of_lane.map(|entry| entry.id).collect();
            for ids in ids.chunks(STEP) {
                match self.worker.renew(lane, ids).await {
                    Ok(ids) => lost.extend(ids.into_iter().map(|id| (lane, id))),
                    Err(error) => {
                        self.look_for_lost();
                        return Err(error);
                    }
                }
            }
        }
        entries.retain(|entry| !lost.contains(&(entry.lane, entry.id)));
        for (_, id) in lost {
            self.worker.counters.lost_leases.increment();
            tracing::warn!(%id, "a delivery was lost to another worker before it arrived");
        }
        Ok(entries)
    }

    /// Gives up the connection. What was read on it last may be pending for us and unknown to us.
    fn lost(&mut self) -> Error {
        self.connection = None;
        self.look_for_lost();
        error::unanswered(self.worker.connector.address())
    }

    /// An answer was lost, and perhaps entries with it.
    fn look_for_lost(&mut self) {
        self.recovery = Some(Recovery {
            next: Instant::now(),
            until: None,
        });
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

    async fn connect(&mut self) -> Result<Connection, Error> {
        let connecting = async {
            let mut link = self.worker.connector.multiplexed().await?;
            let id = redis::cmd("CLIENT").arg("ID").to_owned();
            // Without the right to ask, a blocked read just runs to its end.
            let id = timeout(GRACE, link.send_packed_command(&id)).await;
            let id = id.ok().and_then(Result::ok);
            let id = id.and_then(|id| integer(&id).ok());
            Ok(Connection {
                link,
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
                        "the stream or its group had vanished; it was made again, from the beginning"
                    );
                    self.retries = true;
                    return;
                }
                Err(error) => tracing::warn!(error = error.chain(), "cannot make the group again"),
            }
        } else if self.failures == 1 || !error.is_disconnected() {
            tracing::warn!(
                error = error.chain(),
                "cannot read from the stream; trying again"
            );
        }
        self.worker.inbox.pause(BACKOFF.after(self.failures)).await;
    }

    /// Fetches again what is pending for this worker and not held by it: the answer that brought
    /// it was lost.
    async fn recover(&mut self, room: usize) -> Result<Vec<Entry>, Error> {
        let worker = self.worker.clone();
        let mut found = Vec::new();
        for lane in Lane::BOTH {
            let mut from = "-".to_owned();
            loop {
                let pending = worker.pending(lane, &from).await?;
                let looked_at = pending.len();
                if let Some(last) = pending.last() {
                    from = format!("({last}");
                }
                let unheld = pending
                    .into_iter()
                    .filter(|id| !worker.held.holds((lane, *id)));
                let unheld: Vec<_> = unheld.take(room - found.len()).collect();
                if !unheld.is_empty() {
                    found.extend(worker.fetch_again(lane, &unheld).await?);
                }
                if found.len() >= room {
                    // There may be more; the next fetch goes on.
                    return Ok(found);
                }
                if looked_at < STEP {
                    break;
                }
            }
        }
        let (now, lease) = (Instant::now(), worker.settings.lease);
        let until = self.recovery.and_then(|recovery| recovery.until);
        let until = until.unwrap_or(now + 2 * lease);
        self.recovery = (now < until).then_some(Recovery {
            next: now + lease / 3,
            until: Some(until),
        });
        Ok(found)
    }
}

impl Worker {
    /// How many entries one read asks for at most. Not all that there is room for: while one part is
    /// handled and another acknowledged, the next is fetched.
    fn part(&self) -> usize {
        self.settings.max_in_flight.div_ceil(4).max(16)
    }

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

    /// The ids of some entries that are pending for this consumer.
    async fn pending(&self, lane: Lane, from: &str) -> Result<Vec<EntryId>, Error> {
        let mut cmd = redis::cmd("XPENDING");
        cmd.arg(self.key_of(lane))
            .arg(self.keys.group.as_str())
            .arg(from)
            .arg("+")
            .arg(STEP)
            .arg(&self.consumer);
        entry::pending(self.link.command(cmd, Retry::Never).await?)
    }

    /// Renews the leases of these entries. Returns those that are not ours.
    async fn renew(&self, lane: Lane, ids: &[EntryId]) -> Result<Vec<EntryId>, Error> {
        let args = |cmd: &mut Cmd| {
            cmd.arg(self.keys.group.as_str()).arg(&self.consumer);
            for id in ids {
                cmd.arg(*id);
            }
        };
        let keys = [self.key_of(lane)];
        let answer = self
            .link
            .script(&scripts::RENEW, &keys, args, Retry::Never)
            .await?;
        Ok(entry::renewed(answer)?.1)
    }

    async fn fetch_again(&self, lane: Lane, ids: &[EntryId]) -> Result<Vec<Entry>, Error> {
        let args = |cmd: &mut Cmd| {
            cmd.arg(self.keys.group.as_str())
                .arg(&self.consumer)
                .arg(lane.flag());
            for id in ids {
                cmd.arg(*id);
            }
        };
        let keys = [self.key_of(lane)];
        let answer = self
            .link
            .script(&scripts::RECOVER, &keys, args, Retry::Never)
            .await?;
        entry::claimed(answer, lane)
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

/// Whether the server's error code is, or a script's error names, this one.
pub(super) fn has_code(error: &Error, code: &str) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<redis::RedisError>())
        .is_some_and(|source| {
            source.code() == Some(code) || source.detail().is_some_and(|text| text.contains(code))
        })
}
