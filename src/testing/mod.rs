//! The test kit: runs an unchanged application over the [memory
//! transport](crate::transport::memory), records what happens to each message, and makes assertions
//! about these records.
//!
//! ```
//! use campanile::{Router, testing::{Harness, task}};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), campanile::Error> {
//! let app: Router = Router::new().task("greet", async |_name: String| {});
//!
//! let harness = Harness::start(app).await;
//! harness.client().enqueue("greet", "Ada").await?;
//! harness.settled().await;
//! harness.assert_acknowledged(task("greet").payload("Ada").once());
//! # Ok(())
//! # }
//! ```
//!
//! With `#[tokio::test(start_paused = true)]` (tokio's feature `test-util`) the clock is paused,
//! and waiting for an hour takes no real time. This example has settings, an application that sends
//! messages, and a retry:
//!
//! ```
//! use campanile::{
//!     Attempt, Client, Router, State, BoxError,
//!     testing::{Harness, event, task},
//!     transport::{Backoff, memory::Memory},
//! };
//! use std::time::Duration;
//!
//! async fn import(
//!     State(client): State<Client<Memory>>,
//!     Attempt(attempt): Attempt,
//! ) -> Result<(), BoxError> {
//!     if attempt == 1 {
//!         return Err("the file is not there yet".into());
//!     }
//!     client.publish("imported", "7 rows").await?;
//!     Ok(())
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
//! # .block_on(async {
//! let minute = Duration::from_secs(60);
//! let memory = Memory::new().backoff(Backoff::exponential(minute, minute));
//! let app = Router::new().task("import", import).with_state(Client::new(memory.clone()));
//! let mut harness = Harness::over(memory);
//! harness.serve(app).await;
//!
//! harness.client().enqueue("import", ()).await?;
//! harness.settled().await;
//! harness.assert_redelivered(task("import").attempt(1).because("not there yet").once());
//!
//! let waited = harness.advance_to_next().await;
//! assert!(waited >= Some(Duration::from_secs(30)));
//! harness.assert_sent(event("imported").payload("7 rows").once());
//! assert_eq!(harness.advance_to_next().await, None); // nothing waits any more
//! harness.shutdown().await;
//! # Ok::<_, BoxError>(()) }).unwrap();
//! ```
//!
//! A [`Recorder`] replaces the services that an application calls. The
//! [guide](crate::guide::testing) has a complete example.
//!
//! # Ordering
//! Records are in the order of the events on the transport.
//!
//! # Real time
//! The kit also works on a runtime of many threads, and with a clock that is not paused. With such
//! a clock, [`advance_to_next`](Harness::advance_to_next) really takes the time that it returns.
//!
//! # Panics
//! A failed assertion panics at the line of the test that calls it. A future, such as
//! [`settled`](Harness::settled), cannot panic there, so the text of its panic names the line.

mod assert;
mod expected;
mod harness;
mod journal;
mod record;
mod recorder;
mod settle;

pub use self::{
    expected::{Expected, anything, event, rpc, task},
    harness::Harness,
    record::Record,
    recorder::{Recorder, RecorderFuture},
};
pub use crate::transport::memory::observer::MessageEvent;
