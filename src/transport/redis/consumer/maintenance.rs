//! Maintains the stream and the group: delivers what is due, trims what is handled, deletes consumers
//! that are gone, and follows Redis's clock.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    alarm::Alarm,
    clock::Clock,
    health::Health,
    member::Member,
    prefetch::PrefetchBuffer,
    report::Report,
    streams::{ServedStream, StreamSet},
    tick::{GroupFacts, Maintained, Request, Steps},
    upkeep::UpkeepConnection,
};
use crate::transport::redis::{
    producer::schedule::{MOVED_AT_ONCE, MOVED_BYTES, Promoted},
    scripts,
};

/// The most streams that one tick maintains: the server does nothing else meanwhile. More of them are
/// maintained in turn.
const MAX_MAINTAINED: usize = 256;
/// The longest time between two trims of a stream on which nothing seems to happen. Another group may
/// have finished what was left.
const IDLE_TRIM: Duration = Duration::from_secs(30);
/// The time between two trims, by whichever worker comes first.
const TRIM: Duration = Duration::from_secs(1);
/// The time between two reports of a foreign consumer that prevents trimming.
const BLOCKED: Duration = Duration::from_secs(600);
/// The time between two searches of the group for consumers that are gone.
const REAP: Duration = Duration::from_secs(30);
/// The silence after which a consumer with nothing pending is deleted.
const GONE: Duration = Duration::from_secs(60);

pub(super) struct Maintenance {
    pub(super) member: Arc<Member>,
    pub(super) streams: Arc<StreamSet>,
    pub(super) health: Arc<Health>,
    pub(super) report: Arc<Report>,
    pub(super) clock: Arc<Clock>,
    pub(super) due: Arc<Alarm>,
    /// Once it is stopped this consumer gives no more signs of life.
    pub(super) buffer: Arc<PrefetchBuffer>,
    pub(super) trim_beside_foreign: bool,
    pub(super) foreign_lease: Duration,
    pub(super) turns: Turns,
}

/// The turns of the streams.
#[derive(Default)]
pub(super) struct Turns {
    /// The index of the stream with which the next tick begins.
    next: u32,
    last: HashMap<u32, Last>,
}

/// The last time of each step on a stream.
struct Last {
    sign_of_life: Instant,
    trim: Instant,
    reap: Instant,
    /// The state of the group when the stream was trimmed last, and now.
    trimmed_at: Option<GroupFacts>,
    facts: Option<GroupFacts>,
    /// The consumer that was reported to prevent trimming.
    blocked: Option<(Bytes, Instant)>,
}

impl Last {
    fn now() -> Self {
        let now = Instant::now();
        Self {
            sign_of_life: now,
            trim: now,
            reap: now,
            trimmed_at: None,
            facts: None,
            blocked: None,
        }
    }
}

impl Maintenance {
    /// Delivers what is due on these streams: to the retry stream, and what senders have delayed to the
    /// stream itself.
    pub(super) async fn promote(&self, server: &UpkeepConnection, streams: Vec<u32>) {
        for stream in streams {
            let Some(stream) = self.streams.get(stream) else {
                continue;
            };
            let keys = &stream.keys;
            let of_group = [&*keys.due, &keys.bodies, &keys.retry];
            let of_senders = [&*keys.stream_due, &keys.stream_bodies, &keys.stream];
            for keys in [of_group, of_senders] {
                self.move_due(server, &stream, keys).await;
            }
        }
    }

    /// Moves one slice of what is due: between two of them the leases are renewed.
    async fn move_due(&self, server: &UpkeepConnection, stream: &ServedStream, keys: [&str; 3]) {
        let end = Instant::now() + self.member.interval() / 4;
        loop {
            let answer = server.script(&scripts::PROMOTE, &keys, |cmd| {
                cmd.arg(MOVED_AT_ONCE).arg(MOVED_BYTES);
            });
            let promoted = answer.await.and_then(Promoted::read);
            let promoted = promoted.map_err(|error| error.chain());
            let more = self.moved(stream, promoted);
            if more && Instant::now() < end {
                continue;
            }
            if more {
                self.due.set(stream.index, Duration::ZERO);
            }
            return;
        }
    }

    /// Sets the alarm for the next message that is due. Returns `true` if some are due already.
    fn moved(&self, stream: &ServedStream, promoted: Result<Promoted, String>) -> bool {
        let promoted = match promoted {
            Ok(promoted) => promoted,
            Err(error) => {
                // The next tick tries again.
                failed(stream, "what is due could not be delivered", &error);
                return false;
            }
        };
        if promoted.lost > 0 {
            self.report.deleted(promoted.lost);
        }
        let next = promoted.next;
        if let Some(wait) = next.filter(|wait| !wait.is_zero()) {
            // A millisecond later: Redis counts whole ones.
            let wait = wait + Duration::from_millis(1);
            self.due.set(stream.index, wait);
        }
        promoted.moved >= MOVED_AT_ONCE as u64 || next == Some(Duration::ZERO)
    }

