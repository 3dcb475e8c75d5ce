//! A model of the CPU time of a task on many nodes, from measurements of one.
//!
//! A batch of tasks costs three exchanges with a node: one adds them, one reads them and one
//! acknowledges them. A process that has `m` tasks in flight, sends to all of `n` nodes and reads
//! from `k` of them, adds batches of `m / n` tasks, and reads and acknowledges batches of `m / k`.
//! So for each task, the nodes read from connections `x` times:
//!
//! ```text
//! x = min(1, n / m) + min(2, 2 k / m)
//! ```
//!
//! At full load a task costs the CPU time `a + b x`. The nodes have one pair of `a` and `b`, and
//! the processes of senders and workers have another pair. Both pairs are computed from two
//! measurements of one stream on one primary: with few and with many tasks in flight. Then the
//! costs on three primaries are predicted, and measured to check the model.

use serde::Serialize;

use crate::{
    Side,
    figures::Figures,
    probe::Probe,
    round,
    workload::{Job, Round},
};

/// The two numbers of tasks in flight, and of senders, from which the costs are computed.
const MANY_IN_FLIGHT: usize = 64;
const FEW_IN_FLIGHT: usize = 8;

/// A third number of tasks in flight, to check the costs on one primary.
const BETWEEN: usize = 16;

/// The numbers of partitions on three primaries whose costs are predicted.
const PARTITIONS: [usize; 3] = [3, 16, 64];

/// The numbers of nodes in the printed table, after one node.
const NODES: [usize; 3] = [3, 10, 100];

#[derive(Serialize)]
pub(crate) struct Model {
    client: Cost,
    node: Cost,
    checks: Vec<Check>,
    carried: Vec<Capacity>,
}

/// The CPU time of a task: `task + exchange * x` microseconds, where `x` is the number of
/// exchanges.
#[derive(Debug, Clone, Copy, Serialize)]
struct Cost {
    task: f64,
    exchange: f64,
}

/// A comparison of prediction and measurement. Each array has the predicted number, and then the
/// measured number.
#[derive(Serialize)]
struct Check {
    case: String,
    reads: [f64; 2],
    client_cpu_us: [f64; 2],
    redis_cpu_us: [f64; 2],
}

/// The load that a number of nodes carries.
#[derive(Serialize)]
struct Capacity {
    nodes: usize,
    /// The number of nodes that each process reads from. Each process sends to all nodes.
    reads_from: usize,
    /// The number of tasks that each process has in flight.
    in_flight: usize,
    reads: f64,
    client_cpu_us: f64,
    redis_cpu_us: f64,
    /// The tasks per second if each node has one core, which is always busy.
    per_second: f64,
    /// The cores that senders and workers occupy at this rate.
    client_cores: f64,
}

/// Measures one stream on `one`, and partitions on `three`.
pub(crate) async fn run(one: &Probe, three: &Probe, job: Job, rounds: usize) -> Model {
    let (mut many, mut few, mut between) = (Vec::new(), Vec::new(), Vec::new());
    let mut partitions = PARTITIONS.map(|_| Vec::new());
    for _ in 0..rounds {
        many.push(round(one, Side::Ours, &in_flight(job, MANY_IN_FLIGHT)).await);
        few.push(round(one, Side::Ours, &in_flight(job, FEW_IN_FLIGHT)).await);
        between.push(round(one, Side::Ours, &in_flight(job, BETWEEN)).await);
        for (count, rounds) in PARTITIONS.into_iter().zip(&mut partitions) {
            let mut job = in_flight(job, MANY_IN_FLIGHT);
            job.setup = job.setup.partitions(count);
            rounds.push(round(three, Side::Ours, &job).await);
        }
    }
    let medians = |rounds: Vec<Round>| Figures::of(rounds).expect("a round");
    // The costs follow from the two measurements on one primary.
    let (many, few) = (medians(many), medians(few));
    let cost = |us: fn(&Figures) -> f64| Cost::of((few.reads, us(&few)), (many.reads, us(&many)));
    let mut model = Model {
        client: cost(|figures| figures.client_cpu_us),
        node: cost(|figures| figures.redis_cpu_us),
        checks: Vec::new(),
        carried: Vec::new(),
    };
    model.add_check(
        format!("one primary, {BETWEEN} in flight"),
        1,
        BETWEEN,
        medians(between),
    );
    for (count, rounds) in PARTITIONS.into_iter().zip(partitions) {
        let case = format!("three primaries, {count} partitions");
        model.add_check(case, 3, MANY_IN_FLIGHT, medians(rounds));
    }
    // A process has as many tasks in flight as on one primary, or as many for each node. It reads
    // from one node, or from all nodes.
    model.add_capacity(1, 1, MANY_IN_FLIGHT);
    for nodes in NODES {
        for in_flight in [MANY_IN_FLIGHT, MANY_IN_FLIGHT * nodes] {
            model.add_capacity(nodes, 1, in_flight);
            model.add_capacity(nodes, nodes, in_flight);
        }
    }
    model.print();
    model
}

