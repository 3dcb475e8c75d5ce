//! Claims deliveries whose consumers do not renew their leases any more.

use std::{sync::Arc, time::Duration};

use redis::Cmd;
use tokio::time::Instant;

use super::{
    health::Health,
    in_flight::InFlightTable,
    member::{CONSUMER_PREFIX, Member},
    poison::{self, PoisonSlot},
    reply_to::{ReplyRoute, ReplyTo},
    report::Report,
    streams::ServedStream,
};
use crate::{
    error::{Error, RpcError},
    message::Name,
    transport::redis::{
        entry::{self, Entry, EntryId, Lane},
        pipeline::{Pipeline, Retry},
        producer::Publish,
        response::{Value, bytes, count, exactly, unexpected},
        scripts,
    },
};

/// How many steps of a long list are looked at before new entries are read again.
const STEPS: usize = 64;

/// Runs the steps of a scan on the server.
pub(super) struct Claimer {
    pub(super) member: Arc<Member>,
    pub(super) pipeline: Pipeline,
    pub(super) in_flight: Arc<InFlightTable>,
    pub(super) health: Arc<Health>,
    pub(super) poison: PoisonSlot,
    pub(super) report: Arc<Report>,
    pub(super) foreign_lease: Duration,
    pub(super) max_deliveries: u32,
    pub(super) max_dead_letters: usize,
    pub(super) allowed_reply_prefixes: Vec<Name>,
}

/// The scan of the entries that are pending for the group on one stream. It runs between two reads, when
/// there is room for what it finds, so that nothing is claimed that cannot start at once.
pub(super) struct Scan {
    stream: Arc<ServedStream>,
    next: Instant,
    /// Where a scan goes on that has found more than there was room for.
    position: Option<(Lane, String)>,
    /// The first suspect that waits until the one that runs here is settled.
    left: Option<(Lane, String)>,
    /// Whether the scan goes on from such a one: it ends with the first suspect that it takes.
    resumed: bool,
    /// What is pending for this worker, looks left behind, and may not be held.
    mine: Vec<(Lane, EntryId)>,
    /// Whether burials were refused when last tried.
    refused: bool,
}

/// What a step of the scan has found.
#[derive(Debug)]
pub(super) struct Step {
    /// Where the next step begins; empty at the end.
    cursor: String,
    taken: Vec<Entry>,
    /// How many entries somebody had deleted.
    deleted: u64,
    /// What was delivered too often, with the fields that say where an answer goes.
    dead: Vec<Entry>,
    /// How many dead letters that has pushed out.
    dropped: u64,
    /// The first suspect that was left; empty where none was.
    left: String,
    /// What is pending for this worker itself and looks left behind.
    mine: Vec<EntryId>,
    /// The error that burials have met; empty where there was none.
    refused: String,
}

