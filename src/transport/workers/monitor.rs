//! The state of one worker: its announcement, its statistics, and the orders that it follows.

use std::{
    cell::Cell,
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use foldhash::{HashMap, HashSet};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    FollowedOrder, LastError, RouteStats, Running, WorkerDescription, WorkerInfo, WorkerOrder,
    WorkerState, WorkerStats,
    histogram::Histogram,
    history::{MinuteCounts, Outcome},
    info::{cut, host_name},
};
use crate::{
    message::{EscapedText, Kind, Message, MessageId, Name},
    sync::lock,
    transport::{Interest, Settings, Verdict},
};

/// The number of shards of the counts. Threads use different shards, so that they seldom wait for
/// each other.
const SHARDS: usize = 4;
/// The maximum number of routes that are counted by name.
const MAX_ROUTES: usize = 200;
/// The maximum number of running deliveries in the statistics.
const MAX_RUNNING: usize = 100;
/// The approximate maximum size of the routes in the statistics, in bytes.
const MAX_ROUTE_BYTES: usize = 96 << 10;
/// The maximum size of a reason in the statistics, in bytes.
const MAX_REASON_BYTES: usize = 300;
/// The maximum number of names that are paused on a worker.
const MAX_PAUSED: usize = 100;
/// The number of orders that are shown.
const MAX_ORDERS: usize = 5;
/// The name under which further routes are counted after the first 200.
const OTHER: &str = "(other)";

/// The state of one worker, shared by [`serve`](crate::serve()) and the worker's source. `serve`
/// counts deliveries and follows orders. The source publishes the announcement and the statistics,
/// and passes on the orders that it receives. See
/// [`Source::monitor`](crate::transport::Source::monitor).
#[derive(Debug)]
pub struct WorkerMonitor {
    /// The announcement without the parts that change.
    info: WorkerInfo,
    /// The description of the routes, as JSON.
    description: Option<String>,
    /// The names of the tasks and requests that the worker has routes for. `None` if it may handle
    /// any name. Deliveries with another name are counted together, because senders may use any
    /// number of names.
    routed_names: Option<HashSet<(Kind, Name)>>,
    started: Instant,
    shards: [Mutex<Shard>; SHARDS],
    orders: Mutex<Orders>,
    /// The maximum number of deliveries in flight that an operator has set. `usize::MAX` if none.
    limit: AtomicUsize,
    is_paused: AtomicBool,
    has_paused_names: AtomicBool,
    /// Changes with each change of the announcement.
    revision: AtomicU64,
    changed: Notify,
    draining: CancellationToken,
}

/// The paused names, and the last orders.
#[derive(Debug, Default)]
struct Orders {
    paused_names: HashSet<Name>,
    followed: VecDeque<FollowedOrder>,
}

/// A shard of the counts.
#[derive(Debug, Default)]
struct Shard {
    running: Vec<Option<StartedDelivery>>,
    /// The unused places in `running`.
    free_places: Vec<usize>,
    routes: HashMap<(Kind, Name), RouteCounts>,
    /// The counts since they were last taken, by stream.
    stream_counts: HashMap<Name, MinuteCounts>,
}

/// A delivery that runs.
#[derive(Debug)]
struct StartedDelivery {
    id: Option<MessageId>,
    kind: Kind,
    name: Name,
    /// The name of the route. For an event that matched a pattern, the pattern.
    route: Name,
    stream: Option<Name>,
    attempt: u32,
    waited: Option<Duration>,
    at: Instant,
}

/// The counts of a route.
#[derive(Debug, Default)]
struct RouteCounts {
    done: u64,
    failed: u64,
    dead: u64,
    discarded: u64,
    latency: Histogram,
    last_error: Option<LastError>,
}

