//! One process that serves HTTP and works on a queue: one state, one shutdown.
//!
//! ```text
//! REDIS_URL=redis://127.0.0.1/ cargo run -p example-axum
//!
//! curl -i localhost:3000/orders -H 'content-type: application/json' -d '{"id":7,"title":"Emma"}'
//! curl -i localhost:3000/news -d 'a new book'
//! curl -i localhost:3000/users/42
//! curl -i localhost:3000/messages/price/quote -d '{"books":3}'
//! curl -i localhost:3000/readyz
//! curl -s localhost:3000/metrics
//! ```
//!
//! HTTP handlers enqueue a task, publish an event and send a request. All other messages go through
//! a gateway at `/messages`. The worker serves a Campanile router; an axum router handles one of
//! its names. `LISTEN` sets the address, `RUST_LOG` the level of the log.
//!
//! On `SIGTERM` or Ctrl-C the HTTP side ends first, since its requests may wait for the workers.

use std::{env, time::Duration};

use campanile::{BoxError, Redis, serve};
use example_axum::{App, app};
use tokio::{net::TcpListener, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// The maximum time for which a shutdown waits for connections to end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let levels = env::var("RUST_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::registry()
        .with(levels.parse::<Targets>()?)
        .with(fmt::layer().with_writer(std::io::stderr))
        .init();
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".into());
    let listen = env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let redis = Redis::connect(&url).await?;
    let listener = TcpListener::bind(&listen).await?;
    println!("listening on {}", listener.local_addr()?);

    let state = App::new(redis.clone());
    let (web, work) = app(state.clone());
    let stopping = state.stopping.clone();
    // The workers run until all HTTP requests have ended, since requests may wait for the workers.
    let http_ended = CancellationToken::new();

    let signals = async {
        wait_for_signal().await?;
        println!("stopping");
        stopping.cancel();
        Ok(())
    };
    let http = async {
        let server =
            axum::serve(listener, web).with_graceful_shutdown(stopping.clone().cancelled_owned());
        let timed_out = async {
            stopping.cancelled().await;
            sleep(SHUTDOWN_TIMEOUT).await;
        };
        tokio::select! {
            ended = server => ended?,
            () = timed_out => eprintln!("connections that did not end are dropped"),
        }
        http_ended.cancel();
        Ok(())
    };
    let worker = async {
        let worker =
            serve(redis, work).with_graceful_shutdown(http_ended.clone().cancelled_owned());
        Ok::<_, BoxError>(worker.await?)
    };
    tokio::try_join!(signals, http, worker)?;
    println!("ended after {} requests", state.requests());
    Ok(())
}

/// Waits for `SIGTERM` or Ctrl-C.
async fn wait_for_signal() -> Result<(), BoxError> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        pressed = tokio::signal::ctrl_c() => pressed?,
    }
    Ok(())
}
