//! The ledger: the history of each job, checked against the protocol's invariants.
//!
//! The simulation records the server's state after each command, and the handlers record their
//! starts and results. Each record is checked immediately.

mod replica;
mod work;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    sync::Arc,
};

use super::{
    locations::{GroupKeys, Location, STREAMS},
    rules::{HandlerResult, JobEnd, JobHistory, Purpose, Transition},
    scenario::Scenario,
    server::{Data, short, text},
};
use crate::{Error, message::Lease};

/// The maximum time, in milliseconds, until a stored reply reaches the sender of the request. The
/// sender may have to reconnect first.
const MAX_REPLY_TRAVEL: u64 = 15_000;

/// The number of a job. It is the payload of the job's message.
pub(super) type JobId = u32;
/// The id of a process. A restarted worker has a new id.
pub(super) type ProcessId = u32;

pub(super) struct Ledger {
    scenario: Arc<Scenario>,
    pub(super) now: u64,
    /// The lease in milliseconds.
    lease: u64,
    /// One queue for each stream of each group. The queues of a group are adjacent.
    queues: Vec<Queue>,
    /// The queues as they are on the replica. `None` while the replica receives all writes.
    replica: Option<Vec<Queue>>,
    /// The time of the last failover.
    failed_over_at: Option<u64>,
    /// For each stream, the time from which its new entries can be read.
    readable_since: Vec<u64>,
    pub(super) workers: BTreeMap<ProcessId, Process>,
    /// The end of the last period in which no process could reach the server, in milliseconds.
    pub(super) unreachable_until: u64,
    /// The last step of the server's clock: its time and its size, both in milliseconds.
    clock_step: (u64, u64),
    running: BTreeMap<(ProcessId, JobId), RunningHandler>,
    /// The last time at which a handler or a process ended, and its permits with it.
    permits_ended_at: u64,
    /// Processes that a handler has killed, and that the simulation has not removed yet.
    pub(super) killed_by_handlers: BTreeSet<ProcessId>,
    pub(super) violation: Option<String>,
    pub(super) trace: Option<Vec<String>>,
}

/// The jobs of a stream as one group sees them.
#[derive(Clone)]
struct Queue {
    group: usize,
    keys: GroupKeys,
    histories: BTreeMap<JobId, JobHistory>,
}

/// The process of a worker.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) group: usize,
    pub(super) alive: bool,
    /// Set once the process shuts down and requests no more jobs.
    pub(super) stopping: bool,
    /// The time at which a handler of the process last ended, or at which the process started.
    /// Other handlers may still run.
    last_handler_end: u64,
    /// The time at which the process started, or at which the last fault of the process ended.
    pub(super) undisturbed_since: u64,
    consumer: Vec<u8>,
}

/// A running handler.
#[derive(Debug)]
struct RunningHandler {
    lease: Lease,
    /// The time since which the job is no longer pending for the worker. `None` if the job is
    /// pending, or if its loss was reported.
    lost_since: Option<u64>,
}

impl Ledger {
    pub(super) fn new(scenario: Arc<Scenario>, traced: bool) -> Self {
        let queues = (0..scenario.groups).flat_map(|group| {
            let streams = STREAMS[..scenario.streams].iter();
            streams.map(move |stream| Queue {
                group,
                keys: GroupKeys::of(stream, &group_name(group)),
                histories: BTreeMap::new(),
            })
        });
        Self {
            now: 0,
            lease: scenario.lease.as_millis() as u64,
            queues: queues.collect(),
            replica: None,
            failed_over_at: None,
            readable_since: vec![0; scenario.streams],
            scenario,
            workers: BTreeMap::new(),
            unreachable_until: 0,
            clock_step: (0, 0),
            running: BTreeMap::new(),
            permits_ended_at: 0,
            killed_by_handlers: BTreeSet::new(),
            violation: None,
            trace: traced.then(Vec::new),
        }
    }

    /// Returns the history of a job in a group.
    fn history(&mut self, group: usize, job: JobId) -> &mut JobHistory {
        let at = self.queue_of(group, job);
        self.queues[at].histories.entry(job).or_default()
    }

    /// Returns the index of the queue of a job in a group.
    fn queue_of(&self, group: usize, job: JobId) -> usize {
        group * self.scenario.streams + self.scenario.jobs[job as usize].stream
    }

    /// Records that new entries of a stream cannot be read until this time.
    pub(super) fn record_unreadable_until(&mut self, stream: usize, until: u64) {
        let since = &mut self.readable_since[stream];
        *since = until.max(*since);
    }

