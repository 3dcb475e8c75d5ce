//! The scenario of a seed: its jobs, its workers and its faults, decided before the simulation
//! starts.

use std::time::Duration;

use fastrand::Rng;

use super::{
    ledger::{JobId, ProcessId},
    locations::STREAMS,
    node::{APPLICATION, UPKEEP},
};
use crate::transport::Streams;

/// The input of a simulation.
#[derive(Debug)]
pub(super) struct Scenario {
    pub(super) lease: Duration,
    /// The largest number of deliveries of a job.
    pub(super) max_deliveries: u32,
    pub(super) max_in_flight: usize,
    pub(super) streams: usize,
    /// Set if the server is the only node of a cluster. A worker that serves streams in several
    /// slots by priority or by weight then makes all its reads over one connection. None of these
    /// reads blocks: the server says which streams were written.
    pub(super) is_cluster: bool,
    pub(super) policy: Policy,
    pub(super) groups: usize,
    pub(super) workers_per_group: usize,
    pub(super) jobs: Vec<JobSpec>,
    pub(super) faults: Vec<(u64, Fault)>,
    /// Faults happen until this time, in milliseconds.
    pub(super) faults_until: u64,
    /// Set if the simulation runs until the consumers of dead workers are deleted.
    pub(super) until_consumers_deleted: bool,
}

/// The order in which workers read several streams.
#[derive(Debug, Clone, Copy)]
pub(super) enum Policy {
    /// The streams take turns.
    InTurn,
    /// An earlier stream has priority over later ones.
    Strict,
    /// The first stream has the highest weight.
    Weighted,
}

impl Policy {
    /// Returns the set of streams that the workers serve.
    pub(super) fn stream_set(self, streams: usize) -> Streams {
        let names = STREAMS[..streams].iter().copied();
        match self {
            Self::InTurn => Streams::in_turn(names),
            Self::Strict => Streams::strict(names),
            Self::Weighted => Streams::weighted(names.zip((1..=streams as u32).rev())),
        }
    }
}

/// A job: its sender, the time at which it is sent, and the behavior of its handler.
#[derive(Debug, Clone)]
pub(super) struct JobSpec {
    pub(super) job: JobId,
    /// The index of the stream that it is sent to.
    pub(super) stream: usize,
    /// The process that sends it.
    pub(super) sender: ProcessId,
    /// The time for which the sender waits before it sends the job.
    pub(super) pause: Duration,
    pub(super) delay: Option<Duration>,
    /// The job whose success sends this job, through its outbox. `None` if a sender sends this job.
    pub(super) parent: Option<JobId>,
    /// The job that this job sends through its outbox when it succeeds.
    pub(super) follow_up: Option<JobId>,
    /// Set if the status of the task is recorded.
    pub(super) tracked: bool,
    /// Set if the handler needs a permit of the limit that all workers of the group share.
    pub(super) limited: bool,
    /// Set if the job is a request, not a task.
    pub(super) request: bool,
    /// Set if the sender repeats the job, with an idempotency key, until it is confirmed.
    pub(super) resends: bool,
    pub(super) handler: HandlerSpec,
    /// The number of bytes of padding in its payload.
    pub(super) padding: usize,
}

/// The behavior of a job's handler at each start.
#[derive(Debug, Clone)]
pub(super) struct HandlerSpec {
    pub(super) duration: Duration,
    /// The number of starts that end with `first`. Later starts end with `then`. If `first` is
    /// `Succeeds`, all starts end with `then`.
    pub(super) first_starts: u32,
    pub(super) first: Behavior,
    pub(super) then: Behavior,
}

/// The way in which a handler ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behavior {
    Succeeds,
    Fails,
    /// Fails, and sets the delay of the next attempt.
    FailsWithDelay(Duration),
    /// Asks for another delivery after this time, without counting an attempt.
    Sheds(Duration),
    Panics,
    /// Kills its process while the handler runs.
    KillsProcess,
    DeadLetters,
    Discards,
}

