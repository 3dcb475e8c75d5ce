//! What a seed decides beforehand: the jobs, the workers, and what befalls them.

use std::time::Duration;

use fastrand::Rng;

use super::{
    book::{Job, WorkerId},
    host::{APPLICATION, UPKEEP},
};

/// What a simulation is made of.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) lease: Duration,
    /// How many deliveries a job gets.
    pub(super) most: u32,
    pub(super) max_in_flight: usize,
    pub(super) groups: usize,
    pub(super) workers_per_group: usize,
    pub(super) jobs: Vec<Order>,
    pub(super) faults: Vec<(u64, Fault)>,
    /// Until when there are faults, in milliseconds.
    pub(super) peace: u64,
    /// Whether it goes on until the workers that are gone are forgotten.
    pub(super) long: bool,
}

/// A job that is sent.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) job: Job,
    /// Who sends it.
    pub(super) sender: WorkerId,
    /// How long its sender waits before it.
    pub(super) pause: Duration,
    pub(super) delay: Option<Duration>,
    /// Whether its sender waits for a reply.
    pub(super) request: bool,
    /// Whether it is sent again until it is known to be there, with a key that makes that safe.
    pub(super) insists: bool,
    pub(super) work: Work,
    /// How many bytes its payload is filled up with.
    pub(super) padding: usize,
}

/// What the handler of a job does.
#[derive(Debug, Clone)]
pub(super) struct Work {
    pub(super) takes: Duration,
    /// How often it comes to another end before.
    pub(super) times: u32,
    pub(super) first: Trouble,
    pub(super) then: Trouble,
}

/// How a handler comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    None,
    Fails,
    FailsFor(Duration),
    Shed(Duration),
    Panics,
    Dies,
    DeadLetter,
    Discards,
}