    pub(super) fn process_started(&mut self, worker: ProcessId, group: usize) {
        let process = Process {
            group,
            alive: true,
            stopping: false,
            last_handler_end: self.now,
            undisturbed_since: self.now,
            consumer: Vec::new(),
        };
        self.workers.insert(worker, process);
    }

    /// Records that a process has ended, and its running handlers with it.
    pub(super) fn process_ended(&mut self, worker: ProcessId) {
        if let Some(process) = self.workers.get_mut(&worker) {
            process.alive = false;
        }
        self.permits_ended_at = self.now;
        self.running.retain(|(of, _), _| *of != worker);
    }

    /// Records that a fault keeps a process from the server, or from working, until this time.
    pub(super) fn record_disturbed_until(&mut self, worker: ProcessId, until: u64) {
        if let Some(process) = self.workers.get_mut(&worker) {
            process.undisturbed_since = process.undisturbed_since.max(until);
        }
    }

    pub(super) fn note(&mut self, who: impl Display, what: impl Display) {
        if let Some(trace) = &mut self.trace {
            let (seconds, milliseconds) = (self.now / 1000, self.now % 1000);
            trace.push(format!("{seconds:>4}.{milliseconds:03} {who:<8} {what}"));
        }
    }

    /// Records a violation. The first one is the simulation's result.
    pub(super) fn fail(&mut self, what: impl Display) {
        self.note("", format_args!("VIOLATION: {what}"));
        if self.violation.is_none() {
            self.violation = Some(what.to_string());
        }
    }

    /// Returns `true` if a worker was undisturbed for a whole lease. `with_server` requires that
    /// the server could also be reached for that time.
    fn is_undisturbed(&self, worker: ProcessId, with_server: bool) -> bool {
        let Some(process) = self.workers.get(&worker) else {
            return false;
        };
        let undisturbed_since = if with_server {
            process.undisturbed_since.max(self.unreachable_until)
        } else {
            process.undisturbed_since
        };
        process.alive && self.now >= undisturbed_since + self.lease
    }

    fn worker_of(&self, consumer: &[u8]) -> Option<ProcessId> {
        let mut processes = self.workers.iter();
        processes
            .find(|(_, process)| process.consumer == consumer)
            .map(|(worker, _)| *worker)
    }

    /// Records the consumer name of a worker.
    pub(super) fn set_consumer(&mut self, worker: ProcessId, consumer: &[u8]) {
        if let Some(process) = self.workers.get_mut(&worker)
            && process.consumer != consumer
        {
            process.consumer = consumer.to_vec();
        }
    }

    /// Records the start of a handler. Returns the number of earlier starts.
    pub(super) fn handler_started(
        &mut self,
        worker: ProcessId,
        job: JobId,
        attempt: u32,
        lease: Lease,
    ) -> u32 {
        let group = self.workers[&worker].group;
        self.note(
            format_args!("w{worker}"),
            format_args!("starts job {job}, attempt {attempt}"),
        );
        let consumer = self.workers[&worker].consumer.clone();
        let history = self.history(group, job);
        let (earlier_starts, counted_attempts, due) =
            (history.starts, history.counted_attempts, history.due);
        let lost = history.lost_at.get(&worker).copied();
        let holds =
            (history.location.as_ref()).is_some_and(|location| location.is_pending_for(&consumer));
        self.change_both_histories(group, job, |history| {
            history.starts += 1;
            history.results.remove(&worker);
            history.doubtful.remove(&worker);
        });
        // Another worker may have claimed the job while this delivery was in the network.
        let just_lost = lost.is_some_and(|at| self.now < at + self.lease / 3);
        if !holds && !just_lost && self.is_undisturbed(worker, true) {
            self.fail(format_args!(
                "w{worker} starts job {job}, which is not pending for it"
            ));
        }
        // After a failover, an entry that was read from the former primary may have an attempt that
        // the new primary has not counted.
        let just_failed_over = (self.failed_over_at)
            .is_some_and(|at| self.now < at.max(self.unreachable_until) + self.lease);
        if holds && !just_failed_over && attempt != counted_attempts + 1 {
            self.fail(format_args!(
                "job {job} starts as attempt {attempt}, but it is number {}",
                counted_attempts + 1
            ));
        }
        if attempt > self.scenario.max_deliveries {
            self.fail(format_args!("job {job} starts for the {attempt}th time"));
        }
        if self.now < due {
            self.fail(format_args!(
                "job {job} starts before {due}, when it is due"
            ));
        }
        self.check_overlap(worker, job, just_failed_over);
        self.running.insert(
            (worker, job),
            RunningHandler {
                lease,
                lost_since: None,
            },
        );
        earlier_starts
    }

