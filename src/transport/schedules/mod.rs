//! Scheduled tasks in a transport.

mod runner;

use std::{convert::Infallible, fmt, sync::Arc, time::SystemTime};

use super::{StoreFuture, check};
use crate::{
    error::Error,
    message::{Message, MessageId, Name},
    schedule::ScheduledTask,
};

/// The scheduled tasks of a stream. Returned by the `schedules` method of a transport's handle.
///
/// The transport stores the schedules. [`run`](Self::run) sends the task of each tick when the tick
/// is due. It can run in any number of processes, without a leader: each process proposes each tick
/// to the store. The store checks by its own clock that the tick is due, and sends the task of the
/// tick once, at the first proposal.
///
/// ```
/// use std::time::Duration;
/// use campanile::{Router, serve, transport::memory::Memory};
/// use campanile::schedule::{Schedule, ScheduledTask};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), campanile::Error> {
/// let memory = Memory::new();
/// let (seen, mut ticks) = tokio::sync::mpsc::unbounded_channel();
/// let app: Router = Router::new().task("clean", async move || drop(seen.send(())));
/// let worker = tokio::spawn(serve(memory.clone(), app).into_future());
///
/// let often = Schedule::every(Duration::from_millis(50));
/// let schedules = memory.schedules();
/// tokio::select! {
///     ended = schedules.run([ScheduledTask::new("clean", often, "clean", ())]) => drop(ended?),
///     _ = ticks.recv() => {}
/// }
/// # worker.abort();
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Schedules(Arc<dyn ScheduleStore>);

impl Schedules {
    /// Creates a handle of a store. For transports.
    pub fn new(store: impl ScheduleStore + 'static) -> Self {
        Self(Arc::new(store))
    }

    /// Stores `entries`, and sends the tasks of all schedules of the stream when they are due,
    /// including the schedules that other processes have stored. Runs until the future is dropped.
    ///
    /// Each tick sends one task, no matter how many processes call this method. The call survives
    /// an outage of the server. The rule for [missed](crate::schedule::Missed) ticks then applies
    /// to the ticks of the outage. Changes by other processes are seen within about a second. An
    /// entry with a lower version than the stored one is not stored, and a line in the log says so.
    /// A stored schedule that is no longer in the code stays stored: [remove](Self::remove) it.
    ///
    /// # Errors
    /// If an entry is invalid, or the transport is closed. Nothing is stored if an entry is
    /// invalid.
    ///
    /// # Cancel safety
    /// Dropping the future is safe at any time: a due tick was either sent, or is sent by the next
    /// process that runs this method.
    pub async fn run(
        &self,
        entries: impl IntoIterator<Item = ScheduledTask>,
    ) -> Result<Infallible, Error> {
        let entries: Vec<_> = entries.into_iter().collect();
        for entry in &entries {
            validate(entry)?;
        }
        runner::Runner::new(&*self.0, entries).run().await
    }

    /// Stores a scheduled task, or replaces the stored one with the same name. Returns `false` and
    /// changes nothing if the stored one has a higher [version](ScheduledTask::version).
    ///
    /// A new schedule starts with the first tick after the current time on the store's clock. So
    /// does a replacement that changes the cron line, the zone or the period. Any other replacement
    /// continues after the last tick of the schedule.
    ///
    /// # Errors
    /// If the task is invalid, or the store cannot be reached.
    pub async fn put(&self, task: &ScheduledTask) -> Result<bool, Error> {
        validate(task)?;
        self.0.put(task).await
    }

    /// Removes a scheduled task. Tasks that were sent remain. Returns `false` if no schedule has
    /// this name.
    ///
    /// # Errors
    /// If the store cannot be reached.
    pub async fn remove(&self, name: &Name) -> Result<bool, Error> {
        self.0.change(name, ScheduleChange::Remove).await
    }

    /// Pauses a schedule: its ticks send nothing until it is [resumed](Self::resume). Returns
    /// `false` if no schedule has this name.
    ///
    /// # Errors
    /// If the store cannot be reached.
    pub async fn pause(&self, name: &Name) -> Result<bool, Error> {
        self.0.change(name, ScheduleChange::Pause).await
    }

