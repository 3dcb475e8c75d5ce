//! A payload that changes in a rolling deploy. For a while both releases send tasks and run
//! workers.
//!
//! ```text
//! REDIS_URL=redis://127.0.0.1/ cargo run -p example-recipes --example versions
//! ```

use std::{env, time::Duration};

use campanile::{BoxError, Client, Json, Redis, Router, contract::Task, serve, transport::Backoff};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The old release sends the price in whole euros.
const OLD: Task<u32> = Task::new("orders.pay");
/// The new release sends version 2, and lifts the payloads of version 1.
const PAY: Task<Price> = Task::new("orders.pay").version(2);

#[derive(Serialize, Deserialize)]
struct Price {
    cents: u32,
    currency: String,
}

fn in_cents(euros: u32) -> Price {
    let (cents, currency) = (100 * euros, "EUR".into());
    Price { cents, currency }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".into());
    // After the start of a new worker, a new payload waits for at most the maximum of this
    // back-off.
    let backoff = Backoff::exponential(Duration::from_millis(200), Duration::from_secs(2));
    let redis = Redis::connect(&url).await?.stream("pay").backoff(backoff);
    let client = Client::new(redis.clone());
    let (paid, mut payments) = mpsc::unbounded_channel();

    let old_paid = paid.clone();
    let old_app = Router::new().task(OLD, async move |Json(euros): Json<u32>| {
        drop(old_paid.send(format!("old worker: {euros} euros")));
    });
    let stop = CancellationToken::new();
    let old = serve(redis.clone(), old_app).with_graceful_shutdown(stop.clone().cancelled_owned());
    let old_worker = tokio::spawn(old.into_future());
    client.enqueue(PAY, in_cents(7)).await?; // the old worker leaves this task to a new worker
    client.enqueue(OLD, 8).await?;
    println!("{}", payments.recv().await.ok_or("no worker")?);

    let pay = async move |Json(Price { cents, currency }): Json<Price>| {
        drop(paid.send(format!("new worker: {cents} cents, {currency}")));
    };
    let new_app = Router::new().task(PAY.lift(1, in_cents), pay);
    let new_worker = tokio::spawn(serve(redis, new_app).into_future());
    println!("{}", payments.recv().await.ok_or("no worker")?);
    stop.cancel();
    old_worker.await??;
    client.enqueue(OLD, 9).await?; // an old sender, and no old worker any more
    println!("{}", payments.recv().await.ok_or("no worker")?);
    new_worker.abort();
    Ok(())
}
