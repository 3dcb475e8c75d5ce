//! The command line.

use std::path::PathBuf;

use serde::Serialize;

use crate::{
    report::{self, Environment},
    setup::Setup,
    workload::{self, Job, Work, Workload, find_workload},
};

/// The seconds that a round at a fixed rate takes, in full, quick and unmeasured runs.
const PACED_ROUND_SECONDS: (f64, f64, f64) = (3.0, 1.0, 0.1);

#[derive(Debug, Default)]
pub(crate) struct Args {
    /// True under `cargo bench`. Under `cargo test` short jobs check that the bench runs.
    pub(crate) measured: bool,
    pub(crate) quick: bool,
    pub(crate) rounds: usize,
    pub(crate) workloads: Vec<Workload>,
    /// Leaves the raw loops out, so that a profiler sees only the library.
    pub(crate) ours_only: bool,
    pub(crate) setup: Setup,
    /// The fixed rates to measure one after the other, in messages per second.
    pub(crate) rates: Vec<usize>,
    /// Replaces the number of senders, or of requests in flight, of the workloads.
    senders: Option<usize>,
    /// Replaces the number of messages that a drain begins with.
    backlog: Option<usize>,
    /// The file for the measurements.
    pub(crate) json: Option<PathBuf>,
    /// The file for the plot of latencies against rates.
    pub(crate) plot: Option<PathBuf>,
    pub(crate) mode: Mode,
}

/// The command of a run.
#[derive(Debug, Default, PartialEq)]
pub(crate) enum Mode {
    #[default]
    Workloads,
    Curves(PathBuf),
    /// Passes this number of tasks.
    Soak(usize),
    Shutdown,
    Idle,
    Cluster,
    #[cfg(feature = "ablation")]
    Ablation,
}

