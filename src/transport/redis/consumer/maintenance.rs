//! Maintains the stream and the group: delivers what is due, trims what is handled, deletes consumers
//! that are gone, and follows Redis's clock.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    alarm::Alarm,
    claim::Pending,
    clock::Clock,
    group::Group,
    health::Health,
    member::Member,
    prefetch::PrefetchBuffer,
    report::Report,
    tick::{Request, Tick},
    upkeep::UpkeepConnection,
};
use crate::transport::redis::{
    entry::EntryId,
    producer::schedule::{MOVED_AT_ONCE, MOVED_BYTES, Promoted},
    scripts,
};

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
    pub(super) health: Arc<Health>,
    pub(super) report: Arc<Report>,
    pub(super) group: Arc<Group>,
    pub(super) clock: Arc<Clock>,
    pub(super) due: Arc<Alarm>,
    pub(super) pending: Arc<Pending>,
    /// Once it is stopped this consumer gives no more signs of life.
    pub(super) buffer: Arc<PrefetchBuffer>,
    pub(super) trim_beside_foreign: bool,
    pub(super) foreign_lease: Duration,
    pub(super) last: Last,
}

/// The last time of each step, and the consumer that was reported to prevent trimming.
pub(super) struct Last {
    sign_of_life: Instant,
    trim: Instant,
    reap: Instant,
    blocked: Option<(Bytes, Instant)>,
}

impl Last {
    pub(super) fn now() -> Self {
        let now = Instant::now();
        Self {
            sign_of_life: now,
            trim: now,
            reap: now,
            blocked: None,
        }
    }
}

impl Maintenance {
    /// Delivers what is due: to the retry stream, and what senders have delayed to the stream.
    pub(super) async fn promote(&self, server: &UpkeepConnection) {
        let keys = &self.member.keys;
        let of_group = [&*keys.due, &keys.bodies, &keys.retry];
        let of_senders = [&*keys.stream_due, &keys.stream_bodies, &keys.stream];
        for keys in [of_group, of_senders] {
            self.move_due(server, keys).await;
        }
    }

    /// Moves one slice of what is due: between two of them the leases are renewed.
    async fn move_due(&self, server: &UpkeepConnection, keys: [&str; 3]) {
        let end = Instant::now() + self.member.interval() / 4;
        loop {
            let answer = server.script(&scripts::PROMOTE, &keys, |cmd| {
                cmd.arg(MOVED_AT_ONCE).arg(MOVED_BYTES);
            });
            let promoted = answer.await.and_then(Promoted::read);
            let promoted = promoted.map_err(|error| error.chain());
            let more = self.moved(promoted);
            if more && Instant::now() < end {
                continue;
            }
            if more {
                self.due.set(Duration::ZERO);
            }
            return;
        }
    }

    /// Sets the alarm for the next message that is due. Returns whether some are due already.
    fn moved(&self, promoted: Result<Promoted, String>) -> bool {
        let promoted = match promoted {
            Ok(promoted) => promoted,
            Err(error) => {
                // The next tick tries again.
                tracing::warn!(error, "what is due could not be delivered");
                return false;
            }
        };
        if promoted.lost > 0 {
            self.report.deleted(promoted.lost);
        }
        let next = promoted.next;
        if let Some(wait) = next.filter(|wait| !wait.is_zero()) {
            // A millisecond later: Redis counts whole ones.
            self.due.set(wait + Duration::from_millis(1));
        }
        promoted.moved >= MOVED_AT_ONCE as u64 || next == Some(Duration::ZERO)
    }

    /// The steps whose time has come, for a tick that renews these leases.
    pub(super) fn request<'a>(&mut self, renew: [&'a [EntryId]; 2]) -> Request<'a> {
        let lease = self.member.lease;
        let is_due = |last: &mut Instant, period: Duration| {
            let due = last.elapsed() >= period;
            if due {
                *last = Instant::now();
            }
            due
        };
        // After the server's clock has stepped forward every consumer looks gone.
        let healthy = self.health.lasts(self.member.max_between_renewals()) >= lease;
        // A little less than the period, or the worker that opened the gate would miss every other turn.
        let gate = |period: Duration| period.as_millis() as u64 * 9 / 10;
        Request {
            renew,
            sign_of_life: !self.buffer.is_stopped()
                && is_due(&mut self.last.sign_of_life, lease / 3),
            foreign_lease: self.foreign_lease.as_millis() as u64,
            trim_beside_foreign: self.trim_beside_foreign,
            trim: is_due(&mut self.last.trim, TRIM).then(|| gate(TRIM)),
            gone: GONE.as_millis() as u64,
            reap: (healthy && is_due(&mut self.last.reap, REAP)).then(|| gate(REAP)),
        }
    }

    /// Takes note of what a tick has done.
    pub(super) fn ticked(&mut self, tick: Tick) {
        self.clock.set_to(tick.time);
        for promoted in tick.promoted {
            if self.moved(promoted) {
                self.due.set(Duration::ZERO);
            }
        }
        match tick.group {
            Ok(facts) => {
                self.pending.set(facts.pending > 0);
                if let Some(delivered) = facts.delivered {
                    self.group.note_delivered(delivered);
                }
            }
            // Without the group, which the fetch creates again.
            Err(_) => self.pending.set(true),
        }
        match tick.trim_blocked {
            Ok(by) => self.report_blocked(by),
            Err(error) => self.failed("the stream could not be trimmed", &error),
        }
        if let Err(error) = tick.reaped {
            self.failed("consumers that are gone could not be deleted", &error);
        }
        self.report.letters_dropped(0);
    }

    fn failed(&self, what: &str, error: &str) {
        let stream = &self.member.keys.stream;
        tracing::warn!(%stream, error, "{what}; trying again later");
    }

    /// Names the consumer that prevents trimming, now and then: the stream grows.
    fn report_blocked(&mut self, by: Option<(Bytes, Bytes)>) {
        let Some((group, consumer)) = by else { return };
        let known = |(known, at): &(Bytes, Instant)| *known == consumer && at.elapsed() < BLOCKED;
        if self.last.blocked.as_ref().is_some_and(known) {
            return;
        }
        tracing::warn!(
            stream = %self.member.keys.stream,
            group = %group.escape_ascii(),
            consumer = %consumer.escape_ascii(),
            "the stream is not trimmed: this consumer is of another library, and it holds entries or \
             was active within `foreign_lease`; allow it with `trim_beside_foreign_groups`, or remove \
             the consumer with XGROUP DELCONSUMER"
        );
        self.last.blocked = Some((consumer, Instant::now()));
    }
}
