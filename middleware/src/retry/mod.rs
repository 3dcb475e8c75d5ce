//! Retries in place, and durable retries.
//!
//! [`RetryPolicy`] is a policy for tower's `Retry`. It retries in place, within the delivery or the
//! call. Use it for errors that pass in milliseconds, since the message occupies its slot
//! meanwhile.
//!
//! ```
//! use campanile::{Client, transport::memory::Memory};
//! use campanile_middleware::RetryPolicy;
//! use tower::{Layer, retry::RetryLayer};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), campanile::Error> {
//! let client = Client::new(RetryLayer::new(RetryPolicy::new(3)).layer(Memory::new()));
//! client.enqueue("orders.create", "7").await?;
//! # Ok(())
//! # }
//! ```
//!
//! [`DurableRetryLayer`] retries later, by redelivery. It turns an error into a [`Failure`] that
//! asks for redelivery after the attempt's back-off, or for a dead letter after the last attempt.
//! The transport stores the message meanwhile, so the wait outlives the process and occupies no
//! slot.
//!
//! Both together, with some quick tries in each delivery:
//!
//! ```
//! use campanile::{BoxError, Router, transport::Backoff};
//! use campanile_middleware::{DurableRetryLayer, RetryPolicy};
//! use std::time::Duration;
//! use tower::{ServiceBuilder, retry::{RetryLayer, budget::TpsBudget}};
//!
//! async fn charge() -> Result<(), BoxError> {
//!     Ok(())
//! }
//!
//! let quick = RetryPolicy::new(3)
//!     .backoff(Backoff::exponential(Duration::from_millis(20), Duration::from_millis(200)))
//!     // One retry for ten successful calls, and ten retries per second besides.
//!     .budget(TpsBudget::new(Duration::from_secs(10), 10, 0.1));
//! let durable = DurableRetryLayer::new(8)
//!     .backoff(Backoff::exponential(Duration::from_secs(2), Duration::from_secs(600)));
//! let app: Router = Router::new()
//!     .task("charge", charge)
//!     .layer(ServiceBuilder::new().layer(durable).layer(RetryLayer::new(quick)));
//! ```
//!
//! With these numbers a task is tried 24 times: eight deliveries with three tries each, and waits
//! of 2, 4, 8, … 128 s between the deliveries.
//!
//! # Classes of errors
//! The [`Class`](crate::Class) of the error decides. Transient errors are retried in place.
//! Transient and lasting errors are retried durably. A permanent error makes a dead letter at once.
//! If the application has decided already, by a [`Failure`] in the chain of sources, neither retry
//! changes that.
//!
//! Overload, as by tower's `LoadShed` or an open circuit, is not the message's fault. A durable
//! retry passes it on, and the transport redelivers the message without counting the attempt.
//!
//! # Requests and events
//! A durable retry passes their errors on: the error of a request is its reply, and an event is not
//! stored. With [`requests`](DurableRetryLayer::requests), a request with a transient error is
//! redelivered while its caller still waits.
//!
//! # Deadlines and leases
//! A message is not retried in place after its deadline, or once its lease is lost. The lease is
//! renewed meanwhile, so the waits may be longer than the lease.
//!
//! # Unknown outcomes
//! After a lost connection or a timeout, a client cannot know whether the transport accepted its
//! message. Such a call is retried only with an
//! [idempotency key](campanile::client::Call::idempotency_key), which makes one task of duplicates.
//! Every message without an id counts as sent by a client. That includes events, and messages of a
//! client that calls a router in place.
//!
//! # Delivery guarantee
//! A handler runs again after each failure, in place and by redelivery, and must tolerate that. The
//! [`Attempt`](campanile::Attempt) counts deliveries, not tries in place.
//!
//! # Cancel safety
//! Dropping the future ends the retries. An unsettled delivery is claimed when its lease ends.
//!
//! # Panics
//! A panic passes, and the delivery fails with the transport's back-off. Put a `CatchPanicLayer`
//! inside to retry after panics.
//!
//! [`Failure`]: campanile::Failure

mod durable;
mod policy;

pub use self::{
    durable::{DurableRetry, DurableRetryFuture, DurableRetryLayer, Exhausted},
    policy::RetryPolicy,
};