impl Args {
    pub(crate) fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut args = Self::default();
        let mut modes = Vec::new();
        let mut words = words;
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--quick" => args.quick = true,
                "--ours-only" => args.ours_only = true,
                "--aof" => args.setup.aof = true,
                "--tls" if cfg!(feature = "redis-rustls") => args.setup.tls = true,
                "--tls" => return Err("--tls needs --features redis-rustls".into()),
                "--rounds" => args.rounds = number(&value()?)?,
                "--payload" => args.setup.payload = number(&value()?)?,
                "--in-flight" => args.setup.max_in_flight = number(&value()?)?,
                "--handler" => args.setup.handlers_wait = parse_handler(&value()?)?,
                "--routes" => args.setup.routes = number(&value()?)?,
                "--streams" => args.setup.streams = number(&value()?)?,
                "--partitions" => args.setup = args.setup.partitions(number(&value()?)?),
                "--bound" => args.setup.bound = number(&value()?)?,
                "--processes" => args.setup.processes = number(&value()?)?,
                "--delay-us" => args.setup.delay_us = number(&value()?)?,
                "--senders" => args.senders = Some(number(&value()?)?),
                "--backlog" => args.backlog = Some(number(&value()?)?),
                "--rate" => args.rates = vec![number(&value()?)?],
                "--rates" => {
                    args.rates = value()?.split(',').map(number).collect::<Result<_, _>>()?
                }
                "--json" => args.json = Some(value()?.into()),
                "--plot" => args.plot = Some(value()?.into()),
                "--workload" => args.workloads.push(find_workload(&value()?)?),
                "--curves" => modes.push(Mode::Curves(value()?.into())),
                "--soak" => modes.push(Mode::Soak(number(&value()?)?)),
                #[cfg(feature = "ablation")]
                "--ablation" => modes.push(Mode::Ablation),
                #[cfg(not(feature = "ablation"))]
                "--ablation" => return Err("--ablation needs --features ablation".into()),
                "--shutdown" => modes.push(Mode::Shutdown),
                "--idle" => modes.push(Mode::Idle),
                "--cluster" => modes.push(Mode::Cluster),
                // `cargo bench` passes `--bench` to every bench; `cargo test` does not.
                "--bench" => args.measured = true,
                _ => return Err(format!("unknown argument {word}")),
            }
        }
        if modes.len() > 1 {
            return Err(
                "--curves, --soak, --shutdown, --idle, --cluster and --ablation are one at a time"
                    .into(),
            );
        }
        args.mode = modes.pop().unwrap_or_default();
        args.check_and_fill()?;
        Ok(args)
    }

    /// Refuses options that do not fit together. Sets the rounds and the workloads if they are not
    /// given.
    fn check_and_fill(&mut self) -> Result<(), String> {
        let (processes, is_paced) = (self.setup.processes, !self.rates.is_empty());
        let changed = processes > 0 || is_paced || self.setup.tls || self.setup.delay_us > 0;
        if self.mode == Mode::Cluster && changed {
            return Err("--cluster is without --processes, --rate, --tls and --delay-us".into());
        }
        if processes > 4 {
            return Err("--processes goes up to 4".into());
        }
        if processes > 0 && is_paced {
            return Err("--rate needs the worker in this process, without --processes".into());
        }
        if self.plot.is_some() && !is_paced {
            return Err("--plot needs --rates".into());
        }
        // The defaults of options that were not given.
        if self.rounds == 0 {
            self.rounds = match (self.measured, self.quick) {
                (false, _) => 1,
                (true, _) if is_paced => 1,
                (true, true) => 3,
                (true, false) => 5,
            };
        }
        // Child processes and fixed rates do not support all workloads.
        let fits = |work: Work| {
            (processes == 0 || work.allows_distant_worker()) && (!is_paced || work.allows_rate())
        };
        if let Some(workload) = self.workloads.iter().find(|it| !fits(it.work)) {
            let option = if is_paced { "--rate" } else { "--processes" };
            return Err(format!("{option} is not for {}", workload.name));
        }
        if self.workloads.is_empty() {
            self.workloads = match is_paced {
                // At a fixed rate the number of senders does not matter, so one workload of each
                // kind is enough.
                true => ["task-64", "rpc-fast-64", "rpc-reliable-64"]
                    .into_iter()
                    .map(find_workload)
                    .collect::<Result<_, _>>()?,
                false => workload::ALL.to_vec(),
            };
            self.workloads.retain(|workload| fits(workload.work));
        }
        Ok(())
    }

    /// The jobs to measure on both sides.
    pub(crate) fn jobs(&self) -> Vec<Job> {
        let jobs = |workload| self.jobs_of(workload);
        self.workloads.iter().flat_map(jobs).collect()
    }

    /// The jobs of one workload: one for each rate, or a single job if no rate is given.
    pub(crate) fn jobs_of(&self, workload: &Workload) -> Vec<Job> {
        let job = self.job(workload);
        if self.rates.is_empty() {
            return vec![job];
        }
        let at_rate = |&rate| self.at_rate(&job, rate);
        self.rates.iter().map(at_rate).collect()
    }

    /// The job of one workload, with messages sent as fast as possible.
    pub(crate) fn job(&self, workload: &Workload) -> Job {
        let mut job = Job {
            name: workload.name,
            work: workload.work,
            count: self.message_count(workload),
            rate: None,
            setup: self.setup,
        };
        if let Some(senders) = self.senders {
            job.work = job.work.with_senders(senders);
        }
        if let (Some(backlog), Work::Drain { .. }) = (self.backlog, job.work) {
            job.count = backlog;
        }
        job
    }

    /// The same job, with messages sent at this rate.
    pub(crate) fn at_rate(&self, job: &Job, rate: usize) -> Job {
        Job {
            rate: Some(rate),
            count: ((rate as f64 * self.select(PACED_ROUND_SECONDS)) as usize).max(1),
            ..*job
        }
    }

    /// Writes the measurements to the JSON file, if the command line names one.
    pub(crate) fn write(&self, environment: &Environment, rows: &[impl Serialize]) {
        if let Some(path) = &self.json {
            report::write_json(path, environment, rows);
        }
    }

    /// The number of messages in a round. With large payloads it is lower, since the server keeps
    /// the messages in memory.
    fn message_count(&self, workload: &Workload) -> usize {
        let count = self.select((
            workload.full_count,
            workload.quick_count,
            workload.quick_count / 10,
        ));
        match self.setup.payload {
            0..=1024 => count,
            large => count.min((512 << 20) / large).max(1),
        }
    }

    /// Selects the value for full, for quick or for unmeasured runs.
    pub(crate) fn select<T>(&self, (full, quick, test): (T, T, T)) -> T {
        match (self.measured, self.quick) {
            (false, _) => test,
            (true, true) => quick,
            (true, false) => full,
        }
    }
}

fn parse_handler(word: &str) -> Result<bool, String> {
    match word {
        "wait-once" => Ok(true),
        "nothing" => Ok(false),
        _ => Err(format!(
            "no handler is named {word}; there are wait-once, nothing"
        )),
    }
}

fn number(word: &str) -> Result<usize, String> {
    match word.replace('_', "").parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{word} is not a number above zero")),
    }
}
