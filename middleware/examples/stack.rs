//! A worker and a client with a whole stack of layers each.
//!
//! ```text
//! cargo run -p campanile-middleware --features full --example stack
//! ```
//!
//! An importer calls a service that is not always up to it. What cannot be read is a dead letter at
//! once, what fails is tried again in place, and what hangs is given up in time. Every number comes
//! from one budget, and the compiler checks that they work together.

use std::{
    num::ParseIntError,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use campanile::{
    BoxError, Client, Failure, Handler, Message, Reply, Router, RpcCode, RpcError, State,
    error::find,
    serve,
    transport::{Page, memory::Memory},
};
use campanile_middleware::{MapFailureLayer, TimeBudget};
use tokio::{
    sync::oneshot,
    time::{Sleep, sleep},
};
use tower::{
    ServiceBuilder,
    limit::ConcurrencyLimitLayer,
    retry::{Policy, RetryLayer},
};

const FIRST_WAIT: Duration = Duration::from_millis(10);
const DEADLINE: Duration = Duration::from_secs(5);
const LEASE: Duration = Duration::from_secs(2);

/// What a worker does with one delivery.
const SERVED: TimeBudget = TimeBudget::new(Duration::from_millis(200))
    .tries(3, FIRST_WAIT, Duration::from_millis(100))
    .fits_deadline(DEADLINE)
    .fits_take_over(LEASE, DEADLINE)
    .fits_shutdown(Duration::from_secs(30));

/// The service that is called.
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
    Router::new()
        .task("import", import)
        .rpc("price", price)
        // One report at a time, whatever else runs.
        .rpc("report", report.layer(ConcurrencyLimitLayer::new(1)))
        .layer(
            ServiceBuilder::new()
                // The outermost: while it is full, nothing is fetched.
                .concurrency_limit(32)
                .layer(MapFailureLayer::new(|error| {
                    find::<ParseIntError>(&**error).map(|_| Failure::dead_letter())
                }))
                .layer(retry(SERVED))
                .timeout(SERVED.timeout()),
        )
}

/// Tries again what was answered with `unavailable`.
#[derive(Clone)]
struct Unavailable {
    left: u32,
    wait: Duration,
}

fn retry(budget: TimeBudget) -> RetryLayer<Unavailable> {
    RetryLayer::new(Unavailable {
        left: budget.max_tries() - 1,
        wait: FIRST_WAIT,
    })
}

impl Policy<Message, Reply, BoxError> for Unavailable {
    type Future = Sleep;

    fn retry(
        &mut self,
        message: &mut Message,
        result: &mut Result<Reply, BoxError>,
    ) -> Option<Sleep> {
        let answer = find::<RpcError>(&**result.as_ref().err()?)?;
        if *answer.code() != RpcCode::Unavailable {
            return None;
        }
        self.left = self.left.checked_sub(1)?;
        println!("rpc    {}: {answer}, trying again", message.name());
        self.wait *= 2;
        Some(sleep(self.wait / 2))
    }

    fn clone_request(&mut self, message: &Message) -> Option<Message> {
        Some(message.clone())
    }
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
