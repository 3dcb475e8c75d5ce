//! What the tasks of one source share.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis::Cmd;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    acks::Ack,
    clock::Clock,
    entry::{EntryId, Lane},
    held::{Held, Key},
    inbox::Inbox,
    replies::StoredReply,
    riders::Platform,
};
use crate::{
    error::Error,
    message::Lease,
    sync::lock,
    transport::{
        ConnectionState, Counters, DroppedLetters, Settings,
        redis::{
            error,
            keys::Keys,
            options::Options,
            pipeline::{Pipeline, Submit},
            response::Value,
            server::Connector,
            server::Limit,
            state::{Beat, Heart},
        },
    },
};

/// What the names of our consumers start with. Any other consumer renews no leases. The lease that a
/// consumer renews by follows: whoever claims judges by that one (`scripts/holder.lua`).
pub(in crate::transport::redis) const CONSUMER_PREFIX: &str = "campanile-";

/// One consumer of the group.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) settings: Settings,
    pub(super) options: Arc<Options>,
    pub(super) keys: Keys,
    /// The name of the consumer, ours alone.
    pub(super) consumer: String,
    pub(super) counters: Arc<Counters>,
    pub(super) connector: Connector,
    /// For everything but blocking reads and leases.
    pub(super) pipeline: Pipeline,
    pub(super) clock: Clock,
    pub(super) held: Held,
    pub(super) inbox: Inbox,
    pub(super) acks: mpsc::UnboundedSender<Ack>,
    /// Where acknowledgements wait that go along with a read.
    pub(super) platform: Platform,
    pub(super) replies: mpsc::UnboundedSender<StoredReply>,
    pub(super) flights: Flights,
    pub(super) health: Health,
    pub(super) alarm: Alarm,
    /// Whether one of those deliveries is here that may have ended several workers.
    pub(super) suspect: AtomicBool,
    /// The id of the connection whose read is blocked right now; 0 for none.
    pub(super) blocked: AtomicI64,
    /// Whether tasks and requests are read, so that leases are renewed.
    pub(super) reads: bool,
    /// The reader's heartbeat.
    pub(super) reading: Beat,
    /// The last entry of the stream that the group is known to have delivered: there it goes on if
    /// somebody destroys it.
    pub(super) delivered: Mutex<EntryId>,
    /// The dead letters that were dropped and not reported yet.
    pub(super) dropped: DroppedLetters,
    /// How often it is logged that the server takes no writes.
    pub(super) without_writes: Mutex<Limit>,
    /// Whether the subscriptions to events are lost.
    pub(super) deaf: AtomicBool,
    /// Tells the keeper to end, since the worker is about to leave the group.
    pub(super) leaving: CancellationToken,
    /// Cancelled when the keeper has ended.
    pub(super) upkeep_ended: CancellationToken,
    /// Ends what runs beside the source.
    pub(super) closed: CancellationToken,
}

impl Heart for Worker {
    fn state(&self) -> Option<ConnectionState> {
        if self.closed.is_cancelled() {
            return None;
        }
        let deaf = self.deaf.load(Ordering::Relaxed);
        let pipeline = self.pipeline.state();
        if pipeline > ConnectionState::Lagging {
            return Some(pipeline);
        }
        if deaf || self.reading.is_failing() {
            return Some(ConnectionState::Reconnecting);
        }
        let patience = self.most_between_ticks();
        let ticks = !self.reads || !self.health.lasts(patience).is_zero();
        // A read blocks for an interval before it comes round.
        let late = self.reading.is_late(patience + self.interval());
        Some(match ticks && !late {
            true => ConnectionState::Connected,
            false => ConnectionState::Lagging,
        })
    }
}

impl Worker {
    /// The key of a lane's stream.
    pub(super) fn key_of(&self, lane: Lane) -> &str {
        match lane {
            Lane::Main => &self.keys.stream,
            Lane::Retry => &self.keys.retry,
        }
    }

    /// What `renew.lua` is told about these entries.
    pub(super) fn renewal(&self, ids: &[EntryId]) -> impl FnOnce(&mut Cmd) {
        move |cmd| {
            cmd.arg(self.keys.group.as_str()).arg(&self.consumer);
            for id in ids {
                cmd.arg(*id);
            }
        }
    }

    /// How often pending entries of others are looked at, and how long a read blocks: a second, or
    /// less with a short lease.
    pub(super) fn interval(&self) -> Duration {
        (self.settings.lease / 10).clamp(Duration::from_millis(20), Duration::from_secs(1))
    }

