//! The book: what is known of each job, and the rules that it must keep.
//!
//! The world writes into it what the server's state has become after each command, and the handlers
//! what they do. Each entry is checked against the protocol's invariants at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    time::Duration,
};

use super::{
    places::{Keys, Place},
    rules::{Ended, Move, Said, Tale},
    server::{Data, short, text},
};
use crate::{Error, message::Lease};

/// The longest that a reply takes to its sender, whose connections may be lost.
const WAY_BACK: u64 = 15_000;

/// The number of a job, which is its payload.
pub(super) type Job = u32;
/// A process, from its start to its end. A worker that is started again is another.
pub(super) type WorkerId = u32;

pub(super) struct Book {
    pub(super) now: u64,
    pub(super) lease: u64,
    pub(super) most: u32,
    groups: Vec<(Keys, BTreeMap<Job, Tale>)>,
    pub(super) workers: BTreeMap<WorkerId, Member>,
    /// When the server last was not to be reached by anybody.
    pub(super) outage: u64,
    /// When the server's clock stepped last, and how far.
    step: (u64, u64),
    running: BTreeMap<(WorkerId, Job), Run>,
    /// Processes that a job has killed.
    pub(super) doomed: BTreeSet<WorkerId>,
    pub(super) violation: Option<String>,
    pub(super) trace: Option<Vec<String>>,
}

/// A process.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) group: usize,
    pub(super) alive: bool,
    /// Since when nothing has kept it from reaching the server.
    pub(super) calm: u64,
    consumer: Vec<u8>,
}

/// A handler that runs.
#[derive(Debug)]
struct Run {
    lease: Lease,
    lost: Option<u64>,
}

impl Book {
    pub(super) fn new(groups: usize, lease: Duration, most: u32, traced: bool) -> Self {
        Self {
            now: 0,
            lease: lease.as_millis() as u64,
            most,
            groups: (0..groups)
                .map(|group| (Keys::of(&group_name(group)), BTreeMap::new()))
                .collect(),
            workers: BTreeMap::new(),
            outage: 0,
            step: (0, 0),
            running: BTreeMap::new(),
            doomed: BTreeSet::new(),
            violation: None,
            trace: traced.then(Vec::new),
        }
    }

    pub(super) fn joined(&mut self, worker: WorkerId, group: usize) {
        let member = Member {
            group,
            alive: true,
            calm: self.now,
            consumer: Vec::new(),
        };
        self.workers.insert(worker, member);
    }

    /// A process is gone, and with it what it was doing.
    pub(super) fn gone(&mut self, worker: WorkerId) {
        if let Some(member) = self.workers.get_mut(&worker) {
            member.alive = false;
        }
        self.running.retain(|(of, _), _| *of != worker);
    }

    /// Something keeps a worker from the server, or from working, until then.
    pub(super) fn troubled(&mut self, worker: WorkerId, until: u64) {
        if let Some(member) = self.workers.get_mut(&worker) {
            member.calm = member.calm.max(until);
        }
    }

    pub(super) fn note(&mut self, who: impl Display, what: impl Display) {
        if let Some(trace) = &mut self.trace {
            let (seconds, milliseconds) = (self.now / 1000, self.now % 1000);
            trace.push(format!("{seconds:>4}.{milliseconds:03} {who:<8} {what}"));
        }
    }

    fn wrong(&mut self, what: impl Display) {
        self.note("", format_args!("VIOLATION: {what}"));
        if self.violation.is_none() {
            self.violation = Some(what.to_string());
        }
    }

    /// Whether a worker has lived undisturbed for a whole lease.
    fn is_calm(&self, worker: WorkerId, with_server: bool) -> bool {
        let Some(member) = self.workers.get(&worker) else {
            return false;
        };
        let calm = if with_server {
            member.calm.max(self.outage)
        } else {
            member.calm
        };
        member.alive && self.now >= calm + self.lease
    }

    fn worker_of(&self, consumer: &[u8]) -> Option<WorkerId> {
        let mut members = self.workers.iter();
        members
            .find(|(_, member)| member.consumer == consumer)
            .map(|(worker, _)| *worker)
    }

    /// A worker uses this name.
    pub(super) fn named(&mut self, worker: WorkerId, consumer: &[u8]) {
        if let Some(member) = self.workers.get_mut(&worker)
            && member.consumer != consumer
        {
            member.consumer = consumer.to_vec();
        }
    }