    /// Fails if a job starts while a handler that still holds its lease runs it.
    fn check_overlap(&mut self, worker: ProcessId, job: JobId, just_failed_over: bool) {
        let group = self.workers[&worker].group;
        let others: Vec<_> = (self.running.iter())
            .filter(|((of, other), run)| {
                *other == job && self.workers[of].group == group && !run.lease.is_lost()
            })
            .map(|((of, _), _)| *of)
            .collect();
        for other in others {
            // After a failover, a worker learns only at its next upkeep that it has lost the job.
            let must_know = other == worker && !just_failed_over;
            if must_know || self.is_undisturbed(other, false) {
                self.fail(format_args!(
                    "job {job} starts at w{worker} while it runs at w{other}"
                ));
            }
        }
    }

    /// Records the result of a handler.
    pub(super) fn handler_ended(&mut self, worker: ProcessId, job: JobId, result: HandlerResult) {
        self.note(
            format_args!("w{worker}"),
            format_args!("ends job {job}: {result:?}"),
        );
        let run = self.running.remove(&(worker, job));
        let process = self
            .workers
            .get_mut(&worker)
            .expect("its handler has ended");
        process.last_handler_end = self.now;
        self.permits_ended_at = self.now;
        let group = process.group;
        // A worker discards the result of a handler that lost its lease. If the ledger recorded the
        // result, it would count for a later delivery of the job to the same worker.
        let counts = run.is_some_and(|run| !run.lease.is_lost());
        self.change_both_histories(group, job, |history| {
            history.succeeded |= result == HandlerResult::Done;
            if counts {
                history.results.insert(worker, result);
            }
        });
    }

    /// Records that the transport has confirmed a job to its sender.
    pub(super) fn job_accepted(&mut self, job: JobId) {
        self.note("sender", format_args!("has the confirmation of job {job}"));
        for group in 0..self.scenario.groups {
            let history = self.history(group, job);
            if history.location.is_none() && history.ended.is_none() && !history.lost {
                self.fail(format_args!("job {job} was accepted and is not there"));
            }
        }
    }

    /// Records a step of the server's wall clock. Due times and the ages of requests are measured
    /// on that clock. Workers know of the step only after they have read the clock again.
    pub(super) fn server_clock_stepped(&mut self, by: i64) {
        let forward = u64::try_from(by).unwrap_or(0);
        let queues = self
            .queues
            .iter_mut()
            .chain(self.replica.iter_mut().flatten());
        for history in queues.flat_map(|queue| queue.histories.values_mut()) {
            history.due = history.due.saturating_sub(forward);
            history.deadline = history
                .deadline
                .map(|at| at.saturating_sub(by.unsigned_abs()));
        }
        self.clock_step = (self.now, by.unsigned_abs());
    }

    /// Records a job before it is sent. The job must not start before `due`, nor after its
    /// deadline.
    pub(super) fn job_sending(&mut self, job: JobId, due: u64, deadline: Option<u64>) {
        let known_by_workers = self.now >= self.clock_step.0 + 15_000;
        let slack = if known_by_workers {
            0
        } else {
            self.clock_step.1
        };
        let deadline = deadline.map(|at| at.saturating_sub(slack));
        let sent_at = self.now;
        for group in 0..self.scenario.groups {
            let at = self.queue_of(group, job);
            for queues in [Some(&mut self.queues), self.replica.as_mut()] {
                let new = || JobHistory {
                    sent_at,
                    due,
                    deadline,
                    ..JobHistory::default()
                };
                let histories = queues.map(|queues| &mut queues[at].histories);
                histories.map(|histories| histories.entry(job).or_insert_with(new));
            }
        }
    }

    /// Records the reply to a request.
    pub(super) fn reply_received(&mut self, job: JobId, reply: &str) {
        self.note("sender", format_args!("has the reply {reply} to job {job}"));
        let succeeded = self.history(0, job).succeeded;
        if reply != job.to_string() || !succeeded {
            self.fail(format_args!("job {job} has the reply {reply}"));
        }
    }

