//! A cluster of one primary compared with a plain server, and partitions on three primaries
//! compared with one stream there, in paired rounds. Then the [`model`] of more nodes.
//!
//! A round of a pair measures the first side, the second, and the first again. The *ratio* is the
//! second to the mean of the first two; *itself* is the last to the first, and shows how much of a
//! ratio is noise. Both have the median of the rounds, the lowest and the highest.

use serde::Serialize;

use crate::{
    Side,
    args::Args,
    figures::{Figures, median},
    model::{self, Model},
    probe::Probe,
    round,
    setup::Setup,
    workload::{Job, Round, named},
};

/// The workloads on a plain server and on a cluster of one primary.
const WORKLOADS: [&str; 4] = ["task-1", "task-64", "drain", "rpc-fast-64"];

/// The numbers of partitions.
const PARTITIONS: [usize; 2] = [16, 64];

/// The fixed rate, as a share of the messages per second of one stream at full load.
const SHARE: f64 = 0.3;

#[derive(Serialize)]
pub(crate) struct Comparison {
    pairs: Vec<Pair>,
    model: Model,
}

/// One workload on two sides.
#[derive(Serialize)]
struct Pair {
    workload: &'static str,
    sides: [String; 2],
    /// The fixed number of messages sent per second, if there is one.
    rate: Option<usize>,
    /// The CPU time of a message in all processes if there is a fixed rate, or else the messages
    /// per second.
    ratio: Spread,
    itself: Spread,
    figures: [Figures; 2],
}

#[derive(Serialize)]
struct Spread {
    median: f64,
    lowest: f64,
    highest: f64,
}

/// The rounds of a job on these servers.
struct Rounds<'a> {
    side: String,
    probe: &'a Probe,
    job: Job,
}

pub(crate) async fn run(plain: &Probe, args: &Args) -> Comparison {
    let setup = Setup {
        streams: 1,
        partitioned: false,
        ..args.setup
    };
    let job = |workload| Job {
        setup,
        ..args.job(&named(workload).expect("a workload of this bench"))
    };
    let mut pairs = Vec::new();

    println!("a cluster of one primary compared with a plain server, at full load");
    heading("per s");
    let one = Probe::cluster_of_one(&setup).await;
    for workload in WORKLOADS {
        let job = job(workload);
        let first = Rounds::new("plain", plain, job);
        let second = Rounds::new("cluster", &one, job);
        pairs.push(pair(first, second, Round::rate, args.rounds).await);
    }

    println!("\npartitions on three primaries compared with one stream on one of them");
    heading("per s");
    let three = Probe::cluster_of_three(&setup).await;
    let stream = job("task-64");
    for partitions in PARTITIONS {
        let first = Rounds::new("one stream", &three, stream);
        let second = Rounds::partitioned(&three, stream, partitions);
        pairs.push(pair(first, second, Round::rate, args.rounds).await);
    }

    let rate = SHARE * pairs.last().expect("a pair").figures[0].per_second;
    let paced = args.at_rate(&stream, (rate as usize).max(1));
    println!(
        "\nthe same at {:.0} % of the rate of one stream",
        SHARE * 100.0
    );
    heading("µs CPU");
    for partitions in PARTITIONS {
        let first = Rounds::new("one stream", &three, paced);
        let second = Rounds::partitioned(&three, paced, partitions);
        pairs.push(pair(first, second, Round::cpu_us, args.rounds).await);
    }

    println!();
    let model = model::run(&one, &three, stream, args.rounds).await;
    Comparison { pairs, model }
}

async fn pair(
    first: Rounds<'_>,
    second: Rounds<'_>,
    figure: fn(&Round) -> f64,
    rounds: usize,
) -> Pair {
    let (mut ratio, mut itself) = (Vec::new(), Vec::new());
    let (mut firsts, mut seconds) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let [before, between, after] =
            [first.next().await, second.next().await, first.next().await];
        ratio.push(2.0 * figure(&between) / (figure(&before) + figure(&after)));
        itself.push(figure(&after) / figure(&before));
        firsts.extend([before, after]);
        seconds.push(between);
    }
    let pair = Pair {
        workload: first.job.name,
        rate: first.job.rate,
        ratio: Spread::of(ratio),
        itself: Spread::of(itself),
        figures: [firsts, seconds].map(|rounds| Figures::of(rounds).expect("a round")),
        sides: [first.side, second.side],
    };
    pair.print();
    pair
}

impl<'a> Rounds<'a> {
    fn new(side: &str, probe: &'a Probe, job: Job) -> Self {
        Self {
            side: side.to_owned(),
            probe,
            job,
        }
    }

    fn partitioned(probe: &'a Probe, mut job: Job, partitions: usize) -> Self {
        job.setup = job.setup.partitions(partitions);
        Self::new(&format!("{partitions} partitions"), probe, job)
    }

    async fn next(&self) -> Round {
        round(self.probe, Side::Ours, &self.job).await
    }
}

impl Spread {
    fn of(values: Vec<f64>) -> Self {
        Self {
            lowest: values.iter().copied().fold(f64::INFINITY, f64::min),
            highest: values.iter().copied().fold(0.0, f64::max),
            median: median(values.into_iter()).expect("a round"),
        }
    }

    fn text(&self) -> String {
        let Self {
            median,
            lowest,
            highest,
        } = self;
        format!("{median:.3} ({lowest:.2} to {highest:.2})")
    }
}

fn heading(ratio: &str) {
    println!(
        "{:<12} {:<14} {:>9} {:>7} {:>7} {:>7} {:>7}  {:<22} {:<22}",
        "", "", "", "client", "Redis", "in all", "", "ratio of", "itself,"
    );
    println!(
        "{:<12} {:<14} {:>9} {:>7} {:>7} {:>7} {:>7}  {:<22} {:<22}",
        "workload", "", "per s", "µs CPU", "µs CPU", "µs CPU", "reads", ratio, ratio
    );
}

impl Pair {
    fn print(&self) {
        let spreads = [
            String::new(),
            format!("{:<22} {}", self.ratio.text(), self.itself.text()),
        ];
        for ((side, figures), spread) in self.sides.iter().zip(&self.figures).zip(spreads) {
            let line = format!(
                "{:<12} {side:<14} {:>9.0} {:>7.1} {:>7.1} {:>7.1} {:>7.2}  {spread}",
                self.workload,
                figures.per_second,
                figures.client_cpu_us,
                figures.redis_cpu_us,
                figures.client_cpu_us + figures.redis_cpu_us,
                figures.reads,
            );
            println!("{}", line.trim_end());
        }
    }
}