    /// Resumes a paused schedule with the next tick. The ticks of the pause are never sent, even if
    /// the rule for missed ticks is to send them. Returns `false` if no schedule has this name.
    ///
    /// # Errors
    /// If the store cannot be reached.
    pub async fn resume(&self, name: &Name) -> Result<bool, Error> {
        self.0.change(name, ScheduleChange::Resume).await
    }

    /// Sends the task of a schedule now, even if the schedule is paused. Its ticks do not change.
    /// Returns `None` if no schedule has this name. The run [is skipped](ScheduleRun::is_skipped)
    /// if the schedule [skips while running](ScheduledTask::skip_while_running) and an earlier task
    /// of the schedule has not ended.
    ///
    /// # Errors
    /// If the store cannot be reached, or this version of the library cannot read the schedule.
    pub async fn run_now(&self, name: &Name) -> Result<Option<ScheduleRun>, Error> {
        loop {
            let Some(schedule) = self.get(name).await? else {
                return Ok(None);
            };
            let message = match &schedule.task {
                Ok(task) => task.message(None),
                Err(fault) => Err(fault.clone()),
            };
            let message = message.map_err(Error::invalid)?;
            let fired = self.0.fire(&schedule, message, None).await?;
            match fired.outcome {
                FireOutcome::Sent(id) => return Ok(Some(ScheduleRun::new(fired.now, id).manual())),
                FireOutcome::Skipped(id) => {
                    let run = ScheduleRun::new(fired.now, id).manual();
                    return Ok(Some(run.skipped()));
                }
                // The schedule has changed since it was read, so it is read again.
                FireOutcome::Early | FireOutcome::Taken(_) | FireOutcome::Changed => {}
            }
        }
    }

    /// Returns the status of a schedule. `None` if no schedule has this name.
    ///
    /// # Errors
    /// If the store cannot be reached.
    pub async fn get(&self, name: &Name) -> Result<Option<ScheduleStatus>, Error> {
        let all = self.list().await?;
        Ok(all.into_iter().find(|schedule| schedule.name == *name))
    }

    /// Returns all schedules of the stream, ordered by name.
    ///
    /// # Errors
    /// If the store cannot be reached.
    pub async fn list(&self) -> Result<Vec<ScheduleStatus>, Error> {
        let mut schedules = self.0.list(None).await?.schedules.unwrap_or_default();
        schedules.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(schedules)
    }
}

/// Checks a scheduled task, and the task that it sends.
fn validate(task: &ScheduledTask) -> Result<(), Error> {
    task.check()?;
    let message = task.message(None).map_err(Error::invalid)?;
    check(message.parts())
}

impl fmt::Debug for Schedules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schedules").finish_non_exhaustive()
    }
}

/// The scheduled tasks of a stream in a transport. Implemented by transports, for [`Schedules`].
pub trait ScheduleStore: Send + Sync {
    /// See [`Schedules::put`]. The task was checked.
    fn put<'a>(&'a self, task: &'a ScheduledTask) -> StoreFuture<'a, bool>;

    /// Changes a schedule. Returns `false` if no schedule has this name.
    fn change<'a>(&'a self, name: &'a Name, change: ScheduleChange) -> StoreFuture<'a, bool>;

    /// Returns all schedules of the stream. The list is `None` if
    /// [`changes`](ScheduleList::changes) still equals `known_changes`.
    fn list(&self, known_changes: Option<u64>) -> StoreFuture<'_, ScheduleList>;

    /// Sends the task of a schedule for `tick`, or as a manual run if `tick` is `None`. One atomic
    /// step checks the conditions, stores the task, and records the run and the tick. The stored
    /// schedule must have the revision of `schedule`. For a tick, it must also have the same
    /// `last_tick` as `schedule` and must not be paused, and the tick must be due on the store's
    /// clock.
    fn fire<'a>(
        &'a self,
        schedule: &'a ScheduleStatus,
        message: Message,
        tick: Option<SystemTime>,
    ) -> StoreFuture<'a, Fired>;
}

/// A change of a stored schedule, for [`ScheduleStore::change`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScheduleChange {
    /// The schedule is removed.
    Remove,
    /// The schedule is paused.
    Pause,
    /// The schedule is resumed.
    Resume,
}