    /// Records that a request failed.
    pub(super) fn request_failed(&mut self, job: JobId, error: &Error) {
        self.note("sender", format_args!("has no reply to job {job}: {error}"));
        let history = self.history(0, job);
        let (changed_at, ended, sent_at) = (history.changed_at, history.ended, history.sent_at);
        let reply_dropped = history.reply_dropped;
        let since = changed_at.max(self.unreachable_until);
        // A failover may lose the stored reply, or the stream of the replies.
        let may_be_lost = reply_dropped || self.failed_over_at.is_some_and(|at| sent_at <= at);
        let is_late = self.now > since + MAX_REPLY_TRAVEL;
        if error.is_timeout() && ended == Some(JobEnd::Done) && is_late && !may_be_lost {
            self.fail(format_args!("the reply to job {job} was lost"));
        }
    }

    /// Records the location of every job after a command of the process `by`, and checks each job
    /// that the command has moved.
    pub(super) fn record_locations(&mut self, data: &mut Data, by: ProcessId, purpose: Purpose) {
        let reply_dropped =
            std::mem::take(&mut data.reply_dropped) && self.failed_over_at.is_some();
        if !std::mem::take(&mut data.changed) {
            return;
        }
        for at in 0..self.queues.len() {
            let queue = &self.queues[at];
            let (group, stream) = (queue.group, queue.keys.stream);
            let mut locations = queue.keys.locations(data);
            // A job that had a location may have none now.
            let known = queue.histories.iter();
            let vanished = known.filter(|(job, history)| {
                history.location.is_some() && !locations.contains_key(job)
            });
            let vanished: Vec<_> = vanished.map(|(job, _)| *job).collect();
            locations.extend(vanished.into_iter().map(|job| (job, Vec::new())));
            let mut is_changed = false;
            for (job, mut found) in locations {
                if found.len() > 1 {
                    return self.fail(format_args!("job {job} is in several locations: {found:?}"));
                }
                if STREAMS[self.scenario.jobs[job as usize].stream] != stream {
                    return self.fail(format_args!("job {job} is on the stream {stream}"));
                }
                let history = self.history(group, job);
                let now = found.pop();
                if history.location != now {
                    let before = std::mem::replace(&mut history.location, now.clone());
                    is_changed = true;
                    self.history(group, job).reply_dropped |= reply_dropped;
                    if before.is_none() {
                        self.check_parent(job);
                    }
                    self.record_transition(group, job, before, now, by, purpose);
                }
            }
            if is_changed {
                self.check_records(at, data);
            }
        }
    }

    fn record_transition(
        &mut self,
        group: usize,
        job: JobId,
        from: Option<Location>,
        to: Option<Location>,
        by: ProcessId,
        purpose: Purpose,
    ) {
        let at = |location: &Option<Location>| match location {
            Some(Location::Pending { consumer, .. }) => self.worker_of(consumer),
            _ => None,
        };
        let (holder, taker) = (at(&from), at(&to));
        let run = holder.and_then(|holder| self.running.get(&(holder, job)));
        let transition = Transition {
            holder,
            taker,
            by,
            purpose,
            now: self.now,
            holder_is_healthy: holder.is_some_and(|holder| self.is_undisturbed(holder, false)),
            holder_is_running: run.is_some_and(|run| !run.lease.is_lost()),
            max_deliveries: self.scenario.max_deliveries,
            from,
            to,
        };
        let history = self.history(group, job);
        let violation = history.apply(&transition);
        let describe = |location: &Option<Location>| match location {
            Some(Location::Pending {
                consumer,
                deliveries,
                ..
            }) => match self.worker_of(consumer) {
                Some(worker) => format!("with w{worker} ({deliveries})"),
                None => format!("with {}", short(text(consumer))),
            },
            Some(location) => format!("{location:?}"),
            None => "gone".to_owned(),
        };
        let (from, to) = (describe(&transition.from), describe(&transition.to));
        self.note(
            "server",
            format_args!("job {job} in group {group}: {from} → {to}"),
        );
        if let Some(violation) = violation {
            self.fail(format_args!(
                "job {job} {violation}: {from} → {to}, by w{by}"
            ));
        }
    }

