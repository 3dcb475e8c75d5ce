//! Layers over campanile's message services: policy is composed, not configured.
//!
//! Each layer is a feature of its own and works on every `tower::Service<Message>`: a router that
//! is served, a handler, a client's transport. tower's own layers do too.
//!
//! | layer | feature | what it does |
//! |---|---|---|
//! | `ConcurrencyByKeyLayer` | `concurrency` | at most so many at once for each key |
//! | `IdempotencyLayer` | `idempotency`, with Redis `idempotency-redis` | what comes twice runs once, and the outcome is repeated |
//! | `MapFailureLayer` | `map-failure` (default) | from an application's errors to how their deliveries are settled |
//! | `OrderedByKeyLayer` | `ordered` | the messages of a key one after the other, also over failures |
//! | `RateLimitByKeyLayer` | `rate-limit` | at most so many in a time for each key |
//!
//! Those that work by key share `key`: what makes messages belong together.

#[cfg(feature = "concurrency")]
pub mod concurrency;
#[cfg(any(feature = "concurrency", feature = "ordered", feature = "rate-limit"))]
mod gated;
#[cfg(feature = "idempotency")]
pub mod idempotency;
#[cfg(feature = "key")]
pub mod key;
#[cfg(feature = "map-failure")]
pub mod map_failure;
#[cfg(feature = "ordered")]
pub mod ordered;
#[cfg(any(feature = "concurrency", feature = "rate-limit"))]
mod places;
#[cfg(feature = "rate-limit")]
pub mod rate_limit;
#[cfg(any(
    feature = "concurrency",
    feature = "idempotency",
    feature = "ordered",
    feature = "rate-limit"
))]
mod sync;
#[cfg(test)]
mod testing;

#[cfg(feature = "concurrency")]
pub use self::concurrency::{ConcurrencyByKey, ConcurrencyByKeyLayer};
#[cfg(feature = "idempotency")]
pub use self::idempotency::{Idempotency, IdempotencyLayer};
#[cfg(feature = "map-failure")]
pub use self::map_failure::{MapFailure, MapFailureLayer};
#[cfg(feature = "ordered")]
pub use self::ordered::{OrderedByKey, OrderedByKeyLayer};
#[cfg(feature = "rate-limit")]
pub use self::rate_limit::{RateLimitByKey, RateLimitByKeyLayer};
