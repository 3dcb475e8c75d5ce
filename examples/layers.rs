//! tower's layers around a router and around a client.
//!
//! ```text
//! cargo run --example layers
//! ```
//!
//! The router's handlers share two permits, and each call may take one second. The client retries
//! requests that were answered with `unavailable`.

use std::{
    future::{Ready, ready},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use campanile::{
    BoxError, Client, Error, Message, Reply, Router, RpcCode, RpcError, State, serve,
    transport::memory::Memory,
};
use tokio::sync::oneshot;
use tower::{ServiceBuilder, retry::Policy};

#[derive(Default)]
pub(crate) struct Load {
    /// The number of running `work` handlers.
    running: AtomicUsize,
    /// The maximum of `running` until now.
    max_running: AtomicUsize,
    /// The number of calls of `moody`.
    moody_calls: AtomicUsize,
}

async fn work(State(load): State<Arc<Load>>) {
    let running = load.running.fetch_add(1, Ordering::SeqCst) + 1;
    load.max_running.fetch_max(running, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(20)).await;
    load.running.fetch_sub(1, Ordering::SeqCst);
}

/// Answers `unavailable` the first two times.
async fn moody(State(load): State<Arc<Load>>) -> Result<&'static str, RpcError> {
    match load.moody_calls.fetch_add(1, Ordering::SeqCst) {
        0 | 1 => Err(RpcError::unavailable("not now")),
        _ => Ok("now"),
    }
}

async fn never() {
    std::future::pending::<()>().await;
}

pub(crate) fn app() -> Router<Arc<Load>> {
    Router::new()
        .task("work", work)
        .rpc("moody", moody)
        .rpc("never", never)
        .layer(
            ServiceBuilder::new()
                .concurrency_limit(2) // two over all routes, not two for each
                .timeout(Duration::from_secs(1)),
        )
}

/// A policy that retries a request at once, up to three times, if the answer is `unavailable`.
#[derive(Clone)]
struct RetryUnavailable {
    left: u32,
}

impl Policy<Message, Reply, Error> for RetryUnavailable {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut Message, result: &mut Result<Reply, Error>) -> Option<Ready<()>> {
        let answer = result.as_ref().err()?.rpc()?;
        if *answer.code() != RpcCode::Unavailable {
            return None;
        }
        self.left = self.left.checked_sub(1)?;
        println!("rpc    moody: {answer}, trying again");
        Some(ready(()))
    }

    fn clone_request(&mut self, message: &Message) -> Option<Message> {
        Some(message.clone())
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let memory = Memory::new();
    let load = Arc::new(Load::default());
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = tokio::spawn(
        serve(memory.clone(), app().with_state(load.clone()))
            .with_graceful_shutdown(async { drop(stopped.await) })
            .into_future(),
    );

    let client = Client::new(
        ServiceBuilder::new()
            .concurrency_limit(8)
            .retry(RetryUnavailable { left: 3 })
            .service(memory.clone()),
    );
    for receipt in client.enqueue_all("work", [(); 10]).await {
        receipt?;
    }
    let answer: String = client.request("moody", ()).await?;
    println!("rpc    moody: {answer}");

    match client.request::<()>("never", ()).await {
        Err(error) => println!("rpc    never: {}", error.rpc().ok_or("no answer")?),
        Ok(()) => return Err("a handler that never returns has returned".into()),
    }
    drop(stop);
    worker.await??;
    let most = load.max_running.load(Ordering::SeqCst);
    println!("task   work: 10 done, at most {most} at the same time");
    Ok(())
}
