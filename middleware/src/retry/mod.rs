//! Retries messages in place, or durably by redelivery.
//!
//! [`RetryPolicy`] is a policy for tower's `Retry`. It retries in place, within the delivery or the
//! call. Use it for errors whose cause lasts only milliseconds, because the message occupies its
//! slot during the retries.
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
//! requests a redelivery after the attempt's back-off, or a dead letter after the last attempt. The
//! transport stores the message until then, so the wait occupies no slot and survives the end of
//! the process. With both kinds of retry, each delivery has a few quick tries in place:
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
//! let durable = DurableRetryLayer::new()
//!     .backoff(Backoff::exponential(Duration::from_secs(2), Duration::from_secs(600)));
//! let app: Router = Router::new()
//!     .task("charge", charge)
//!     .layer(ServiceBuilder::new().layer(durable).layer(RetryLayer::new(quick)));
//! ```
//!
//! With these numbers a task is tried 30 times: ten deliveries, the worker's default, with three
//! tries each. The waits between the deliveries are 2, 4, 8, … 512 s.
//!
//! # Number of attempts
//! One setting limits the deliveries of a message: the
//! [`max_deliveries`](campanile::transport::Settings::max_deliveries) of its worker, 10 unless set.
//! The sender of a task can set [another number](campanile::client::Call::max_attempts), which then
//! counts instead. Layers read the effective number from
//! [`Parts::max_attempts`](campanile::Parts::max_attempts). A layer around some of the routes can
//! [lower](DurableRetryLayer::max_attempts) the number for these routes.
//!
//! The reason of a dead letter says whether a layer or the worker gave up:
//! `given up by DurableRetryLayer after attempt 3 of 3`,
//! `given up by DurableRetryLayer as permanent`, `given up by the worker after attempt 10 of 10`,
//! `given up by the worker as permanent`. A worker can [call a
//! function](campanile::serve::Serve::on_give_up) for each message that it gives up.
//!
//! # Classes of errors
//! The [`Class`](crate::Class) of an error decides how it is retried. Transient errors are retried
//! in place. Transient and lasting errors are retried durably, each with [its
//! own](DurableRetryLayer::on) back-off if you like. A permanent error makes a dead letter
//! immediately. If the application has decided already, with a [`Failure`] in the chain of sources,
//! neither kind of retry changes that decision.
//!
//! Overload, for example from tower's `LoadShed` or an open circuit, is not caused by the message.
//! A durable retry returns such an error unchanged, and the transport redelivers the message
//! without counting the attempt.
//!
//! # Requests and events
//! A durable retry returns the errors of requests and events unchanged, because the error of a
//! request becomes its reply, and an event is not stored. With
//! [`requests`](DurableRetryLayer::requests), a request with a transient error is redelivered while
//! its caller still waits.
//!
//! # Deadlines and leases
//! A message is not retried in place after its deadline, or once its lease is lost. The lease is
//! renewed during the waits, so a wait may be longer than the lease.
//!
//! # Unknown outcomes
//! After a lost connection or a timeout, a client cannot know whether the transport accepted its
//! message. Such a call is retried only if the message has an [idempotency
//! key](campanile::client::Call::idempotency_key): the transport stores only one task with this
//! key. This rule also holds for a router that handles messages without an id: events, and messages
//! of a client that calls the router without a transport.
//!
//! # Delivery guarantee
//! A handler runs again after a failure, both in place and by redelivery, so it must tolerate
//! repeated runs. The [`Attempt`](campanile::Attempt) counts deliveries, not tries in place.
//!
//! # Cancel safety
//! Dropping the future ends the retries. Another worker claims an unsettled delivery when its lease
//! ends.
//!
//! # Panics
//! A panic propagates, and the transport redelivers the message after its back-off. To retry after
//! panics, put a `CatchPanicLayer` inside the retry layer: it turns panics into errors.
//!
//! [`Failure`]: campanile::Failure

mod durable;
mod policy;

pub use self::{
    durable::{DurableRetry, DurableRetryFuture, DurableRetryLayer, Exhausted},
    policy::RetryPolicy,
};