/// The schedules of a stream, for [`ScheduleStore::list`].
#[derive(Debug, Clone)]
pub struct ScheduleList {
    /// The time on the store's clock.
    pub now: SystemTime,
    /// The number of changes by [`put`](ScheduleStore::put) and [`change`](ScheduleStore::change)
    /// so far.
    pub changes: u64,
    /// The schedules, in any order. `None` if the caller already knows this number of changes.
    pub schedules: Option<Vec<ScheduleStatus>>,
}

/// The response of [`ScheduleStore::fire`].
#[derive(Debug, Clone)]
pub struct Fired {
    /// The time on the store's clock.
    pub now: SystemTime,
    /// The outcome.
    pub outcome: FireOutcome,
}

/// The outcome of [`ScheduleStore::fire`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FireOutcome {
    /// The task is stored under this id.
    Sent(MessageId),
    /// The task was not stored, since the task with this id holds its unique key.
    Skipped(MessageId),
    /// The tick is not due on the store's clock.
    Early,
    /// Another process has sent or skipped a tick since the caller read the schedule. Contains the
    /// last tick of the stored schedule.
    Taken(SystemTime),
    /// The schedule was changed, paused or removed.
    Changed,
}

/// A stored schedule.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ScheduleStatus {
    /// The name of the schedule.
    pub name: Name,
    /// The version of the schedule's definition.
    pub version: u64,
    /// The value of [`ScheduleList::changes`] when the definition was last stored, or the schedule
    /// last paused or resumed.
    pub revision: u64,
    /// The group of the handle that stored the schedule. The schedule's unique and tracked tasks
    /// belong to this group.
    pub group: Name,
    /// The definition, or the reason why this version of the library cannot read it.
    pub task: Result<ScheduledTask, String>,
    /// `true` if the schedule is paused.
    pub paused: bool,
    /// The last tick that was sent or skipped, or the time at which the schedule began or was
    /// resumed.
    pub last_tick: SystemTime,
    /// The last runs, at most [`MAX_RUNS`](Self::MAX_RUNS), from the oldest to the newest.
    pub runs: Vec<ScheduleRun>,
    /// The time of this status on the store's clock.
    pub as_of: SystemTime,
}

impl ScheduleStatus {
    /// The maximum number of runs that a store keeps for a schedule.
    pub const MAX_RUNS: usize = 10;

    /// Creates the status of a schedule that begins now. For transports.
    pub fn new(task: ScheduledTask, group: Name, now: SystemTime) -> Self {
        Self {
            name: task.name().clone(),
            version: task.version_number(),
            revision: 0,
            group,
            task: Ok(task),
            paused: false,
            last_tick: now,
            runs: Vec::new(),
            as_of: now,
        }
    }

    /// Returns the next `count` ticks. Empty if the schedule is paused, or cannot be read.
    pub fn next_ticks(&self, count: usize) -> Vec<SystemTime> {
        let schedule = self.task.as_ref().ok().filter(|_| !self.paused);
        let after = self.as_of.max(self.last_tick);
        let next = schedule.and_then(|task| task.schedule().next_ticks(after, count).ok());
        next.unwrap_or_default()
    }
}

/// A run of a schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScheduleRun {
    /// The tick, or the time of a manual run.
    pub at: SystemTime,
    /// The id of the task. If the run was skipped, the id of the earlier task that had not ended.
    pub task: MessageId,
    /// `true` if no task was sent, since the task of an earlier run had not ended.
    pub is_skipped: bool,
    /// `true` if the run was requested by [`Schedules::run_now`].
    pub is_manual: bool,
}

impl ScheduleRun {
    /// Creates the run of a tick that sent this task. For transports.
    pub fn new(at: SystemTime, task: MessageId) -> Self {
        Self {
            at,
            task,
            is_skipped: false,
            is_manual: false,
        }
    }

    /// Marks the run as skipped. For transports.
    #[must_use]
    pub fn skipped(mut self) -> Self {
        self.is_skipped = true;
        self
    }

    /// Marks the run as manual. For transports.
    #[must_use]
    pub fn manual(mut self) -> Self {
        self.is_manual = true;
        self
    }
}
