//! A worker and a client, each with a whole stack of layers.
//!
//! ```text
//! cargo run -p campanile-middleware --features full --example stack
//! ```
//!
//! The worker calls a service that fails at times. An unreadable message is a dead letter at once.
//! A message that fails is retried in place, and is delivered again later if all tries fail. A slow
//! message times out, and a duplicate does not run. The timeout and the number of tries come from
//! one budget, and the compiler checks that they fit together.

use std::{
    num::ParseIntError,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use campanile::{
    BoxError, Client, Failure, Handler, Router, RpcError, State,
    error::find,
    serve,
    transport::{Backoff, Page, memory::Memory},
};
use campanile_middleware::{
    CatchPanicLayer, CircuitBreakerLayer, ConcurrencyByKeyLayer, DurableRetryLayer,
    IdempotencyLayer, MapFailureLayer, MetricsLayer, RequestIdLayer, RetryPolicy, TimeBudget,
    TimeoutLayer, TraceLayer,
    idempotency::MemoryStore,
    key::{self, MissingKey},
};
use tokio::sync::oneshot;
use tower::{ServiceBuilder, limit::ConcurrencyLimitLayer, retry::RetryLayer};

const BACKOFF: Backoff =
    Backoff::exponential(Duration::from_millis(10), Duration::from_millis(100));
const DEADLINE: Duration = Duration::from_secs(5);
const LEASE: Duration = Duration::from_secs(2);

/// The time budget of one delivery.
const BUDGET: TimeBudget = TimeBudget::new(Duration::from_millis(200))
    .with_tries(3, BACKOFF)
    .fits_deadline(DEADLINE)
    .fits_claim(LEASE, DEADLINE)
    .fits_shutdown(Duration::from_secs(30));

/// The service that the handler `price` calls. Its first two calls fail.
#[derive(Clone, Default)]
struct Prices(Arc<AtomicU32>);

impl Prices {
    async fn of(&self, item: u32) -> Result<u32, RpcError> {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            0 | 1 => Err(RpcError::unavailable("the price list is being written")),
            _ => Ok(item * 100),
        }
    }
}

async fn import(line: String) -> Result<(), ParseIntError> {
    let item: u32 = line.parse()?;
    println!("task   import: item {item}");
    Ok(())
}

async fn price(State(prices): State<Prices>, item: String) -> Result<String, BoxError> {
    let price = prices.of(item.parse()?).await?;
    Ok(price.to_string())
}

async fn report() {
    std::future::pending::<()>().await;
}

fn app() -> Router<Prices> {
    let in_place = RetryPolicy::new(BUDGET.tries()).backoff(BACKOFF);
    // Each tenant runs at most 8 of the 32 messages in flight. Messages without a tenant have no
    // such limit.
    let by_tenant =
        ConcurrencyByKeyLayer::new(8, key::header("x-tenant")).missing_key(MissingKey::Pass);
    Router::new()
        .task("import", import)
        .rpc("price", price)
        // One report at a time.
        .rpc("report", report.layer(ConcurrencyLimitLayer::new(1)))
        .layer(
            ServiceBuilder::new()
                .layer(RequestIdLayer::new())
                .layer(TraceLayer::new())
                .layer(MetricsLayer::new())
                // While the circuit is open or the limit is reached, the worker fetches nothing.
                .layer(CircuitBreakerLayer::new())
                .concurrency_limit(32)
                .layer(by_tenant)
                .layer(IdempotencyLayer::new(MemoryStore::new()))
                .layer(DurableRetryLayer::new().max_attempts(5))
                .layer(MapFailureLayer::new(|error| {
                    find::<ParseIntError>(&**error).map(|_| Failure::dead_letter())
                }))
                .layer(RetryLayer::new(in_place))
                .layer(TimeoutLayer::new(BUDGET.timeout()))
                .layer(CatchPanicLayer::new()),
        )
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let memory = Memory::new().lease(LEASE);
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = tokio::spawn(
        serve(memory.clone(), app().with_state(Prices::default()))
            .with_graceful_shutdown(async { drop(stopped.await) })
            .into_future(),
    );

    let client = Client::new(
        ServiceBuilder::new()
            .concurrency_limit(16)
            .buffer(1)
            .rate_limit(1_000, Duration::from_secs(1))
            .service(memory.clone()),
    );
    let client = client.request_timeout(DEADLINE);
    for receipt in client.enqueue_all("import", ["1", "two", "3"]).await {
        receipt?;
    }
    let price: String = client.request("price", "7").await?;
    println!("rpc    price: {price}");
    match client.request::<()>("report", ()).await {
        Err(error) => println!("rpc    report: {}", error.rpc().ok_or("no answer")?),
        Ok(()) => return Err("a handler that never returns has returned".into()),
    }

    drop(stop);
    worker.await??;
    for letter in memory.dead_letters().list(Page::default()).await?.letters {
        println!("dead   {}", letter.reason);
    }
    Ok(())
}