/// A fault of a worker, of the network or of the server. Times are in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// A process is killed. If `unnoticed` is set, its machine is lost, too, so that the server
    /// keeps the connections.
    Crash {
        worker: usize,
        unnoticed: bool,
        restart_after: u64,
    },
    /// A process or one of its threads is frozen.
    Freeze {
        worker: usize,
        threads: &'static [usize],
        time: u64,
    },
    /// One of a worker's connections is reset.
    Reset { worker: usize, connection: usize },
    /// For `time`, no bytes arrive in the given directions. They arrive later; none is lost.
    CutOff {
        worker: usize,
        time: u64,
        to_server: bool,
        to_worker: bool,
    },
    /// Responses reach a worker slowly, in pieces. A response with several padded jobs takes longer
    /// than a connection may be silent. It must take less than the shortest lease, because the
    /// leases of jobs that have not arrived yet are not renewed.
    SlowLink {
        worker: usize,
        time: u64,
        bytes_per_second: u64,
    },
    /// A worker is shut down gracefully, and another one starts.
    Replace { worker: usize, restart_after: u64 },
    /// The server stalls.
    Stall { time: u64 },
    /// The server stalls when the next command of this kind arrives, before it runs that command.
    StallBefore { kind: &'static str, time: u64 },
    /// The next command of this kind runs, and its connection is reset before its response.
    LoseResponse { kind: &'static str },
    /// The next command of this kind runs, and its process is killed before the response.
    CrashAfter {
        kind: &'static str,
        restart_after: u64,
    },
    /// The server is restarted with its data. It accepts no connections for `time`.
    Restart { time: u64 },
    /// The replica receives no more writes. After `writes` commands that may move a job, it is
    /// promoted without their effects. It accepts no connections for `time`, and its clock differs
    /// by `clock`.
    FailOver { writes: u32, time: u64, clock: i64 },
    /// For `time`, the server's notices of written streams are lost.
    LoseNotices { time: u64 },
    /// For `time`, the server sends no notices. It sends them afterwards.
    DelayNotices { time: u64 },
    /// For `time`, the server sends each notice twice.
    DoubleNotices { time: u64 },
    /// The server's wall clock steps.
    ClockStep { by: i64 },
    /// For `time`, the server refuses reads of new entries of one of several streams.
    Unreadable { stream: usize, time: u64 },
    /// The server refuses the next read of new entries of one of several streams.
    RefuseRead { stream: usize },
}

/// The kinds of commands: a name, or the beginning of a script's first comment. The last one occurs
/// only with several streams.
const KINDS: [&str; 12] = [
    "XREADGROUP",
    "XACK",
    "Acknowledges on the retry stream",
    "XADD",
    "Accepts a task",
    "Scans one step",
    "Renews",
    "Moves a delivery",
    "Moves due messages",
    "Ends a delivery",
    "Stores replies",
    "Reads new entries of several streams",
];

impl Scenario {
    pub(super) fn new(rng: &mut Rng) -> Self {
        // The choices about streams use a separate generator. So a seed whose scenario has one
        // stream gives the same scenario as it would without these choices.
        let mut stream_rng = rng.clone().fork();
        let mut failover_rng = stream_rng.clone().fork();
        let mut work_rng = failover_rng.clone().fork();
        let streams = match stream_rng.u8(..5) {
            2 | 3 => stream_rng.usize(2..=STREAMS.len()),
            _ => 1,
        };
        let policies = [Policy::InTurn, Policy::Strict, Policy::Weighted];
        let policy = *choose(&mut stream_rng, &policies);
        let is_cluster = streams > 1 && failover_rng.bool();
        let kinds = match streams {
            1 => &KINDS[..KINDS.len() - 1],
            _ => &KINDS,
        };
        // The third, the fifth and the tenth of each lease are whole milliseconds.
        let lease = Duration::from_millis(*choose(rng, &[6_000, 9_000, 12_000]));
        let groups = if rng.u8(..4) == 0 { 2 } else { 1 };
        let workers_per_group = rng.usize(2..=3);
        let faults_until = rng.u64(20_000..60_000);
        let jobs = (0..rng.u32(8..30)).map(|job| {
            let mut job = JobSpec::new(job, lease, groups == 1, rng);
            job.stream = match job.request {
                // A client reads the replies on several streams in an order that does not follow
                // from the seed, so each client uses one stream.
                true => job.sender as usize % streams,
                false => stream_rng.usize(..streams),
            };
            job
        });
        let mut jobs: Vec<_> = jobs.collect();
        if work_rng.bool() {
            add_work(&mut jobs, groups, lease, &mut work_rng);
        }
        // Faults of workers, of the network and of the server.
        let workers = groups * workers_per_group;
        let faults = (0..rng.usize(1..14)).map(|_| {
            (
                rng.u64(..faults_until),
                Fault::new(workers, lease, kinds, rng),
            )
        });
        let mut faults: Vec<_> = faults.collect();
        // With several streams, also faults of single streams.
        let refusals = if streams == 1 {
            0
        } else {
            stream_rng.usize(..5)
        };
        for _ in 0..refusals {
            let stream = stream_rng.usize(..streams);
            let time = stream_rng.u64(10..2 * lease.as_millis() as u64);
            let fault = match stream_rng.bool() {
                true => Fault::Unreadable { stream, time },
                false => Fault::RefuseRead { stream },
            };
            faults.push((stream_rng.u64(..faults_until), fault));
        }
        // One scenario in three has failovers.
        let failovers = match failover_rng.u8(..3) {
            0 => failover_rng.usize(1..4),
            _ => 0,
        };
        for _ in 0..failovers {
            let fault = Fault::of_failover(lease, &mut failover_rng);
            let at = failover_rng.u64(..faults_until);
            faults.push((at, fault));
            // While the clock is behind the last id, new ids count up from that id. Both servers
            // can then give the same ids.
            if failover_rng.u8(..3) == 0 {
                let by = -failover_rng.i64(1..2 * lease.as_millis() as i64);
                let before = failover_rng.u64(..3_000);
                faults.push((at.saturating_sub(before), Fault::ClockStep { by }));
            }
        }
        // Only a cluster sends notices of written streams.
        let notices = match is_cluster {
            true => failover_rng.usize(..6),
            false => 0,
        };
        for _ in 0..notices {
            let fault = Fault::of_notices(workers, lease, &mut failover_rng);
            faults.push((failover_rng.u64(..faults_until), fault));
        }
        faults.sort_by_key(|(at, _)| *at);
        Self {
            lease,
            max_deliveries: *choose(rng, &[3, 5, 10]),
            max_in_flight: *choose(rng, &[1, 2, 8]),
            streams,
            is_cluster,
            policy,
            groups,
            workers_per_group,
            jobs,
            faults,
            faults_until,
            until_consumers_deleted: rng.u8(..8) == 0,
        }
    }
}

/// Adds follow-ups, tracked tasks and tasks with a limit.
fn add_work(jobs: &mut Vec<JobSpec>, groups: usize, lease: Duration, rng: &mut Rng) {
    for at in 0..jobs.len() {
        let next = jobs.len() as JobId;
        let parent = &mut jobs[at];
        if parent.request {
            continue;
        }
        // A record belongs to one group, and with several groups each group would send the
        // follow-up.
        parent.tracked = groups == 1 && rng.u8(..3) == 0;
        parent.limited = rng.u8(..4) == 0;
        if groups == 1 && rng.u8(..3) == 0 {
            parent.follow_up = Some(next);
            let (job, stream) = (parent.job, parent.stream);
            let mut follow_up = JobSpec::new(next, lease, false, rng);
            follow_up.stream = stream;
            follow_up.parent = Some(job);
            follow_up.tracked = rng.u8(..3) == 0;
            jobs.push(follow_up);
        }
    }
}

/// The number of senders. The first one sends tasks, the others send requests.
pub(super) const SENDERS: ProcessId = 4;

impl JobSpec {
    /// Returns the name of the message. The name of a tracked task contains the number of the job.
    pub(super) fn name(&self) -> String {
        match self.tracked {
            true => format!("job.{}", self.job),
            false => "job".to_owned(),
        }
    }

    /// Returns the number of the job, padded with spaces.
    pub(super) fn payload(&self) -> String {
        format!("{}{}", self.job, " ".repeat(self.padding))
    }

    fn new(job: JobId, lease: Duration, may_request: bool, rng: &mut Rng) -> Self {
        let delayed = rng.u8(..4) == 0;
        let request = may_request && rng.u8(..4) == 0;
        Self {
            job,
            stream: 0,
            sender: if request { rng.u32(1..SENDERS) } else { 0 },
            pause: Duration::from_millis(match rng.u8(..3) {
                0 => 0,
                _ => rng.u64(..3_000),
            }),
            parent: None,
            follow_up: None,
            tracked: false,
            limited: false,
            delay: delayed.then(|| Duration::from_millis(rng.u64(1..8_000))),
            request,
            resends: rng.u8(..3) == 0,
            handler: HandlerSpec::new(lease, rng),
            padding: match rng.u8(..4) {
                0 => rng.usize(..4_000),
                _ => 0,
            },
        }
    }
}

impl HandlerSpec {
    fn new(lease: Duration, rng: &mut Rng) -> Self {
        let lease = lease.as_millis() as u64;
        let after = Duration::from_millis(rng.u64(..4_000));
        let first = match rng.u8(..16) {
            0..2 => Behavior::Fails,
            2..4 => Behavior::FailsWithDelay(after),
            4 => Behavior::Sheds(after),
            5 => Behavior::Panics,
            6 => Behavior::KillsProcess,
            _ => Behavior::Succeeds,
        };
        let then = match rng.u8(..16) {
            0 => Behavior::DeadLetters,
            1 => Behavior::Discards,
            2 => Behavior::Fails,
            3 if first == Behavior::KillsProcess => Behavior::KillsProcess,
            _ => Behavior::Succeeds,
        };
        Self {
            duration: Duration::from_millis(match rng.u8(..8) {
                // Longer than a lease, so that the worker must renew it. Only for handlers that
                // start once.
                0 if first == Behavior::Succeeds && then != Behavior::Fails => {
                    rng.u64(lease..4 * lease)
                }
                1..3 => rng.u64(..lease),
                _ => rng.u64(..500),
            }),
            first_starts: rng.u32(1..4),
            first,
            then,
        }
    }

    /// Returns how the handler ends after this number of earlier starts.
    pub(super) fn behavior(&self, earlier_starts: u32) -> Behavior {
        match earlier_starts < self.first_starts && self.first != Behavior::Succeeds {
            true => self.first,
            false => self.then,
        }
    }
}

impl Fault {
    fn of_notices(workers: usize, lease: Duration, rng: &mut Rng) -> Self {
        let time = rng.u64(10..3 * lease.as_millis() as u64);
        match rng.u8(..5) {
            0..2 => Fault::LoseNotices { time },
            2 => Fault::DelayNotices { time },
            3 => Fault::DoubleNotices { time },
            // A reset may end a connection between a read and its notice.
            _ => Fault::Reset {
                worker: rng.usize(..workers),
                connection: rng.usize(..8),
            },
        }
    }

    fn of_failover(lease: Duration, rng: &mut Rng) -> Self {
        let lease = lease.as_millis() as i64;
        Fault::FailOver {
            writes: match rng.u8(..3) {
                0 => 1,
                _ => rng.u32(1..20),
            },
            time: rng.u64(10..lease as u64 * 3 / 2),
            clock: match rng.u8(..4) {
                0 => 0,
                1 => rng.i64(-20..20),
                2 => rng.i64(1..3 * lease),
                _ => -rng.i64(1..2 * lease),
            },
        }
    }

    fn new(workers: usize, lease: Duration, kinds: &[&'static str], rng: &mut Rng) -> Self {
        let lease = lease.as_millis() as u64;
        let worker = rng.usize(..workers);
        let restart_after = rng.u64(..lease);
        // The length of the fault: often shorter than a lease, sometimes longer than two.
        let time = match rng.u8(..3) {
            0 => rng.u64(10..lease / 3),
            1 => rng.u64(lease / 3..lease * 5 / 4),
            _ => rng.u64(lease..5 * lease / 2),
        };
        let kind = *choose(rng, kinds);
        match rng.u8(..40) {
            0..4 => {
                let unnoticed = rng.u8(..3) == 0;
                Fault::Crash {
                    worker,
                    unnoticed,
                    restart_after,
                }
            }
            4..9 => {
                let threads: &[&[usize]] = &[&[APPLICATION, UPKEEP], &[APPLICATION], &[UPKEEP]];
                let threads = *choose(rng, threads);
                Fault::Freeze {
                    worker,
                    threads,
                    time,
                }
            }
            9..13 => {
                let connection = rng.usize(..8);
                Fault::Reset { worker, connection }
            }
            13..16 => {
                let ways = [(true, true), (true, false), (false, true)];
                let (to_server, to_worker) = *choose(rng, &ways);
                Fault::CutOff {
                    worker,
                    time,
                    to_server,
                    to_worker,
                }
            }
            16 => Fault::Replace {
                worker,
                restart_after,
            },
            17 => Fault::Restart { time: time / 3 },
            18..21 => Fault::Stall { time },
            21..27 => {
                // A stall right before a scan for deliveries to claim is the most dangerous one.
                let kind = *choose(rng, &[kind, "Scans one step"]);
                let time = rng.u64(lease / 2..lease * 3 / 2);
                Fault::StallBefore { kind, time }
            }
            27..31 => Fault::LoseResponse { kind },
            31..34 => Fault::CrashAfter {
                kind,
                restart_after,
            },
            34..36 => Fault::ClockStep {
                by: rng.i64(1..3 * lease as i64),
            },
            36..38 => Fault::ClockStep {
                by: -rng.i64(1..2 * lease as i64),
            },
            _ => Fault::SlowLink {
                worker,
                time: 2 * time,
                bytes_per_second: rng.u64(4_000..40_000),
            },
        }
    }
}

fn choose<'a, T>(rng: &mut Rng, from: &'a [T]) -> &'a T {
    &from[rng.usize(..from.len())]
}
