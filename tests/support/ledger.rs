//! The ledger: a file that senders and handlers of all processes append to.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Write,
    ops::Range,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// The longest time from the start of a job until its acknowledgement, if no fault delays it.
const ACKNOWLEDGED: Duration = Duration::from_secs(1);

/// A recorded event of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// The server has confirmed the job to its sender.
    Sent,
    /// The sender does not know whether the server has the job.
    Unsure,
    /// A handler started.
    Started,
    /// A handler finished.
    Finished,
    /// A handler was notified that it has lost its lease.
    Told,
}

impl FromStr for What {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        Ok(match word {
            "Sent" => Self::Sent,
            "Unsure" => Self::Unsure,
            "Started" => Self::Started,
            "Finished" => Self::Finished,
            "Told" => Self::Told,
            other => return Err(format!("`{other}` in the ledger")),
        })
    }
}

/// One line of the ledger.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line {
    pub(crate) what: What,
    /// The number of the job.
    pub(crate) job: u64,
    /// The attempt of the delivery; 0 in a line of the sender.
    pub(crate) attempt: u32,
    /// The process that wrote the line.
    pub(crate) pid: u32,
    /// The time since the Unix epoch. All processes run on one machine.
    pub(crate) at: Duration,
}

/// The current time, as in the ledger.
pub(crate) fn now() -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.expect("the clock is later than 1970")
}

/// The ledger's file, opened for appending. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    path: PathBuf,
    file: Arc<File>,
}

impl Ledger {
    pub(crate) fn open(path: &Path) -> Self {
        let file = File::options().create(true).append(true).open(path);
        Self {
            path: path.to_owned(),
            file: Arc::new(file.expect("the ledger can be opened")),
        }
    }

    /// Appends a line. The line is in the file on return, even if the process then crashes.
    pub(crate) fn write(&self, what: What, job: u64, attempt: u32) {
        let (pid, at) = (std::process::id(), now().as_micros());
        let line = format!("{what:?} {job} {attempt} {pid} {at}\n");
        // One write for each line, so that lines of different processes do not mix.
        (&*self.file)
            .write_all(line.as_bytes())
            .expect("the ledger can be written");
    }

    /// Reads the ledger.
    pub(crate) fn read(&self) -> Account {
        let text = fs::read_to_string(&self.path).expect("the ledger can be read");
        let line = |text: &str| {
            let mut words = text.split(' ');
            let mut next = || words.next().expect("five words");
            Line {
                what: next().parse().expect("a known word"),
                job: next().parse().expect("a number"),
                attempt: next().parse().expect("a number"),
                pid: next().parse().expect("a process id"),
                at: Duration::from_micros(next().parse().expect("a time")),
            }
        };
        // A writer may be in the middle of the last line.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        Account {
            lines: whole.lines().map(line).collect(),
        }
    }
}

/// The contents of a ledger.
#[derive(Debug)]
pub(crate) struct Account {
    lines: Vec<Line>,
}

