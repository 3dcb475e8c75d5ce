//! The task that fetches deliveries. It recovers lost entries, claims entries of other consumers,
//! and reads new entries, in this order.

mod acknowledge;
mod ahead;
mod connection;
mod owned;
mod read;
mod recovery;
mod set;
mod streams;

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

#[cfg(any(test, fuzzing))]
pub(super) use self::connection::split_script_response;
pub(super) use self::recovery::Recovery;
use self::{
    ahead::AheadRead, connection::BlockingConnection, owned::LATE_READ_LEASES, recovery::PAGE_LEN,
    set::ReadSet, streams::log_rejoined,
};
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
    registry::RegistryChanges,
    report::Report,
    settle::RedisSettler,
    settler::Settler,
    streams::StreamSet,
    task_starter::TaskStarter,
    woken::WokenReader,
};
use crate::{
    error::Error,
    sync::LazyTimer,
    transport::{
        Delivery, StreamSchedule, Verdict,
        redis::{
            entry::Entry,
            namespace::Namespace,
            pipeline::{Pipeline, Resend},
            server::{Connector, Outage},
            source_state::Heartbeat,
        },
    },
};

/// A connection is closed if it is silent for this time after the `BLOCK` of its read. Without this
/// limit, the read could stay blocked on the server, and take entries that never arrive.
const GRACE: Duration = Duration::from_secs(5);

/// The lowest limit for the entries of one read. A lower limit would cause smaller batches of
/// acknowledgements, which in turn cause smaller reads.
const MIN_PER_READ: usize = 64;

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
    /// Ends a wait for settlements. A new timer for each wait would wake the thread that waits for
    /// I/O.
    settle_timer: LazyTimer,
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

