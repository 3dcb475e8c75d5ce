//! Claims deliveries whose consumers no longer renew their leases.

use std::{sync::Arc, time::Duration};

use redis::Cmd;
use tokio::time::Instant;

use super::{
    health::RenewalHealth,
    in_flight::InFlightTable,
    member::Member,
    poison::{self, PoisonSlot},
    reply_to::{ReplyRoute, ReplyTo},
    report::Report,
    streams::ServedStream,
};
use crate::{
    error::{Error, RpcError},
    message::Name,
    transport::redis::{
        entry::{self, Entry, StreamEntryId, WhichStream},
        keys::CONSUMER_PREFIX,
        pipeline::{Pipeline, Resend},
        producer::Publish,
        response::{Value, array, bytes, count, exactly, unexpected},
        scripts,
    },
};

/// The most steps of a scan before new entries are read again.
const MAX_STEPS: usize = 64;

/// Runs the steps of a scan on the server.
pub(super) struct Claimer {
    pub(super) member: Arc<Member>,
    pub(super) pipeline: Pipeline,
    pub(super) in_flight: Arc<InFlightTable>,
    pub(super) health: Arc<RenewalHealth>,
    pub(super) poison: PoisonSlot,
    pub(super) report: Arc<Report>,
    pub(super) foreign_lease: Duration,
    pub(super) max_deliveries: u32,
    pub(super) max_dead_letters: usize,
    pub(super) allowed_reply_prefixes: Vec<Name>,
}

/// Scans the group's pending entries on one stream and its retry stream. A scan runs between two
/// reads, and claims only as much as there is demand for, so every claimed delivery can start
/// immediately.
pub(super) struct Scan {
    stream: Arc<ServedStream>,
    /// The time from which the next scan may start.
    next: Instant,
    /// The position at which the scan continues; `None` if the scan has reached the end.
    position: Option<(WhichStream, String)>,
    /// The position of the first poison candidate that was skipped because this worker already runs
    /// another one.
    left: Option<(WhichStream, String)>,
    /// Set while the scan continues from `left`. Such a scan ends when it has claimed a poison
    /// candidate.
    resumed: bool,
    /// Idle entries that are pending for this consumer. The next scan claims those that are not in
    /// flight.
    mine: Vec<(WhichStream, StreamEntryId)>,
    /// Set while the server refuses dead letters, so that the refusal is logged only once.
    refused: bool,
}

/// The result of one step of the scan.
#[derive(Debug)]
pub(super) struct ScanStep {
    /// The start of the next step; empty at the end.
    cursor: String,
    /// The entries that were claimed.
    taken: Vec<Entry>,
    /// The number of pending entries that were deleted from the stream.
    deleted: u64,
    /// Entries that became dead letters, with only the fields of the reply address.
    dead: Vec<Entry>,
    /// The number of older dead letters that were removed to make room.
    dropped: u64,
    /// The first poison candidate that was skipped; empty if there was none.
    left: String,
    /// Idle entries that are pending for this consumer.
    mine: Vec<StreamEntryId>,
    /// The server's error when it refused dead letters; empty if there was none.
    refused: String,
    /// The consumers from which entries were taken, in the order of `taken`.
    from: Vec<String>,
}

impl ScanStep {
    /// Decodes the script's response. `None` if the scan was throttled, or ran too late.
    pub(super) fn read(answer: Value, which: WhichStream) -> Result<Option<Self>, Error> {
        if answer == Value::Nil {
            return Ok(None);
        }
        let [
            cursor,
            taken,
            deleted,
            dead,
            dropped,
            left,
            mine,
            refused,
            from,
        ] = exactly(answer)?;
        let lossy = |text| Ok(String::from_utf8_lossy(&bytes(text)?).into_owned());
        let text = |text: Value, what| {
            String::from_utf8(bytes(text)?.into()).map_err(|_| unexpected(what, "another text"))
        };
        Ok(Some(Self {
            cursor: text(cursor, "a cursor")?,
            taken: entry::claimed(taken, which)?,
            deleted: count(&deleted)?,
            dead: entry::claimed(dead, which)?,
            dropped: count(&dropped)?,
            left: text(left, "an id")?,
            mine: entry::ids(mine)?,
            refused: lossy(refused)?,
            from: array(from)?
                .into_iter()
                .map(lossy)
                .collect::<Result<_, Error>>()?,
        }))
    }
}