impl RouteCounts {
    fn count(&mut self, outcome: Outcome, latency: Duration) {
        *match outcome {
            Outcome::Done => &mut self.done,
            Outcome::Failed => &mut self.failed,
            Outcome::Dead => &mut self.dead,
            Outcome::Discarded => &mut self.discarded,
        } += 1;
        self.latency.record(latency);
    }

    fn merge(&mut self, other: &Self) {
        self.done += other.done;
        self.failed += other.failed;
        self.dead += other.dead;
        self.discarded += other.discarded;
        self.latency.merge(&other.latency);
        let time = |error: &Option<LastError>| error.as_ref().map(|error| error.at);
        if time(&other.last_error) > time(&self.last_error) {
            self.last_error.clone_from(&other.last_error);
        }
    }

    fn total(&self) -> u64 {
        self.done + self.failed + self.dead + self.discarded
    }
}

impl WorkerMonitor {
    /// Creates the state of a worker that starts now. `worker` is its unique name, `service` the
    /// name and the version of its service, and `routes` are its routes, each as its kind and its
    /// name.
    pub fn new(
        worker: impl Into<String>,
        settings: &Settings,
        interest: &Interest,
        service: (String, String),
        routes: Vec<String>,
    ) -> Self {
        let streams = match (settings.served_registry(), settings.partitions()) {
            _ if !interest.stream => Vec::new(),
            (Some(registry), _) => vec![format!("registry {registry}")],
            (None, Some(partitions)) => vec![partitions.stream.to_string()],
            (None, None) => {
                let listed = settings.listed_streams().into_iter();
                listed.map(|(stream, _)| stream.to_string()).collect()
            }
        };
        let routed_names = interest.routes.as_ref();
        let (service, version) = service;
        let info = WorkerInfo {
            worker: worker.into(),
            service,
            version,
            host: host_name(),
            pid: std::process::id(),
            since: SystemTime::now(),
            group: settings.group.to_string(),
            streams,
            routes,
            max_in_flight: settings.max_in_flight,
            lease: settings.lease,
            campanile: env!("CARGO_PKG_VERSION").to_owned(),
            ..WorkerInfo::default()
        };
        Self {
            info: info.bounded(),
            description: None,
            routed_names: routed_names.map(|names| names.iter().cloned().collect()),
            started: Instant::now(),
            shards: Default::default(),
            orders: Mutex::default(),
            limit: AtomicUsize::new(usize::MAX),
            is_paused: AtomicBool::new(false),
            has_paused_names: AtomicBool::new(false),
            revision: AtomicU64::new(1),
            changed: Notify::new(),
            draining: CancellationToken::new(),
        }
    }

    /// Returns the name of the worker.
    pub fn worker(&self) -> &str {
        &self.info.worker
    }

    /// Returns a number that changes with each change of [`info`](Self::info). It begins at 1.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Returns the announcement of the worker. `transport` is the name of the transport.
    pub fn info(&self, transport: &str) -> WorkerInfo {
        let orders = lock(&self.orders);
        let mut paused: Vec<_> = orders.paused_names.iter().map(Name::to_string).collect();
        paused.sort();
        let info = WorkerInfo {
            transport: transport.to_owned(),
            limit: self.limit(),
            state: self.state(),
            paused,
            orders: orders.followed.iter().cloned().collect(),
            ..self.info.clone()
        };
        info.bounded()
    }

    fn limit(&self) -> Option<usize> {
        let limit = self.limit.load(Ordering::Acquire);
        (limit < usize::MAX).then_some(limit)
    }

    fn state(&self) -> WorkerState {
        match self.draining.is_cancelled() {
            true => WorkerState::Draining,
            false if self.is_paused.load(Ordering::Acquire) => WorkerState::Paused,
            false => WorkerState::Running,
        }
    }

    /// Returns the time of day on the worker's clock.
    fn now(&self) -> SystemTime {
        self.info.since + self.started.elapsed()
    }