    /// Checks that each worker marks the [`Lease`] of a running handler as lost, at most one lease
    /// time after the job is no longer pending for that worker.
    pub(super) fn check_reported_losses(&mut self) {
        let mut unreported = None;
        for ((worker, job), run) in &mut self.running {
            let process = &self.workers[worker];
            let stream = self.scenario.jobs[*job as usize].stream;
            let queue = &self.queues[process.group * self.scenario.streams + stream];
            let location = &queue.histories[job].location;
            let holds = (location.as_ref())
                .is_some_and(|location| location.is_pending_for(&process.consumer));
            if holds || run.lease.is_lost() {
                run.lost_since = None;
                continue;
            }
            let lost = *run.lost_since.get_or_insert(self.now);
            let since = lost
                .max(process.undisturbed_since)
                .max(self.unreachable_until);
            if self.now > since + self.lease {
                unreported = Some((*worker, *job));
            }
        }
        if let Some((worker, job)) = unreported {
            self.fail(format_args!(
                "w{worker} did not report that it has lost job {job}"
            ));
        }
    }

    /// Records that a worker has read new entries. `room` is the number of entries for which the
    /// worker had room, if the command contains that number.
    pub(super) fn record_read(
        &mut self,
        data: &Data,
        worker: ProcessId,
        entries: usize,
        room: Option<usize>,
    ) {
        if let Some(room) = room.filter(|room| entries > *room) {
            self.fail(format_args!(
                "w{worker} had room for {room} entries and has read {entries}"
            ));
        }
        if !self.is_undisturbed(worker, true) {
            // A read whose response was lost may have left entries pending for the worker.
            return;
        }
        let process = &self.workers[&worker];
        let of_group = self
            .queues
            .iter()
            .filter(|queue| queue.group == process.group);
        let pending: usize = of_group
            .map(|queue| queue.keys.pending_for(data, &process.consumer))
            .sum();
        let max_in_flight = self.scenario.max_in_flight;
        let surplus = match self.scenario.streams {
            // `COUNT` limits the primary and the retry stream separately.
            1 => max_in_flight,
            // A blocked read asks for one entry of each primary and each retry stream.
            several => 2 * several,
        };
        if pending > max_in_flight + surplus {
            self.fail(format_args!(
                "{pending} entries are pending for w{worker}, which has room for {max_in_flight}"
            ));
        }
    }

    /// Checks that no worker is idle for a whole lease while there is a job for it.
    pub(super) fn check_progress(&mut self) {
        self.check_parked();
        let since = self.now.saturating_sub(self.lease);
        let mut neglected = None;
        for (worker, process) in &self.workers {
            let mut running = self.running.range((*worker, 0)..=(*worker, JobId::MAX));
            let idle = !process.stopping
                && process.last_handler_end <= since
                && running.next().is_none()
                && self.is_undisturbed(*worker, true);
            if !idle {
                continue;
            }
            for queue in self.queues.iter().filter(|it| it.group == process.group) {
                let waits = |(job, history): (&JobId, &JobHistory)| {
                    let stream = self.scenario.jobs[*job as usize].stream;
                    history.location == Some(Location::Unread)
                        && history.changed_at.max(self.readable_since[stream]) <= since
                };
                let mut histories = queue.histories.iter();
                let waiting = histories.find(|it| waits(*it));
                neglected = neglected.or(waiting.map(|(job, _)| (*worker, *job)));
            }
        }
        if let Some((worker, job)) = neglected {
            self.fail(format_args!(
                "w{worker} is idle and does not read job {job}"
            ));
        }
    }

    /// Returns the jobs that are on the server and have not ended, each with its group.
    pub(super) fn unfinished(&self) -> Vec<(usize, JobId)> {
        let mut unfinished = Vec::new();
        for queue in &self.queues {
            let open = queue
                .histories
                .iter()
                .filter(|(_, history)| history.location.is_some() && history.ended.is_none());
            unfinished.extend(open.map(|(job, _)| (queue.group, *job)));
        }
        unfinished
    }

    /// Returns how each job ended, and whether its attempts were used up.
    pub(super) fn job_ends(&self) -> impl Iterator<Item = (JobId, JobEnd, bool)> {
        let histories = self.queues.iter().flat_map(|queue| &queue.histories);
        histories.filter_map(|(job, history)| {
            Some((
                *job,
                history.ended?,
                history.counted_attempts + 1 >= self.scenario.max_deliveries,
            ))
        })
    }

    /// Returns descriptions of everything that the groups have left on the server.
    /// `consumers_expired` says whether the consumers of dead workers must be deleted by now.
    pub(super) fn leftovers(&self, data: &Data, consumers_expired: bool) -> Vec<String> {
        self.queues
            .iter()
            .flat_map(|queue| queue.keys.leftovers(data, consumers_expired))
            .collect()
    }
}

pub(super) fn group_name(group: usize) -> String {
    format!("group-{group}")
}
