//! A custom transport, which is served and called like the transports of the crate.
//!
//! ```text
//! cargo run --example transport
//! ```
//!
//! The transport is in `queue.rs`; `docs/own-transport.md` explains it, and
//! `tests/in_process/own_transport.rs` runs the conformance suite on it.

mod queue;

use std::time::Duration;

use campanile::{
    Attempt, BoxError, Client, Router, serve,
    transport::{Backoff, Settings},
};
use queue::Queue;
use tokio::sync::mpsc;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let (greeted, mut greetings) = mpsc::unbounded_channel();
    let app = Router::new().task(
        "greet",
        async move |Attempt(attempt): Attempt, name: String| {
            if attempt == 1 {
                return Err("not in the mood"); // so the task is redelivered
            }
            let _ = greeted.send(format!("hello {name}, at attempt {attempt}"));
            Ok(())
        },
    );
    let mut settings = Settings::default();
    settings.backoff = Backoff::exponential(Duration::from_millis(100), Duration::from_secs(1));
    let queue = Queue::default().with_settings(settings);
    let worker = tokio::spawn(serve(queue.clone(), app).into_future());

    Client::new(queue).enqueue("greet", "Ada").await?;
    println!("{}", greetings.recv().await.ok_or("the worker has ended")?);
    worker.abort();
    Ok(())
}