    /// Sends something that has to be done until it is: the pipeline repeats it over lost connections,
    /// this over what a server says that has no memory or no disk at the moment.
    pub(super) async fn insist(&self, send: impl Fn() -> Submit) -> Result<Value, Error> {
        loop {
            let answer = send().await?;
            match error::code(&answer) {
                Some(code) if error::is_without_writes(code) && !self.closed.is_cancelled() => {
                    if let Some(withheld) = lock(&self.without_writes).admit() {
                        tracing::warn!(code, withheld, "Redis takes no writes; trying again");
                    }
                    tokio::select! {
                        biased;
                        () = tokio::time::sleep(Duration::from_secs(1)) => {}
                        () = self.closed.cancelled() => {}
                    }
                }
                _ => return error::check(answer),
            }
        }
    }
}

/// The hold on a delivery: while it is there the lease is renewed.
#[derive(Debug)]
pub(super) struct Grip {
    pub(super) worker: Arc<Worker>,
    pub(super) key: Key,
    pub(super) lease: Lease,
    /// Whether a verdict is on its way with it.
    in_flight: bool,
    released: bool,
}

impl Grip {
    /// The entry was not ours any more, so nothing was done.
    pub(super) fn fenced_out(&self, origin: EntryId) {
        if !self.lease.is_lost() {
            self.worker.held.remove([self.key]);
            self.worker.counters.lost_leases.increment();
            self.lease.lose();
            tracing::warn!(id = %origin, "a delivery was lost to another worker; its verdict changes nothing");
        }
    }

    /// The hold on a delivery that is [held](Held::add).
    pub(super) fn new(worker: &Arc<Worker>, key: Key, lease: Lease) -> Self {
        Self {
            worker: worker.clone(),
            key,
            lease,
            in_flight: false,
            released: false,
        }
    }

    /// Its verdict is on its way from now on, and arrives when it is dropped.
    pub(super) fn take_off(&mut self) {
        self.in_flight = true;
        self.worker.flights.begin();
    }

    /// Lets go of many, as dropping each would.
    pub(super) fn release<'a>(worker: &Worker, grips: impl IntoIterator<Item = &'a mut Self>) {
        let mut landed = 0;
        worker.held.remove(grips.into_iter().filter_map(|grip| {
            grip.released = true;
            landed += usize::from(std::mem::take(&mut grip.in_flight));
            grip.is_held().then_some(grip.key)
        }));
        worker.flights.end(landed);
    }

    fn is_held(&self) -> bool {
        // A lost one is not in the list any more, or it was fetched again and is another's.
        !self.lease.is_lost()
    }
}

impl Drop for Grip {
    fn drop(&mut self) {
        if !self.released && self.is_held() {
            self.worker.held.remove([self.key]);
        }
        if self.in_flight {
            self.worker.flights.end(1);
        }
    }
}

/// Marks the one suspect that may run here.
#[derive(Debug)]
pub(super) struct Suspect(Arc<Worker>);

impl Suspect {
    pub(super) fn new(worker: &Arc<Worker>) -> Self {
        worker.suspect.store(true, Ordering::SeqCst);
        Self(worker.clone())
    }
}

impl Drop for Suspect {
    fn drop(&mut self) {
        self.0.suspect.store(false, Ordering::SeqCst);
    }
}

/// Counts the verdicts on their way.
#[derive(Debug, Default)]
pub(super) struct Flights {
    count: AtomicUsize,
    landed: Notify,
}

impl Flights {
    /// One more is on its way.
    fn begin(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    /// So many have arrived.
    fn end(&self, landed: usize) {
        if landed > 0 && self.count.fetch_sub(landed, Ordering::SeqCst) == landed {
            self.landed.notify_waiters();
        }
    }

    /// Waits until no verdict is on its way.
    pub(super) async fn none(&self) {
        loop {
            let landed = self.landed.notified();
            if self.count.load(Ordering::SeqCst) == 0 {
                return;
            }
            landed.await;
        }
    }
}

/// For how long this worker has been able to renew its leases without a break. Only then does the
/// silence of another worker mean something: after Redis was stopped everybody looks silent.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<Option<Ticks>>);

#[derive(Debug, Clone, Copy)]
struct Ticks {
    first: Instant,
    last: Instant,
    /// Redis's clock at the last one.
    reading: Reading,
}

/// Redis's clock, which was read between two moments.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub(super) asked: Instant,
    pub(super) answered: Instant,
    /// In milliseconds.
    pub(super) on_server: i64,
}