impl Scan {
    pub(super) fn new(stream: Arc<ServedStream>) -> Self {
        Self {
            stream,
            next: Instant::now(),
            position: None,
            left: None,
            resumed: false,
            mine: Vec::new(),
            refused: false,
        }
    }

    /// Returns `true` if a scan is due. `may_claim` is `false` while [`Claimer::until`] is `None`:
    /// the scan then restarts at the beginning.
    pub(super) fn is_due(&mut self, claimer: &Claimer, may_claim: bool) -> bool {
        if !may_claim {
            self.position = None;
            return false;
        }
        if self.position.is_none() {
            self.resumed = false;
            if self.left.is_some() && !claimer.poison.is_taken() {
                self.position = self.left.take();
                self.resumed = true;
            }
        }
        self.position.is_some() || (self.stream.has_pending() && Instant::now() >= self.next)
    }

    /// Runs the next steps of the scan, and claims at most `room` deliveries. A step that Redis
    /// runs after `until`, on its own clock, claims nothing.
    pub(super) async fn claim(
        &mut self,
        claimer: &Claimer,
        until: i64,
        room: usize,
    ) -> Result<Vec<Entry>, Error> {
        let mut taken = Vec::new();
        // A scan that continues is not throttled.
        let mut throttle = self.position.is_none();
        let from_start = throttle;
        // Set before the steps, so that a failed scan is not repeated immediately.
        self.next = Instant::now() + claimer.member.interval();
        if throttle {
            self.left = None;
        }
        let mut mine = std::mem::take(&mut self.mine);
        mine.retain(|key| !claimer.in_flight.contains(*key));
        let mut refused = String::new();
        let [retry, primary] = self.stream.both();
        let start = || (primary, "-".to_owned());
        let (mut which, mut cursor) = self.position.take().unwrap_or_else(start);
        for _ in 0..MAX_STEPS {
            if taken.len() >= room {
                self.position = Some((which, cursor));
                return Ok(taken);
            }
            let place = (&*self.stream, which, &*cursor);
            let step = claimer.step(place, room - taken.len(), throttle, until, &mine);
            let step = match step.await {
                Ok(step) => step,
                // Return the entries that were claimed before the error. The next scan starts from
                // the beginning.
                Err(error) if taken.is_empty() => return Err(error),
                Err(_) => return Ok(taken),
            };
            let Some(step) = step else { return Ok(taken) };
            throttle = false;
            let has_candidate = step
                .taken
                .iter()
                .any(|entry| poison::is_candidate(entry.deliveries));
            if !step.left.is_empty() {
                self.left.get_or_insert((which, step.left));
            }
            self.mine
                .extend(step.mine.into_iter().map(|id| (which, id)));
            self.report_refused(&step.refused, &mut refused);
            taken.extend(step.taken);
            if has_candidate && self.resumed {
                // No other candidate can be claimed now, and the earlier scan has seen the rest of
                // the list.
                if !step.cursor.is_empty() {
                    self.left.get_or_insert((which, step.cursor));
                } else if which == primary {
                    self.left.get_or_insert((retry, "-".to_owned()));
                }
                return Ok(taken);
            }
            cursor = match (step.cursor.is_empty(), which) {
                (false, _) => step.cursor,
                (true, WhichStream::Primary(_)) => {
                    which = retry;
                    "-".to_owned()
                }
                (true, WhichStream::Retry(_)) => {
                    // Only a scan of the whole list shows that dead letters are accepted again.
                    self.refused &= !from_start || !refused.is_empty();
                    return Ok(taken);
                }
            };
        }
        // The next call continues here. A list that is longer than [`MAX_STEPS`] would otherwise
        // never be scanned to its end.
        self.position = Some((which, cursor));
        Ok(taken)
    }

    /// Logs the refusal of a dead letter, but only once until dead letters are accepted again.
    fn report_refused(&mut self, error: &str, refused: &mut String) {
        if error.is_empty() {
            return;
        }
        error.clone_into(refused);
        if !std::mem::replace(&mut self.refused, true) {
            tracing::warn!(
                stream = %self.stream.keys.stream,
                group = %self.stream.keys.group,
                error,
                "Redis refuses a dead letter; its entry stays pending and is tried again"
            );
        }
    }
}

