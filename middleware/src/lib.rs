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
//! | `ConcurrencyByKeyLayer` | `concurrency` | at most so many at once for each key |
//! | `FilterLayer` | `filter` | lets through what a function lets through |
//! | `IdempotencyLayer` | `idempotency`, with Redis `idempotency-redis` | what comes twice runs once, and the outcome is repeated |
//! | `MapFailureLayer` | `map-failure` (default) | from an application's errors to how their deliveries are settled |
//! | `MetricsLayer` | `metrics` | what is sent and handled, and how transports are doing, in numbers |
//! | `OrderedByKeyLayer` | `ordered` | the messages of a key one after the other, also over failures |
//! | `RateLimitByKeyLayer` | `rate-limit` | at most so many in a time for each key |
//! | `RequestIdLayer` | `request-id` | one id along a chain of messages |
//! | `DurableRetryLayer` | `retry` | tries again later, kept by the transport; then a dead letter |
//! | `RetryPolicy` | `retry` | for tower's `Retry`: tries again in place |
//! | `TimeoutLayer` | `timeout` | by the message's own deadline, or a default |
//! | `TraceLayer` | `trace` | a span for each message; with `opentelemetry`, traces that run on through messages |
//!
//! Those that work by key share `key`: what makes messages belong together. In which order layers
//! belong, and with which numbers, is in [`stack`].

#[cfg(feature = "catch-panic")]
pub mod catch_panic;
#[cfg(feature = "chaos")]
pub mod chaos;
#[cfg(feature = "circuit-breaker")]
pub mod circuit_breaker;
#[cfg(any(feature = "circuit-breaker", feature = "retry"))]
pub mod class;
#[cfg(feature = "concurrency")]
pub mod concurrency;
#[cfg(any(feature = "metrics", feature = "trace"))]
pub mod conventions;
#[cfg(feature = "filter")]
pub mod filter;
#[cfg(any(feature = "concurrency", feature = "ordered", feature = "rate-limit"))]
mod gated;
#[cfg(feature = "idempotency")]
pub mod idempotency;
#[cfg(feature = "key")]
pub mod key;
#[cfg(all(test, feature = "key"))]
mod keyed_mocks;
#[cfg(feature = "map-failure")]
pub mod map_failure;
#[cfg(feature = "metrics")]
pub mod metrics;
#[cfg(test)]
mod mocks;
#[cfg(any(feature = "metrics", feature = "trace"))]
mod observe;
#[cfg(feature = "ordered")]
pub mod ordered;
#[cfg(any(feature = "concurrency", feature = "rate-limit"))]
mod places;
#[cfg(feature = "rate-limit")]
pub mod rate_limit;
#[cfg(feature = "request-id")]
pub mod request_id;
#[cfg(feature = "retry")]
pub mod retry;
pub mod stack;
#[cfg(any(
    feature = "catch-panic",
    feature = "circuit-breaker",
    feature = "filter",
    feature = "timeout"
))]
mod started;
#[cfg(any(
    feature = "concurrency",
    feature = "idempotency",
    feature = "ordered",
    feature = "rate-limit"
))]
mod sync;
#[cfg(feature = "timeout")]
pub mod timeout;
#[cfg(feature = "trace")]
pub mod trace;

#[cfg(feature = "catch-panic")]
pub use self::catch_panic::{CatchPanic, CatchPanicLayer};
#[cfg(feature = "chaos")]
pub use self::chaos::{Chaos, ChaosLayer};
#[cfg(feature = "circuit-breaker")]
pub use self::circuit_breaker::{CircuitBreaker, CircuitBreakerLayer};
#[cfg(any(feature = "circuit-breaker", feature = "retry"))]
pub use self::class::Class;
#[cfg(feature = "concurrency")]
pub use self::concurrency::{ConcurrencyByKey, ConcurrencyByKeyLayer};
#[cfg(feature = "filter")]
pub use self::filter::{Filter, FilterLayer};
#[cfg(feature = "idempotency")]
pub use self::idempotency::{Idempotency, IdempotencyLayer};
#[cfg(feature = "map-failure")]
pub use self::map_failure::{MapFailure, MapFailureLayer};
#[cfg(feature = "metrics")]
pub use self::metrics::{Metrics, MetricsLayer, TransportMetrics};
#[cfg(feature = "ordered")]
pub use self::ordered::{OrderedByKey, OrderedByKeyLayer};
#[cfg(feature = "rate-limit")]
pub use self::rate_limit::{RateLimitByKey, RateLimitByKeyLayer};
#[cfg(feature = "request-id")]
pub use self::request_id::{RequestId, RequestIdLayer};
#[cfg(feature = "retry")]
pub use self::retry::{Backoff, DurableRetry, DurableRetryLayer, RetryPolicy};
pub use self::stack::TimeBudget;
#[cfg(feature = "timeout")]
pub use self::timeout::{Timeout, TimeoutLayer};
#[cfg(feature = "trace")]
pub use self::trace::{Trace, TraceLayer, TraceTransport};