/// The result of a fetch.
struct Fetched {
    /// The time at which the fetch was sent.
    sent_at: Instant,
    entries: Result<Vec<Entry>, Error>,
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
            settle_timer: LazyTimer::new(Duration::ZERO),
            inherits_at: Instant::now(),
            lost_connection: 0,
            outage: Outage::default(),
        }
    }

    /// Fetches until the source is stopped. A read is never cancelled, since it may have claimed
    /// entries.
    pub(super) async fn run(mut self) {
        while let Some(fetched) = self.fetch_next().await {
            match self.keep_owned(fetched).await {
                Ok((entries, sent_at)) => {
                    self.outage.record_success();
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

    /// Waits for demand and fetches once. `None` if the source is stopped.
    async fn fetch_next(&mut self) -> Option<Fetched> {
        if let Some(ahead) = self.ahead.take() {
            let sent_at = ahead.sent_at;
            let entries = self.finish_ahead(ahead).await;
            return Some(Fetched { sent_at, entries });
        }
        loop {
            let room = match self.next_demand().await {
                Some(Demand::Deliveries(room)) => self.room_in_order(room).await,
                Some(Demand::Release(surplus)) => {
                    release(surplus).await;
                    None
                }
                Some(Demand::Stop) => return None,
                None => {
                    self.recover_without_demand().await;
                    None
                }
            };
            if let Some(room) = room {
                self.parts.reading.begin();
                let sent_at = Instant::now();
                let entries = self.fetch(room).await;
                return Some(Fetched { sent_at, entries });
            }
        }
    }

    /// Drops the entries that may belong to other workers by now. Returns the others, and the time
    /// at which the command that returned them was sent.
    async fn keep_owned(&mut self, fetched: Fetched) -> Result<(Vec<Entry>, Instant), Error> {
        let Fetched {
            mut sent_at,
            mut entries,
        } = fetched;
        // Other workers may have claimed the entries of a late response.
        if sent_at.elapsed() > self.parts.member.lease / 2 {
            sent_at = Instant::now();
            entries = match entries {
                Ok(entries) => self.parts.recovery.retain_owned(entries).await,
                Err(error) => Err(error),
            };
        }
        if let Ok(fetched) = entries {
            entries = self.drop_after_late_read(fetched).await;
        }
        self.parts.reading.end(entries.is_ok());
        Ok((entries?, sent_at))
    }

    /// Adds the deliveries of a fetch to the buffer.
    fn put(&self, deliveries: Vec<Delivery<RedisSettler>>) {
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
        let next_step = self.parts.recovery.next();
        let FetchParts { buffer, woken, .. } = &self.parts;
        let connection = self.connection.as_mut();
        let demanded = async {
            let Some(connection) = connection else {
                return buffer.next_step().await;
            };
            tokio::select! {
                biased;
                demand = buffer.next_step() => demand,
                never = connection.inner.keep_authenticated() => match never {},
            }
        };
        if let Some(next_step) = next_step {
            return timeout_at(next_step, demanded).await.ok();
        }
        let Some(woken) = woken else {
            return Some(demanded.await);
        };
        // The new primary may lack acknowledgements, and this slot may not have its turn for long.
        tokio::select! {
            biased;
            demand = demanded => return Some(demand),
            () = woken.lost() => {}
        }
        self.parts.recovery.begin();
        None
    }

    /// Makes deliveries from entries. In an owned partition, the order keeps those that must wait
    /// for their turn.
    async fn deliver(
        &mut self,
        entries: Vec<Entry>,
        sent_at: Instant,
    ) -> Vec<Delivery<RedisSettler>> {
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
        let deliveries = starter.record_starts(deliveries).await;
        let Some(order) = order else {
            return deliveries;
        };
        order.admit(deliveries, recovered)
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

    /// Returns `true` if a recovery step, a scan, or a read of the retry stream is due before the
    /// next read.
    fn is_busy_otherwise(&mut self) -> bool {
        let claimer = &self.parts.claimer;
        let may_claim = claimer.may_claim_until().is_some();
        (self.poll_first && self.reads_one_stream())
            || self.parts.recovery.is_due()
            || self.set.has_due_scan(&self.parts.claimer, may_claim)
    }

    /// Returns the maximum number of entries of one read. With this limit, one part of the demand
    /// is fetched while another is handled and a third is acknowledged. Besides, a large response
    /// takes long to arrive, and its entries are not in the in-flight table until then.
    fn max_per_read(&mut self) -> usize {
        let max = self.parts.max_in_flight.div_ceil(4).max(MIN_PER_READ);
        match self.reads_one_stream() {
            true => self.set.first_mut().size.fitting_entries(max),
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

    /// Handles an error: creates a missing group again, or waits.
    async fn handle_error(&mut self, error: Error) {
        if self.parts.buffer.is_stopped() {
            return;
        }
        if self.reads_one_stream() && has_code(&error, "NOGROUP") {
            let stream = self.set.first_mut().stream.clone();
            match self.parts.group.rejoin(&stream).await {
                Ok(()) => {
                    log_rejoined(&stream);
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
            .wait_unless_stopped(self.outage.delay())
            .await;
    }

    fn report_failure(&mut self, what: &str, error: &Error) {
        let address = self.parts.connector.address();
        self.outage.record_failed_attempt(&address, what, error);
    }
}

pub(super) fn log_unsettled(settled: impl IntoIterator<Item = Result<(), Error>>) {
    for error in settled.into_iter().filter_map(Result::err) {
        tracing::warn!(
            error = error.chain(),
            "a delivery could not be released; its lease will expire"
        );
    }
}

/// Releases deliveries that were not handed out.
pub(super) async fn release(deliveries: Vec<Delivery<RedisSettler>>) {
    let settle = |delivery: Delivery<RedisSettler>| delivery.settle(Verdict::Release);
    log_unsettled(join_all(deliveries.into_iter().map(settle)).await);
}

/// Returns `true` if the server's error has this code. If a command within a script failed, the
/// code is that of the command: see `error::inner_error`.
pub(super) fn has_code(error: &Error, code: &str) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<redis::RedisError>())
        .is_some_and(|source| source.code() == Some(code))
}
