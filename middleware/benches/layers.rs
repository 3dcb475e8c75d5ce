//! Measures the cost of each layer for one message: from the service that `serve` calls to the
//! handler and back, without a transport.
//!
//! ```sh
//! cargo bench -p campanile-middleware --features full
//! ```
//!
//! Each line is a router of one task with one layer. No message is refused, fails or waits. *none*
//! is the router without a layer. The last two columns are the difference to a router with a layer
//! that does nothing, since any layer in a router has a cost. The two routers are measured
//! alternately, one round each. The second line compares the layer that does nothing with itself,
//! and shows the accuracy of the figures. Costs are medians over the rounds, and differences are
//! medians over the pairs of rounds. Allocations are counted, not sampled, including those of tokio
//! tasks that a layer spawns.
//!
//! The last lines measure features for jobs, such as unique tasks, and a limit that workers share.
//! These need a transport. So in each of these lines a client sends a task over the memory
//! transport, and the cost is counted until the task is acknowledged. There *none* is a task
//! without such a feature.

#[path = "../../benches/cost/mod.rs"]
mod cost;
mod jobs;

use std::{future::Ready, hint::black_box, time::Duration};

use bytes::Bytes;
use campanile::{BoxError, Failure, Message, Reply, Router, SharedService, routing::Route};
use campanile_middleware::{
    CatchPanicLayer, ChaosLayer, CircuitBreakerLayer, ConcurrencyByKeyLayer, DurableRetryLayer,
    IdempotencyLayer, MapFailureLayer, MetricsLayer, OrderedByKeyLayer, RateLimitByKeyLayer,
    RequestIdLayer, RetryPolicy, TraceLayer, idempotency::MemoryStore, key,
};
use cost::{Cost, measure, median};
use tokio::runtime::Runtime;
use tower::{
    Layer, ServiceBuilder, ServiceExt,
    buffer::BufferLayer,
    filter::{AsyncFilterLayer, FilterLayer},
    layer::util::Identity,
    limit::{ConcurrencyLimitLayer, RateLimitLayer},
    load_shed::LoadShedLayer,
    retry::{Policy, RetryLayer},
    timeout::TimeoutLayer,
    util::{MapRequestLayer, option_layer},
};

const SECOND: Duration = Duration::from_secs(1);

/// Measures each layer, and prints a line for it.
fn print_lines(bench: &Bench) {
    let by_tenant = || key::header("x-tenant");
    bench.line("catch_panic", CatchPanicLayer::new());
    bench.line("chaos, no odds", ChaosLayer::new(7));
    bench.line("circuit_breaker", CircuitBreakerLayer::new());
    let concurrency = ConcurrencyByKeyLayer::new(1024, by_tenant());
    bench.line("concurrency, by key", concurrency);
    let all = |_: &Message| Ok::<_, BoxError>(());
    bench.line("filter", campanile_middleware::FilterLayer::new(all));
    bench.line(
        "idempotency, memory",
        IdempotencyLayer::new(MemoryStore::new()),
    );
    bench.line("map_failure", MapFailureLayer::new(|_| None::<Failure>));
    bench.line("metrics, no recorder", MetricsLayer::new());
    bench.line("ordered, by key", OrderedByKeyLayer::new(by_tenant()));
    let rate_limit = RateLimitByKeyLayer::new(1_000_000_000, SECOND, by_tenant());
    bench.line("rate_limit, by key", rate_limit);
    bench.line("request_id", RequestIdLayer::new());
    bench.line("retry, policy", RetryLayer::new(RetryPolicy::new(3)));
    bench.line("retry, durable", DurableRetryLayer::new().max_attempts(5));
    let timeout = campanile_middleware::TimeoutLayer::new(30 * SECOND);
    bench.line("timeout", timeout);
    bench.line("trace, no subscriber", TraceLayer::new());

    println!("\ntower's");
    bench.line("concurrency_limit", ConcurrencyLimitLayer::new(1024));
    bench.line("timeout", TimeoutLayer::new(30 * SECOND));
    bench.line("retry", RetryLayer::new(NeverRetry));
    bench.line("load_shed", LoadShedLayer::new());
    bench.line("filter", FilterLayer::new(admit));
    bench.line("filter_async", AsyncFilterLayer::new(admit_async));
    bench.line("map_request", MapRequestLayer::new(|it: Message| it));
    bench.line("option_layer, none", option_layer(None::<TimeoutLayer>));
    bench.line("buffer", BufferLayer::new(16));
    let rate_limit = RateLimitLayer::new(u64::MAX, SECOND);
    bench.line(
        "buffer, rate_limit",
        ServiceBuilder::new().buffer(16).layer(rate_limit),
    );
}