    /// Sets the description of the routes, as JSON of at most
    /// [`WorkerDescription::MAX_LEN`] bytes. A longer one is left out.
    #[must_use]
    pub fn described_as(mut self, description: Option<String>) -> Self {
        self.description = description.filter(|json| json.len() <= WorkerDescription::MAX_LEN);
        self
    }

    /// Returns the description of the worker.
    pub fn describe(&self) -> WorkerDescription {
        WorkerDescription {
            worker: self.worker().to_owned(),
            service: self.info.service.clone(),
            version: self.info.version.clone(),
            description: self.description.clone(),
        }
    }

    /// Returns the statistics of the worker.
    pub fn stats(&self) -> WorkerStats {
        let mut routes: HashMap<(Kind, Name), RouteCounts> = HashMap::default();
        let (mut in_flight, mut running) = (0, Vec::new());
        // Adds up the counts of all shards.
        for shard in &self.shards {
            let shard = lock(shard);
            for (route, counts) in &shard.routes {
                let is_known = routes.contains_key(route);
                let route = match is_known || routes.len() < MAX_ROUTES {
                    true => route.clone(),
                    false => (route.0, Name::from_static(OTHER)),
                };
                routes.entry(route).or_default().merge(counts);
            }
            let started = shard.running.iter().flatten();
            let before = running.len();
            running.extend(started.map(StartedDelivery::shown));
            in_flight += running.len() - before;
            // Keeps only the deliveries that have run for the longest time, so that memory stays
            // bounded.
            running.sort_by_key(|running: &Running| std::cmp::Reverse(running.running_for));
            running.truncate(MAX_RUNNING);
        }
        let mut stats = WorkerStats {
            worker: self.worker().to_owned(),
            at: self.now(),
            state: self.state(),
            in_flight,
            running,
            ..WorkerStats::default()
        };
        let mut routes: Vec<_> = routes.into_iter().collect();
        routes.sort_by(|(a, one), (b, other)| {
            other.total().cmp(&one.total()).then_with(|| a.1.cmp(&b.1))
        });
        // Lists the routes until their estimated size reaches the maximum. The totals include the
        // counts of all routes.
        let mut bytes = 0;
        for ((kind, name), counts) in routes {
            stats.done += counts.done;
            stats.failed += counts.failed;
            stats.dead += counts.dead;
            stats.discarded += counts.discarded;
            let reason = counts
                .last_error
                .as_ref()
                .map_or(0, |last| last.reason.len());
            bytes += name.len() + reason + 250;
            if bytes > MAX_ROUTE_BYTES {
                stats.routes_left_out += 1;
                continue;
            }
            stats.routes.push(RouteStats {
                kind: kind.as_str().to_owned(),
                name: name.to_string(),
                done: counts.done,
                failed: counts.failed,
                dead: counts.dead,
                discarded: counts.discarded,
                latency: counts.latency.quantiles(),
                last_error: counts.last_error,
            });
        }
        stats
    }

    /// Removes and returns the counts of a stream since the last call. `None` if nothing was
    /// counted.
    pub(crate) fn take_counts(&self, stream: &Name) -> Option<MinuteCounts> {
        let mut taken: Option<MinuteCounts> = None;
        for shard in &self.shards {
            let Some(counts) = lock(shard).stream_counts.remove(stream) else {
                continue;
            };
            match &mut taken {
                None => taken = Some(counts),
                Some(taken) => taken.merge(&counts),
            }
        }
        taken
    }

    /// Returns `true` if [`take_counts`](Self::take_counts) would return counts of a stream.
    #[cfg(feature = "redis")]
    pub(crate) fn has_counts(&self, stream: &Name) -> bool {
        (self.shards.iter()).any(|shard| lock(shard).stream_counts.contains_key(stream))
    }

    /// Puts back counts that could not be stored.
    #[cfg(feature = "redis")]
    pub(crate) fn put_back_counts(&self, stream: &Name, counts: &MinuteCounts) {
        let mut shard = lock(&self.shards[0]);
        shard
            .stream_counts
            .entry(stream.clone())
            .or_default()
            .merge(counts);
    }