impl Account {
    /// The lines of one kind, in order.
    pub(crate) fn all(&self, what: What) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(move |line| line.what == what)
    }

    /// The jobs that have a line of this kind.
    pub(crate) fn jobs(&self, what: What) -> BTreeSet<u64> {
        self.all(what).map(|line| line.job).collect()
    }

    /// The jobs that were sent and are not finished.
    pub(crate) fn lost(&self) -> BTreeSet<u64> {
        &self.jobs(What::Sent) - &self.jobs(What::Finished)
    }

    /// The jobs that were started more than once, with the number of starts.
    pub(crate) fn repeated(&self) -> BTreeMap<u64, usize> {
        let mut starts = BTreeMap::new();
        for line in self.all(What::Started) {
            *starts.entry(line.job).or_default() += 1;
        }
        starts.retain(|_, count| *count > 1);
        starts
    }

    /// The jobs that this process has started and not finished.
    pub(crate) fn in_hand(&self, pid: u32) -> BTreeSet<u64> {
        let of = |what| {
            let lines = self.all(what).filter(|line| line.pid == pid);
            lines.map(|line| line.job).collect::<BTreeSet<_>>()
        };
        &of(What::Started) - &of(What::Finished)
    }

    /// The time from `after` until processes other than `from` had started all of these jobs.
    pub(crate) fn claimed(&self, jobs: &BTreeSet<u64>, from: u32, after: Duration) -> Duration {
        let by_others = self
            .all(What::Started)
            .filter(|line| line.pid != from && line.at > after && jobs.contains(&line.job));
        let mut first = BTreeMap::new();
        by_others.for_each(|line| {
            first.entry(line.job).or_insert(line.at);
        });
        assert_eq!(first.len(), jobs.len(), "not all of {jobs:?} were claimed");
        first.into_values().max().unwrap_or(after) - after
    }

    /// Returns `true` if the ledger has a line of this kind after `than`.
    pub(crate) fn is_later(&self, what: What, than: Duration) -> bool {
        self.all(what).any(|line| line.at > than)
    }

    /// The time from `after` until a handler finished.
    pub(crate) fn went_on(&self, after: Duration) -> Duration {
        let mut finished = self.all(What::Finished);
        let first = finished.find(|line| line.at > after);
        first.expect("work went on").at - after
    }

    /// The jobs that the server confirmed in this time and that are not finished.
    pub(crate) fn lost_of(&self, confirmed: Range<Duration>) -> BTreeSet<u64> {
        let sent = self
            .all(What::Sent)
            .filter(|line| confirmed.contains(&line.at));
        &self.lost() & &sent.map(|line| line.job).collect()
    }

    /// Asserts that a failover has lost no other writes than those of this time: each lost job was
    /// confirmed in it, and each job that ran twice was started in it, or so shortly before that
    /// its acknowledgement may be of this time.
    #[track_caller]
    pub(crate) fn assert_lost_writes(&self, of: Range<Duration>) {
        let lost = &self.lost() - &self.lost_of(of.clone());
        assert!(
            lost.is_empty(),
            "confirmed outside of {of:?} and lost: {lost:?}"
        );
        let mut first = BTreeMap::new();
        for line in self.all(What::Started) {
            first.entry(line.job).or_insert(line.at);
        }
        let started = of.start.saturating_sub(ACKNOWLEDGED)..of.end;
        let mut repeated = self.repeated();
        repeated.retain(|job, _| !started.contains(&first[job]));
        assert!(
            repeated.is_empty(),
            "started outside of {started:?} and repeated: {repeated:?}"
        );
    }

    /// The longest time between `from` and `until` in which none of these jobs finished.
    pub(crate) fn longest_pause(
        &self,
        jobs: impl Fn(u64) -> bool,
        from: Duration,
        until: Duration,
    ) -> Duration {
        let finished = self.all(What::Finished);
        let finished = finished.filter(|line| jobs(line.job) && line.at < until);
        let (mut last, mut longest) = (from, Duration::ZERO);
        for at in finished
            .map(|line| line.at)
            .filter(|at| *at > from)
            .chain([until])
        {
            longest = longest.max(at.saturating_sub(last));
            last = at;
        }
        longest
    }

    /// The longest pause of a key in these times: a time in which none of its jobs finished,
    /// although later ones did. Of these jobs, those with the same remainder by `keys` have one key.
    pub(crate) fn longest_pause_of_a_key(
        &self,
        keys: u64,
        jobs: impl Fn(u64) -> bool,
        times: Range<Duration>,
    ) -> Duration {
        let pause = |key| {
            let of_key = |job| job % keys == key && jobs(job);
            let finished = self.all(What::Finished).filter(|line| of_key(line.job));
            let last = finished.map(|line| line.at).max().unwrap_or_default();
            self.longest_pause(of_key, times.start, times.end.min(last))
        };
        (0..keys).map(pause).max().unwrap_or_default()
    }

    /// Asserts that, by the lines that count, no job was started before each earlier job with its
    /// key was finished. Jobs with the same remainder by `keys` have one key.
    #[track_caller]
    pub(crate) fn assert_in_order(&self, keys: u64, counts: impl Fn(&Line) -> bool) {
        let mut finished = BTreeMap::<u64, Duration>::new();
        for line in self.all(What::Finished).filter(|line| counts(line)) {
            let first = finished.entry(line.job).or_insert(line.at);
            *first = line.at.min(*first);
        }
        // For each job the time at which it and all earlier ones of its key were finished.
        let mut of_keys = BTreeMap::<u64, Duration>::new();
        let mut before = BTreeMap::<u64, Duration>::new();
        let started = self.all(What::Started).filter(|line| counts(line));
        for job in started.map(|line| line.job).collect::<BTreeSet<_>>() {
            let of_key = of_keys.entry(job % keys).or_default();
            before.insert(job, *of_key);
            // A job that was started and never finished holds up its key for ever.
            *of_key = (*of_key).max(finished.get(&job).copied().unwrap_or(Duration::MAX));
        }
        for line in self.all(What::Started).filter(|line| counts(line)) {
            let before = before[&line.job];
            assert!(
                before <= line.at,
                "{line:?} was started before an earlier job was finished, at {before:?}"
            );
        }
    }

    /// The jobs that another process had started when their run in this process ended, or whose run
    /// in this process has not ended.
    pub(crate) fn overlapping(&self, pid: u32) -> BTreeSet<u64> {
        let mut elsewhere = BTreeMap::<u64, Duration>::new();
        for line in self.all(What::Started).filter(|line| line.pid != pid) {
            elsewhere.entry(line.job).or_insert(line.at);
        }
        let of = |what| self.all(what).filter(move |line| line.pid == pid);
        let ended: BTreeMap<_, _> = of(What::Finished)
            .map(|line| ((line.job, line.attempt), line.at))
            .collect();
        let overlaps = of(What::Started).filter(|line| {
            let end = ended.get(&(line.job, line.attempt));
            let end = end.unwrap_or(&Duration::MAX);
            elsewhere
                .get(&line.job)
                .is_some_and(|other| other < end && line.at < *other)
        });
        overlaps.map(|line| line.job).collect()
    }

    /// Prints the figures of this fault, and asserts that recovery took at most `limit`.
    #[track_caller]
    pub(crate) fn report(&self, fault: &str, recovered: Duration, limit: Duration) {
        println!(
            "ledger: {fault}: sent {} finished {} lost {} duplicated {} recovered in {:.2} s",
            self.jobs(What::Sent).len(),
            self.jobs(What::Finished).len(),
            self.lost().len(),
            self.repeated().len(),
            recovered.as_secs_f64(),
        );
        assert!(
            recovered <= limit,
            "{fault}: recovery took {recovered:.2?}, the limit is {limit:.2?}"
        );
    }
}
