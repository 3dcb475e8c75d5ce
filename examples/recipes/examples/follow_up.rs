//! A follow-up that is sent exactly once, although its task fails after sending it.
//!
//! ```text
//! REDIS_URL=redis://127.0.0.1/ cargo run -p example-recipes --example follow_up
//! ```

use std::{env, time::Duration};

use campanile::{Attempt, BoxError, Client, Outbox, Redis, Router, serve, transport::Backoff};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The outbox is sent when the handler succeeds, in one step with the acknowledgement. After a
/// failure it is dropped.
async fn place(attempt: Attempt, outbox: Outbox, order: String) -> Result<(), BoxError> {
    outbox.enqueue("invoices.make", order.clone()).await?;
    outbox.increment("orders", 1)?;
    if !attempt.is_retry() {
        println!("order {order}: attempt 1 fails after it has sent its follow-up");
        return Err("the warehouse does not answer".into());
    }
    println!("order {order}: placed");
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".into());
    let retries = Backoff::exponential(Duration::from_millis(200), Duration::from_secs(60));
    let redis = Redis::connect(&url).await?.stream("shop").backoff(retries);

    let (made, mut invoices) = mpsc::unbounded_channel();
    let app = Router::new()
        .task("orders.place", place)
        .task("invoices.make", async move |order: String| {
            drop(made.send(order))
        });
    let stop = CancellationToken::new();
    let worker = serve(redis.clone(), app).with_graceful_shutdown(stop.clone().cancelled_owned());
    let worker = tokio::spawn(worker.into_future());

    Client::new(redis).enqueue("orders.place", "7").await?;
    while let Some(order) = invoices.recv().await {
        println!("order {order}: its invoice is made");
        stop.cancel(); // the worker ends what runs, and then the channel closes
    }
    worker.await??;
    Ok(())
}