    /// The steps of a tick. All streams with leases to renew are in it, and of the others those whose
    /// turn it is.
    pub(super) fn request(&mut self, renews: impl Fn(&ServedStream) -> bool) -> Request {
        let streams = self.streams.all();
        if self.turns.last.len() > streams.len() {
            let served = |index: &u32| self.streams.get(*index).is_some();
            self.turns.last.retain(|index, _| served(index));
        }
        let first = streams.partition_point(|stream| stream.index < self.turns.next);
        let (before, behind) = streams.split_at(first);
        let mut in_turn = Vec::new();
        for (at, stream) in behind.iter().chain(before).enumerate() {
            if at == MAX_MAINTAINED {
                self.turns.next = stream.index;
            }
            let maintain = at < MAX_MAINTAINED && !stream.is_failing();
            let steps = match maintain {
                true => self.steps(stream.index),
                false => Steps::default(),
            };
            if maintain || renews(stream) {
                in_turn.push((stream.clone(), steps));
            }
        }
        // A little less than the period, or the worker that opened the gate would miss every other turn.
        let gate = |period: Duration| period.as_millis() as u64 * 9 / 10;
        Request {
            foreign_lease: self.foreign_lease.as_millis() as u64,
            trim_beside_foreign: self.trim_beside_foreign,
            trim_period: gate(TRIM),
            gone: GONE.as_millis() as u64,
            reap_period: gate(REAP),
            streams: in_turn,
            registry: None,
        }
    }

    /// The steps on a stream whose time has come.
    fn steps(&mut self, stream: u32) -> Steps {
        let lease = self.member.lease;
        // After the server's clock has stepped forward every consumer looks gone.
        let healthy = self.health.lasts(self.member.max_between_renewals()) >= lease;
        let last = self.turns.last.entry(stream).or_insert_with(Last::now);
        let is_due = |last: &mut Instant, period: Duration| {
            let due = last.elapsed() >= period;
            if due {
                *last = Instant::now();
            }
            due
        };
        let has_changed = last.facts.is_none() || last.facts != last.trimmed_at;
        let trim = is_due(&mut last.trim, if has_changed { TRIM } else { IDLE_TRIM });
        if trim {
            last.trimmed_at = last.facts;
        }
        Steps {
            maintain: true,
            sign_of_life: !self.buffer.is_stopped() && is_due(&mut last.sign_of_life, lease / 3),
            trim,
            reap: healthy && is_due(&mut last.reap, REAP),
        }
    }

    /// Returns `true` if the group has nothing pending on any stream, as far as the last ticks say.
    pub(super) fn is_idle(&self) -> bool {
        let nothing = |last: &Last| last.facts.is_some_and(|it| it.pending == 0);
        self.turns.last.len() == self.streams.all().len() && self.turns.last.values().all(nothing)
    }

    /// Takes note of the server's clock.
    pub(super) fn note_time(&self, time: i64) {
        self.clock.set_to(time);
    }

    /// Takes note of what a tick has done on a stream.
    pub(super) fn ticked(&mut self, stream: &ServedStream, tick: Maintained) {
        for promoted in tick.promoted {
            if self.moved(stream, promoted) {
                self.due.set(stream.index, Duration::ZERO);
            }
        }
        let last = self
            .turns
            .last
            .entry(stream.index)
            .or_insert_with(Last::now);
        match tick.group {
            Ok(facts) => {
                last.facts = Some(facts);
                stream.set_pending(facts.pending > 0);
                if let Some(delivered) = facts.delivered {
                    stream.note_delivered(delivered);
                }
            }
            // Without the group, which the fetch creates again.
            Err(_) => stream.set_pending(true),
        }
        match tick.trim_blocked {
            Ok(by) => {
                if by.is_some() {
                    // It may leave, without any progress of this group.
                    last.trimmed_at = None;
                }
                report_blocked(stream, last, by);
            }
            Err(error) => failed(stream, "the stream could not be trimmed", &error),
        }
        if let Err(error) = tick.reaped {
            failed(
                stream,
                "consumers that are gone could not be deleted",
                &error,
            );
        }
        self.report.letters_dropped(stream, 0);
    }
}

fn failed(stream: &ServedStream, what: &str, error: &str) {
    let stream = &stream.keys.stream;
    tracing::warn!(%stream, error, "{what}; trying again later");
}

/// Names the consumer that prevents trimming, now and then: the stream grows.
fn report_blocked(stream: &ServedStream, last: &mut Last, by: Option<(Bytes, Bytes)>) {
    let Some((group, consumer)) = by else { return };
    let known = |(known, at): &(Bytes, Instant)| *known == consumer && at.elapsed() < BLOCKED;
    if last.blocked.as_ref().is_some_and(known) {
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
    last.blocked = Some((consumer, Instant::now()));
}
