//! Stops calls to a service that fails.
//!
//! A circuit counts the outcomes of the calls of its service. If too many calls fail, the circuit
//! *opens* and admits no more calls, so that the service can recover. After a while it is *half
//! open*: it admits a few calls as *probes*, and closes if they succeed.
//!
//! # Around a router
//! An open circuit around a whole router pauses the worker. The worker fetches nothing, so no
//! attempts are used up. Other workers get the messages, and may reach a database that this worker
//! cannot reach.
//!
//! ```
//! use campanile::Router;
//! use campanile_middleware::CircuitBreakerLayer;
//!
//! async fn charge() {}
//!
//! let app: Router = Router::new().task("charge", charge).layer(CircuitBreakerLayer::new());
//! ```
//!
//! # Around a client's transport
//! A client should not wait for an open circuit, but fail fast:
//!
//! ```
//! use campanile::{Client, Message, transport::memory::Memory};
//! use campanile_middleware::{CircuitBreakerLayer, TimeoutLayer, circuit_breaker::CircuitState};
//! use std::time::Duration;
//! use tower::ServiceBuilder;
//!
//! let breaker = CircuitBreakerLayer::new()
//!     .failure_rate(0.3)
//!     .window(Duration::from_secs(30))
//!     .min_calls(10)
//!     .open_for(Duration::from_secs(15))
//!     .probes(2)
//!     .fail_fast();
//! let client = Client::new(
//!     ServiceBuilder::new()
//!         .layer(breaker.clone())
//!         // Inside, so that a timeout counts as a failure.
//!         .layer(TimeoutLayer::new(Duration::from_secs(2)))
//!         .service(Memory::new()),
//! );
//! # let _ = client;
//! assert_eq!(breaker.state(), CircuitState::Closed);
//! ```
//!
//! # Failures
//! An error of the class [`Transient`](crate::Class::Transient) counts as a failure, unless
//! [`classify`](CircuitBreakerLayer::classify) decides otherwise. Other errors, such as a permanent
//! rejection or a `not_found` reply, count neither as failures nor as successes, because they do
//! not show whether the service is healthy. Dropped calls and panics do not count either, because
//! they return no outcome. With a timeout layer inside this layer, a slow call fails before its
//! caller drops it. With a `CatchPanicLayer` inside this layer, a panic becomes an error. Both
//! errors count as failures.
//!
//! A call counts only if the state of the circuit has not changed since the call began. So if a
//! call began before the circuit opened, its late failure does not open the circuit again.
//!
//! # Scope
//! All services that a layer and its clones make share one circuit. Each process has a separate
//! circuit.
//!
//! # Back-pressure
//! While the circuit is open, the service is not ready. Its callers are woken when the circuit may
//! become half open. [`serve`](campanile::serve()) asks the outermost layer for readiness before it
//! fetches. If an outer layer does not ask this layer for readiness, or if this layer is only
//! around some of the routes, the worker still fetches messages, and they wait in the worker.
//!
//! A probe is reserved when the service is ready, and released when the service or its call is
//! dropped. A worker may fetch messages that its circuit does not admit yet: more messages than
//! there are probes while the circuit is half open, and messages of a fetch during which the
//! circuit opens. They wait in the worker until the circuit admits them, and use up no attempts.
//! [`max_in_flight`](campanile::transport::Settings::max_in_flight) bounds their number. At a
//! shutdown, the worker releases tasks and requests that wait because the outermost layer is not
//! ready. The worker does not release events, or messages that wait in an inner layer. It waits for
//! them until the shutdown's [deadline](campanile::serve::Serve::shutdown_timeout). Messages that
//! still wait at the deadline are claimed by other workers when their leases end.
//!
//! With [`fail_fast`](CircuitBreakerLayer::fail_fast) the service is ready while the circuit is
//! open, and its calls fail.
//!
//! # Errors
//! With `fail_fast`, a call that is not admitted fails with [`CircuitOpen`]. Its source is tower's
//! `Overloaded`, so it counts as overload. If a handler returns this error, a task is redelivered
//! without counting the attempt, and a request is answered with `unavailable`.
//!
//! # Cancel safety
//! A call that is dropped does not count.

mod circuit;
mod service;

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use tower::{Layer, load_shed::error::Overloaded};

use self::circuit::{Circuit, CircuitConfig};
pub use self::{
    circuit::CircuitState,
    service::{CircuitBreaker, CircuitBreakerFuture},
};
use crate::class::{Class, Classifier};