impl Claimer {
    /// Returns the time on Redis's clock, in milliseconds, until which a scan may run. `None` while
    /// this consumer may not claim.
    pub(super) fn until(&self) -> Option<i64> {
        // After Redis was paused, every consumer looks silent. Only a consumer that has renewed its
        // own leases for a whole lease knows that another one has not renewed its leases.
        let max_between = self.member.max_between_renewals();
        let healthy = self.health.lasts(max_between) >= self.member.lease;
        self.health.until(max_between).filter(|_| healthy)
    }

    /// Runs one step of the scan. A server that was paused runs old commands when it continues, so
    /// a step that runs after `until` on Redis's clock has no effect. `None` if the step was too
    /// late or throttled.
    async fn step(
        &self,
        (stream, which, cursor): (&ServedStream, WhichStream, &str),
        room: usize,
        throttle: bool,
        until: i64,
        mine: &[(WhichStream, StreamEntryId)],
    ) -> Result<Option<ScanStep>, Error> {
        let throttle_key = stream.keys.throttle("scan");
        let keys = [stream.key_of(which), &throttle_key, &stream.keys.dead];
        // The throttle lasts a little less than the interval. Otherwise the worker that has set it
        // would find it still set at its own next scan.
        let throttled_for =
            throttle.then(|| (self.member.interval().as_millis() * 9 / 10).to_string());
        let candidates = !self.poison.is_taken();
        let healthy = self.health.lasts(self.member.max_between_renewals());
        let args = |cmd: &mut Cmd| {
            cmd.arg(self.member.group.as_str())
                .arg(&self.member.consumer)
                .arg(which.flag())
                .arg(cursor)
                .arg(self.member.lease.as_millis() as u64)
                .arg(self.foreign_lease.as_millis() as u64)
                .arg(CONSUMER_PREFIX)
                .arg(room)
                .arg(u8::from(candidates))
                .arg(self.max_deliveries)
                .arg(self.max_dead_letters)
                .arg(throttled_for.as_deref().unwrap_or_default())
                .arg(until)
                .arg(healthy.as_millis() as u64);
            for (_, id) in mine.iter().filter(|(of, _)| *of == which) {
                cmd.arg(*id);
            }
        };
        let answer = self
            .pipeline
            .script(&scripts::CLAIM, &keys, args, Resend::Never)
            .await?;
        let Some(mut step) = ScanStep::read(answer, which)? else {
            return Ok(None);
        };
        self.report.claimed(stream, &step.taken, &step.from);
        if step
            .taken
            .iter()
            .any(|entry| poison::is_candidate(entry.deliveries))
        {
            self.poison.take();
        }
        if step.deleted > 0 {
            self.report.deleted(step.deleted);
        }
        self.report.letters_dropped(stream, step.dropped);
        for entry in step.dead.drain(..) {
            let reason = "its deliveries were used up by dead workers";
            self.report.counters.dead.increment();
            self.report
                .never_settled(stream, entry.id, entry.deliveries, reason);
            self.answer_dead(stream, entry.id, ReplyTo::of_fields(&entry.fields));
        }
        Ok(Some(step))
    }

    /// Replies with an error to a request that became a dead letter.
    fn answer_dead(&self, stream: &ServedStream, id: StreamEntryId, address: Option<ReplyTo>) {
        let Some(address) = address else { return };
        let answer = Err(RpcError::unavailable("the request could not be handled"));
        let envelope = address.envelope(&answer);
        let retry = Resend::UntilAnswered;
        let answered = match address.route(&stream.keys, &self.allowed_reply_prefixes) {
            ReplyRoute::Store(replies) => {
                let mut cmd = redis::cmd("XADD");
                cmd.arg(replies)
                    .arg("NOMKSTREAM")
                    .arg("*")
                    .arg("r")
                    .arg(envelope);
                self.pipeline.submit(cmd, retry)
            }
            ReplyRoute::Publish(channel) => self
                .pipeline
                .submit(Publish::new(&channel[..], &envelope), retry),
            ReplyRoute::Nowhere => return self.report.unanswerable(id),
        };
        // The pipeline sends a command even if its caller does not wait for the response.
        drop(answered);
    }
}
