//! Layers for campanile's message services.
//!
//! Each layer has a feature, and wraps any `tower::Service<Message>`: a router that is served, a
//! handler, or a client's transport. tower's own layers can wrap these services, too.
//!
//! | layer | feature | purpose |
//! |---|---|---|
//! | `CatchPanicLayer` | `catch-panic` | turns panics into errors for the outer layers |
//! | `ChaosLayer` | `chaos` | injects failures, delays, panics and duplicates at random, for tests |
//! | `CircuitBreakerLayer` | `circuit-breaker` | stops calls to a service that fails: a worker pauses, a client fails fast |
//! | `ConcurrencyByKeyLayer` | `concurrency` | limits how many messages of a key run at once |
//! | `FilterLayer` | `filter` | rejects messages by a function |
//! | `IdempotencyLayer` | `idempotency`, with Redis `idempotency-redis` | runs a duplicate message once and repeats its outcome |
//! | `MapFailureLayer` | `map-failure` (default) | maps an application's errors to settlements |
//! | `MetricsLayer` | `metrics` | counts and times messages, and publishes the counts of transports |
//! | `OrderedByKeyLayer` | `ordered` | runs the messages of a key one after the other, also after failures |
//! | `RateLimitByKeyLayer` | `rate-limit` | limits how many messages of a key run in a period |
//! | `RequestIdLayer` | `request-id` | carries one id through a chain of messages |
//! | `SharedLimitLayer` | `shared-limit` | limits how many messages of a key run at once, or in a period, over all workers |
//! | `DurableRetryLayer` | `retry` | retries later, by redelivery, and ends with a dead letter |
//! | `RetryPolicy` | `retry` | retries within a delivery or a call, with tower's `Retry` |
//! | `TimeoutLayer` | `timeout` | limits the time of a message by its own deadline or a default |
//! | `TraceLayer` | `trace` | makes a span for each message; with `opentelemetry`, traces continue through messages |
//!
//! The module `key` defines the keys of the layers that work by key. The module [`stack`] describes
//! how to order layers, and how to choose their limits.
//!
//! # Layers and services
//! All layers are built in the same style: `XLayer::new` takes the arguments that have no default,
//! and each method sets one more value. All services that a layer and its clones make share the
//! state of the layer, such as a limit, a circuit or a counter.
//!
//! A layer `XLayer` makes services of the type `X`, whose futures have the type `XFuture`. The
//! exception is `RequestIdLayer`: its services have the type `WithRequestId`, because `RequestId`
//! is the type of the id. To wrap a service without a layer, call `X::new` with the inner service
//! and the arguments of `XLayer::new`. `SharedLimit` has the constructors `concurrency` and `rate`
//! instead. The methods `get_ref`, `get_mut` and `into_inner` of each service return its inner
//! service.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[macro_use]
mod accessors;
#[cfg(any(
    feature = "catch-panic",
    feature = "circuit-breaker",
    feature = "filter",
    feature = "timeout"
))]
mod call_or_error;
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
#[cfg(any(
    feature = "concurrency",
    feature = "ordered",
    feature = "rate-limit",
    feature = "shared-limit"
))]
mod gated;
#[cfg(feature = "idempotency")]
pub mod idempotency;
#[cfg(feature = "key")]
pub mod key;
#[cfg(all(test, feature = "key"))]
mod keyed_mocks;
#[cfg(any(feature = "concurrency", feature = "rate-limit"))]
mod keyed_permits;
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
#[cfg(test)]
#[path = "../../tests/support/panics.rs"]
mod panics;
#[cfg(feature = "rate-limit")]
pub mod rate_limit;
#[cfg(feature = "request-id")]
pub mod request_id;
#[cfg(feature = "retry")]
pub mod retry;
#[cfg(feature = "shared-limit")]
pub mod shared_limit;
pub mod stack;
#[cfg(any(
    feature = "chaos",
    feature = "circuit-breaker",
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
pub use self::retry::{DurableRetry, DurableRetryLayer, RetryPolicy};
#[cfg(feature = "shared-limit")]
pub use self::shared_limit::{SharedLimit, SharedLimitLayer};
pub use self::stack::TimeBudget;
#[cfg(feature = "timeout")]
pub use self::timeout::{Timeout, TimeoutLayer};
#[cfg(feature = "trace")]
pub use self::trace::{Trace, TraceLayer, TraceTransport};

// Tests the code examples of the README.
#[cfg(all(doctest, feature = "timeout"))]
#[doc = include_str!("../README.md")]
struct Readme;
