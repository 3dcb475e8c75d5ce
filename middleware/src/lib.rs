//! Layers over campanile's message services: policy is composed, not configured.
//!
//! Each layer is a feature of its own and works on every `tower::Service<Message>`: a router that
//! is served, a handler, a client's transport. tower's own layers do too.
//!
//! | layer | feature | what it does |
//! |---|---|---|
//! | `MapFailureLayer` | `map-failure` (default) | from an application's errors to how their deliveries are settled |
//! | `MetricsLayer` | `metrics` | what is sent and handled, and how transports are doing, in numbers |
//! | `TraceLayer` | `trace` | a span for each message; with `opentelemetry`, traces that run on through messages |

#[cfg(any(feature = "metrics", feature = "trace"))]
pub mod conventions;
#[cfg(feature = "map-failure")]
pub mod map_failure;
#[cfg(feature = "metrics")]
pub mod metrics;
#[cfg(any(feature = "metrics", feature = "trace"))]
mod observe;
#[cfg(feature = "trace")]
pub mod trace;

#[cfg(feature = "map-failure")]
pub use self::map_failure::{MapFailure, MapFailureLayer};
#[cfg(feature = "metrics")]
pub use self::metrics::{Metrics, MetricsLayer, TransportMetrics};
#[cfg(feature = "trace")]
pub use self::trace::{Trace, TraceLayer, TraceTransport};
