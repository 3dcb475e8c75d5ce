//! Several workers in one process that end together. No handler is cut off, and no message is lost.
//!
//! ```text
//! REDIS_URL=redis://127.0.0.1/ cargo run -p example-recipes --example shutdown
//! ```
//!
//! Ctrl-C or `SIGTERM` ends the process. The workers fetch no more messages, let the running
//! handlers end, and release the messages that have not started. If a worker fails, the others end,
//! too.

use std::{env, time::Duration};

use campanile::{BoxError, Client, Redis, Router, serve};
use futures_util::future::try_join_all;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".into());
    let redis = Redis::connect(&url).await?;
    let stop = CancellationToken::new();

    let workers = ["mail", "images", "reports"].map(|stream| {
        let app = Router::new().task("work", async move |job: String| {
            sleep(Duration::from_secs(1)).await;
            println!("{stream}: {job} is done");
        });
        let worker = serve(redis.clone().stream(stream), app)
            .with_graceful_shutdown(stop.clone().cancelled_owned())
            .shutdown_timeout(Duration::from_secs(20)); // of the 30 s that Kubernetes gives
        let stop = stop.clone();
        async move {
            let _stop_others = stop.drop_guard();
            Ok::<_, BoxError>(worker.await?)
        }
    });
    let client = Client::new(redis.clone());
    for stream in ["mail", "images", "reports"] {
        client.enqueue("work", "a job").stream(stream).await?;
    }

    let mut terminate = signal(SignalKind::terminate())?;
    let signals = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
            () = stop.cancelled() => {}
        }
        println!("stopping");
        stop.cancel();
        Ok::<_, BoxError>(())
    };
    tokio::try_join!(try_join_all(workers), signals)?;
    println!("stopped");
    Ok(())
}
