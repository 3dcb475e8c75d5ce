//! The task that fetches deliveries. It recovers lost entries, claims entries of other consumers,
//! and reads new entries, in this order.

mod acknowledge;
mod ahead;
mod recovery;
mod set;

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use redis::{Cmd, RedisResult};
use tokio::time::{Instant, error::Elapsed, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

pub(super) use self::recovery::Recovery;
use self::{ahead::AheadRead, recovery::PAGE_LEN, set::ReadSet};
use super::{
    blocked::BlockedRead,
    claim::Claimer,
    clock::ServerClock,
    deliver::Deliverer,
    group::Membership,
    in_flight::InFlightTable,
    key_order::KeyOrder,
    last_read::LastRead,
    member::Member,
    pause::PauseSignal,
    prefetch::{Demand, ExpectedEntries, PrefetchWriter},
    registry::{RegistryChange, RegistryChanges},
    report::Report,
    settle::RedisSettle,
    settler::Settler,
    streams::{ServedStream, StreamSet},
    task_starter::TaskStarter,
    woken::WokenReader,
};
use crate::{
    error::Error,
    message::Shown,
    transport::{
        Delivery, StreamSchedule, Verdict,
        redis::{
            connection::Connection,
            entry::{self, Entry, WhichStream},
            error,
            keys::Keys,
            namespace::Namespace,
            pipeline::{Pipeline, Resend},
            response::{Value, array, bytes, exactly, integer, unexpected},
            scripts::{self, Script},
            server::{Connector, Outage},
            source_state::Heartbeat,
        },
    },
};

/// A connection is closed if it is silent for this time after the `BLOCK` of its read. Without this
/// limit, the read could stay blocked on the server, and take entries that never arrive.
const GRACE: Duration = Duration::from_secs(5);

/// The mean time between two checks of a group that has reached its limit. The wait ends early when
/// a delivery of this worker ends.
const LIMIT_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// The lowest limit for the entries of one read. A lower limit would cause smaller batches of
/// acknowledgements, which in turn cause smaller reads.
const MIN_PER_READ: usize = 64;

/// For this number of leases after the beginning of a term, each read is followed by a search for
/// entries that a former owner's read has taken. The former owner sends no reads in this term, but
/// the server may carry out an earlier read late.
const LATE_READ_LEASES: u32 = 10;

/// The dependencies of a fetch.
pub(super) struct FetchParts {
    pub(super) member: Arc<Member>,
    pub(super) streams: Arc<StreamSet>,
    pub(super) schedule: StreamSchedule,
    /// The changes of the streams in a registry; `None` if the settings list the streams.
    pub(super) changes: Option<Arc<RegistryChanges>>,
    pub(super) connector: Connector,
    pub(super) group: Arc<Membership>,
    pub(super) buffer: PrefetchWriter,
    pub(super) deliverer: Deliverer,
    pub(super) starter: TaskStarter,
    pub(super) claimer: Claimer,
    pub(super) recovery: Recovery,
    pub(super) settler: Arc<Settler>,
    pub(super) last_read: Arc<LastRead>,
    pub(super) report: Arc<Report>,
    /// The namespace of streams that are found in a registry.
    pub(super) namespace: Namespace,
    pub(super) clock: Arc<ServerClock>,
    pub(super) pipeline: Pipeline,
    pub(super) reading: Arc<Heartbeat>,
    pub(super) blocked: Arc<BlockedRead>,
    /// Reads over a connection that several slots share. These reads never block. `None` if this
    /// fetch has a separate connection.
    pub(super) woken: Option<WokenReader>,
    pub(super) max_in_flight: usize,
    /// The order of the deliveries, if this consumer owns its partition.
    pub(super) order: Option<Arc<KeyOrder>>,
    pub(super) pauses: Arc<PauseSignal>,
    pub(super) in_flight: Arc<InFlightTable>,
    /// The maximum number of deliveries in flight, summed over all workers of the group. `None`
    /// without a limit.
    pub(super) group_limit: Option<usize>,
    pub(super) closed: CancellationToken,
}

/// Fetches deliveries.
pub(super) struct Fetch {
    parts: FetchParts,
    set: ReadSet,
    connection: Option<BlockingConnection>,
    /// Set once a connection was made.
    has_connected: bool,
    /// Set if the next read must not block, since there may be entries already.
    ///
    /// With one stream, the flag is set while the retry stream may have more entries. The retry
    /// stream is then read alone, since a read of two streams returns up to twice as many entries
    /// as requested. With several streams, the flag is set while any of them may have entries.
    poll_first: bool,
    /// Set from a refused read of several streams until the stream that caused the refusal is
    /// found.
    finding_refused_stream: bool,
    /// Set if the last read returned as many entries as requested, so that there are probably more.
    was_full: bool,
    /// Set if the entries that were fetched last were recovered, not read.
    fetched_by_recovery: bool,
    /// Set if the entries that were fetched last were recovered or claimed, so that there may be
    /// more of them.
    fetched_by_recovery_or_claim: bool,
    /// The read that was sent before the entries of the last read were handled.
    ahead: Option<AheadRead>,
    /// Until this time reads do not wait for settlements.
    no_waits_until: Option<Instant>,
    /// The time of the next search for entries of former owners of the partition.
    inherits_at: Instant,
    /// Until this time a read that a former owner of the partition has sent may be carried out.
    late_reads_until: Instant,
    /// The id of the lost connection, whose read may still wait on the server; 0 if there is none.
    lost_connection: i64,
    /// The index for the next stream that is added.
    next_index: u32,
    /// Set if the last read found that the group has reached its limit.
    at_limit: bool,
    /// Set if the entries that were read last exceed the limit of the group.
    over_limit: bool,
    /// The number of changes of pauses that were seen before the current read.
    pause_count: u64,
    outage: Outage,
}

/// The connection of the fetch, whose reads may block.
struct BlockingConnection {
    inner: Connection,
    /// The connection's id, with which another connection can end a blocked read. 0 if unknown.
    id: i64,
}

impl BlockingConnection {
    /// Sends an encoded command. If the command calls a script that the server does not know, sends
    /// it again with the script's source.
    async fn read(
        &mut self,
        command: &Vec<u8>,
        script: Option<&'static Script>,
    ) -> RedisResult<Value> {
        let response = self.inner.command(command).await?;
        match script {
            Some(script) if error::code(&response) == Some("NOSCRIPT") => {
                self.inner.command(&script.with_text(command)).await
            }
            _ => Ok(response),
        }
    }
}

/// A read of one stream or of several.
struct ReadCommand {
    cmd: Cmd,
    /// The maximum number of entries that the read requests.
    room: usize,
    kind: ReadKind,
}

/// The kind of a read. It decides how the response is decoded.
enum ReadKind {
    /// One `XREADGROUP` of all streams.
    Plain,
    /// One `XREADGROUP` of some of the streams, between calls of the script.
    Part,
    /// The script that reads several streams in this order.
    Script(Vec<u32>),
}

impl ReadCommand {
    fn script(&self) -> Option<&'static Script> {
        matches!(self.kind, ReadKind::Script(_)).then_some(&scripts::FETCH)
    }
}

