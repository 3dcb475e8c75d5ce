//! Sends the tasks of schedules when they are due.

use std::{
    convert::Infallible,
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::{FireOutcome, Fired, ScheduleStatus, ScheduleStore};
use crate::{
    error::Error,
    schedule::{ScheduledTask, Ticks, from_milliseconds, milliseconds},
    transport::Backoff,
};

/// The time between two listings of the schedules. A listing shows changes by other processes.
const LIST_PERIOD: Duration = Duration::from_secs(1);
/// The wait after a failure.
const BACKOFF: Backoff = Backoff::exponential(Duration::from_millis(500), Duration::from_secs(10));

/// Runs the schedules of a stream in one process. A runner only proposes ticks: the store decides
/// whether to send their tasks.
pub(super) struct Runner<'a> {
    store: &'a dyn ScheduleStore,
    /// The schedules that the application has passed to `Schedules::run`.
    entries: Vec<ScheduledTask>,
    /// `true` once the entries are stored.
    has_stored_entries: bool,
    /// The number of changes at the last listing.
    known_changes: Option<u64>,
    /// `true` if the next listing must return the schedules, even if the number of changes is the
    /// same.
    must_reload: bool,
    /// The time of the last listing. `None` if the schedules must be listed now.
    listed_at: Option<Instant>,
    clock: StoreClock,
    schedules: Vec<ActiveSchedule>,
}

/// A schedule that is not paused.
struct ActiveSchedule {
    status: ScheduleStatus,
    task: ScheduledTask,
    ticks: Ticks,
    /// The tick to send next, in milliseconds since 1970. `None` if there is no further tick.
    due: Option<u64>,
    /// The number of failures in a row.
    failures: u32,
    /// The time of the next attempt after a failure.
    retry_at: Option<Instant>,
}

/// Estimates the time on the store's clock. The estimate is never ahead, unless the store's clock
/// steps back.
#[derive(Debug, Clone, Copy)]
struct StoreClock {
    /// The time on the store's clock at `at`, in milliseconds since 1970.
    time: u64,
    at: Instant,
}

impl StoreClock {
    /// Starts from a time that the store has just returned.
    fn starting(time: SystemTime) -> Self {
        Self {
            time: milliseconds(time),
            at: Instant::now(),
        }
    }

    fn now(self) -> u64 {
        let elapsed = self.at.elapsed().as_millis();
        self.time.saturating_add(elapsed.try_into().unwrap_or(0))
    }
}

impl<'a> Runner<'a> {
    pub(super) fn new(store: &'a dyn ScheduleStore, entries: Vec<ScheduledTask>) -> Self {
        Self {
            store,
            entries,
            has_stored_entries: false,
            known_changes: None,
            must_reload: false,
            listed_at: None,
            clock: StoreClock::starting(SystemTime::UNIX_EPOCH),
            schedules: Vec::new(),
        }
    }

    /// Runs until an error that a retry cannot cure.
    pub(super) async fn run(mut self) -> Result<Infallible, Error> {
        let mut failures = 0;
        loop {
            match self.step().await {
                Ok(wait) => {
                    if failures > 0 {
                        tracing::info!("the schedules run again");
                    }
                    failures = 0;
                    sleep(wait).await;
                }
                Err(error) if error.is_closed() || error.is_invalid() || error.is_config() => {
                    return Err(error);
                }
                Err(error) => {
                    failures += 1;
                    let error = crate::error::chain(&error);
                    tracing::warn!(%error, "the schedules cannot run; trying again");
                    self.listed_at = None;
                    sleep(BACKOFF.after(failures)).await;
                }
            }
        }
    }

    /// Lists the schedules if [`LIST_PERIOD`] has passed, and sends the tasks of due ticks. Returns
    /// the time until the next step.
    async fn step(&mut self) -> Result<Duration, Error> {
        if !self.has_stored_entries {
            self.store_entries().await?;
        }
        if self.listed_at.is_none_or(|at| at.elapsed() >= LIST_PERIOD) {
            self.refresh().await?;
        }
        self.fire_due().await?;
        Ok(self.time_until_step())
    }

    /// Stores the schedules that the application has passed to `Schedules::run`.
    async fn store_entries(&mut self) -> Result<(), Error> {
        for entry in &self.entries {
            if !self.store.put(entry).await? {
                let (schedule, version) = (entry.name(), entry.version_number());
                tracing::info!(
                    %schedule, version,
                    "a newer version of this schedule is stored; the one of this process is left out"
                );
            }
        }
        self.has_stored_entries = true;
        Ok(())
    }

    /// Lists the schedules, and plans the ticks of those that have changed.
    async fn refresh(&mut self) -> Result<(), Error> {
        let known_changes = self.known_changes.filter(|_| !self.must_reload);
        let list = self.store.list(known_changes).await?;
        if self.known_changes.is_some_and(|known| list.changes < known) {
            // The server has lost data, so the next step stores the entries again.
            (self.has_stored_entries, self.known_changes, self.listed_at) = (false, None, None);
            self.schedules.clear();
            return Ok(());
        }
        self.must_reload = false;
        // If the store's clock was set back, all ticks are planned again.
        let clock = StoreClock::starting(list.now);
        let stepped_back = clock.now() + 1_000 < self.clock.now();
        self.clock = clock;
        self.known_changes = Some(list.changes);
        self.listed_at = Some(clock.at);
        match list.schedules {
            Some(schedules) => {
                let now = clock.now();
                let active = schedules.into_iter().filter(|schedule| !schedule.paused);
                self.schedules = active
                    .filter_map(|it| ActiveSchedule::new(it, now))
                    .collect();
            }
            None if stepped_back => self.plan_all(),
            None => {}
        }
        Ok(())
    }

