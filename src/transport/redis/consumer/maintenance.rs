//! Maintains the stream and the group: delivers due messages, trims handled entries, deletes dead
//! consumers, and follows Redis's clock.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    announcer::{Announcer, Question},
    clock::ServerClock,
    due_timers::DueTimers,
    health::RenewalHealth,
    member::Member,
    pause::PauseSignal,
    prefetch::PrefetchBuffer,
    report::Report,
    streams::{ServedStream, StreamSet},
    tick::{GroupFacts, Maintained, TickRequest, TickSteps, TickStream},
    upkeep_connection::UpkeepConnection,
};
use crate::transport::redis::{
    producer::schedule::{MAX_PROMOTED_BYTES, MAX_PROMOTED_MESSAGES, Promoted},
    scripts,
};

/// The maximum number of streams that one tick maintains, since a script blocks the server. The
/// other streams follow in the next ticks.
const MAX_MAINTAINED: usize = 256;
/// The time between two trims of a stream on which this consumer's group makes no progress. Trims
/// are still useful there, since other groups may make progress.
const IDLE_TRIM_PERIOD: Duration = Duration::from_secs(30);
/// The minimum time between two trims of a stream by any worker.
const TRIM_PERIOD: Duration = Duration::from_secs(1);
/// The time between two warnings about a foreign consumer that prevents trimming.
const WARNING_PERIOD: Duration = Duration::from_secs(600);
/// The time between two searches of the group for dead consumers.
const REAP_PERIOD: Duration = Duration::from_secs(30);
/// A consumer that is silent for this long, and has nothing pending, is deleted.
const MAX_SILENCE: Duration = Duration::from_secs(60);

/// Maintains the streams of one consumer. A *tick* is a periodic script call of the upkeep. This
/// type makes the request of each tick, and handles the results.
pub(super) struct Maintenance {
    pub(super) member: Arc<Member>,
    pub(super) streams: Arc<StreamSet>,
    pub(super) health: Arc<RenewalHealth>,
    pub(super) report: Arc<Report>,
    pub(super) clock: Arc<ServerClock>,
    pub(super) due_timers: Arc<DueTimers>,
    /// The prefetch buffer. After it is stopped, this consumer no longer marks itself as alive.
    pub(super) buffer: Arc<PrefetchBuffer>,
    pub(super) trim_beside_foreign: bool,
    pub(super) foreign_lease: Duration,
    /// Wakes the fetch when the pause of a stream has begun or ended.
    pub(super) pauses: Arc<PauseSignal>,
    pub(super) schedule: StepSchedule,
    pub(super) announcer: Announcer,
}

/// The stream with which the next tick starts, and the last runs of the steps on each stream.
#[derive(Default)]
pub(super) struct StepSchedule {
    /// The index of the first stream of the next tick.
    next_index: u32,
    /// The last runs, by the index of the stream.
    last_runs: HashMap<u32, LastRuns>,
}

/// The time of each step's last run on a stream, and the state that the last ticks found.
struct LastRuns {
    mark_alive: Instant,
    trim: Instant,
    reap: Instant,
    /// The state of the group at the last trim.
    facts_at_trim: Option<GroupFacts>,
    /// The state of the group when the current tick requested a trim. `None` without a trim.
    facts_at_request: Option<GroupFacts>,
    /// The state of the group at the last tick.
    facts: Option<GroupFacts>,
    /// The consumer that was last reported to prevent trimming, and the time of that report.
    trim_blocker: Option<(Bytes, Instant)>,
}

impl LastRuns {
    fn now() -> Self {
        let now = Instant::now();
        Self {
            mark_alive: now,
            trim: now,
            reap: now,
            facts_at_trim: None,
            facts_at_request: None,
            facts: None,
            trim_blocker: None,
        }
    }
}

impl Maintenance {
    /// Moves the due messages of these streams: redelivered messages to the retry stream, delayed
    /// tasks to the stream itself.
    pub(super) async fn promote(&self, server: &UpkeepConnection, streams: Vec<u32>) {
        for stream in streams {
            let Some(stream) = self.streams.get(stream) else {
                continue;
            };
            let keys = &stream.keys;
            let of_group = [&*keys.due, &keys.bodies, &keys.retry_key];
            let of_senders = [&*keys.stream_due, &keys.stream_bodies, &keys.stream_key];
            for (keys, group) in [(of_group, keys.group.as_str()), (of_senders, "")] {
                self.move_due(server, &stream, keys, group).await;
            }
        }
    }