impl Fetch {
    pub(super) fn new(mut parts: FetchParts) -> Self {
        let schedule = std::mem::take(&mut parts.schedule);
        let set = ReadSet::new(parts.streams.clone(), schedule);
        Self {
            next_index: set.len() as u32,
            late_reads_until: Instant::now() + LATE_READ_LEASES * parts.member.lease,
            at_limit: false,
            over_limit: false,
            pause_count: 0,
            set,
            parts,
            connection: None,
            has_connected: false,
            poll_first: true,
            finding_refused_stream: false,
            was_full: false,
            fetched_by_recovery: false,
            fetched_by_recovery_or_claim: false,
            ahead: None,
            no_waits_until: None,
            inherits_at: Instant::now(),
            lost_connection: 0,
            outage: Outage::default(),
        }
    }

    /// Returns `true` if there is a single listed stream, which plain commands read.
    fn reads_one_stream(&self) -> bool {
        self.parts.changes.is_none() && self.set.len() == 1 && self.parts.group_limit.is_none()
    }

    /// Fetches until the source is stopped. A read is never cancelled, since it may have claimed
    /// entries.
    pub(super) async fn run(mut self) {
        loop {
            let (mut sent_at, mut fetched) = match self.ahead.take() {
                Some(ahead) => (ahead.sent_at, self.finish_ahead(ahead).await),
                None => {
                    let room = match self.next_demand().await {
                        Some(Demand::Deliveries(room)) => match self.room_in_order(room).await {
                            Some(room) => room,
                            None => continue,
                        },
                        Some(Demand::Release(surplus)) => {
                            release(surplus).await;
                            continue;
                        }
                        Some(Demand::Stop) => break,
                        None => {
                            self.recover_without_demand().await;
                            continue;
                        }
                    };
                    self.parts.reading.begin();
                    (Instant::now(), self.fetch(room).await)
                }
            };
            // Other workers may have claimed the entries of a late response.
            if sent_at.elapsed() > self.parts.member.lease / 2 {
                sent_at = Instant::now();
                fetched = match fetched {
                    Ok(entries) => self.parts.recovery.retain_owned(entries).await,
                    Err(error) => Err(error),
                };
            }
            if let Ok(entries) = fetched {
                fetched = self.drop_after_late_read(entries).await;
            }
            self.parts.reading.end(fetched.is_ok());
            match fetched {
                Ok(entries) => {
                    self.outage.succeeded();
                    if !entries.is_empty() {
                        self.read_clock().await;
                    }
                    self.set.note_entries(&entries);
                    self.read_ahead(entries.len());
                    let deliveries = self.deliver(entries, sent_at).await;
                    let waits = self.expect_settlements(deliveries.len());
                    self.put(deliveries);
                    if waits {
                        self.acknowledge().await;
                    }
                }
                Err(error) => {
                    if let Some(woken) = &mut self.parts.woken {
                        woken.failed();
                    }
                    // Other slots must not wait for a slot that cannot be read.
                    self.parts.buffer.put(Vec::new());
                    self.handle_error(error).await;
                }
            }
        }
        if self.parts.closed.is_cancelled() {
            // The source was dropped during this read.
            release(self.parts.buffer.buffer().take_rest().0).await;
        }
    }

