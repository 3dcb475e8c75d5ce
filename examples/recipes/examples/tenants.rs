//! A limit for each tenant over all workers: the backlog of one tenant delays no other tenant.
//!
//! ```text
//! REDIS_URL=redis://127.0.0.1/ cargo run -p example-recipes --example tenants
//! ```

use std::{env, time::Duration};

use campanile::{BoxError, Client, Redis, Router, serve};
use campanile_middleware::{SharedLimitLayer, key};
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".into());
    let redis = Redis::connect(&url).await?.stream("imports");

    let client = Client::new(redis.clone());
    for file in 1..=20 {
        let import = client.enqueue("import", format!("file {file} of the large tenant"));
        import.header("x-tenant", "large").await?;
    }
    let import = client.enqueue("import", "the file of the small tenant");
    import.header("x-tenant", "small").await?;

    let (done, mut imported) = mpsc::unbounded_channel();
    let import = async move |file: String| {
        sleep(Duration::from_millis(100)).await;
        drop(done.send(file));
    };
    // Two imports of each tenant at once, over all workers. Further imports are parked: they occupy
    // no worker, and each is moved once.
    let limit = SharedLimitLayer::concurrency(redis.limit("imports")?, 2, key::header("x-tenant"));
    let app = Router::new().task("import", import).layer(limit);
    let stop = CancellationToken::new();
    let worker = serve(redis, app).with_graceful_shutdown(stop.clone().cancelled_owned());
    let worker = tokio::spawn(worker.into_future());
    for place in 1..=21 {
        let file = imported.recv().await.ok_or("the worker has ended")?;
        println!("{place}: {file}");
    }
    stop.cancel();
    worker.await??;
    Ok(())
}
