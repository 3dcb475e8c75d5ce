//! The command line.

use crate::{
    peer::{self, Peer},
    setup::Setup,
    workload::{Handler, Job, Work, Workload, drain, rpc, workload},
};

/// The workloads. All peers support tasks and drains; some support requests.
const WORKLOADS: [Workload; 4] = [
    workload("task-64", Work::Task { senders: 64 }, 150_000, 60_000),
    workload("task-512", Work::Task { senders: 512 }, 150_000, 60_000),
    workload("drain", drain(Handler::Single), 200_000, 100_000),
    workload("rpc-64", rpc(64, false), 150_000, 40_000),
];

#[derive(Debug)]
pub(crate) struct Args {
    quick: bool,
    pub(crate) rounds: usize,
    workloads: Vec<Workload>,
    pub(crate) peers: Vec<Peer>,
}

impl Args {
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut args = Self {
            quick: false,
            rounds: 0,
            workloads: Vec::new(),
            peers: Vec::new(),
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--quick" => args.quick = true,
                "--rounds" => args.rounds = number(&value()?)?,
                "--workload" => {
                    args.workloads
                        .push(find("workload", &value()?, &WORKLOADS, |workload| {
                            workload.name
                        })?)
                }
                "--peer" => args
                    .peers
                    .push(find("peer", &value()?, &peer::ALL, Peer::name)?),
                _ => return Err(format!("unknown argument {word}")),
            }
        }
        if args.rounds == 0 {
            args.rounds = if args.quick { 3 } else { 5 };
        }
        if args.workloads.is_empty() {
            args.workloads = WORKLOADS.to_vec();
        }
        if args.peers.is_empty() {
            args.peers = peer::ALL.to_vec();
        }
        Ok(args)
    }

    /// Returns a job for each chosen workload. Every peer that supports the workload runs it.
    pub(crate) fn jobs(&self) -> impl Iterator<Item = Job> {
        self.workloads.iter().map(|workload| Job {
            name: workload.name,
            work: workload.work,
            count: match self.quick {
                true => workload.quick_count,
                false => workload.full_count,
            },
            rate: None,
            setup: Setup {
                max_in_flight: 4096,
                handlers_wait: false,
                ..Setup::default()
            },
        })
    }
}

fn find<T: Copy>(
    kind: &str,
    word: &str,
    known: &[T],
    name: impl Fn(&T) -> &'static str,
) -> Result<T, String> {
    (known.iter().copied())
        .find(|known| name(known) == word)
        .ok_or_else(|| {
            let names: Vec<_> = known.iter().map(name).collect();
            format!("no {kind} is named {word}; there are {}", names.join(", "))
        })
}

fn number(word: &str) -> Result<usize, String> {
    match word.replace('_', "").parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{word} is not a number above zero")),
    }
}