    /// Adds the deliveries of a fetch to the buffer.
    fn put(&self, deliveries: Vec<Delivery<RedisSettle>>) {
        let FetchParts { buffer, woken, .. } = &self.parts;
        match woken {
            Some(_) if self.fetched_by_recovery_or_claim => {
                buffer.put_and_expect(deliveries, ExpectedEntries::Many)
            }
            Some(woken) => buffer.put_and_expect(deliveries, woken.expected()),
            None => buffer.put(deliveries),
        }
    }

    /// Waits for demand. `None` if a recovery step is due first.
    async fn next_demand(&mut self) -> Option<Demand> {
        let connection = self.connection.as_mut();
        let demanded = async {
            let Some(connection) = connection else {
                return self.parts.buffer.next_step().await;
            };
            tokio::select! {
                biased;
                demand = self.parts.buffer.next_step() => demand,
                never = connection.inner.keep_authenticated() => match never {},
            }
        };
        match self.parts.recovery.next() {
            None => Some(demanded.await),
            Some(next) => timeout_at(next, demanded).await.ok(),
        }
    }

    /// Makes deliveries from entries. In an owned partition, the order keeps those that must wait
    /// for their turn.
    async fn deliver(
        &mut self,
        entries: Vec<Entry>,
        sent_at: Instant,
    ) -> Vec<Delivery<RedisSettle>> {
        let recovered = std::mem::take(&mut self.fetched_by_recovery);
        let FetchParts {
            deliverer,
            order,
            starter,
            pipeline,
            ..
        } = &self.parts;
        let is_inherited = order.is_some() && recovered;
        let deliveries = deliverer.deliver(entries, sent_at, is_inherited);
        if std::mem::take(&mut self.over_limit) {
            release(deliveries).await;
            return Vec::new();
        }
        let deliveries = match order {
            None => self.parts.pauses.settle_paused(deliveries, pipeline).await,
            Some(_) => deliveries,
        };
        let deliveries = starter.start(deliveries).await;
        let Some(order) = order else {
            return deliveries;
        };
        order.admit(deliveries, recovered)
    }

    /// Reduces the demand to the number that the order of an owned partition allows. If there are
    /// released deliveries, hands these out again and returns `None`. If the order allows no fetch,
    /// waits until the order has changed, and returns `None`.
    async fn room_in_order(&mut self, room: usize) -> Option<usize> {
        let FetchParts { order, buffer, .. } = &self.parts;
        let Some(order) = order else {
            return Some(room);
        };
        let ready = order.take_ready(room);
        let allowed = room.min(order.room());
        if ready.is_empty() && allowed > 0 {
            return Some(allowed);
        }
        let waits = ready.is_empty();
        buffer.put(ready);
        if waits {
            tokio::select! {
                biased;
                () = buffer.stopped() => {}
                () = order.changed() => {}
            }
        }
        None
    }

