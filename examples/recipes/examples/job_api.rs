//! An HTTP API for long jobs: start a job, see its progress and its result, cancel it.
//!
//! ```text
//! REDIS_URL=redis://127.0.0.1/ cargo run -p example-recipes --example job_api
//! curl -X POST localhost:3000/imports       # the id
//! curl localhost:3000/imports/ID            # state, progress, result
//! curl -X DELETE localhost:3000/imports/ID  # true if the job existed and had not ended
//! ```

use std::{env, time::Duration};

use axum::extract::{Path, State};
use axum::{http::StatusCode, routing::get, routing::post};
use campanile::{BoxError, Client, Error, Progress, Redis, Router, serve};

const HOUR: Duration = Duration::from_secs(3600);
type Answer = Result<String, (StatusCode, String)>;

fn failed(error: Error) -> (StatusCode, String) {
    (StatusCode::SERVICE_UNAVAILABLE, error.to_string())
}

async fn import(progress: Progress) -> Result<&'static str, Error> {
    for row in 1..=50 {
        progress.set((row, 50))?;
        tokio::time::sleep(Duration::from_millis(50)).await; // dropped here about 1 s after a cancel
    }
    Ok("50 rows")
}

async fn start(State(redis): State<Redis>) -> Answer {
    let import = Client::new(redis).enqueue("imports.run", ()).tracked(HOUR);
    let receipt = import.await.map_err(failed)?;
    Ok(receipt.id().map(ToString::to_string).unwrap_or_default())
}

async fn show(State(redis): State<Redis>, Path(id): Path<String>) -> Answer {
    let status = redis.tasks().status(&id.into()).await.map_err(failed)?;
    let status = status.ok_or((StatusCode::NOT_FOUND, "no such import".into()))?;
    let progress = status.read_progress::<(u32, u32)>().map_err(failed)?;
    let result = status.read_result::<String>().ok();
    Ok(format!("{} {progress:?} {result:?}", status.state))
}

async fn cancel(State(redis): State<Redis>, Path(id): Path<String>) -> Answer {
    let cancelled = redis.tasks().cancel(&id.into(), "over HTTP").await;
    Ok(cancelled.map_err(failed)?.to_string())
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".into());
    let redis = Redis::connect(&url).await?.stream("imports");
    let web = axum::Router::new().route("/imports", post(start));
    let web = web.route("/imports/{id}", get(show).delete(cancel));
    let listen = env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let listener = tokio::net::TcpListener::bind(listen).await?;
    println!("listening on {}", listener.local_addr()?);
    let web = axum::serve(listener, web.with_state(redis.clone()));
    let worker = serve(redis, Router::new().task("imports.run", import));
    tokio::select! {
        ended = worker.with_signals() => Ok(ended?),
        ended = web.into_future() => Ok(ended?),
    }
}