    /// Counts a delivery as running until the returned guard is dropped or gets the verdict.
    pub(crate) fn start(self: Arc<Self>, message: &Message) -> RunningGuard {
        let parts = message.parts();
        let waited = match (parts.accepted_at, parts.attempt.is_retry()) {
            (Some(accepted), false) => self.now().duration_since(accepted).ok(),
            _ => None,
        };
        let started = StartedDelivery {
            id: parts.id.clone(),
            kind: parts.kind,
            name: parts.name.clone(),
            route: parts.pattern.as_ref().unwrap_or(&parts.name).clone(),
            stream: parts.stream.clone(),
            attempt: parts.attempt.0,
            waited,
            at: Instant::now(),
        };
        let shard = shard_of_thread();
        let mut counts = lock(&self.shards[shard]);
        let place = match counts.free_places.pop() {
            Some(place) => place,
            None => {
                counts.running.push(None);
                counts.running.len() - 1
            }
        };
        counts.running[place] = Some(started);
        drop(counts);
        RunningGuard {
            monitor: self,
            shard,
            place,
        }
    }

    /// Returns `true` if tasks and requests of this name must not start on this worker.
    pub(crate) fn has_paused(&self, name: &Name) -> bool {
        self.has_paused_names.load(Ordering::Relaxed)
            && lock(&self.orders).paused_names.contains(name)
    }

    /// Returns the number of deliveries that may be in flight.
    pub(crate) fn max_in_flight(&self) -> usize {
        match self.is_paused.load(Ordering::Acquire) {
            true => 0,
            false => (self.info.max_in_flight).min(self.limit.load(Ordering::Acquire)),
        }
    }

    /// Waits until [`max_in_flight`](Self::max_in_flight) may have changed. Only one task may wait
    /// at a time.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Waits until an operator drains the worker.
    pub(crate) async fn wait_until_drained(self: Arc<Self>) {
        self.draining.cancelled().await;
    }

    /// Records that the worker is draining.
    pub(crate) fn set_draining(&self) {
        self.draining.cancel();
        self.revision.fetch_add(1, Ordering::AcqRel);
    }

    /// Follows an order of the operator `by`, and logs it.
    pub fn follow(&self, order: &WorkerOrder, by: &str) {
        let (worker, group) = (self.worker(), EscapedText::new(&self.info.group));
        let by_shown = EscapedText::new(by).at_most(MAX_REASON_BYTES).to_string();
        let mut orders = lock(&self.orders);
        match order {
            WorkerOrder::Drain => self.draining.cancel(),
            WorkerOrder::Limit(limit) => {
                self.limit
                    .store(limit.unwrap_or(usize::MAX), Ordering::Release);
            }
            WorkerOrder::Pause => self.is_paused.store(true, Ordering::Release),
            WorkerOrder::Resume => self.is_paused.store(false, Ordering::Release),
            WorkerOrder::PauseName(name) => {
                if orders.paused_names.len() >= MAX_PAUSED && !orders.paused_names.contains(name) {
                    tracing::warn!(
                        worker, %group, by = by_shown,
                        "an order to pause a name is not followed: {MAX_PAUSED} names are paused on \
                         this worker"
                    );
                    return;
                }
                orders.paused_names.insert(name.clone());
            }
            WorkerOrder::ResumeName(name) => drop(orders.paused_names.remove(name)),
        }
        let has_paused_names = !orders.paused_names.is_empty();
        self.has_paused_names
            .store(has_paused_names, Ordering::Relaxed);
        let text = order.to_string();
        let shown = EscapedText::new(&text).to_string();
        tracing::info!(worker, %group, order = shown, by = by_shown, "the worker follows an order");
        if orders.followed.len() == MAX_ORDERS {
            orders.followed.pop_front();
        }
        let (mut order_text, mut operator) = (text, by.to_owned());
        cut(&mut order_text, MAX_REASON_BYTES);
        cut(&mut operator, MAX_REASON_BYTES);
        orders.followed.push_back(FollowedOrder {
            order: order_text,
            by: operator,
            at: self.now(),
        });
        drop(orders);
        self.revision.fetch_add(1, Ordering::AcqRel);
        self.changed.notify_one();
    }