    /// Makes the entries of former owners of the partition pending for this consumer, and starts
    /// the recovery, which fetches them. Returns their number. Repeated once per lease, since a
    /// former owner's read may run late on the server.
    async fn inherit(&mut self) -> Result<u64, Error> {
        let FetchParts {
            order,
            member,
            streams,
            pipeline,
            report,
            ..
        } = &self.parts;
        let Some(order) = order
            .as_ref()
            .filter(|_| self.inherits_at <= Instant::now())
        else {
            return Ok(0);
        };
        let mut inherited = 0;
        for stream in streams.all().iter() {
            // At the same time, since every read of a young term waits for this.
            let group = (&**member, pipeline);
            let both = stream.both();
            let both = both.map(|which| inherit_from(group, order, stream, which));
            for found in join_all(both).await {
                let Some(count) = found? else {
                    order.break_off();
                    return Ok(0);
                };
                inherited += count;
            }
            if inherited > 0 {
                report.counters.claimed.add(inherited);
                let (stream, group) = (&stream.keys.stream, &member.group);
                tracing::info!(%stream, %group, inherited, "took over deliveries of former owners of the partition");
            }
        }
        self.inherits_at = Instant::now() + member.lease;
        if inherited > 0 {
            self.parts.recovery.begin();
        }
        Ok(inherited)
    }

    /// Returns the entries of a read, unless a former owner's read was carried out after the term
    /// began. That read may have taken earlier entries with the same keys. In that case breaks off
    /// the order and returns no entries: the next term inherits all entries in their order.
    async fn drop_after_late_read(&mut self, entries: Vec<Entry>) -> Result<Vec<Entry>, Error> {
        let now = Instant::now();
        let Some(order) = self.parts.order.clone() else {
            return Ok(entries);
        };
        if entries.is_empty() || self.fetched_by_recovery || now > self.late_reads_until {
            return Ok(entries);
        }
        self.inherits_at = now;
        match self.inherit().await {
            Ok(0) => Ok(entries),
            Ok(_) => {
                order.break_off();
                Ok(Vec::new())
            }
            Err(error) => {
                // The entries are pending for this consumer.
                self.parts.recovery.begin();
                Err(error)
            }
        }
    }

    /// Recovers lost entries without demand. The buffer keeps them for a while, and then releases
    /// them.
    async fn recover_without_demand(&mut self) {
        let sent_at = Instant::now();
        let max = self.max_per_read().min(PAGE_LEN);
        match self.parts.recovery.recover(max).await {
            Ok(entries) => {
                self.fetched_by_recovery = true;
                self.fetched_by_recovery_or_claim = !entries.is_empty();
                let found = self.deliver(entries, sent_at).await;
                self.put(found);
            }
            Err(error) => self.handle_error(error).await,
        }
    }

    /// Fetches entries for a demand of `room`. Tries lost entries first, then entries of other
    /// consumers, then new entries.
    async fn fetch(&mut self, room: usize) -> Result<Vec<Entry>, Error> {
        self.was_full = false;
        self.fetched_by_recovery_or_claim = false;
        self.pause_count = self.parts.pauses.change_count();
        if self.set.is_paused() {
            let longest = self.parts.member.max_block();
            self.wait_for_streams(longest).await;
            return Ok(Vec::new());
        }
        self.change_streams().await;
        self.inherit().await?;
        // After a lost connection, the server may be a new primary that lacks acknowledgements.
        if self
            .parts
            .woken
            .as_ref()
            .is_some_and(WokenReader::take_lost)
        {
            self.parts.recovery.begin();
        }
        if self.parts.recovery.is_due() {
            let room = room.min(self.max_per_read());
            let lost = self.parts.recovery.recover(room).await?;
            if !lost.is_empty() {
                self.fetched_by_recovery = true;
                self.fetched_by_recovery_or_claim = true;
                return Ok(lost);
            }
        }
        let claimed = match self.parts.order {
            None => self.claim(room).await,
            // The owner of a partition takes the entries of former owners with `inherit`.
            Some(_) => Vec::new(),
        };
        if !claimed.is_empty() {
            self.fetched_by_recovery_or_claim = true;
            return Ok(claimed);
        }
        match self.parts.group_limit {
            Some(limit) => self.read_within(limit, room).await,
            None if self.reads_one_stream() => self.read_one(room).await,
            None => self.read_set(room).await,
        }
    }