fn main() {
    let bench = Bench::new();
    println!(
        "{:<22} {:>7} {:>7} {:>7} {:>7}",
        "layer", "ns", "allocs", "+ns", "+allocs"
    );
    print_cost("none", bench.measure(&router()), None);
    bench.line("one that does nothing", Identity::new());
    print_lines(&bench);

    println!("\njobs, over the memory transport");
    jobs::print_lines(&bench);
}

fn router() -> Router {
    Router::new().task("orders.create", handle)
}

async fn handle(payload: Bytes) {
    black_box(payload);
}

fn message(number: usize) -> Message {
    let mut message = Message::task("orders.create", &br#"{"id":7,"title":"a title"}"#[..]);
    message.parts_mut().id = Some(format!("1795430237570-{number}").into());
    message
        .headers_mut()
        .insert("x-tenant", http::HeaderValue::from_static("acme"));
    message
}

fn admit(message: Message) -> Result<Message, BoxError> {
    Ok(message)
}

fn admit_async(message: Message) -> Ready<Result<Message, BoxError>> {
    std::future::ready(Ok(message))
}

/// A retry policy that clones every message, as policies have to, and never retries.
#[derive(Clone)]
struct NeverRetry;

impl Policy<Message, Reply, BoxError> for NeverRetry {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut Message, _: &mut Result<Reply, BoxError>) -> Option<Ready<()>> {
        None
    }

    fn clone_request(&mut self, message: &Message) -> Option<Message> {
        Some(message.clone())
    }
}

struct Bench {
    runtime: Runtime,
    rounds: usize,
    messages: usize,
}

impl Bench {
    fn new() -> Self {
        let (rounds, messages) = cost::extent();
        Self {
            runtime: cost::runtime(),
            rounds,
            messages,
        }
    }

    /// Measures a router with this layer, and alternately a router with a layer that does nothing.
    /// Prints the cost of the first, and the difference.
    fn line<L>(&self, name: &str, layer: L)
    where
        L: Layer<Route> + Send + Sync + 'static,
        L::Service: SharedService,
    {
        let (plain, layered) = (router().layer(Identity::new()), router().layer(layer));
        // Some layers spawn a tokio task on first use. It is spawned before the measurement.
        self.runtime.block_on(async {
            for app in [&plain, &layered] {
                let _ = app.clone().ready().await;
            }
        });
        let (mut costs, mut differences) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            let plain_cost = self.round(&plain);
            let cost = self.round(&layered);
            costs.push(cost);
            differences.push(Cost {
                nanoseconds: cost.nanoseconds - plain_cost.nanoseconds,
                allocations: cost.allocations - plain_cost.allocations,
            });
        }
        print_cost(name, median(costs), Some(median(differences)));
    }

    fn measure(&self, app: &Router) -> Cost {
        median((0..self.rounds).map(|_| self.round(app)).collect())
    }

    /// Handles each message as `serve` does: clones the service, waits for its readiness, calls it.
    fn round(&self, app: &Router) -> Cost {
        let messages = (0..self.messages).map(message).collect();
        measure(&self.runtime, messages, async |message| {
            black_box(
                app.clone()
                    .oneshot(message)
                    .await
                    .expect("the message is handled"),
            );
        })
    }
}

fn print_cost(name: &str, cost: Cost, difference: Option<Cost>) {
    print!(
        "{name:<22} {:>7.0} {:>7.1}",
        cost.nanoseconds, cost.allocations
    );
    match difference {
        Some(cost) => println!(" {:>7.0} {:>7.1}", cost.nanoseconds, cost.allocations),
        None => println!(),
    }
}
