//! Claims deliveries whose consumers no longer renew their leases.
//!
//! A *scan* visits all pending entries of the group on a stream and on its retry stream. A scan
//! runs in *steps*. Each step is one script call, which visits one page of the pending entries. A
//! *poison candidate* is an entry that may have crashed several workers. A worker runs one
//! candidate at a time.

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
        producer::PublishCommand,
        response::{Value, array, bytes, count, fixed_array, unexpected},
        scripts,
    },
};

/// The maximum number of steps before new entries are read again.
const MAX_STEPS: usize = 64;

/// Runs the steps of a scan on the server.
pub(super) struct Claimer {
    pub(super) member: Arc<Member>,
    pub(super) pipeline: Pipeline,
    pub(super) in_flight: Arc<InFlightTable>,
    pub(super) health: Arc<RenewalHealth>,
    pub(super) poison: PoisonSlot,
    pub(super) report: Arc<Report>,
    /// The assumed lease of consumers of other libraries.
    pub(super) foreign_lease: Duration,
    pub(super) max_deliveries: u32,
    pub(super) max_dead_letters: usize,
    pub(super) allowed_reply_prefixes: Vec<Name>,
}

/// The scans of one stream and its retry stream. The steps of a scan run between two reads, and
/// claim at most as many deliveries as are demanded, so each claimed delivery can start
/// immediately.
pub(super) struct Scan {
    stream: Arc<ServedStream>,
    /// The earliest start of the next scan.
    next_at: Instant,
    /// The start of the next step. `None` between two scans, because a scan starts at the first
    /// pending entry.
    position: Option<ScanPosition>,
    /// The position of the first skipped poison candidate. A further scan starts there once this
    /// worker can run another candidate. `None` if no candidate was skipped.
    resume_at: Option<ScanPosition>,
    /// Set during a scan that has started at `resume_at`. Such a scan ends when it has claimed a
    /// poison candidate.
    is_resumed: bool,
    /// Entries that are pending for this consumer, and whose leases have expired. The next scan
    /// claims those that are not in flight.
    own_idle: Vec<(WhichStream, StreamEntryId)>,
    /// Set when a refused dead letter is logged. Cleared when one call of `claim` visits all
    /// pending entries and meets no refusal.
    refusal_logged: bool,
}

/// The start of a step: a stream, and the first id of an `XPENDING` on it.
struct ScanPosition {
    which: WhichStream,
    cursor: String,
}

impl ScanPosition {
    fn start_of(which: WhichStream) -> Self {
        let cursor = "-".to_owned();
        Self { which, cursor }
    }
}

/// The result of one step.
#[derive(Debug)]
pub(super) struct ScanStep {
    /// The start of the next step on this stream; empty at the end of the pending entries.
    cursor: String,
    /// The entries that were claimed.
    claimed: Vec<Entry>,
    /// The number of pending entries that the step found deleted from the stream.
    deleted: u64,
    /// The entries that became dead letters, with only the fields of the reply address.
    dead: Vec<Entry>,
    /// The number of older dead letters that were removed to make room.
    letters_dropped: u64,
    /// The first poison candidate that was skipped; empty if there was none.
    skipped_id: String,
    /// Entries that are pending for this consumer, and whose leases have expired.
    own_idle: Vec<StreamEntryId>,
    /// The server's error when it refused a dead letter; empty if there was none.
    refusal: String,
    /// The former consumer of each entry in `claimed`.
    former_consumers: Vec<String>,
}

impl ScanStep {
    /// Decodes the script's response. `None` if the step was throttled, or ran too late.
    pub(super) fn decode(response: Value, which: WhichStream) -> Result<Option<Self>, Error> {
        if response == Value::Nil {
            return Ok(None);
        }
        let [
            cursor,
            claimed,
            deleted,
            dead,
            letters_dropped,
            skipped_id,
            own_idle,
            refusal,
            former_consumers,
        ] = fixed_array(response)?;
        let lossy = |text| Ok(String::from_utf8_lossy(&bytes(text)?).into_owned());
        let text = |text: Value, what| {
            String::from_utf8(bytes(text)?.into()).map_err(|_| unexpected(what, "another text"))
        };
        Ok(Some(Self {
            cursor: text(cursor, "a cursor")?,
            claimed: entry::decode_claimed(claimed, which)?,
            deleted: count(&deleted)?,
            dead: entry::decode_claimed(dead, which)?,
            letters_dropped: count(&letters_dropped)?,
            skipped_id: text(skipped_id, "an id")?,
            own_idle: entry::decode_ids(own_idle)?,
            refusal: lossy(refusal)?,
            former_consumers: array(former_consumers)?
                .into_iter()
                .map(lossy)
                .collect::<Result<_, Error>>()?,
        }))
    }