    /// A job's handler begins. Returns how often it has begun before.
    pub(super) fn start(&mut self, worker: WorkerId, job: Job, attempt: u32, lease: Lease) -> u32 {
        let group = self.workers[&worker].group;
        self.note(
            format_args!("w{worker}"),
            format_args!("starts job {job}, attempt {attempt}"),
        );
        let consumer = self.workers[&worker].consumer.clone();
        let tale = self.groups[group].1.entry(job).or_default();
        let (before, spent, due) = (tale.starts, tale.spent, tale.due);
        let lost = tale.lost.get(&worker).copied();
        tale.starts += 1;
        tale.said.remove(&worker);
        let holds =
            matches!(&tale.place, Some(Place::Pending { consumer: of, .. }) if *of == consumer);
        // It may have been on its way to here.
        let just_lost = lost.is_some_and(|at| self.now < at + self.lease / 3);
        if !holds && !just_lost && self.is_calm(worker, true) {
            self.wrong(format_args!(
                "w{worker} starts job {job}, which is not with it"
            ));
        }
        if holds && attempt != spent + 1 {
            self.wrong(format_args!(
                "job {job} starts as attempt {attempt}, which is number {}",
                spent + 1
            ));
        }
        if attempt > self.most {
            self.wrong(format_args!("job {job} starts for the {attempt}th time"));
        }
        if self.now < due {
            self.wrong(format_args!(
                "job {job} starts before {due}, when it is due"
            ));
        }
        let others: Vec<_> = (self.running.iter())
            .filter(|((of, other), run)| {
                *other == job && self.workers[of].group == group && !run.lease.is_lost()
            })
            .map(|((of, _), _)| *of)
            .collect();
        for other in others {
            if other == worker || self.is_calm(other, false) {
                self.wrong(format_args!(
                    "job {job} starts at w{worker} while it runs at w{other}"
                ));
            }
        }
        self.running
            .insert((worker, job), Run { lease, lost: None });
        before
    }

    /// A job's handler is done.
    pub(super) fn end(&mut self, worker: WorkerId, job: Job, said: Said) {
        self.note(
            format_args!("w{worker}"),
            format_args!("ends job {job}: {said:?}"),
        );
        let run = self.running.remove(&(worker, job));
        let group = self.workers[&worker].group;
        let tale = self.groups[group].1.entry(job).or_default();
        tale.finished |= said == Said::Done;
        // Otherwise nobody asks for it, and the worker may have the job again.
        if run.is_some_and(|run| !run.lease.is_lost()) {
            tale.said.insert(worker, said);
        }
    }

    /// A sender was told that its job is on the server, or later will be on the stream.
    pub(super) fn accepted(&mut self, job: Job) {
        self.note("sender", format_args!("knows that job {job} was accepted"));
        for group in 0..self.groups.len() {
            let tale = self.groups[group].1.get(&job);
            if tale.is_none_or(|tale| tale.place.is_none() && tale.ended.is_none()) {
                self.wrong(format_args!("job {job} was accepted and is not there"));
            }
        }
    }

    /// The server's wall clock has stepped. What is due, and how old a request is, is measured on it;
    /// workers read it every ten seconds.
    pub(super) fn clock_stepped(&mut self, by: i64) {
        let forward = u64::try_from(by).unwrap_or(0);
        for tale in self
            .groups
            .iter_mut()
            .flat_map(|(_, tales)| tales.values_mut())
        {
            tale.due = tale.due.saturating_sub(forward);
            tale.deadline = tale.deadline.map(|at| at.saturating_sub(by.unsigned_abs()));
        }
        self.step = (self.now, by.unsigned_abs());
    }

    /// A job is about to be sent, which must not start before this, nor after its deadline.
    pub(super) fn sending(&mut self, job: Job, due: u64, deadline: Option<u64>) {
        let known_by_workers = self.now >= self.step.0 + 15_000;
        let slack = if known_by_workers { 0 } else { self.step.1 };
        let deadline = deadline.map(|at| at.saturating_sub(slack));
        for (_, tales) in &mut self.groups {
            let new = || Tale {
                due,
                deadline,
                ..Tale::default()
            };
            tales.entry(job).or_insert_with(new);
        }
    }

    /// A request has its reply.
    pub(super) fn replied(&mut self, job: Job, reply: &str) {
        self.note("sender", format_args!("has the reply {reply} to job {job}"));
        let finished = self.groups[0].1.get(&job).is_some_and(|tale| tale.finished);
        if reply != job.to_string() || !finished {
            self.wrong(format_args!("job {job} has the reply {reply}"));
        }
    }

    /// A request has none.
    pub(super) fn not_replied(&mut self, job: Job, error: &Error) {
        self.note("sender", format_args!("has no reply to job {job}: {error}"));
        let tale = self.groups[0].1.entry(job).or_default();
        let since = tale.ended_at.max(self.outage);
        if error.is_timeout() && tale.ended == Some(Ended::Done) && self.now > since + WAY_BACK {
            self.wrong(format_args!("the reply to job {job} was lost"));
        }
    }

