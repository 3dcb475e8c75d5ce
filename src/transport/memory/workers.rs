//! The workers of a broker, and the history of its groups.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::ready,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{
    broker::{Broker, BrokerState},
    group::SourceNumber,
};
use crate::{
    error::Error,
    message::Name,
    sync::lock,
    transport::{
        Answers, MINUTES, Minute, MinuteCounts, Pong, Settings, StoreFuture, WorkerDescription,
        WorkerInfo, WorkerMonitor, WorkerOrder, WorkerStats, WorkerStore,
    },
};

/// The name of the transport in announcements.
const TRANSPORT: &str = "memory";
/// The number of minutes for which counts are kept.
const KEPT_MINUTES: u64 = 2 * MINUTES;

/// The workers with open sources, and the history of their groups.
#[derive(Debug, Default)]
pub(super) struct BrokerWorkers {
    workers: Mutex<BTreeMap<SourceNumber, OpenWorker>>,
    /// The counts by stream and group, and by the number of the minute since 1970.
    history: Mutex<BTreeMap<(Name, Name), BTreeMap<u64, MinuteCounts>>>,
}

#[derive(Debug, Clone)]
struct OpenWorker {
    monitor: Arc<WorkerMonitor>,
    group: Name,
    streams: BTreeSet<Name>,
}

impl BrokerWorkers {
    pub(super) fn add(
        &self,
        consumer: SourceNumber,
        monitor: Arc<WorkerMonitor>,
        group: &Name,
        streams: impl Iterator<Item = Name>,
    ) {
        let worker = OpenWorker {
            monitor,
            group: group.clone(),
            streams: streams.collect(),
        };
        lock(&self.workers).insert(consumer, worker);
    }

    /// Records that a worker serves another stream.
    pub(super) fn add_stream(&self, consumer: SourceNumber, stream: &Name) {
        if let Some(worker) = lock(&self.workers).get_mut(&consumer) {
            worker.streams.insert(stream.clone());
        }
    }

    pub(super) fn remove(&self, consumer: SourceNumber, minute: u64) {
        let removed = lock(&self.workers).remove(&consumer);
        self.collect(removed.iter(), minute);
    }

    /// Moves the counts of a worker from its monitor to this minute of the history.
    pub(super) fn collect_of(&self, consumer: SourceNumber, minute: u64) {
        let worker = lock(&self.workers).get(&consumer).cloned();
        self.collect(worker.iter(), minute);
    }

    fn collect<'a>(&self, workers: impl Iterator<Item = &'a OpenWorker>, minute: u64) {
        for worker in workers {
            for stream in &worker.streams {
                let Some(counts) = worker.monitor.take_counts(stream) else {
                    continue;
                };
                let mut history = lock(&self.history);
                let of_group = (stream.clone(), worker.group.clone());
                let minutes = history.entry(of_group).or_default();
                minutes.entry(minute).or_default().merge(&counts);
                *minutes = minutes.split_off(&minute.saturating_sub(KEPT_MINUTES));
            }
        }
    }

    /// Returns the workers that serve at least one of these streams, in the group of its settings.
    fn serving(&self, streams: &[Settings]) -> Vec<OpenWorker> {
        let workers = lock(&self.workers);
        let serves = |worker: &&OpenWorker| {
            let is_of = |settings: &Settings| {
                worker.group == settings.group && worker.streams.contains(&settings.stream)
            };
            streams.iter().any(is_of)
        };
        workers.values().filter(serves).cloned().collect()
    }
}

impl BrokerState {
    /// Returns the number of the current minute since 1970.
    pub(super) fn minute(&self) -> u64 {
        self.context.clock.milliseconds() / 60_000
    }

    /// Returns the counts of a group for each minute of the last hour, summed over these streams.
    pub(super) fn history(&self, streams: &[Settings]) -> Vec<Minute> {
        let now = self.minute();
        self.workers
            .collect(self.workers.serving(streams).iter(), now);
        let history = lock(&self.workers.history);
        let of = |settings: &Settings| {
            let of_group = (settings.stream.clone(), settings.group.clone());
            history.get(&of_group)
        };
        let minutes = (now + 1).saturating_sub(MINUTES)..=now;
        let minutes = minutes.map(|number| {
            let mut counts = MinuteCounts::default();
            for part in streams.iter().filter_map(of) {
                counts.merge(part.get(&number).unwrap_or(&MinuteCounts::default()));
            }
            counts.minute(number)
        });
        minutes.collect()
    }
}

/// The workers of a handle's group, on one stream or on all partitions of a stream.
pub(super) struct MemoryWorkers {
    pub(super) broker: Broker,
    pub(super) streams: Vec<Settings>,
}

impl MemoryWorkers {
    fn all(&self) -> Vec<OpenWorker> {
        self.broker.workers.serving(&self.streams)
    }

    /// Calls `answer` for each worker, and returns the results.
    fn for_each_worker<T: Send + 'static>(
        &self,
        answer: impl Fn(&WorkerMonitor) -> T,
    ) -> StoreFuture<'_, Answers<T>> {
        let answers = self.all();
        let answers = answers.iter().map(|worker| answer(&worker.monitor));
        let answers = Answers::new(answers.collect(), Vec::new());
        Box::pin(ready(Ok::<_, Error>(answers)))
    }
}

impl WorkerStore for MemoryWorkers {
    fn list(&self) -> StoreFuture<'_, Vec<WorkerInfo>> {
        let workers = self.all();
        let workers = workers.iter().map(|worker| worker.monitor.info(TRANSPORT));
        Box::pin(ready(Ok(workers.collect())))
    }

    fn stats(&self) -> StoreFuture<'_, Answers<WorkerStats>> {
        self.for_each_worker(WorkerMonitor::stats)
    }

    fn describe(&self) -> StoreFuture<'_, Answers<WorkerDescription>> {
        self.for_each_worker(WorkerMonitor::describe)
    }

    fn ping(&self) -> StoreFuture<'_, Answers<Pong>> {
        self.for_each_worker(|monitor| Pong::new(monitor.worker(), Duration::ZERO))
    }

    fn order<'a>(
        &'a self,
        worker: &'a str,
        order: &'a WorkerOrder,
        by: &'a str,
    ) -> StoreFuture<'a, bool> {
        let found = self
            .all()
            .into_iter()
            .find(|it| it.monitor.worker() == worker);
        if let Some(worker) = &found {
            worker.monitor.follow(order, by);
        }
        Box::pin(ready(Ok(found.is_some())))
    }
}