    /// Returns `true` if deliveries of this name are counted by name.
    fn is_counted_by_name(&self, kind: Kind, name: &Name) -> bool {
        let routed_names = self.routed_names.as_ref();
        // `routed_names` has only tasks and requests. An event is always counted by its
        // subscription, because the number of subscriptions does not depend on senders.
        kind == Kind::Event
            || routed_names.is_none_or(|names| names.contains(&(kind, name.clone())))
    }
}

impl StartedDelivery {
    fn shown(&self) -> Running {
        let mut id = self.id.as_deref().unwrap_or_default().to_owned();
        cut(&mut id, 100);
        Running {
            id,
            kind: self.kind.as_str().to_owned(),
            name: self.name.to_string(),
            attempt: self.attempt,
            running_for: self.at.elapsed(),
        }
    }
}

/// Counts a delivery as running in the worker's statistics until the guard is dropped.
#[derive(Debug)]
pub(crate) struct RunningGuard {
    monitor: Arc<WorkerMonitor>,
    shard: usize,
    place: usize,
}

impl RunningGuard {
    /// Counts the verdict on the delivery, and drops the guard.
    pub(crate) fn end(self, verdict: &Verdict) {
        if let Some(outcome) = Outcome::of(verdict) {
            self.count(outcome, verdict);
        }
    }

    fn count(&self, outcome: Outcome, verdict: &Verdict) {
        // Read before the lock is taken, so that the lock is held only briefly.
        let now = Instant::now();
        let last_error = reason(verdict).map(|mut reason| {
            cut(&mut reason, MAX_REASON_BYTES);
            let at = self.monitor.now();
            LastError { reason, at }
        });
        let mut shard = lock(&self.monitor.shards[self.shard]);
        let Shard {
            running,
            routes,
            stream_counts,
            ..
        } = &mut *shard;
        let Some(started) = &running[self.place] else {
            return;
        };
        let latency = now - started.at;
        let key = (started.kind, started.route.clone());
        let counts = match routes.get_mut(&key) {
            Some(counts) => counts,
            None => {
                let is_counted_by_name =
                    routes.len() < MAX_ROUTES && self.monitor.is_counted_by_name(key.0, &key.1);
                let key = match is_counted_by_name {
                    true => key,
                    false => (key.0, Name::from_static(OTHER)),
                };
                routes.entry(key).or_default()
            }
        };
        counts.count(outcome, latency);
        if last_error.is_some() {
            counts.last_error = last_error;
        }
        if let Some(stream) = &started.stream {
            let counts = match stream_counts.get_mut(stream) {
                Some(counts) => counts,
                None => stream_counts.entry(stream.clone()).or_default(),
            };
            counts.count(outcome, latency, started.waited);
        }
    }
}

impl Drop for RunningGuard {
    fn drop(&mut self) {
        let mut shard = lock(&self.monitor.shards[self.shard]);
        shard.running[self.place] = None;
        shard.free_places.push(self.place);
    }
}

/// Returns the reason of a failure. `None` if the verdict is no failure.
fn reason(verdict: &Verdict) -> Option<String> {
    match verdict {
        Verdict::Redeliver { reason, .. } | Verdict::DeadLetter { reason, .. } => {
            Some(reason.clone())
        }
        Verdict::Done(Err(answer)) => Some(answer.to_string()),
        _ => None,
    }
}

/// Returns the index of the shard that this thread uses.
fn shard_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
    }
    SHARD.get()
}