    /// Moves due messages in batches. Stops after a while, since no leases are renewed until this
    /// function returns. `group` is empty for delayed tasks, which belong to no group.
    async fn move_due(
        &self,
        server: &UpkeepConnection,
        stream: &ServedStream,
        keys: [&str; 3],
        group: &str,
    ) {
        let end = Instant::now() + self.member.interval() / 4;
        loop {
            let response = server.script(&scripts::PROMOTE, &keys, |cmd| {
                cmd.arg(MAX_PROMOTED_MESSAGES)
                    .arg(MAX_PROMOTED_BYTES)
                    .arg(group);
            });
            let promoted = response.await.and_then(Promoted::decode);
            let promoted = promoted.map_err(|error| error.chain());
            let more = self.record_move(stream, promoted);
            if more && Instant::now() < end {
                continue;
            }
            if more {
                self.due_timers.set(stream.index, Duration::ZERO);
            }
            return;
        }
    }

    /// Records the result of a move, and sets the timer for the next due message. Returns `true` if
    /// more messages are due now.
    fn record_move(&self, stream: &ServedStream, promoted: Result<Promoted, String>) -> bool {
        let promoted = match promoted {
            Ok(promoted) => promoted,
            Err(error) => {
                // The next tick tries again.
                warn_failed(stream, "due messages could not be delivered", &error);
                return false;
            }
        };
        if promoted.lost > 0 {
            self.report.deleted(promoted.lost);
        }
        let next = promoted.next_due_in;
        if let Some(wait) = next.filter(|wait| !wait.is_zero()) {
            // Rounded up, since Redis counts whole milliseconds.
            let wait = wait + Duration::from_millis(1);
            self.due_timers.set(stream.index, wait);
        }
        promoted.moved >= MAX_PROMOTED_MESSAGES as u64 || next == Some(Duration::ZERO)
    }

    /// Makes the request of the next tick. The request maintains at most [`MAX_MAINTAINED`]
    /// streams; the others follow in the next ticks. It also includes each stream for which
    /// `renews` returns `true`.
    pub(super) fn request(&mut self, renews: impl Fn(&ServedStream) -> bool) -> TickRequest {
        let streams = self.streams.all();
        if self.schedule.last_runs.len() > streams.len() {
            let served = |index: &u32| self.streams.get(*index).is_some();
            self.schedule.last_runs.retain(|index, _| served(index));
        }
        let first = streams.partition_point(|stream| stream.index < self.schedule.next_index);
        let (before, behind) = streams.split_at(first);
        let mut in_turn = Vec::new();
        for (at, stream) in behind.iter().chain(before).enumerate() {
            if at == MAX_MAINTAINED {
                self.schedule.next_index = stream.index;
            }
            let maintain = at < MAX_MAINTAINED && !stream.is_failing();
            let steps = match maintain {
                true => self.take_due_steps(stream.index),
                false => TickSteps::default(),
            };
            if maintain || renews(stream) {
                let worker = match maintain {
                    true => self.announcer.step(stream),
                    false => None,
                };
                let stream = stream.clone();
                in_turn.push(TickStream {
                    stream,
                    steps,
                    worker,
                });
            }
        }
        let worker_steps = in_turn.iter().filter_map(|it| it.worker.as_ref());
        let announcement = self.announcer.announcement(worker_steps, self.member.lease);
        // A worker that trims or reaps sets a throttle: a key that prevents the same step of any
        // worker. The key expires a little before the period ends. If it expired later, it could
        // prevent the next step of the worker that has set it.
        let throttle = |period: Duration| period.as_millis() as u64 * 9 / 10;
        TickRequest {
            foreign_lease: self.foreign_lease.as_millis() as u64,
            trim_beside_foreign: self.trim_beside_foreign,
            trim_period: throttle(TRIM_PERIOD),
            max_silence: MAX_SILENCE.as_millis() as u64,
            reap_period: throttle(REAP_PERIOD),
            streams: in_turn,
            announcement,
            registry: None,
        }
    }

    /// Returns the steps that are due on a stream, and records them as run.
    fn take_due_steps(&mut self, stream: u32) -> TickSteps {
        let lease = self.member.lease;
        // After the server's clock has jumped, every consumer looks dead. So a consumer deletes
        // others only if its renewals have succeeded without a break for the duration of a lease.
        let healthy = self.health.lasts(self.member.max_between_renewals()) >= lease;
        let last = self
            .schedule
            .last_runs
            .entry(stream)
            .or_insert_with(LastRuns::now);
        let run_if_due = |last: &mut Instant, period: Duration| {
            let due = last.elapsed() >= period;
            if due {
                *last = Instant::now();
            }
            due
        };
        let has_changed = last.facts.is_none() || last.facts != last.facts_at_trim;
        let trim = run_if_due(
            &mut last.trim,
            if has_changed {
                TRIM_PERIOD
            } else {
                IDLE_TRIM_PERIOD
            },
        );
        // The trim is recorded only when the tick's response arrives, because a lost tick may have
        // trimmed nothing.
        last.facts_at_request = last.facts.filter(|_| trim);
        TickSteps {
            maintain: true,
            mark_alive: !self.buffer.is_stopped() && run_if_due(&mut last.mark_alive, lease / 3),
            trim,
            reap: healthy && run_if_due(&mut last.reap, REAP_PERIOD),
        }
    }

