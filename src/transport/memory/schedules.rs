//! Scheduled tasks in memory.

use std::{collections::HashMap, time::SystemTime};

use super::{Memory, encode};
use crate::{
    error::Error,
    message::{Message, Name},
    schedule::ScheduledTask,
    transport::{
        FireOutcome, Fired, ScheduleChange, ScheduleList, ScheduleRun, ScheduleStatus,
        ScheduleStore, Settings, StoreFuture,
    },
};

/// The scheduled tasks of a stream.
#[derive(Debug, Default)]
pub(super) struct StreamSchedules {
    by_name: HashMap<Name, ScheduleStatus>,
    /// The number of changes so far.
    changes: u64,
}

impl StreamSchedules {
    /// Stores a scheduled task. Returns `false` if the stored one has a higher version.
    fn put(&mut self, task: &ScheduledTask, group: &Name, now: SystemTime) -> bool {
        let mut new = ScheduleStatus::new(task.clone(), group.clone(), now);
        if let Some(stored) = self.by_name.get(task.name()) {
            if stored.version > new.version {
                return false;
            }
            if stored.task == new.task && stored.version == new.version && stored.group == *group {
                return true;
            }
            let old = stored.task.as_ref().ok();
            if old.is_some_and(|old| old.schedule().has_ticks_of(task.schedule())) {
                new.last_tick = stored.last_tick;
            }
            new.paused = stored.paused;
            new.runs.clone_from(&stored.runs);
        }
        self.changes += 1;
        new.revision = self.changes;
        self.by_name.insert(task.name().clone(), new);
        true
    }

    /// Removes, pauses or resumes a schedule. Returns `false` if no schedule has this name.
    fn change(&mut self, name: &Name, change: ScheduleChange, now: SystemTime) -> bool {
        let Some(stored) = self.by_name.get_mut(name) else {
            return false;
        };
        let is_pause = change == ScheduleChange::Pause;
        if change == ScheduleChange::Remove {
            self.by_name.remove(name);
            self.changes += 1;
        } else if stored.paused != is_pause {
            stored.paused = is_pause;
            if !is_pause {
                // The ticks of the pause are not sent.
                stored.last_tick = stored.last_tick.max(now);
            }
            self.changes += 1;
            stored.revision = self.changes;
        }
        true
    }

    /// Returns the reason why a tick is not sent, if there is one. `None` as the tick means a
    /// manual run, which only a change of the schedule refuses.
    fn refusal(
        &self,
        schedule: &ScheduleStatus,
        tick: Option<SystemTime>,
        now: SystemTime,
    ) -> Option<FireOutcome> {
        let stored = self.by_name.get(&schedule.name);
        let Some(stored) = stored.filter(|stored| stored.revision == schedule.revision) else {
            return Some(FireOutcome::Changed);
        };
        let tick = tick?;
        if stored.paused {
            return Some(FireOutcome::Changed);
        }
        if stored.last_tick != schedule.last_tick {
            return Some(FireOutcome::Taken(stored.last_tick));
        }
        (now < tick).then_some(FireOutcome::Early)
    }

    fn record(&mut self, name: &Name, tick: Option<SystemTime>, run: ScheduleRun) {
        if let Some(stored) = self.by_name.get_mut(name) {
            stored.last_tick = tick.unwrap_or(stored.last_tick);
            stored.runs.push(run);
            if stored.runs.len() > ScheduleStatus::MAX_RUNS {
                stored.runs.remove(0);
            }
        }
    }
}

/// The scheduled tasks of a handle's stream.
pub(super) struct MemorySchedules(pub(super) Memory);

impl MemorySchedules {
    fn with<T>(&self, act: impl FnOnce(&mut StreamSchedules, SystemTime) -> T) -> Result<T, Error> {
        let Memory { broker, settings } = &self.0;
        let stream = settings.one_stream()?;
        let now = broker.context.clock.now();
        Ok(broker.with_stream(stream, |contents| act(&mut contents.schedules, now)))
    }

    fn send(
        &self,
        schedule: &ScheduleStatus,
        message: &Message,
        tick: Option<SystemTime>,
    ) -> Result<Fired, Error> {
        let Memory { broker, settings } = &self.0;
        let stream = settings.one_stream()?;
        let settings = Settings {
            group: schedule.group.clone(),
            ..settings.clone()
        };
        if let Some(registry) = &settings.registry {
            broker.registries.register(registry, stream);
        }
        let fields = encode(message, None);
        broker.with_stream(stream, |contents| {
            let now = broker.context.clock.now();
            if let Some(outcome) = contents.schedules.refusal(schedule, tick, now) {
                return Ok(Fired { now, outcome });
            }
            let parts = message.parts();
            let reply = broker.accept_on(stream, contents, &settings, parts, fields)?;
            let is_skipped = reply.is_duplicate();
            let id = reply.receipt().cloned().unwrap_or_default();
            let mut run = ScheduleRun::new(tick.unwrap_or(now), id.clone());
            (run.is_skipped, run.is_manual) = (is_skipped, tick.is_none());
            contents.schedules.record(&schedule.name, tick, run);
            let outcome = match is_skipped {
                true => FireOutcome::Skipped(id),
                false => FireOutcome::Sent(id),
            };
            Ok(Fired { now, outcome })
        })
    }
}

impl ScheduleStore for MemorySchedules {
    fn put<'a>(&'a self, task: &'a ScheduledTask) -> StoreFuture<'a, bool> {
        let group = &self.0.settings.group;
        Box::pin(async move { self.with(|schedules, now| schedules.put(task, group, now)) })
    }

    fn change<'a>(&'a self, name: &'a Name, change: ScheduleChange) -> StoreFuture<'a, bool> {
        Box::pin(async move { self.with(|schedules, now| schedules.change(name, change, now)) })
    }

    fn list(&self, known: Option<u64>) -> StoreFuture<'_, ScheduleList> {
        Box::pin(async move {
            self.with(|StreamSchedules { by_name, changes }, now| {
                let as_of = |stored: &ScheduleStatus| ScheduleStatus {
                    as_of: now,
                    ..stored.clone()
                };
                let is_known = known == Some(*changes);
                ScheduleList {
                    now,
                    changes: *changes,
                    schedules: (!is_known).then(|| by_name.values().map(as_of).collect()),
                }
            })
        })
    }

    fn fire<'a>(
        &'a self,
        schedule: &'a ScheduleStatus,
        message: Message,
        tick: Option<SystemTime>,
    ) -> StoreFuture<'a, Fired> {
        Box::pin(async move { self.send(schedule, &message, tick) })
    }
}