    /// Reads as many entries as the limit of the group admits.
    async fn read_within(&mut self, limit: usize, room: usize) -> Result<Vec<Entry>, Error> {
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
            .flat_map(|stream| [stream.keys.retry.clone(), stream.keys.primary.to_string()])
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

    /// Claims entries of one stream if its scan is due.
    async fn claim(&mut self, room: usize) -> Vec<Entry> {
        let part = room.min(self.max_per_read());
        let claimer = &self.parts.claimer;
        let until = claimer.may_claim_until();
        let scan = self.set.due_scan(claimer, until.is_some());
        let Some((scan, until)) = scan.zip(until) else {
            return Vec::new();
        };
        match scan.claim(claimer, until, part).await {
            Ok(claimed) => claimed,
            // The error is not returned: a server that is out of memory refuses the scan, but still
            // serves reads.
            Err(error) => {
                // The entries may have been claimed although the command failed.
                self.parts.recovery.begin();
                tracing::warn!(
                    error = error.chain(),
                    "cannot claim deliveries of other workers; trying again later"
                );
                Vec::new()
            }
        }
    }

    /// Reads the only stream.
    async fn read_one(&mut self, room: usize) -> Result<Vec<Entry>, Error> {
        let stream = self.set.first_mut().stream.clone();
        let (retry, primary) = (&*stream.keys.retry, &*stream.keys.primary);
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
    async fn read_set(&mut self, room: usize) -> Result<Vec<Entry>, Error> {
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
            .flat_map(|stream| [&*stream.keys.retry, &*stream.keys.primary]);
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
            woken.note(!entries.is_empty(), entries.len() >= count);
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
    fn next_command(&mut self, room: usize) -> Option<ReadCommand> {
        let room = room.min(self.max_per_read());
        if self.reads_one_stream() {
            let stream = self.set.first_mut().stream.clone();
            let keys = [&*stream.keys.primary, &*stream.keys.retry];
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

    /// Applies the changes in the registry to the set of streams.
    async fn change_streams(&mut self) {
        let changes = self.parts.changes.as_ref().map(|changes| changes.take());
        for change in changes.unwrap_or_default() {
            self.poll_first = true;
            match change {
                RegistryChange::Found(name) => {
                    let FetchParts {
                        namespace, member, ..
                    } = &self.parts;
                    let keys = match Keys::new(namespace, &name, &member.group) {
                        Ok(keys) => keys,
                        Err(error) => {
                            let error = error.chain();
                            tracing::warn!(stream = %Shown::new(&name), error, "a registered stream cannot be served");
                            continue;
                        }
                    };
                    let stream = Arc::new(ServedStream::new(self.next_index, keys, 1));
                    self.next_index += 1;
                    self.set.add(stream.clone());
                    self.parts.settler.due.set(stream.index, Duration::ZERO);
                    if let Err(error) = self.parts.group.join(&stream).await {
                        self.leave_out(&stream, &error.chain());
                    }
                }
                RegistryChange::Retired(name) => {
                    if let Some(stream) = self.set.remove(&name)
                        && let Err(error) = self.parts.group.leave(&stream).await
                    {
                        let error = error.chain();
                        tracing::debug!(stream = %name, error, "the consumer of a retired stream stays in its group");
                    }
                }
            }
        }
    }

    /// Waits until there may be a stream to read.
    async fn wait_for_streams(&mut self, longest: Duration) {
        let changed = async {
            match &self.parts.changes {
                Some(changes) => changes.arrived().await,
                None => std::future::pending().await,
            }
        };
        self.parts.reading.end(true);
        // Leaves the demand to the fetches of other slots during the wait.
        self.parts.buffer.put(Vec::new());
        tokio::select! {
            biased;
            () = self.parts.buffer.stopped() => {}
            () = changed => {}
            () = self.parts.pauses.wait() => {}
            () = tokio::time::sleep(longest) => {}
        }
        self.parts.reading.begin();
    }

    /// Tries to join the group again on streams that could not be read.
    async fn try_failing_again(&mut self) {
        for stream in self.set.to_try_again() {
            match self.parts.group.join(&stream).await {
                Ok(()) => {
                    self.set.mark_readable(stream.index);
                    tracing::info!(stream = %stream.keys.stream, "the stream is read again");
                }
                Err(error) => self.leave_out(&stream, &error.chain()),
            }
        }
    }

    /// Skips a stream that cannot be read, so that the other streams are still read.
    fn leave_out(&mut self, stream: &ServedStream, error: &str) {
        if let Some(withheld) = self.set.skip(stream.index) {
            tracing::warn!(
                stream = %stream.keys.stream,
                error,
                withheld,
                "the stream cannot be read; trying again, and reading the other streams meanwhile"
            );
        }
    }

    /// Returns `true` if a recovery step, a scan, or a read of the retry stream is due before the
    /// next read.
    fn is_busy_otherwise(&mut self) -> bool {
        let claimer = &self.parts.claimer;
        let may_claim = claimer.may_claim_until().is_some();
        (self.poll_first && self.reads_one_stream())
            || self.parts.recovery.is_due()
            || self.set.has_due_scan(&self.parts.claimer, may_claim)
    }

    /// Updates the state for the next read after a read that requested `count` entries.
    fn note_read(&mut self, count: usize, entries: &[Entry]) {
        if self.reads_one_stream() {
            self.poll_first = entries.iter().any(|entry| entry.which.is_retry());
        }
        self.was_full = entries.len() >= count;
    }

    /// Returns the maximum number of entries of one read. With this limit, one part of the demand
    /// is fetched while another is handled and a third is acknowledged. Besides, a large response
    /// takes long to arrive, and its entries are not in the in-flight table until then.
    fn max_per_read(&mut self) -> usize {
        let max = self.parts.max_in_flight.div_ceil(4).max(MIN_PER_READ);
        match self.reads_one_stream() {
            true => self.set.first_mut().size.fit(max),
            // The script itself limits the bytes of its response.
            false => max,
        }
    }

    /// Reads Redis's clock if no tick of the upkeep has read it lately. In that case the server was
    /// probably paused, and its clock may have stepped. With the old reading, new requests could
    /// look expired.
    async fn read_clock(&mut self) {
        let FetchParts {
            clock,
            member,
            pipeline,
            ..
        } = &self.parts;
        if clock.age_of_reading() > member.max_between_renewals() {
            let time = pipeline.command(redis::cmd("TIME"), Resend::Never).await;
            if let Err(error) = time.and_then(|time| clock.set(time)) {
                tracing::warn!(error = error.chain(), "Redis's clock could not be read");
            }
        }
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

    /// Sends a read and returns its entries. Connects first if there is no connection.
    async fn run_read(
        &mut self,
        command: &ReadCommand,
        block: Option<Duration>,
    ) -> Result<Vec<Entry>, Error> {
        // A connection that several slots share.
        if let Some(woken) = &self.parts.woken {
            let response = woken.read(&command.cmd, command.script());
            let response = tokio::select! {
                biased;
                response = response => response,
                never = self.parts.recovery.renew_arriving(|| true) => match never {},
            };
            if response.as_ref().is_err_and(Error::is_unknown_outcome) {
                self.parts.recovery.begin();
            }
            return self.decode_entries(command, response?).await;
        }
        if self.connection.is_none() {
            self.connection = Some(self.connect().await?);
            if std::mem::replace(&mut self.has_connected, true) {
                self.parts.report.counters.reconnects.increment();
            }
        }
        let parts = &self.parts;
        let connection = self.connection.as_mut().expect("made just above");
        let id = connection.id;
        if block.is_some() {
            parts.blocked.set(id);
            // From here on, a stop or a change ends this read. The check finds a stop or a change
            // that came before.
            let is_changed = parts.changes.as_ref().is_some_and(|it| !it.is_empty())
                || parts.pauses.change_count() != self.pause_count;
            if parts.buffer.is_stopped() || is_changed {
                parts.blocked.set(0);
                return Ok(Vec::new());
            }
            parts.buffer.set_reading(true);
        }
        // Waits for the response. `end_overrun` ends a read that blocks for too long.
        let limit = block.unwrap_or_default() + GRACE;
        let progress = connection.inner.progress();
        let encoded = command.cmd.get_packed_command();
        let response = async {
            let response = connection.read(&encoded, command.script());
            let Some(block) = block else {
                return response.await;
            };
            tokio::select! {
                biased;
                response = response => response,
                never = parts.blocked.end_overrun(id, block) => match never {},
            }
        };
        let response = tokio::select! {
            biased;
            response = progress.watch(limit, GRACE, response) => response,
            never = parts.recovery.renew_arriving(progress.watched()) => match never {},
        };
        parts.blocked.set(0);
        parts.buffer.set_reading(false);
        let response = self.check_arrival(response)?;
        self.decode_entries(command, response).await
    }

    /// Returns the response. If there is none, drops the connection and returns the error.
    /// `response` is `Elapsed` if no response came in time.
    fn check_arrival(
        &mut self,
        response: Result<RedisResult<Value>, Elapsed>,
    ) -> Result<Value, Error> {
        match response {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(cause)) => Err(self.lose_connection().with_source(cause)),
            Err(_) => Err(self.lose_connection()),
        }
    }

    /// Decodes the entries of a response.
    async fn decode_entries(
        &mut self,
        command: &ReadCommand,
        response: Value,
    ) -> Result<Vec<Entry>, Error> {
        // This is no failure: a key was deleted, or another client sent `CLIENT UNBLOCK`.
        if error::code(&response) == Some("UNBLOCKED") {
            self.poll_first |= !self.reads_one_stream();
            return Ok(Vec::new());
        }
        let response = match self.checked(response) {
            // One of the streams caused the error. The script finds this stream.
            Err(error) if error.is_refused() && matches!(command.kind, ReadKind::Part) => {
                self.set.note_plain(0, command.room);
                return Ok(Vec::new());
            }
            response => response?,
        };
        let read = match command.kind {
            ReadKind::Plain | ReadKind::Part => Ok((response, Vec::new(), false)),
            ReadKind::Script(_) => split_script_response(response),
        };
        let names = self.set.names();
        let read = read.and_then(|(found, failed, at_limit)| {
            let entries = entry::decode(found, |name| names.get(name))?;
            Ok((entries, failed, at_limit))
        });
        let (entries, failed, at_limit) = match read {
            Ok(read) => read,
            Err(error) => {
                // The response's entries are pending for this consumer, but could not be decoded.
                self.parts.recovery.begin();
                return Err(error);
            }
        };
        self.at_limit = at_limit;
        let order = match &command.kind {
            ReadKind::Plain => &[][..],
            ReadKind::Part => {
                self.set.note_plain(entries.len(), command.room);
                &[]
            }
            ReadKind::Script(order) => {
                self.set.note_script(entries.len());
                order
            }
        };
        if !order.is_empty() && (!failed.is_empty() || !entries.is_empty()) {
            self.finding_refused_stream = false;
        }
        for (number, error) in failed {
            if let Some(index) = order.get(number) {
                self.handle_stream_error(*index, &error).await;
            }
        }
        Ok(entries)
    }

    /// Handles the error of one of several streams: creates a deleted group again, or skips the
    /// stream.
    async fn handle_stream_error(&mut self, index: u32, error: &str) {
        let Some(stream) = self.parts.streams.get(index) else {
            return;
        };
        if !error.contains("NOGROUP") {
            return self.leave_out(&stream, error);
        }
        match self.parts.group.rejoin(&stream).await {
            Ok(()) => rejoined(&stream),
            Err(error) => self.leave_out(&stream, &error.chain()),
        }
    }

    /// Drops the connection, and returns the error. Starts a recovery, since entries of the last
    /// read may be pending for this consumer and not in flight.
    fn lose_connection(&mut self) -> Error {
        let lost = self.connection.take();
        self.lost_connection = lost.map_or(0, |connection| connection.id);
        self.parts.recovery.begin();
        error::unanswered(&self.parts.connector.address())
    }

    /// Returns the response, or the server's error as an `Err`. Drops the connection if the server
    /// was demoted.
    fn checked(&mut self, response: Value) -> Result<Value, Error> {
        if let Value::ServerError(refusal) = &response
            && error::is_demoted(refusal)
        {
            // A new connection finds the new primary.
            self.connection = None;
        }
        error::check(response)
    }

    /// Connects. Gives up when the buffer is stopped.
    async fn connect(&mut self) -> Result<BlockingConnection, Error> {
        if self.parts.order.is_some() {
            // The read of the lost connection may still be blocked on the server, and would take
            // entries that belong to the next read.
            self.parts.blocked.unblock(self.lost_connection).await;
            self.lost_connection = 0;
        }
        let connecting = async {
            let mut inner = self.parts.connector.connection().await?;
            let id = redis::cmd("CLIENT").arg("ID").to_owned();
            // Without permission for `CLIENT ID`, a blocked read runs until its `BLOCK` ends.
            let id = timeout(GRACE, inner.command(&id)).await;
            let id = id.ok().and_then(Result::ok);
            let id = id.and_then(|id| integer(&id).ok());
            Ok(BlockingConnection {
                inner,
                id: id.unwrap_or(0),
            })
        };
        tokio::select! {
            biased;
            made = connecting => made,
            () = self.parts.buffer.stopped() => Err(Error::closed()),
        }
    }

    /// Handles an error: creates a missing group again, or waits.
    async fn handle_error(&mut self, error: Error) {
        if self.parts.buffer.is_stopped() {
            return;
        }
        if self.reads_one_stream() && has_code(&error, "NOGROUP") {
            let stream = self.set.first_mut().stream.clone();
            match self.parts.group.rejoin(&stream).await {
                Ok(()) => {
                    rejoined(&stream);
                    self.poll_first = true;
                    return;
                }
                Err(error) => self.report_failure("create the group again", &error),
            }
        } else {
            self.report_failure("read from the stream", &error);
        }
        self.parts
            .buffer
            .wait_unless_stopped(self.outage.wait())
            .await;
    }

    fn report_failure(&mut self, what: &str, error: &Error) {
        let address = self.parts.connector.address();
        self.outage.failed(&address, what, error);
    }
}

fn rejoined(stream: &ServedStream) {
    tracing::warn!(
        stream = %stream.keys.stream,
        group = %stream.keys.group,
        "the stream or its group was deleted; the group was created again, behind the last entry that it is known to have delivered, or at the beginning of an emptied stream"
    );
}

/// The entries in a response of the script, the streams that could not be read, and `true` if the
/// group has reached its limit.
type ScriptResponse = (Value, Vec<(usize, String)>, bool);

/// Splits the script's response. For each stream that could not be read, returns its position,
/// counted from 0, and its error.
pub(super) fn split_script_response(response: Value) -> Result<ScriptResponse, Error> {
    let [found, failed, at_limit] = exactly(response)?;
    let at_limit = integer(&at_limit)? == 1;
    let mut parts = array(failed)?.into_iter();
    let mut failed = Vec::new();
    while let Some(number) = parts.next() {
        let number = usize::try_from(integer(&number)? - 1);
        let number = number.map_err(|_| unexpected("the number of a stream", "another number"))?;
        let [error] = exactly(Value::Array(parts.next().into_iter().collect()))?;
        failed.push((number, String::from_utf8_lossy(&bytes(error)?).into_owned()));
    }
    Ok((Value::Array(array(found)?), failed, at_limit))
}

pub(super) fn log_unsettled(settled: impl IntoIterator<Item = Result<(), Error>>) {
    for error in settled.into_iter().filter_map(Result::err) {
        tracing::warn!(
            error = error.chain(),
            "a delivery could not be released; its lease will expire"
        );
    }
}

/// Makes the entries of one stream that are pending for former owners pending for this consumer.
/// Returns their number. `None` if the partition has another owner now.
async fn inherit_from(
    (member, pipeline): (&Member, &Pipeline),
    order: &KeyOrder,
    stream: &ServedStream,
    which: WhichStream,
) -> Result<Option<u64>, Error> {
    let owner = stream.keys.owner();
    let keys = [stream.key_of(which), owner.as_str()];
    let (mut inherited, mut from) = (0, "-".to_owned());
    while !from.is_empty() {
        let args = |cmd: &mut Cmd| {
            cmd.arg(member.group.as_str())
                .arg(&member.consumer)
                .arg(order.term.term)
                .arg(&from)
                .arg(PAGE_LEN);
        };
        let script = &scripts::INHERIT;
        let response = pipeline.script(script, &keys, args, Resend::Never).await?;
        let [count, next] = exactly(response)?;
        let Ok(count) = u64::try_from(integer(&count)?) else {
            return Ok(None);
        };
        inherited += count;
        from = String::from_utf8_lossy(&bytes(next)?).into_owned();
    }
    Ok(Some(inherited))
}

/// Releases deliveries that were not handed out.
pub(super) async fn release(deliveries: Vec<Delivery<RedisSettle>>) {
    let settle = |delivery: Delivery<RedisSettle>| delivery.settle(Verdict::Release);
    log_unsettled(join_all(deliveries.into_iter().map(settle)).await);
}

/// Returns `true` if the server's error has this code. If a command within a script failed, the
/// code is that of the command: see `error::inner_error`.
pub(super) fn has_code(error: &Error, code: &str) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<redis::RedisError>())
        .is_some_and(|source| source.code() == Some(code))
}
