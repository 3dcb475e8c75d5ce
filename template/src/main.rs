//! The worker: `cargo run`, with Redis at `REDIS_URL`, until Ctrl-C.

use std::env;

use campanile::{BoxError, Redis, serve};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".into());
    let redis = Redis::connect(&url).await?.stream("my-app");
    serve(redis, my_app::app()).with_signals().await?;
    Ok(())
}
