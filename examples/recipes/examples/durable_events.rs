//! Events that wait for services that are down: one stream, and a group for each service.
//!
//! ```text
//! REDIS_URL=redis://127.0.0.1/ cargo run -p example-recipes --example durable_events
//! ```

use std::env;

use campanile::{
    BoxError, Client, Redis, Router, serve,
    transport::{Start, UnknownNames},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Returns the handle of a service, in its own group. Each group gets every message of the stream.
/// A service ignores names without a route.
fn handle_of(redis: &Redis, service: &str) -> Redis {
    let redis = redis.clone().group(service);
    redis
        .start(Start::Beginning)
        .unknown_names(UnknownNames::Ignore)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".into());
    let redis = Redis::connect(&url).await?.stream("order-events");

    // No service runs yet: the event is a task on the stream, and waits.
    Client::new(redis.clone())
        .enqueue("order.placed", "order 7")
        .await?;

    let (seen, mut events) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let mut workers = Vec::new();
    for service in ["billing", "shipping"] {
        let seen = seen.clone();
        let app = Router::new().task("order.placed", async move |event: String| {
            drop(seen.send(format!("{service}: {event}")));
        });
        let worker = serve(handle_of(&redis, service), app);
        let worker = worker.with_graceful_shutdown(stop.clone().cancelled_owned());
        workers.push(tokio::spawn(worker.into_future()));
    }
    for _ in 0..2 {
        println!("{}", events.recv().await.ok_or("both services have ended")?);
    }
    stop.cancel();
    for worker in workers {
        worker.await??;
    }
    Ok(())
}