/// The job with this number of senders and of tasks in flight.
fn in_flight(mut job: Job, count: usize) -> Job {
    job.work = job.work.with_senders(count);
    job.setup.max_in_flight = count;
    // With few tasks in flight a task takes longer, so the round gets fewer tasks.
    job.count = job.count * count / MANY_IN_FLIGHT;
    job
}

/// The exchanges of a task.
fn exchanges(nodes: usize, reads_from: usize, in_flight: usize) -> f64 {
    let of_each = |nodes: usize| 1_f64.min(nodes as f64 / in_flight as f64);
    of_each(nodes) + 2.0 * of_each(reads_from)
}

impl Cost {
    /// The line through two points of exchanges and CPU time.
    fn of(few: (f64, f64), many: (f64, f64)) -> Self {
        let exchange = (few.1 - many.1) / (few.0 - many.0);
        Self {
            task: many.1 - exchange * many.0,
            exchange,
        }
    }

    fn at(self, exchanges: f64) -> f64 {
        self.task + self.exchange * exchanges
    }
}

impl Model {
    fn add_check(&mut self, case: String, nodes: usize, in_flight: usize, measured: Figures) {
        let exchanges = exchanges(nodes, nodes, in_flight);
        self.checks.push(Check {
            case,
            reads: [exchanges, measured.reads],
            client_cpu_us: [self.client.at(exchanges), measured.client_cpu_us],
            redis_cpu_us: [self.node.at(exchanges), measured.redis_cpu_us],
        });
    }

    fn add_capacity(&mut self, nodes: usize, reads_from: usize, in_flight: usize) {
        let reads = exchanges(nodes, reads_from, in_flight);
        let (client, node) = (self.client.at(reads), self.node.at(reads));
        let per_second = nodes as f64 * 1e6 / node;
        self.carried.push(Capacity {
            nodes,
            reads_from,
            in_flight,
            reads,
            client_cpu_us: client,
            redis_cpu_us: node,
            per_second,
            client_cores: per_second * client / 1e6,
        });
    }

    fn print(&self) {
        println!("the model: the CPU time of a task in µs, where x is the number of its exchanges");
        for (which, cost) in [("client", self.client), ("node", self.node)] {
            println!("{which:<7} {:>6.1} + {:.1} x", cost.task, cost.exchange);
        }
        println!(
            "\n{:<32} {:>17}  {:>17}  {:>17}",
            "predicted, measured", "reads", "client µs CPU", "Redis µs CPU"
        );
        for check in &self.checks {
            let [predicted, measured] = check.reads;
            print!("{:<32} {predicted:>8.2} {measured:>8.2}", check.case);
            for [predicted, measured] in [check.client_cpu_us, check.redis_cpu_us] {
                print!("  {predicted:>8.1} {measured:>8.1}");
            }
            println!();
        }
        println!("\nwhat nodes of one core each carry, if that core is busy");
        println!(
            "{:>6} {:>11} {:>10} {:>7} {:>7} {:>7} {:>11} {:>7}",
            "", "a process", "in flight,", "", "client", "Redis", "", "client"
        );
        println!(
            "{:>6} {:>11} {:>10} {:>7} {:>7} {:>7} {:>11} {:>7}",
            "nodes", "reads from", "a process", "reads", "µs CPU", "µs CPU", "per s", "cores"
        );
        for row in &self.carried {
            println!(
                "{:>6} {:>11} {:>10} {:>7.2} {:>7.1} {:>7.1} {:>11.0} {:>7.1}",
                row.nodes,
                row.reads_from,
                row.in_flight,
                row.reads,
                row.client_cpu_us,
                row.redis_cpu_us,
                row.per_second,
                row.client_cores,
            );
        }
    }
}