    fn has_candidate(&self) -> bool {
        let mut claimed = self.claimed.iter();
        claimed.any(|entry| poison::is_candidate(entry.deliveries))
    }
}

impl Scan {
    pub(super) fn new(stream: Arc<ServedStream>) -> Self {
        Self {
            stream,
            next_at: Instant::now(),
            position: None,
            resume_at: None,
            is_resumed: false,
            own_idle: Vec::new(),
            refusal_logged: false,
        }
    }

    /// Chooses the start of the next step. Returns `true` if the step is due.
    ///
    /// `may_claim` is `false` while [`Claimer::may_claim_until`] is `None`. In that case a scan
    /// that has begun is given up, and no step is due.
    pub(super) fn prepare_next(&mut self, claimer: &Claimer, may_claim: bool) -> bool {
        if !may_claim {
            self.position = None;
            return false;
        }
        if self.position.is_none() {
            self.is_resumed = false;
            if self.resume_at.is_some() && !claimer.poison.is_taken() {
                self.position = self.resume_at.take();
                self.is_resumed = true;
            }
        }
        self.position.is_some() || (self.stream.has_pending() && Instant::now() >= self.next_at)
    }

    /// Runs the next steps of the scan, and claims at most `room` deliveries. `until` is
    /// [`Claimer::may_claim_until`].
    pub(super) async fn claim(
        &mut self,
        claimer: &Claimer,
        until: i64,
        room: usize,
    ) -> Result<Vec<Entry>, Error> {
        let mut claimed = Vec::new();
        // The next scan waits for the interval even if this scan fails.
        self.next_at = Instant::now() + claimer.member.interval();
        let from_start = self.position.is_none();
        if from_start {
            self.resume_at = None;
        }
        // Only the first step of a scan is throttled.
        let mut throttle = from_start;
        let mut refused = false;
        let mut own_idle = std::mem::take(&mut self.own_idle);
        own_idle.retain(|key| !claimer.in_flight.contains(*key));
        let [retry, primary] = self.stream.both_streams();
        let first = || ScanPosition::start_of(primary);
        let mut position = self.position.take().unwrap_or_else(first);
        for _ in 0..MAX_STEPS {
            if claimed.len() >= room {
                self.position = Some(position);
                return Ok(claimed);
            }
            let room = room - claimed.len();
            let step = claimer.step(&self.stream, &position, room, throttle, until, &own_idle);
            let step = match step.await {
                Ok(step) => step,
                Err(error) if claimed.is_empty() => return Err(error),
                // The entries of the earlier steps belong to this consumer, so they are returned
                // instead of the error.
                Err(_) => return Ok(claimed),
            };
            let Some(step) = step else {
                return Ok(claimed);
            };
            throttle = false;
            let which = position.which;
            let has_candidate = step.has_candidate();
            if !step.skipped_id.is_empty() {
                self.resume_at.get_or_insert(ScanPosition {
                    which,
                    cursor: step.skipped_id,
                });
            }
            let idle = step.own_idle.into_iter().map(|id| (which, id));
            self.own_idle.extend(idle);
            if !step.refusal.is_empty() {
                refused = true;
                self.log_refusal(&step.refusal);
            }
            claimed.extend(step.claimed);
            let next = match (step.cursor.is_empty(), which) {
                (false, _) => Some(ScanPosition {
                    which,
                    cursor: step.cursor,
                }),
                (true, WhichStream::Primary(_)) => Some(ScanPosition::start_of(retry)),
                (true, WhichStream::Retry(_)) => None,
            };
            if has_candidate && self.is_resumed {
                // The earlier scan has left only poison candidates in the rest of the list. The
                // next candidate has to wait until this candidate is settled.
                if self.resume_at.is_none() {
                    self.resume_at = next;
                }
                return Ok(claimed);
            }
            let Some(next) = next else {
                // If this call has visited all pending entries and met no refusal, Redis accepts
                // dead letters again.
                if from_start && !refused {
                    self.refusal_logged = false;
                }
                return Ok(claimed);
            };
            position = next;
        }
        // If each call started at the beginning, a list of more than `MAX_STEPS` pages would never
        // be scanned to its end.
        self.position = Some(position);
        Ok(claimed)
    }