/// Makes [`CircuitBreaker`] services that share one circuit. See the [module](self).
///
/// Each method that changes the circuit's settings returns a layer with a new circuit.
#[derive(Debug, Clone)]
pub struct CircuitBreakerLayer {
    circuit: Arc<Circuit>,
    classifier: Classifier,
    fail_fast: bool,
}

impl CircuitBreakerLayer {
    /// Creates a layer with the default settings. The circuit opens for 5 s if at least 20 calls
    /// ended within 10 s, and at least half of them failed. It closes after 3 successful probes.
    pub fn new() -> Self {
        Self {
            circuit: Arc::new(Circuit::new(CircuitConfig::default())),
            classifier: Classifier::default(),
            fail_fast: false,
        }
    }

    fn with(self, set: impl FnOnce(&mut CircuitConfig)) -> Self {
        let mut config = self.circuit.config();
        set(&mut config);
        Self {
            circuit: Arc::new(Circuit::new(config)),
            ..self
        }
    }

    /// Sets the fraction of failed calls at which the circuit opens. 0.5 unless set.
    ///
    /// # Panics
    /// If `part` is not a number above 0.0 and at most 1.0.
    #[must_use]
    #[track_caller]
    pub fn failure_rate(self, part: f64) -> Self {
        assert!(
            part > 0.0 && part <= 1.0,
            "the failure rate of a circuit must be above 0.0 and at most 1.0"
        );
        self.with(|config| config.failure_rate = part)
    }

    /// Sets the window: the time for which the outcome of a call counts. The window moves in steps
    /// of a tenth of its length. 10 s unless set.
    ///
    /// # Panics
    /// If `window` is shorter than 10 ms.
    #[must_use]
    #[track_caller]
    pub fn window(self, window: Duration) -> Self {
        assert!(
            window >= Duration::from_millis(10),
            "the window of a circuit must be at least 10 ms"
        );
        self.with(|config| config.window = window)
    }

    /// Sets the minimum number of calls in the window at which the circuit may open. 20 unless set.
    ///
    /// # Panics
    /// If `calls` is zero.
    #[must_use]
    #[track_caller]
    pub fn min_calls(self, calls: u32) -> Self {
        assert!(
            calls > 0,
            "the minimum of calls of a circuit must be at least 1"
        );
        self.with(|config| config.min_calls = calls)
    }

    /// Sets how long the circuit is open before it admits probes. 5 s unless set.
    ///
    /// # Panics
    /// If `time` is zero.
    #[must_use]
    #[track_caller]
    pub fn open_for(self, time: Duration) -> Self {
        assert!(!time.is_zero(), "a circuit must be open for some time");
        self.with(|config| config.open_for = time)
    }

    /// Sets the number of probes, the calls that a half-open circuit admits. If all probes succeed,
    /// the circuit closes. The first probe that fails opens it again. 3 unless set.
    ///
    /// # Panics
    /// If `probes` is zero.
    #[must_use]
    #[track_caller]
    pub fn probes(self, probes: u32) -> Self {
        assert!(probes > 0, "a circuit must have at least one probe");
        self.with(|config| config.probes = probes)
    }

    /// Classifies errors with this function instead of [`classify`](crate::class::classify). Only
    /// [`Transient`](Class::Transient) errors count as failures.
    #[must_use]
    pub fn classify(
        mut self,
        classify: impl Fn(&(dyn StdError + 'static)) -> Class + Send + Sync + 'static,
    ) -> Self {
        self.classifier = Classifier::new(classify);
        self
    }

    /// Fails calls that the circuit does not admit with [`CircuitOpen`], instead of waiting. For
    /// clients: a worker should wait.
    #[must_use]
    pub fn fail_fast(mut self) -> Self {
        self.fail_fast = true;
        self
    }

    /// Returns the current state of the circuit.
    pub fn state(&self) -> CircuitState {
        self.circuit.state()
    }
}

impl Default for CircuitBreakerLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for CircuitBreakerLayer {
    type Service = CircuitBreaker<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CircuitBreaker::with_layer(inner, self.clone())
    }
}

/// The error of a call that the circuit has not admitted. Its source is tower's `Overloaded`.
#[derive(Debug)]
pub struct CircuitOpen {
    retry_after: Duration,
    overloaded: Overloaded,
}

impl CircuitOpen {
    fn new(retry_after: Duration) -> Self {
        Self {
            retry_after,
            overloaded: Overloaded::new(),
        }
    }

    /// Returns the time until the circuit admits probes. Zero if probes are running.
    pub fn retry_after(&self) -> Duration {
        self.retry_after
    }
}

impl fmt::Display for CircuitOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the circuit is open: too many calls have failed")
    }
}

impl StdError for CircuitOpen {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.overloaded)
    }
}

#[cfg(test)]
mod tests;