    /// Computes the next tick of each schedule.
    fn plan_all(&mut self) {
        let now = self.clock.now();
        self.schedules
            .iter_mut()
            .for_each(|schedule| schedule.plan(now));
    }

    /// Sends the task of each schedule whose tick is due.
    async fn fire_due(&mut self) -> Result<(), Error> {
        let now = self.clock.now();
        let mut due = Vec::new();
        for (index, schedule) in self.schedules.iter_mut().enumerate() {
            if let Some(tick) = schedule.take_due(now) {
                due.push((index, tick));
            }
        }
        let attempts = due.iter().map(|(index, tick)| {
            let schedule = &self.schedules[*index];
            schedule.fire(self.store, *tick)
        });
        let results = join_all(attempts).await;
        let mut failure = None;
        for ((index, tick), result) in due.into_iter().zip(results) {
            match result {
                Ok(fired) => self.record_fired(index, tick, &fired),
                // The other schedules may succeed, so only this schedule waits.
                Err(error) if error.is_refused() || error.is_invalid() => {
                    self.schedules[index].record_failure(&error);
                }
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Records the store's response to a tick, and plans the next tick.
    fn record_fired(&mut self, index: usize, tick: u64, fired: &Fired) {
        self.clock = StoreClock::starting(fired.now);
        let now = self.clock.now();
        let schedule = &mut self.schedules[index];
        (schedule.failures, schedule.retry_at) = (0, None);
        match &fired.outcome {
            FireOutcome::Sent(id) => {
                tracing::debug!(schedule = %schedule.status.name, %id, "the task of a schedule was sent");
                schedule.status.last_tick = from_milliseconds(tick);
            }
            FireOutcome::Skipped(id) => {
                tracing::info!(
                    schedule = %schedule.status.name, %id,
                    "a tick was skipped, since the task of an earlier one has not ended"
                );
                schedule.status.last_tick = from_milliseconds(tick);
            }
            FireOutcome::Taken(last) => schedule.status.last_tick = *last,
            FireOutcome::Early => {}
            FireOutcome::Changed => {
                (self.must_reload, self.listed_at) = (true, None);
                schedule.due = None;
                return;
            }
        }
        schedule.plan(now);
    }

    /// Returns the time until the next tick or the next listing.
    fn time_until_step(&self) -> Duration {
        let now = self.clock.now();
        let until_listing = self
            .listed_at
            .map(|at| LIST_PERIOD.saturating_sub(at.elapsed()));
        let waits = self.schedules.iter().filter_map(|schedule| {
            let wait = Duration::from_millis(schedule.due?.saturating_sub(now));
            let retry = schedule
                .retry_at
                .map(|at| at.saturating_duration_since(Instant::now()));
            Some(wait.max(retry.unwrap_or_default()))
        });
        waits
            .chain([until_listing.unwrap_or_default()])
            .min()
            .unwrap_or_default()
    }
}

impl ActiveSchedule {
    /// Creates the runner's state of a schedule. Logs a warning and returns `None` if this version
    /// of the library cannot read the schedule.
    fn new(status: ScheduleStatus, now: u64) -> Option<Self> {
        let parsed = status.task.clone();
        let parsed = parsed.and_then(|task| {
            let ticks = Ticks::new(task.schedule());
            let ticks = ticks.map_err(|error| crate::error::chain(&error))?;
            Ok((task, ticks))
        });
        match parsed {
            Ok((task, ticks)) => {
                let mut active = Self {
                    status,
                    task,
                    ticks,
                    due: None,
                    failures: 0,
                    retry_at: None,
                };
                active.plan(now);
                Some(active)
            }
            Err(reason) => {
                let schedule = &status.name;
                tracing::warn!(%schedule, reason, "this process cannot run a schedule");
                None
            }
        }
    }

    /// Computes the tick to send next.
    fn plan(&mut self, now: u64) {
        let last = milliseconds(self.status.last_tick);
        let missed = self.task.schedule().missed_rule();
        self.due = self.ticks.next(missed, last, now);
    }

    /// Returns the tick to send now. `None` if no tick is due.
    fn take_due(&mut self, now: u64) -> Option<u64> {
        if self.due.is_none_or(|due| due > now)
            || self.retry_at.is_some_and(|at| at > Instant::now())
        {
            return None;
        }
        // A tick after the planned one may be due by now.
        self.plan(now);
        self.due.filter(|due| *due <= now)
    }

    async fn fire(&self, store: &dyn ScheduleStore, tick: u64) -> Result<Fired, Error> {
        let message = self.task.message(Some(tick)).map_err(Error::invalid)?;
        let tick = from_milliseconds(tick);
        store.fire(&self.status, message, Some(tick)).await
    }

    fn record_failure(&mut self, error: &Error) {
        self.failures += 1;
        self.retry_at = Some(Instant::now() + BACKOFF.after(self.failures));
        let (schedule, error) = (&self.status.name, crate::error::chain(error));
        tracing::warn!(%schedule, %error, "the task of a schedule cannot be sent; trying again");
    }
}
