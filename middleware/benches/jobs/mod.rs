//! Measures features for jobs, such as unique tasks: the cost of one task from the client to the
//! acknowledgement, over the memory transport.

use std::{hint::black_box, time::Duration};

use bytes::Bytes;
use campanile::{
    Client, Error, Outbox, Progress, Receipt, Router, client::Call, serve,
    transport::memory::Memory,
};
use campanile_middleware::{SharedLimitLayer, key};

use super::{
    Bench,
    cost::{Cost, measure, median},
    print_cost,
};

const NAME: &str = "orders.create";
/// The number of tasks that are sent before the bench waits for their acknowledgements.
const TASKS_PER_BURST: usize = 50;

/// Measures each feature, and prints a line for it.
pub(super) fn print_lines(bench: &Bench) {
    let plain = Job::new(router, |call, _| call);
    let keep_for = Duration::from_secs(3600);
    print_cost("none", bench.measure_job(&plain), None);
    bench.job_line("none again", &plain, &plain);
    let tracked = Job::new(router, move |call, _| call.tracked(keep_for));
    bench.job_line("tracked", &plain, &tracked);
    let unique = Job::new(router, |call, task| call.unique(format!("order {task}")));
    bench.job_line("unique", &plain, &unique);
    let progress = Job::new(
        |_| Router::new().task(NAME, report),
        move |call, _| call.tracked(keep_for),
    );
    bench.job_line("tracked, a report", &plain, &progress);
    let mut outbox = Job::new(
        |_| {
            Router::new()
                .task(NAME, follow_up)
                .task("orders.ship", handle)
        },
        |call, _| call,
    );
    outbox.deliveries = 2;
    bench.job_line("outbox, a follow-up", &plain, &outbox);
    let limited = |memory: &Memory| {
        let limit = memory.limit("orders").expect("the name is valid");
        let layer = SharedLimitLayer::concurrency(limit, 1024, key::header("x-tenant"));
        router(memory).layer(layer)
    };
    bench.job_line("shared limit", &plain, &Job::new(limited, |call, _| call));
}

fn router(_: &Memory) -> Router {
    Router::new().task(NAME, handle)
}

async fn handle(payload: Bytes) {
    black_box(payload);
}

async fn report(progress: Progress, payload: Bytes) -> Result<(), Error> {
    progress.set(1)?;
    black_box(payload);
    Ok(())
}

async fn follow_up(outbox: Outbox, payload: Bytes) -> Result<(), Error> {
    outbox.enqueue("orders.ship", payload).await?;
    Ok(())
}

/// An application and a call that use one feature.
struct Job<A, C> {
    make_app: A,
    make_call: C,
    /// The number of acknowledgements for each task that is sent.
    deliveries: u64,
}

impl<A, C> Job<A, C>
where
    A: Fn(&Memory) -> Router,
    C: Fn(Call<Memory, Receipt>, usize) -> Call<Memory, Receipt>,
{
    fn new(make_app: A, make_call: C) -> Self {
        Self {
            make_app,
            make_call,
            deliveries: 1,
        }
    }
}

impl Bench {
    /// Measures `job` and `plain` alternately, and prints the cost of `job` and the difference.
    fn job_line(&self, name: &str, plain: &impl Round, job: &impl Round) {
        let (mut costs, mut differences) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            let plain_cost = plain.round(self);
            let cost = job.round(self);
            costs.push(cost);
            differences.push(Cost {
                nanoseconds: cost.nanoseconds - plain_cost.nanoseconds,
                allocations: cost.allocations - plain_cost.allocations,
            });
        }
        print_cost(name, median(costs), Some(median(differences)));
    }

    fn measure_job(&self, job: &impl Round) -> Cost {
        median((0..self.rounds).map(|_| job.round(self)).collect())
    }
}

trait Round {
    /// Returns the cost of a task in a round over an empty transport.
    fn round(&self, bench: &Bench) -> Cost;
}

impl<A, C> Round for Job<A, C>
where
    A: Fn(&Memory) -> Router,
    C: Fn(Call<Memory, Receipt>, usize) -> Call<Memory, Receipt>,
{
    fn round(&self, bench: &Bench) -> Cost {
        let memory = Memory::new();
        let app = (self.make_app)(&memory);
        let worker = bench
            .runtime
            .spawn(serve(memory.clone(), app).into_future());
        let client = Client::new(memory.clone());
        let bursts = (0..bench.messages / TASKS_PER_BURST).collect();
        let cost = measure(&bench.runtime, bursts, async |burst: usize| {
            let first = burst * TASKS_PER_BURST;
            for task in first..first + TASKS_PER_BURST {
                let call = client.enqueue(NAME, &br#"{"id":7,"title":"a title"}"#[..]);
                let call = (self.make_call)(call.header("x-tenant", "acme"), task);
                black_box(call.await.expect("the task is stored"));
            }
            let expected_count = (first + TASKS_PER_BURST) as u64 * self.deliveries;
            while memory.counts().done < expected_count {
                tokio::task::yield_now().await;
            }
        });
        worker.abort();
        Cost {
            nanoseconds: cost.nanoseconds / TASKS_PER_BURST as f64,
            allocations: cost.allocations / TASKS_PER_BURST as f64,
        }
    }
}
