//! Layers over campanile's message services: policy is composed, not configured.
//!
//! Each layer is a feature of its own and works on every `tower::Service<Message>`: a router that
//! is served, a handler, a client's transport. tower's own layers do too.
//!
//! | layer | feature | what it does |
//! |---|---|---|
//! | `MapFailureLayer` | `map-failure` (default) | from an application's errors to how their deliveries are settled |
//!
//! In which order they belong, and with which numbers, is in [`stack`].

#[cfg(feature = "map-failure")]
pub mod map_failure;
pub mod stack;

#[cfg(feature = "map-failure")]
pub use self::map_failure::{MapFailure, MapFailureLayer};
pub use self::stack::TimeBudget;
