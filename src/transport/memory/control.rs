//! The pauses of a broker, and the purge of waiting messages.

use std::{
    collections::{BTreeMap, HashSet},
    future::ready,
    sync::Mutex,
    time::SystemTime,
};

use super::{
    broker::{Broker, BrokerState},
    context::GroupContext,
    log::LogEntry,
    records::TaskEnd,
};
use crate::{
    message::{Name, parking_key_of_paused},
    sync::lock,
    transport::{ControlStore, Pause, PauseTarget, PurgeStep, Settings, StoreFuture, TaskState},
};

/// The stream of a pause, its group (`None` for all groups), and its target.
type PauseKey = (Name, Option<Name>, PauseTarget);

/// The pauses of a broker, each with its reason and its time.
#[derive(Debug, Default)]
pub(super) struct Pauses(Mutex<BTreeMap<PauseKey, (String, SystemTime)>>);

/// The pauses of a group.
#[derive(Debug, Default)]
pub(super) struct GroupPauses {
    all: bool,
    names: HashSet<Name>,
}

impl Pauses {
    pub(super) fn of_group(&self, settings: &Settings) -> GroupPauses {
        let mut pauses = GroupPauses::default();
        for pause in self.list(settings) {
            match pause.target {
                PauseTarget::Name(name) => drop(pauses.names.insert(name)),
                PauseTarget::Stream | PauseTarget::Group => pauses.all = true,
            }
        }
        pauses
    }

    fn list(&self, settings: &Settings) -> Vec<Pause> {
        let pauses = lock(&self.0);
        let of_group = pauses.iter().filter(|((stream, group, _), _)| {
            *stream == settings.stream && group.as_ref().is_none_or(|it| *it == settings.group)
        });
        let pauses = of_group
            .map(|((_, _, target), (reason, since))| Pause::new(target.clone(), reason, *since));
        pauses.collect()
    }
}

impl GroupPauses {
    /// Returns `true` if the group delivers nothing now.
    pub(super) fn is_paused(&self) -> bool {
        self.all
    }

    /// Returns the key under which an entry is parked. `None` if the name of its message is not
    /// paused.
    pub(super) fn parking_key(&self, entry: &LogEntry) -> Option<String> {
        if self.names.is_empty() {
            return None;
        }
        let name = Name::from_utf8(entry.field("name")?).ok()?;
        self.names
            .contains(&name)
            .then(|| parking_key_of_paused(&name))
    }
}

/// The pauses of a handle's group, on one stream or on all partitions of a stream.
pub(super) struct MemoryControl {
    pub(super) broker: Broker,
    pub(super) streams: Vec<Settings>,
}

impl MemoryControl {
    /// Calls `change` for each stream. Returns `true` if at least one call returned `true`.
    fn change_streams(&self, change: impl Fn(&Settings) -> bool) -> StoreFuture<'_, bool> {
        let changed = self
            .streams
            .iter()
            .filter(|settings| change(settings))
            .count();
        Box::pin(ready(Ok(changed > 0)))
    }
}

impl ControlStore for MemoryControl {
    fn pause<'a>(&'a self, target: &'a PauseTarget, reason: &'a str) -> StoreFuture<'a, bool> {
        self.change_streams(|settings| self.broker.pause(settings, target, reason))
    }

    fn resume<'a>(&'a self, target: &'a PauseTarget) -> StoreFuture<'a, bool> {
        self.change_streams(|settings| self.broker.resume(settings, target))
    }

    fn pauses(&self) -> StoreFuture<'_, Vec<Pause>> {
        let pauses = &self.broker.context.pauses;
        let of_streams = self
            .streams
            .iter()
            .flat_map(|settings| pauses.list(settings));
        Box::pin(ready(Ok(of_streams.collect())))
    }

    fn purge_step<'a>(&'a self, _: Option<&'a str>) -> StoreFuture<'a, PurgeStep> {
        let streams = self.streams.iter();
        let purged = streams.map(|settings| self.broker.purge_waiting(settings));
        Box::pin(ready(Ok(PurgeStep::new(purged.sum(), None))))
    }
}

fn pause_key(settings: &Settings, target: &PauseTarget) -> PauseKey {
    let group = (*target != PauseTarget::Stream).then(|| settings.group.clone());
    (settings.stream.clone(), group, target.clone())
}

impl BrokerState {
    fn pause(&self, settings: &Settings, target: &PauseTarget, reason: &str) -> bool {
        let pause = (reason.to_owned(), self.context.clock.now());
        let mut pauses = lock(&self.context.pauses.0);
        pauses.insert(pause_key(settings, target), pause).is_none()
    }

    fn resume(&self, settings: &Settings, target: &PauseTarget) -> bool {
        let ended = lock(&self.context.pauses.0).remove(&pause_key(settings, target));
        self.with_stream(&settings.stream, |stream| {
            for (name, group) in &mut stream.groups {
                if let PauseTarget::Name(paused) = target
                    && *name == settings.group
                {
                    group.resume(paused);
                }
                group.wake();
            }
        });
        ended.is_some()
    }

    fn purge_waiting(&self, settings: &Settings) -> u64 {
        let entries = self.with_group(settings, |group, log| group.take_waiting(log));
        let entries = entries.unwrap_or_default();
        let GroupContext { records, clock, .. } = &self.context;
        // Cancelled tasks have ended already, so they do not count.
        let purged = entries
            .iter()
            .filter(|entry| !records.skip_cancelled(settings, &entry.fields));
        let ended = purged.map(|entry| {
            let end = TaskEnd::new(TaskState::Discarded, "purged");
            records.end(settings, &entry.fields, end, clock);
        });
        ended.count() as u64
    }
}