    /// Looks at what has become of every job after a command, which has said that it is done
    /// or something else.
    pub(super) fn observe(&mut self, data: &mut Data, by: WorkerId, acknowledged: bool) {
        if !std::mem::take(&mut data.changed) {
            return;
        }
        for group in 0..self.groups.len() {
            let mut places = self.groups[group].0.places(data);
            let known = self.groups[group].1.iter();
            let vanished =
                known.filter(|(job, tale)| tale.place.is_some() && !places.contains_key(job));
            let vanished: Vec<_> = vanished.map(|(job, _)| *job).collect();
            places.extend(vanished.into_iter().map(|job| (job, Vec::new())));
            for (job, mut found) in places {
                let tale = self.groups[group].1.entry(job).or_default();
                if found.len() > 1 {
                    return self.wrong(format_args!("job {job} is in several places: {found:?}"));
                }
                let now = found.pop();
                if tale.place != now {
                    let before = std::mem::replace(&mut tale.place, now.clone());
                    self.moved(group, job, before, now, by, acknowledged);
                }
            }
        }
    }

    fn moved(
        &mut self,
        group: usize,
        job: Job,
        from: Option<Place>,
        to: Option<Place>,
        by: WorkerId,
        acknowledged: bool,
    ) {
        let at = |place: &Option<Place>| match place {
            Some(Place::Pending { consumer, .. }) => self.worker_of(consumer),
            _ => None,
        };
        let (holder, taker) = (at(&from), at(&to));
        let run = holder.and_then(|holder| self.running.get(&(holder, job)));
        let step = Move {
            holder,
            taker,
            by,
            acknowledged,
            now: self.now,
            holder_is_well: holder.is_some_and(|holder| self.is_calm(holder, false)),
            running: run.is_some_and(|run| !run.lease.is_lost()),
            most: self.most,
            from,
            to,
        };
        let tale = self.groups[group].1.entry(job).or_default();
        let wrong = tale.go_on(&step);
        let describe = |place: &Option<Place>| match place {
            Some(Place::Pending {
                consumer,
                deliveries,
                ..
            }) => match self.worker_of(consumer) {
                Some(worker) => format!("with w{worker} ({deliveries})"),
                None => format!("with {}", short(text(consumer))),
            },
            Some(place) => format!("{place:?}"),
            None => "gone".to_owned(),
        };
        let (from, to) = (describe(&step.from), describe(&step.to));
        self.note(
            "server",
            format_args!("job {job} in group {group}: {from} → {to}"),
        );
        if let Some(wrong) = wrong {
            self.wrong(format_args!("job {job} {wrong}: {from} → {to}, by w{by}"));
        }
    }

    /// Looks whether every handler that has lost its job was told.
    pub(super) fn check_told(&mut self) {
        let mut untold = None;
        for ((worker, job), run) in &mut self.running {
            let member = &self.workers[worker];
            let place = &self.groups[member.group].1[job].place;
            let holds = matches!(place, Some(Place::Pending { consumer, .. }) if *consumer == member.consumer);
            if holds || run.lease.is_lost() {
                run.lost = None;
                continue;
            }
            let lost = *run.lost.get_or_insert(self.now);
            let since = lost.max(member.calm).max(self.outage);
            if self.now > since + self.lease {
                untold = Some((*worker, *job));
            }
        }
        if let Some((worker, job)) = untold {
            self.wrong(format_args!(
                "w{worker} was not told that it has lost job {job}"
            ));
        }
    }

    /// What was sent and has not come to an end.
    pub(super) fn unfinished(&self) -> Vec<(usize, Job)> {
        let mut unfinished = Vec::new();
        for (group, (_, tales)) in self.groups.iter().enumerate() {
            let open = tales
                .iter()
                .filter(|(_, tale)| tale.place.is_some() && tale.ended.is_none());
            unfinished.extend(open.map(|(job, _)| (group, *job)));
        }
        unfinished
    }

    /// How each job ended, and whether because its attempts were used up.
    pub(super) fn ends(&self) -> impl Iterator<Item = (Job, Ended, bool)> {
        let tales = self.groups.iter().flat_map(|(_, tales)| tales);
        tales.filter_map(|(job, tale)| Some((*job, tale.ended?, tale.spent + 1 >= self.most)))
    }

    /// What is left on the server when all is over, and the workers that are gone are forgotten or
    /// not.
    pub(super) fn left(&self, data: &Data, forgotten: bool) -> Vec<String> {
        self.groups
            .iter()
            .flat_map(|(keys, _)| keys.left(data, forgotten))
            .collect()
    }

    pub(super) fn fail(&mut self, what: impl Display) {
        self.wrong(what);
    }
}

pub(super) fn group_name(group: usize) -> String {
    format!("group-{group}")
}
