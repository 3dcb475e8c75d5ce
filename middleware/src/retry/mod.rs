//! Trying again: in place, and durably.
//!
//! [`RetryPolicy`] is for tower's own `Retry`. It tries again at once, within the delivery or the
//! call: for what passes in milliseconds, at the price of a slot that is held meanwhile.
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
//! [`DurableRetryLayer`] tries again later. It only decides: an error becomes a
//! [`Failure`] that asks for redelivery after this attempt's back-off, or, after the last one, for a
//! dead letter. The transport keeps the wait, so it outlives the process and holds no worker.
//!
//! Both together, some quick tries and then durable ones:
//!
//! ```
//! use campanile::{BoxError, Router};
//! use campanile_middleware::{Backoff, DurableRetryLayer, RetryPolicy};
//! use std::time::Duration;
//! use tower::{ServiceBuilder, retry::{RetryLayer, budget::TpsBudget}};
//!
//! async fn charge() -> Result<(), BoxError> {
//!     Ok(())
//! }
//!
//! let quick = RetryPolicy::new(3)
//!     .backoff(Backoff::exponential(Duration::from_millis(20), Duration::from_millis(200)))
//!     // While little succeeds, one retry for ten calls, and ten a second besides.
//!     .budget(TpsBudget::new(Duration::from_secs(10), 10, 0.1));
//! let durable = DurableRetryLayer::new(8)
//!     .backoff(Backoff::exponential(Duration::from_secs(2), Duration::from_secs(600)));
//! let app: Router = Router::new()
//!     .task("charge", charge)
//!     .layer(ServiceBuilder::new().layer(durable).layer(RetryLayer::new(quick)));
//! ```
//!
//! With these numbers a task is tried 24 times: three tries within 60 ms, eight times, with waits of
//! 2, 4, 8, … 128 s between them.
//!
//! # By class
//! What is tried again depends on the error's [`Class`](crate::Class). In place only what is
//! transient is; durably, all but what is permanent: that is a dead letter at once. A [`Failure`] in
//! an error's chain has said already what is to become of the delivery. Neither of the two overrides
//! it.
//!
//! Overload (of tower's `LoadShed`, of an open circuit) is no fault of the message's. A durable retry
//! lets it pass, and the transport redelivers the message without counting the attempt.
//!
//! # Requests and events
//! A durable retry leaves them alone: the error of a request is its answer, and an event is not kept.
//! With [`requests`](DurableRetryLayer::requests) a request that has failed for the moment is
//! redelivered while its caller still waits.
//!
//! # Deadlines and leases
//! Nothing is tried in place past the message's deadline, or once its lease is lost. While it is
//! tried, its lease is renewed: the waits need not fit into one.
//!
//! # What was perhaps sent
//! On the sending side a lost connection or a time-out can leave it open whether a message was taken.
//! Such a call is tried again only with an
//! [idempotency key](campanile::client::Call::idempotency_key), which makes two of them one. A message
//! without an id counts as one that is sent: so does an event, and what a client over a router handles
//! in place.
//!
//! # Delivery guarantee
//! A task is handled again after each failure, and within each attempt as often as it is tried in
//! place: its handler has to bear that. The [`Attempt`](campanile::Attempt) counts deliveries, not
//! tries in place.
//!
//! # Cancel safety
//! Dropping the future ends the tries. A delivery that is dropped unsettled comes back when its lease
//! ends.
//!
//! # Panics
//! A panic is no error unless a `CatchPanicLayer` stands
//! inside: without one it goes by the transport's own back-off.
//!
//! [`Failure`]: campanile::Failure

mod backoff;
mod durable;
mod policy;

pub use self::{
    backoff::Backoff,
    durable::{DurableRetry, DurableRetryFuture, DurableRetryLayer, Exhausted},
    policy::RetryPolicy,
};