impl Health {
    /// A renewal has just succeeded, which has read Redis's clock. How long it took says nothing
    /// good: it may have waited for a server that stood still.
    ///
    /// A server's clock that has gone forward by more than a tick beyond the monotonic clock begins
    /// the streak anew: everything looks idle for as long as the step was, until each holder has
    /// renewed once more. A step back makes nothing look idle, so it changes nothing here.
    pub(super) fn healthy(&self, reading: Reading, most_between: Duration, tick: Duration) {
        let now = Instant::now();
        let mut ticks = lock(&self.0);
        let goes_on = |before: &Ticks| {
            let most = reading.answered.duration_since(before.reading.asked) + tick;
            let passed = reading.on_server - before.reading.on_server;
            now.duration_since(before.last) <= most_between && passed <= most.as_millis() as i64
        };
        let first = ticks.filter(goes_on).map_or(now, |ticks| ticks.first);
        *ticks = Some(Ticks {
            first,
            last: now,
            reading,
        });
    }

    pub(super) fn unhealthy(&self) {
        *lock(&self.0) = None;
    }

    /// Until when on Redis's clock that counts if no tick follows.
    pub(super) fn until(&self, most_between: Duration) -> Option<i64> {
        let ticks = *lock(&self.0);
        Some(ticks?.reading.on_server + most_between.as_millis() as i64)
    }

    /// For how long; zero when the last tick is older than `most_between`.
    pub(super) fn lasts(&self, most_between: Duration) -> Duration {
        let ticks = lock(&self.0);
        match *ticks {
            Some(ticks) if ticks.last.elapsed() <= most_between => ticks.first.elapsed(),
            _ => Duration::ZERO,
        }
    }
}

/// When the keeper is to look at what is due.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    at: Mutex<Option<Instant>>,
    changed: Notify,
}

impl Alarm {
    /// Rings after so long, or earlier if that was set before.
    pub(super) fn set(&self, after: Duration) {
        // What is due after the end of time is not waited for.
        let Some(at) = Instant::now().checked_add(after) else {
            return;
        };
        let mut earliest = lock(&self.at);
        if earliest.is_none_or(|earliest| at < earliest) {
            *earliest = Some(at);
            drop(earliest);
            self.changed.notify_one();
        }
    }

    /// Waits until it rings, and clears it.
    pub(super) async fn ring(&self) {
        loop {
            let at = *lock(&self.at);
            match at {
                None => self.changed.notified().await,
                Some(at) => tokio::select! {
                    biased;
                    () = tokio::time::sleep_until(at) => {
                        *lock(&self.at) = None;
                        return;
                    }
                    () = self.changed.notified() => {}
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_alarm_rings_for_the_first_that_is_due_and_not_for_what_never_is() {
        let alarm = Alarm::default();
        alarm.set(Duration::MAX);
        assert_eq!(*lock(&alarm.at), None);
        alarm.set(Duration::from_secs(3600));
        alarm.set(Duration::ZERO);
        alarm.set(Duration::from_secs(60));
        alarm.ring().await;
        assert_eq!(*lock(&alarm.at), None);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_renewal_that_waited_for_the_server_health_begins_anew() {
        let (health, second) = (Health::default(), Duration::from_secs(1));
        let tick = |on_server| health.healthy(reading(on_server), second, second / 10);
        tick(0);
        tokio::time::advance(second).await;
        tick(1000);
        assert_eq!(health.lasts(second), second);
        tokio::time::advance(14 * second).await;
        tick(15_000);
        assert_eq!(health.lasts(second), Duration::ZERO);
    }

    fn reading(on_server: i64) -> Reading {
        Reading {
            asked: Instant::now(),
            answered: Instant::now(),
            on_server,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn health_begins_anew_when_the_servers_clock_steps_forward_and_not_when_it_steps_back() {
        let (health, second) = (Health::default(), Duration::from_secs(1));
        let tick = |on_server| health.healthy(reading(on_server), second, second / 10);
        tick(0);
        for (on_server, lasts) in [(1_000, 1), (2_100, 2), (3_300, 0), (4_300, 1), (-60_000, 2)] {
            tokio::time::advance(second).await;
            tick(on_server);
            assert_eq!(health.lasts(second), lasts * second, "at {on_server}");
        }
    }
}
