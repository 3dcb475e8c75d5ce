//! The serving loop: source → service → settlement.
//!
//! ```
//! use campanile::{Client, Router, transport::memory::Memory};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let memory = Memory::new();
//! let (done, mut finished) = tokio::sync::mpsc::channel(1);
//! let app = Router::new().task("greet", async move |name: String| {
//!     let _ = done.send(format!("hello {name}")).await;
//! });
//! let worker = tokio::spawn(
//!     campanile::serve(memory.clone(), app)
//!         .with_graceful_shutdown(async { tokio::signal::ctrl_c().await.unwrap() })
//!         .into_future(),
//! );
//!
//! Client::new(memory).enqueue("greet", "Ada").await?;
//! assert_eq!(finished.recv().await.as_deref(), Some("hello Ada"));
//! # worker.abort();
//! # Ok(())
//! # }
//! ```
//!
//! # Ordering
//! Deliveries start in the order in which the source returns them, and run concurrently. With a
//! [`max_in_flight`](crate::transport::Settings::max_in_flight) of one they run one after the
//! other.
//!
//! # Back-pressure
//! A worker fetches no more than it may start: nothing while all slots are taken, or while the
//! outermost layer is not ready (a limit is reached, a circuit breaker is open). A slot is free
//! again when its delivery is settled.
//!
//! # Cancel safety
//! Dropping the future drops running handlers and settles nothing: their messages are delivered
//! again when the leases end. To let them finish, use a graceful shutdown.
//!
//! # Errors
//! A source reconnects by itself. `serve` returns an error if the settings cannot work, if the
//! service reports that it is broken, or if running handlers were dropped, by a forced shutdown or
//! because they outlived the shutdown's deadline.
//!
//! If the server is away, not ready or refuses writes, `serve` logs the cause and waits, at the
//! start as well as later; a shutdown signal ends the wait at once. A wrong password is an error at
//! the start. Later `serve` waits until the server accepts the password again, since it was right
//! before.
//!
//! # Logs
//! A worker logs one line at info level when it starts, with its streams, its group, the name of
//! its consumer and its routes, and one when it ends, which counts what it has done. A shutdown
//! logs how many deliveries it waits for. A failed delivery is logged once, as a warning, with its
//! reason and what happens next. Errors that are meant for a caller ([`RpcError`](crate::RpcError))
//! and overload are logged at debug level. A layer can have the failure logged in the message's
//! span: see [`log_failure_in_current_span`].
//!
//! The loss of a connection is logged as a warning with its cause, and its recovery at info level
//! with the time that it took. Deliveries that are claimed from a dead worker are logged with its
//! name and their ids.
//!
//! # Panics
//! A panic of a handler or a layer fails its delivery and is logged. Other deliveries go on.

pub(crate) mod builder;
mod failure_span;
mod in_flight;
mod log;
mod policy;
mod signals;
mod worker;

pub use self::{builder::Serve, failure_span::log_failure_in_current_span};