impl Step {
    /// From the script's answer; `None` when it is another worker's turn.
    pub(super) fn read(answer: Value, lane: Lane) -> Result<Option<Self>, Error> {
        if answer == Value::Nil {
            return Ok(None);
        }
        let [cursor, taken, deleted, dead, dropped, left, mine, refused] = exactly(answer)?;
        let text = |text: Value, what| {
            String::from_utf8(bytes(text)?.into()).map_err(|_| unexpected(what, "another text"))
        };
        Ok(Some(Self {
            cursor: text(cursor, "a cursor")?,
            taken: entry::claimed(taken, lane)?,
            deleted: count(&deleted)?,
            dead: entry::claimed(dead, lane)?,
            dropped: count(&dropped)?,
            left: text(left, "an id")?,
            mine: entry::ids(mine)?,
            refused: String::from_utf8_lossy(&bytes(refused)?).into_owned(),
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

    /// Returns `true` if it is time to look, for a claimer that may: see [`Claimer::until`].
    pub(super) fn is_due(&mut self, claimer: &Claimer, may: bool) -> bool {
        if !may {
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

    /// Claims at most `room` deliveries, by commands that are carried out until then on Redis's clock.
    pub(super) async fn claim(
        &mut self,
        claimer: &Claimer,
        until: i64,
        room: usize,
    ) -> Result<Vec<Entry>, Error> {
        let mut taken = Vec::new();
        // A scan that goes on is not held up by the gate.
        let mut gate = self.position.is_none();
        let gated = gate;
        // Also when this one fails.
        self.next = Instant::now() + claimer.member.interval();
        if gate {
            self.left = None;
        }
        let mut mine = std::mem::take(&mut self.mine);
        mine.retain(|key| !claimer.in_flight.contains(*key));
        let mut refused = String::new();
        let [retry, primary] = self.stream.lanes();
        let start = || (primary, "-".to_owned());
        let (mut lane, mut cursor) = self.position.take().unwrap_or_else(start);
        for _ in 0..STEPS {
            if taken.len() >= room {
                self.position = Some((lane, cursor));
                return Ok(taken);
            }
            let place = (&*self.stream, lane, &*cursor);
            let step = claimer.step(place, room - taken.len(), gate, until, &mine);
            let step = match step.await {
                Ok(step) => step,
                // What was taken before is ours; the scan starts afresh another time.
                Err(error) if taken.is_empty() => return Err(error),
                Err(_) => return Ok(taken),
            };
            let Some(step) = step else { return Ok(taken) };
            gate = false;
            let suspect = step
                .taken
                .iter()
                .any(|entry| poison::is_candidate(entry.deliveries));
            if !step.left.is_empty() {
                self.left.get_or_insert((lane, step.left));
            }
            self.mine.extend(step.mine.into_iter().map(|id| (lane, id)));
            self.report_refused(&step.refused, &mut refused);
            taken.extend(step.taken);
            if suspect && self.resumed {
                // No other one can be taken now, and the whole list was looked at before.
                if !step.cursor.is_empty() {
                    self.left.get_or_insert((lane, step.cursor));
                } else if lane == primary {
                    self.left.get_or_insert((retry, "-".to_owned()));
                }
                return Ok(taken);
            }
            cursor = match (step.cursor.is_empty(), lane) {
                (false, _) => step.cursor,
                (true, Lane::Primary(_)) => {
                    lane = retry;
                    "-".to_owned()
                }
                (true, Lane::Retry(_)) => {
                    // A scan that has seen only a part of the list does not know.
                    self.refused &= !gated || !refused.is_empty();
                    return Ok(taken);
                }
            };
        }
        // The list is longer than one scan looks at. To begin again would never reach its tail.
        self.position = Some((lane, cursor));
        Ok(taken)
    }

    /// Says once that burials are refused, and again only after they were not.
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
                "Redis refuses a dead letter; the entry whose deliveries are used up stays pending \
                 and is tried again"
            );
        }
    }
}

impl Claimer {
    /// The time on Redis's clock until which a scan may be carried out, if this worker may claim at all.
    pub(super) fn until(&self) -> Option<i64> {
        // After Redis stood still everybody looks silent. Only who has renewed its own leases for a
        // whole lease can tell that another has not.
        let max_between = self.member.max_between_renewals();
        let healthy = self.health.lasts(max_between) >= self.member.lease;
        self.health.until(max_between).filter(|_| healthy)
    }

    /// One step of the scan, which must be made by then on Redis's clock: a server that stands still
    /// carries it out when it goes on. `None` when it was too late, or is another worker's turn.
    async fn step(
        &self,
        (stream, lane, cursor): (&ServedStream, Lane, &str),
        room: usize,
        gate: bool,
        until: i64,
        mine: &[(Lane, EntryId)],
    ) -> Result<Option<Step>, Error> {
        let gate_key = stream.keys.gate("scan");
        let keys = [stream.key_of(lane), &gate_key, &stream.keys.dead];
        // A little less than the interval, or the worker that opened the gate would miss every
        // other turn.
        let closed = gate.then(|| (self.member.interval().as_millis() * 9 / 10).to_string());
        let suspects = !self.poison.is_taken();
        let healthy = self.health.lasts(self.member.max_between_renewals());
        let args = |cmd: &mut Cmd| {
            cmd.arg(self.member.group.as_str())
                .arg(&self.member.consumer)
                .arg(lane.flag())
                .arg(cursor)
                .arg(self.member.lease.as_millis() as u64)
                .arg(self.foreign_lease.as_millis() as u64)
                .arg(CONSUMER_PREFIX)
                .arg(room)
                .arg(u8::from(suspects))
                .arg(self.max_deliveries)
                .arg(self.max_dead_letters)
                .arg(closed.as_deref().unwrap_or_default())
                .arg(until)
                .arg(healthy.as_millis() as u64);
            for (_, id) in mine.iter().filter(|(of, _)| *of == lane) {
                cmd.arg(*id);
            }
        };
        let answer = self
            .pipeline
            .script(&scripts::TAKE_OVER, &keys, args, Retry::Never)
            .await?;
        let Some(mut step) = Step::read(answer, lane)? else {
            return Ok(None);
        };
        if !step.taken.is_empty() {
            self.report.counters.taken_over.add(step.taken.len() as u64);
            tracing::info!(
                deliveries = step.taken.len(),
                "took over from a worker that is not heard of"
            );
        }
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
            let reason = "deliveries used up by workers that are gone";
            self.report.buried(entry.id, entry.deliveries, reason);
            self.answer_dead(stream, entry.id, ReplyTo::of_fields(&entry.fields));
        }
        Ok(Some(step))
    }

    /// Tells whoever asked that the request is dead.
    fn answer_dead(&self, stream: &ServedStream, id: EntryId, address: Option<ReplyTo>) {
        let Some(address) = address else { return };
        let answer = Err(RpcError::unavailable("the request could not be handled"));
        let envelope = address.envelope(&answer);
        let retry = Retry::UntilAnswered;
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
        // The pipeline sends it although nobody waits for the response.
        drop(answered);
    }
}