/// What goes wrong, at one of the workers or at the server.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// A process is killed. Where its machine is gone the server does not notice.
    Crash {
        worker: usize,
        unnoticed: bool,
        back: u64,
    },
    /// A process stands still, or one of its threads.
    Freeze {
        worker: usize,
        threads: &'static [usize],
        time: u64,
    },
    /// One of its connections is reset.
    Reset { worker: usize, which: usize },
    /// Nothing comes through, one way or both; its connections may be reset then.
    CutOff {
        worker: usize,
        time: u64,
        to_server: bool,
        to_worker: bool,
    },
    /// Answers reach it slowly, in pieces. With the padding of the jobs' payloads, an answer of
    /// several takes longer than a connection may be silent, and less than the shortest lease: the
    /// leases of what is still on its way are not renewed.
    SlowLink {
        worker: usize,
        time: u64,
        bytes_per_second: u64,
    },
    /// It is told to end, and another starts.
    Replace { worker: usize, back: u64 },
    /// The server stands still.
    Stall { time: u64 },
    /// It does so when a command of this kind has come, before it carries that out.
    StallBefore { kind: &'static str, time: u64 },
    /// The connection of the next command of this kind is reset between the command and its answer.
    LoseAnswer { kind: &'static str },
    /// The process that sends the next one dies there.
    CrashAfter { kind: &'static str, back: u64 },
    /// The server ends, and is started again with its data.
    Restart { time: u64 },
    /// The server's wall clock steps by so many milliseconds.
    ClockStep { by: i64 },
}

/// What commands are, or the scripts say of themselves at first.
const KINDS: [&str; 11] = [
    "XREADGROUP",
    "XACK",
    "Acknowledges on the retry stream",
    "XADD",
    "Takes a task",
    "Looks at one step",
    "Renews",
    "Moves a delivery",
    "Moves what is due",
    "Ends a delivery",
    "Stores replies",
];

impl Plan {
    pub(super) fn new(rng: &mut Rng) -> Self {
        // Thirds, fifths and tenths of it are whole milliseconds.
        let lease = Duration::from_millis(*choose(rng, &[6_000, 9_000, 12_000]));
        let groups = if rng.u8(..4) == 0 { 2 } else { 1 };
        let workers_per_group = rng.usize(2..=3);
        let peace = rng.u64(20_000..60_000);
        let jobs = (0..rng.u32(8..30))
            .map(|job| Order::new(job, lease, groups == 1, rng))
            .collect();
        let workers = groups * workers_per_group;
        let faults =
            (0..rng.usize(1..14)).map(|_| (rng.u64(..peace), Fault::new(workers, lease, rng)));
        let mut faults: Vec<_> = faults.collect();
        faults.sort_by_key(|(at, _)| *at);
        Self {
            lease,
            most: *choose(rng, &[3, 5, 10]),
            max_in_flight: *choose(rng, &[1, 2, 8]),
            groups,
            workers_per_group,
            jobs,
            faults,
            peace,
            long: rng.u8(..8) == 0,
        }
    }
}

/// How many senders there are. The first sends tasks, the others requests.
pub(super) const SENDERS: WorkerId = 4;

impl Order {
    /// The number of the job, filled up with spaces.
    pub(super) fn payload(&self) -> String {
        format!("{}{}", self.job, " ".repeat(self.padding))
    }

    fn new(job: Job, lease: Duration, requests: bool, rng: &mut Rng) -> Self {
        let delayed = rng.u8(..4) == 0;
        let request = requests && rng.u8(..4) == 0;
        Self {
            job,
            sender: if request { rng.u32(1..SENDERS) } else { 0 },
            pause: Duration::from_millis(match rng.u8(..3) {
                0 => 0,
                _ => rng.u64(..3_000),
            }),
            delay: delayed.then(|| Duration::from_millis(rng.u64(1..8_000))),
            request,
            insists: rng.u8(..3) == 0,
            work: Work::new(lease, rng),
            padding: match rng.u8(..4) {
                0 => rng.usize(..4_000),
                _ => 0,
            },
        }
    }
}

impl Work {
    fn new(lease: Duration, rng: &mut Rng) -> Self {
        let lease = lease.as_millis() as u64;
        let after = Duration::from_millis(rng.u64(..4_000));
        let first = match rng.u8(..16) {
            0..2 => Trouble::Fails,
            2..4 => Trouble::FailsFor(after),
            4 => Trouble::Shed(after),
            5 => Trouble::Panics,
            6 => Trouble::Dies,
            _ => Trouble::None,
        };
        let then = match rng.u8(..16) {
            0 => Trouble::DeadLetter,
            1 => Trouble::Discards,
            2 => Trouble::Fails,
            3 if first == Trouble::Dies => Trouble::Dies,
            _ => Trouble::None,
        };
        Self {
            takes: Duration::from_millis(match rng.u8(..8) {
                // Longer than a lease, which is renewed meanwhile. Not again and again.
                0 if first == Trouble::None && then != Trouble::Fails => rng.u64(lease..4 * lease),
                1..3 => rng.u64(..lease),
                _ => rng.u64(..500),
            }),
            times: rng.u32(1..4),
            first,
            then,
        }
    }

    /// How it ends after it has begun so many times before.
    pub(super) fn end(&self, before: u32) -> Trouble {
        match before < self.times && self.first != Trouble::None {
            true => self.first,
            false => self.then,
        }
    }
}

impl Fault {
    fn new(workers: usize, lease: Duration, rng: &mut Rng) -> Self {
        let lease = lease.as_millis() as u64;
        let worker = rng.usize(..workers);
        let back = rng.u64(..lease);
        // Often shorter than a lease, and sometimes longer than two.
        let time = match rng.u8(..3) {
            0 => rng.u64(10..lease / 3),
            1 => rng.u64(lease / 3..lease * 5 / 4),
            _ => rng.u64(lease..5 * lease / 2),
        };
        let kind = *choose(rng, &KINDS);
        match rng.u8(..40) {
            0..4 => {
                let unnoticed = rng.u8(..3) == 0;
                Fault::Crash {
                    worker,
                    unnoticed,
                    back,
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
                let which = rng.usize(..8);
                Fault::Reset { worker, which }
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
            16 => Fault::Replace { worker, back },
            17 => Fault::Restart { time: time / 3 },
            18..21 => Fault::Stall { time },
            21..27 => {
                // The one that has the most to lose.
                let kind = *choose(rng, &[kind, "Looks at one step"]);
                let time = rng.u64(lease / 2..lease * 3 / 2);
                Fault::StallBefore { kind, time }
            }
            27..31 => Fault::LoseAnswer { kind },
            31..34 => Fault::CrashAfter { kind, back },
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
