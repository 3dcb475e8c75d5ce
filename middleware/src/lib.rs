//! Layers over campanile's message services: policy is composed, not configured.
//!
//! Each layer is a feature of its own and works on every `tower::Service<Message>`: a router that
//! is served, a handler, a client's transport. tower's own layers do too.
//!
//! | layer | feature | what it does |
//! |---|---|---|
//! | `CatchPanicLayer` | `catch-panic` | panics as errors, which the layers around it see |
//! | `ChaosLayer` | `chaos` | fails, delays, panics and repeats by chance, for tests |
//! | `CircuitBreakerLayer` | `circuit-breaker` | does not call what fails; a worker pauses, a client fails at once |
//! | `FilterLayer` | `filter` | lets through what a function lets through |
//! | `MapFailureLayer` | `map-failure` (default) | from an application's errors to how their deliveries are settled |
//! | `RequestIdLayer` | `request-id` | one id along a chain of messages |
//! | `RetryPolicy` | `retry` | for tower's `Retry`: tries again in place |
//! | `DurableRetryLayer` | `retry` | tries again later, kept by the transport; then a dead letter |
//! | `TimeoutLayer` | `timeout` | by the message's own deadline, or a default |

#[cfg(feature = "catch-panic")]
pub mod catch_panic;
#[cfg(feature = "chaos")]
pub mod chaos;
#[cfg(feature = "circuit-breaker")]
pub mod circuit_breaker;
#[cfg(any(feature = "circuit-breaker", feature = "retry"))]
pub mod class;
#[cfg(feature = "filter")]
pub mod filter;
#[cfg(feature = "map-failure")]
pub mod map_failure;
#[cfg(test)]
mod mocks;
#[cfg(feature = "request-id")]
pub mod request_id;
#[cfg(feature = "retry")]
pub mod retry;
#[cfg(any(
    feature = "catch-panic",
    feature = "circuit-breaker",
    feature = "filter",
    feature = "timeout"
))]
mod started;
#[cfg(feature = "timeout")]
pub mod timeout;

#[cfg(feature = "catch-panic")]
pub use self::catch_panic::{CatchPanic, CatchPanicLayer};
#[cfg(feature = "chaos")]
pub use self::chaos::{Chaos, ChaosLayer};
#[cfg(feature = "circuit-breaker")]
pub use self::circuit_breaker::{CircuitBreaker, CircuitBreakerLayer};
#[cfg(any(feature = "circuit-breaker", feature = "retry"))]
pub use self::class::Class;
#[cfg(feature = "filter")]
pub use self::filter::{Filter, FilterLayer};
#[cfg(feature = "map-failure")]
pub use self::map_failure::{MapFailure, MapFailureLayer};
#[cfg(feature = "request-id")]
pub use self::request_id::{RequestId, RequestIdLayer};
#[cfg(feature = "retry")]
pub use self::retry::{Backoff, DurableRetry, DurableRetryLayer, RetryPolicy};
#[cfg(feature = "timeout")]
pub use self::timeout::{Timeout, TimeoutLayer};
