//! The command line.

use crate::workload::{self, Workload};

#[derive(Debug)]
pub(crate) struct Args {
    /// Whether to measure. Under `cargo test` the work is only run, to see that it does.
    pub(crate) measured: bool,
    pub(crate) quick: bool,
    pub(crate) rounds: usize,
    pub(crate) workloads: Vec<Workload>,
    /// Whether to leave the raw loops out, for a profiler to look at the rest.
    pub(crate) ours_only: bool,
    /// How many tasks to pass instead of measuring.
    pub(crate) soak: Option<usize>,
}

impl Args {
    pub(crate) fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut args = Self {
            measured: false,
            quick: false,
            rounds: 0,
            workloads: Vec::new(),
            ours_only: false,
            soak: None,
        };
        let mut words = words.peekable();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--quick" => args.quick = true,
                "--ours-only" => args.ours_only = true,
                "--rounds" => args.rounds = number(&value()?)?,
                "--soak" => args.soak = Some(number(&value()?)?),
                "--workload" => {
                    let name = value()?;
                    let found = workload::ALL.into_iter().find(|known| known.name == name);
                    args.workloads.push(found.ok_or_else(|| {
                        let names = workload::ALL.map(|known| known.name).join(", ");
                        format!("no workload is named {name}; there are {names}")
                    })?);
                }
                // What `cargo bench` says to every bench, and `cargo test` does not.
                "--bench" => args.measured = true,
                _ => return Err(format!("unknown argument {word}")),
            }
        }
        if args.rounds == 0 {
            args.rounds = match (args.measured, args.quick) {
                (false, _) => 1,
                (true, true) => 3,
                (true, false) => 5,
            };
        }
        if args.workloads.is_empty() {
            args.workloads = workload::ALL.to_vec();
        }
        Ok(args)
    }

    /// How many messages a round has.
    pub(crate) fn count(&self, workload: &Workload) -> usize {
        match (self.measured, self.quick) {
            (false, _) => workload.quick / 10,
            (true, true) => workload.quick,
            (true, false) => workload.full,
        }
    }
}

fn number(word: &str) -> Result<usize, String> {
    match word.replace('_', "").parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{word} is not a number above zero")),
    }
}
