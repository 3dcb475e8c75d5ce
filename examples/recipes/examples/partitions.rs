//! Order by key over many workers, on a cluster. The messages of each customer are handled one
//! after the other, even if a message fails.
//!
//! ```text
//! REDIS_URL=redis+cluster://10.0.0.1,10.0.0.2,10.0.0.3 \
//!     cargo run -p example-recipes --example partitions
//! ```

use std::{env, time::Duration};

use campanile::{
    Attempt, BoxError, Client, Redis, Router, serve,
    transport::{Backoff, Streams},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis+cluster://127.0.0.1".into());
    let redis = Redis::connect(&url).await?.backoff(Backoff::exponential(
        Duration::from_millis(50),
        Duration::from_secs(1),
    ));
    // Eight streams behind one name, spread over the nodes. One worker at a time reads each stream.
    let accounts = redis.streams(Streams::partitioned("accounts", 8).owned());

    let client = Client::new(accounts.clone());
    for step in ["opened", "paid in", "paid out", "closed"] {
        for customer in ["ann", "bob", "eve"] {
            let change = client.enqueue("change", format!("{customer}: {step}"));
            change.partition_key(customer).await?;
        }
    }

    let (done, mut changes) = mpsc::unbounded_channel();
    let change = async move |attempt: Attempt, change: String| -> Result<(), BoxError> {
        if change == "bob: paid in" && !attempt.is_retry() {
            return Err("the ledger is locked".into()); // it is repeated before bob's next change
        }
        Ok(done.send(change)?)
    };
    let app = Router::new().task("change", change);
    let stop = CancellationToken::new();
    let mut workers = Vec::new();
    for _ in 0..2 {
        let worker = serve(accounts.clone(), app.clone());
        let worker = worker.with_graceful_shutdown(stop.clone().cancelled_owned());
        workers.push(tokio::spawn(worker.into_future()));
    }
    for _ in 0..12 {
        println!("{}", changes.recv().await.ok_or("the workers have ended")?);
    }
    stop.cancel();
    for worker in workers {
        worker.await??;
    }
    Ok(())
}