    /// Logs the refusal of a dead letter, unless it was logged already.
    fn log_refusal(&mut self, error: &str) {
        if !std::mem::replace(&mut self.refusal_logged, true) {
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
    /// Returns the time on Redis's clock, in milliseconds, until which this consumer may claim.
    /// `None` if the consumer may not claim. It may claim only after its own renewals have
    /// succeeded without a break for a whole lease.
    pub(super) fn may_claim_until(&self) -> Option<i64> {
        // After Redis was paused, the leases of all consumers look expired. A consumer whose
        // renewals have succeeded for a whole lease knows that Redis was not paused in that time.
        let max_between = self.member.max_between_renewals();
        let healthy = self.health.lasts(max_between) >= self.member.lease;
        self.health.ends_at(max_between).filter(|_| healthy)
    }

    /// Runs one step of the scan. Claims at most `room` deliveries. Of the entries that are pending
    /// for this consumer, only those in `own_idle` are claimed.
    ///
    /// Returns `None` if the step had no effect: it was throttled, or Redis ran it after `until`.
    /// When a paused Redis continues, it runs commands that were sent during the pause, and at that
    /// moment all leases look expired.
    async fn step(
        &self,
        stream: &ServedStream,
        position: &ScanPosition,
        room: usize,
        throttle: bool,
        until: i64,
        own_idle: &[(WhichStream, StreamEntryId)],
    ) -> Result<Option<ScanStep>, Error> {
        let which = position.which;
        let throttle_key = stream.keys.throttle("scan");
        let keys = [stream.key_of(which), &throttle_key, &stream.keys.dead];
        // A little less than the interval, so that the worker that sets the throttle finds it
        // expired at its own next scan.
        let throttled_for =
            throttle.then(|| (self.member.interval().as_millis() * 9 / 10).to_string());
        let may_claim_candidate = !self.poison.is_taken();
        let healthy_for = self.health.lasts(self.member.max_between_renewals());
        let args = |cmd: &mut Cmd| {
            cmd.arg(self.member.group.as_str())
                .arg(&self.member.consumer)
                .arg(which.flag())
                .arg(&position.cursor)
                .arg(self.member.lease.as_millis() as u64)
                .arg(self.foreign_lease.as_millis() as u64)
                .arg(CONSUMER_PREFIX)
                .arg(room)
                .arg(u8::from(may_claim_candidate))
                .arg(self.max_deliveries)
                .arg(self.max_dead_letters)
                .arg(throttled_for.as_deref().unwrap_or_default())
                .arg(until)
                .arg(healthy_for.as_millis() as u64);
            for (_, id) in own_idle.iter().filter(|(of, _)| *of == which) {
                cmd.arg(*id);
            }
        };
        let response = self
            .pipeline
            .script(&scripts::CLAIM, &keys, args, Resend::Never)
            .await?;
        let Some(mut step) = ScanStep::decode(response, which)? else {
            return Ok(None);
        };
        self.report
            .claimed(stream, &step.claimed, &step.former_consumers);
        if step.has_candidate() {
            self.poison.take();
        }
        if step.deleted > 0 {
            self.report.deleted(step.deleted);
        }
        self.report.letters_dropped(stream, step.letters_dropped);
        for entry in step.dead.drain(..) {
            let reason = "its deliveries were used up by dead workers";
            self.report.counters.dead.increment();
            self.report
                .never_settled(stream, entry.id, entry.deliveries, reason);
            self.reply_to_dead(stream, entry.id, ReplyTo::of_fields(&entry.fields));
        }
        Ok(Some(step))
    }

    /// Replies with an error to a request that became a dead letter.
    fn reply_to_dead(&self, stream: &ServedStream, id: StreamEntryId, address: Option<ReplyTo>) {
        let Some(address) = address else { return };
        let reply = Err(RpcError::unavailable("the request could not be handled"));
        let envelope = address.envelope(&reply);
        let resend = Resend::UntilAnswered;
        let response = match address.route(&stream.keys, &self.allowed_reply_prefixes) {
            ReplyRoute::Store(replies) => {
                let mut cmd = redis::cmd("XADD");
                cmd.arg(replies)
                    .arg("NOMKSTREAM")
                    .arg("*")
                    .arg("r")
                    .arg(envelope);
                self.pipeline.submit(cmd, resend)
            }
            ReplyRoute::Publish(channel) => self
                .pipeline
                .submit(PublishCommand::new(&channel[..], &envelope), resend),
            ReplyRoute::Nowhere => return self.report.unanswerable(id),
        };
        // The pipeline sends the command even if no caller waits for its response.
        drop(response);
    }
}
