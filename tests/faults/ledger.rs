//! The ledger: a file that senders and handlers of all processes append to.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// What can become of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// The server took it.
    Sent,
    /// Its sender does not know whether the server took it.
    Unsure,
    /// A handler began.
    Started,
    /// A handler came to its end.
    Finished,
    /// A handler was told that its lease is lost.
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
    /// The delivery's attempt; 0 for its sender.
    pub(crate) attempt: u32,
    /// Who wrote it.
    pub(crate) pid: u32,
    /// When, since the epoch: all processes are on one machine.
    pub(crate) at: Duration,
}

/// The time as the ledger counts it.
pub(crate) fn now() -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.expect("it is later than 1970")
}

/// A handle of the file.
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

    /// Appends a line. It is in the file when this returns, whatever happens to the process then.
    pub(crate) fn write(&self, what: What, job: u64, attempt: u32) {
        let (pid, at) = (std::process::id(), now().as_micros());
        let line = format!("{what:?} {job} {attempt} {pid} {at}\n");
        // One call for each line: appends of different processes do not mix.
        (&*self.file)
            .write_all(line.as_bytes())
            .expect("the ledger can be written");
    }

    /// What it says by now.
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
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        Account {
            lines: whole.lines().map(line).collect(),
        }
    }
}

/// What a ledger says.
#[derive(Debug)]
pub(crate) struct Account {
    lines: Vec<Line>,
}

impl Account {
    /// The lines of one kind, in their order.
    pub(crate) fn all(&self, what: What) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(move |line| line.what == what)
    }

    /// The jobs that have a line of this kind.
    pub(crate) fn jobs(&self, what: What) -> BTreeSet<u64> {
        self.all(what).map(|line| line.job).collect()
    }

    /// What was sent and is not finished.
    pub(crate) fn lost(&self) -> BTreeSet<u64> {
        &self.jobs(What::Sent) - &self.jobs(What::Finished)
    }

    /// What was started more than once, and how often.
    pub(crate) fn repeated(&self) -> BTreeMap<u64, usize> {
        let mut starts = BTreeMap::new();
        for line in self.all(What::Started) {
            *starts.entry(line.job).or_default() += 1;
        }
        starts.retain(|_, count| *count > 1);
        starts
    }

    /// What a process has started and not finished.
    pub(crate) fn in_hand(&self, pid: u32) -> BTreeSet<u64> {
        let of = |what| {
            let lines = self.all(what).filter(|line| line.pid == pid);
            lines.map(|line| line.job).collect::<BTreeSet<_>>()
        };
        &of(What::Started) - &of(What::Finished)
    }

    /// How long after a moment all of these jobs were started again by another process than this.
    pub(crate) fn taken_over(&self, jobs: &BTreeSet<u64>, from: u32, after: Duration) -> Duration {
        let by_others = self
            .all(What::Started)
            .filter(|line| line.pid != from && line.at > after && jobs.contains(&line.job));
        let mut first = BTreeMap::new();
        by_others.for_each(|line| {
            first.entry(line.job).or_insert(line.at);
        });
        assert_eq!(
            first.len(),
            jobs.len(),
            "not all of {jobs:?} were taken over"
        );
        first.into_values().max().unwrap_or(after) - after
    }

    /// Whether something of this kind happened after a moment.
    pub(crate) fn is_later(&self, what: What, than: Duration) -> bool {
        self.all(what).any(|line| line.at > than)
    }

    /// How long after a moment the first handler was finished.
    pub(crate) fn went_on(&self, after: Duration) -> Duration {
        let mut finished = self.all(What::Finished);
        let first = finished.find(|line| line.at > after);
        first.expect("work went on").at - after
    }

    /// Prints the line of this fault, and asserts that recovery took no longer than `limit`.
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