    /// Returns `true` if the next tick would store counts of this worker in the history.
    pub(super) fn has_counts(&self) -> bool {
        let streams = self.streams.all();
        streams
            .iter()
            .any(|stream| self.announcer.has_counts(stream))
    }

    /// Keeps the counts of a failed tick for the next one.
    pub(super) fn keep_counts(&self, request: &TickRequest) {
        for of_tick in &request.streams {
            if let Some(step) = &of_tick.worker {
                self.announcer.keep_counts(&of_tick.stream, step);
            }
        }
    }

    /// Sets the clock to Redis's time, in milliseconds.
    pub(super) fn note_time(&self, time: i64) {
        self.clock.set_to(time);
    }

    /// Records a tick's results for a stream. Returns the question that the worker has to answer,
    /// if there is a new one.
    pub(super) fn handle_tick(
        &mut self,
        of_tick: &TickStream,
        tick: Maintained,
    ) -> Option<Question> {
        let stream = &*of_tick.stream;
        for promoted in tick.promoted {
            if self.record_move(stream, promoted) {
                self.due_timers.set(stream.index, Duration::ZERO);
            }
        }
        let last = self
            .schedule
            .last_runs
            .entry(stream.index)
            .or_insert_with(LastRuns::now);
        match tick.group {
            Ok(facts) => {
                last.facts = Some(facts);
                stream.set_pending(facts.pending > 0);
                if let Some(delivered) = facts.delivered {
                    stream.note_delivered(delivered);
                }
            }
            // The state is unknown, for example because the group was deleted. The fetch then looks
            // for pending entries, and creates a deleted group again.
            Err(_) => stream.set_pending(true),
        }
        match tick.trim_blocked {
            Ok(by) => {
                if let Some(facts) = last.facts_at_request.take() {
                    last.facts_at_trim = Some(facts);
                }
                if by.is_some() {
                    // The consumer that prevents trimming may leave. So the next trim follows soon,
                    // even without progress of this group.
                    last.facts_at_trim = None;
                }
                report_blocked(stream, last, by);
            }
            Err(error) => warn_failed(stream, "the stream could not be trimmed", &error),
        }
        match tick.pauses {
            Ok(fields) => self.store_pauses(stream, &fields),
            Err(error) => warn_failed(stream, "its pauses could not be read", &error),
        }
        if let Err(error) = tick.handed_over {
            warn_failed(stream, "parked messages could not be handed over", &error);
        }
        if let Err(error) = tick.reaped {
            warn_failed(stream, "dead consumers could not be deleted", &error);
        }
        // Logs dropped letters that earlier calls have counted and not logged.
        self.report.letters_dropped(stream, 0);
        let (step, tick) = of_tick.worker.as_ref().zip(tick.worker)?;
        self.announcer.handle_tick(stream, step, tick)
    }

    /// Stores the pauses of a stream. Wakes the fetch if the pause of the whole stream has begun or
    /// ended.
    fn store_pauses(&self, stream: &ServedStream, fields: &[Bytes]) {
        let has_changed = stream.set_pauses(fields, |field| self.pauses.log_unknown(stream, field));
        if has_changed {
            let is_paused = stream.is_paused();
            let (stream, group) = (&stream.keys.stream, &self.member.group);
            match is_paused {
                true => tracing::info!(%stream, %group, "the stream is paused"),
                false => tracing::info!(%stream, %group, "the stream is resumed"),
            }
            self.pauses.changed();
        }
    }
}

fn warn_failed(stream: &ServedStream, what: &str, error: &str) {
    let stream = &stream.keys.stream;
    tracing::warn!(%stream, error, "{what}; trying again later");
}

/// Warns that a consumer prevents trimming, so that the stream grows. Warns at most once in
/// [`WARNING_PERIOD`] about the same consumer.
fn report_blocked(stream: &ServedStream, last: &mut LastRuns, by: Option<(Bytes, Bytes)>) {
    let Some((group, consumer)) = by else { return };
    let known =
        |(known, at): &(Bytes, Instant)| *known == consumer && at.elapsed() < WARNING_PERIOD;
    if last.trim_blocker.as_ref().is_some_and(known) {
        return;
    }
    tracing::warn!(
        stream = %stream.keys.stream,
        group = %group.escape_ascii(),
        consumer = %consumer.escape_ascii(),
        "the stream is not trimmed: this consumer is of another library, and it holds entries or \
         was active within `foreign_lease`; allow it with `trim_beside_foreign_groups`, or remove \
         the consumer with XGROUP DELCONSUMER"
    );
    last.trim_blocker = Some((consumer, Instant::now()));
}
