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
//! [`max_in_flight`](crate::transport::Settings::max_in_flight) of one, deliveries run one after
//! the other.
//!
//! # Back-pressure
//! A worker fetches only as many messages as it has free slots. It fetches nothing while all slots
//! are taken, or while the outermost layer is not ready, for example because a limit is reached or
//! a circuit breaker is open. A slot becomes free when its delivery is settled.
//!
//! # Cancel safety
//! Dropping the future drops running handlers and settles nothing: their messages are delivered
//! again when the leases end. Use a graceful shutdown to let them finish.
//!
//! # Errors
//! A lost connection is not an error: the source reconnects by itself. `serve` returns an error if
//! a setting is invalid, if the service's `poll_ready` fails, or if a shutdown dropped running
//! handlers. A shutdown drops them if it is forced, or when its deadline passes.
//!
//! If the server cannot be reached, is not ready or refuses writes, `serve` logs the cause and
//! waits, both at the start and later. A shutdown signal ends the wait immediately. If the server
//! refuses the password at the start, `serve` returns an error. If it does so later, `serve` waits
//! until the server accepts the password again, because the password was correct before.
//!
//! # Logs
//! A worker logs one line at info level when it starts, with its streams, group, consumer and
//! routes. It logs another line when it ends, with the number of deliveries by verdict. A shutdown
//! logs the number of deliveries that it waits for. A failed delivery is logged once, as a warning,
//! with its reason and its verdict. Three failures are logged at debug level instead: overload, a
//! parked message, and an error reply that the caller of a request caused, such as `not_found`. A
//! layer can choose the span of the line for a failure: see [`log_failure_in_current_span`].
//!
//! The loss of a connection is logged as a warning with its cause, and its recovery at info level
//! with the time that it took. Deliveries that are claimed from a dead worker are logged with the
//! name of that worker and the ids of the deliveries.
//!
//! # Panics
//! A panic in a handler or a layer fails its delivery and is logged. Other deliveries continue.

pub(crate) mod builder;
mod failure_span;
mod give_up;
mod in_flight;
mod log;
mod policy;
mod signals;
mod work;
mod worker;

pub use self::{builder::Serve, failure_span::log_failure_in_current_span, give_up::GivenUp};
