//! A cluster of one primary compared with a plain server, and partitions on three primaries
//! compared with one stream there, in paired rounds. Then the [`model`] of more nodes.
//!
//! A round of a pair measures the first side, then the second, then the first again. The *ratio* is
//! the figure of the second side, divided by the mean of the two figures of the first side.
//! *Itself* is the second figure of the first side, divided by the first one, and shows how much of
//! a ratio is noise. Both are printed with the median, the lowest and the highest value.

use serde::Serialize;

use crate::{
    Side,
    args::Args,
    figures::{Figures, median},
    model::{self, Model},
    probe::Probe,
    round,
    setup::Setup,
    workload::{Job, Round, find_workload},
};

/// The workloads on a plain server and on a cluster of one primary.
const WORKLOADS: [&str; 4] = ["task-1", "task-64", "drain", "rpc-fast-64"];

/// The numbers of partitions.
const PARTITIONS: [usize; 2] = [16, 64];

/// The fixed rate, as a share of the messages per second of one stream at full load.
const RATE_SHARE: f64 = 0.3;

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
    /// The ratio of the second side to the first: with a fixed rate, of the CPU time of a message
    /// in all processes; without one, of the messages per second.
    ratio: Spread,
    /// The ratio of the first side to itself.
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
        ..args.job(&find_workload(workload).expect("a workload of this bench"))
    };
    let mut pairs = Vec::new();

    // At full load, the ratios compare the messages per second.
    println!("a cluster of one primary compared with a plain server, at full load");
    print_heading("per s");
    let one_primary = Probe::cluster_of_one(&setup).await;
    for workload in WORKLOADS {
        let job = job(workload);
        let first = Rounds::new("plain", plain, job);
        let second = Rounds::new("cluster", &one_primary, job);
        pairs.push(measure_pair(first, second, Round::rate, args.rounds).await);
    }

    println!("\npartitions on three primaries compared with one stream on one of them");
    print_heading("per s");
    let three_primaries = Probe::cluster_of_three(&setup).await;
    let stream = job("task-64");
    for partitions in PARTITIONS {
        let first = Rounds::new("one stream", &three_primaries, stream);
        let second = Rounds::partitioned(&three_primaries, stream, partitions);
        pairs.push(measure_pair(first, second, Round::rate, args.rounds).await);
    }

    // At a fixed rate both sides send the same number of messages, so the ratios compare the CPU
    // time. The rate is a share of the messages per second of the last pair's first side.
    let rate = RATE_SHARE * pairs.last().expect("a pair").figures[0].per_second;
    let paced = args.at_rate(&stream, (rate as usize).max(1));
    println!(
        "\nthe same at {:.0} % of the rate of one stream",
        RATE_SHARE * 100.0
    );
    print_heading("µs CPU");
    for partitions in PARTITIONS {
        let first = Rounds::new("one stream", &three_primaries, paced);
        let second = Rounds::partitioned(&three_primaries, paced, partitions);
        pairs.push(measure_pair(first, second, Round::cpu_us, args.rounds).await);
    }

    println!();
    let model = model::run(&one_primary, &three_primaries, stream, args.rounds).await;
    Comparison { pairs, model }
}

/// Measures both sides in `rounds` rounds. `figure` is what the ratios compare.
async fn measure_pair(
    first: Rounds<'_>,
    second: Rounds<'_>,
    figure: fn(&Round) -> f64,
    rounds: usize,
) -> Pair {
    let (mut ratio, mut itself) = (Vec::new(), Vec::new());
    let (mut firsts, mut seconds) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let [before, between, after] = [
            first.run_next().await,
            second.run_next().await,
            first.run_next().await,
        ];
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

    async fn run_next(&self) -> Round {
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

fn print_heading(ratio: &str) {
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
