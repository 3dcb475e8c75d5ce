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
//! Deliveries start in the order in which the source hands them out, and run at the same time.
//! With [`max_in_flight`](crate::transport::Settings::max_in_flight) of one they run one after the
//! other.
//!
//! # Back-pressure
//! The source is asked for no more than may be started: while every slot is taken, or the
//! outermost layer is not ready (a limit is reached, a breaker is open), nothing is fetched. A
//! slot is free again when its delivery is settled.
//!
//! # Cancel safety
//! Dropping the future aborts running handlers and settles nothing: their deliveries come back
//! when the lease ends. To end without that, use a graceful shutdown.
//!
//! # Errors
//! A source reconnects by itself. What ends `serve` with an error is a set-up that cannot work, a
//! service that reports itself as broken, or handlers that are dropped: by a forced shutdown, or
//! because they outlive the shutdown's deadline.
//!
//! A server that is away, not ready or takes no writes when `serve` begins is waited for, as it is
//! later; the cause is logged, and the shutdown's signal ends the wait at once. A password that is
//! wrong at the start ends `serve`: nothing says yet that it was ever right.
//!
//! # Logs
//! A worker logs one line at info level when it starts and one when it ends, which counts what it has
//! done, and says how many deliveries a shutdown waits for. A failed delivery is logged once, as a
//! warning, with its reason and what happens next. Errors that are meant for a caller
//! ([`RpcError`](crate::RpcError)) and overload are logged at debug level. The line belongs to the span
//! of the message if a layer names it: see [`log_failure_in_current_span`].
//!
//! # Panics
//! A panic of a handler or a layer is a failed delivery; it is logged, and nothing else notices.

pub(crate) mod builder;
mod failure_span;
mod in_flight;
mod log;
mod policy;
mod signals;
mod worker;

pub use self::{builder::Serve, failure_span::log_failure_in_current_span};
