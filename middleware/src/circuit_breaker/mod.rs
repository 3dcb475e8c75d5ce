//! Does not call what fails.
//!
//! A circuit counts how the calls of its service end. Where too many of them fail it *opens*: nothing
//! is called any more, so that what is down has time to come up. After a while it lets a few *probes*
//! through (it is *half open*), and closes when they succeed.
//!
//! # Around what is served
//! Around a whole router an open circuit pauses the worker: nothing is fetched, no attempt is used up,
//! and another worker that does reach its database can have the messages.
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
//! # Around what is called
//! A client should fail at once:
//!
//! ```
//! use campanile::{Client, Message, transport::memory::Memory};
//! use campanile_middleware::{CircuitBreakerLayer, TimeoutLayer, circuit_breaker::State};
//! use std::time::Duration;
//! use tower::ServiceBuilder;
//!
//! let breaker = CircuitBreakerLayer::new()
//!     .failure_rate(0.3)
//!     .window(Duration::from_secs(30))
//!     .minimum_calls(10)
//!     .open_for(Duration::from_secs(15))
//!     .probes(2)
//!     .fail_fast();
//! let client = Client::new(
//!     ServiceBuilder::new()
//!         .layer(breaker.clone())
//!         // Inside, so that what takes too long is a failure.
//!         .layer(TimeoutLayer::new(Duration::from_secs(2)))
//!         .service(Memory::new()),
//! );
//! # let _ = client;
//! assert_eq!(breaker.state(), State::Closed);
//! ```
//!
//! # What counts
//! A failure is an error of the class [`Transient`](crate::Class::Transient), unless
//! [`classify`](CircuitBreakerLayer::classify) says otherwise. What the message is to blame for (a
//! permanent rejection), or an answer like `not_found`, counts neither way: it says nothing about
//! what stands behind. So do calls that are dropped, and panics: a
//! time-out and a `CatchPanicLayer` belong inside.
//!
//! A call counts for the circuit as it was when the call began: the late failures of calls from before
//! it opened do not open it again.
//!
//! # Scope
//! A layer has one circuit, which all the services that it makes and all clones of it share. Each
//! process has its own: it is about what *this* one reaches.
//!
//! # Back-pressure
//! While the circuit is open the service is not ready, and wakes whoever waits when it is half open.
//! [`serve`](campanile::serve()) asks the outermost layer before it fetches. Deeper inside, or beside
//! routes that stand outside of the layer, messages are fetched and wait in their tasks.
//!
//! A probe is reserved when the service is ready, and given back when that service or its call is
//! dropped. A worker whose circuit is half open fetches a batch, as it cannot know how many will be
//! let through, and one that is waiting for messages when its circuit opens takes those that come
//! first. What is not let through waits in its task, under its lease, until the circuit closes; no
//! attempt is used up. [`max_in_flight`](campanile::transport::Settings::max_in_flight) bounds how
//! many those are. A shutdown waits for them up to its
//! [deadline](campanile::serve::Serve::shutdown_deadline), then they come back when their lease ends.
//!
//! With [`fail_fast`](CircuitBreakerLayer::fail_fast) it is always ready while it lets nothing through.
//!
//! # Errors
//! With `fail_fast`: [`CircuitOpen`]. It has tower's `Overloaded` as its source, so it means what
//! overload means. A task whose handler passes it on is redelivered and the attempt not counted, a
//! request is answered `unavailable`.
//!
//! # Cancel safety
//! A call that is dropped does not count.

mod circuit;
mod service;

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use tower::{Layer, load_shed::error::Overloaded};

use self::circuit::{Circuit, Rules};
pub use self::{
    circuit::State,
    service::{CircuitBreaker, CircuitBreakerFuture},
};
use crate::class::{Class, Classifier};

/// Makes [`CircuitBreaker`] services, which share one circuit. See the [module](self).
///
/// Each method that changes a rule gives a layer with a new circuit.
#[derive(Debug, Clone)]
pub struct CircuitBreakerLayer {
    circuit: Arc<Circuit>,
    classifier: Classifier,
    fail_fast: bool,
}

impl CircuitBreakerLayer {
    /// A circuit that opens for 5 s when of at least 20 calls within 10 s half have failed, and closes
    /// after 3 successful probes.
    pub fn new() -> Self {
        Self {
            circuit: Arc::new(Circuit::new(Rules::default())),
            classifier: Classifier::default(),
            fail_fast: false,
        }
    }

    fn with(self, set: impl FnOnce(&mut Rules)) -> Self {
        let mut rules = self.circuit.rules();
        set(&mut rules);
        Self {
            circuit: Arc::new(Circuit::new(rules)),
            ..self
        }
    }

    /// Which part of the calls has to fail to open the circuit. 0.5 unless set.
    ///
    /// # Panics
    /// When it is not above 0.0 and at most 1.0.
    #[must_use]
    #[track_caller]
    pub fn failure_rate(self, part: f64) -> Self {
        assert!(
            part > 0.0 && part <= 1.0,
            "the failure rate of a circuit must be above 0.0 and at most 1.0"
        );
        self.with(|rules| rules.failure_rate = part)
    }

    /// For how long a call is remembered, to a tenth. 10 s unless set.
    ///
    /// # Panics
    /// When it is shorter than 10 ms.
    #[must_use]
    #[track_caller]
    pub fn window(self, window: Duration) -> Self {
        assert!(
            window >= Duration::from_millis(10),
            "the window of a circuit must be at least 10 ms"
        );
        self.with(|rules| rules.window = window)
    }

    /// How many calls have to be in the window before their rate means anything. 20 unless set.
    ///
    /// # Panics
    /// When it is zero.
    #[must_use]
    #[track_caller]
    pub fn minimum_calls(self, calls: u32) -> Self {
        assert!(
            calls > 0,
            "the minimum of calls of a circuit must be at least 1"
        );
        self.with(|rules| rules.minimum_calls = calls)
    }

    /// How long it stays open before it lets probes through. 5 s unless set.
    ///
    /// # Panics
    /// When it is zero.
    #[must_use]
    #[track_caller]
    pub fn open_for(self, time: Duration) -> Self {
        assert!(!time.is_zero(), "a circuit must be open for some time");
        self.with(|rules| rules.open_for = time)
    }

    /// How many calls a half open circuit lets through at once, and how many have to succeed to close
    /// it. The first that fails opens it again. 3 unless set.
    ///
    /// # Panics
    /// When it is zero.
    #[must_use]
    #[track_caller]
    pub fn probes(self, probes: u32) -> Self {
        assert!(probes > 0, "a circuit must have at least one probe");
        self.with(|rules| rules.probes = probes)
    }

    /// Which errors are failures: those of the class [`Transient`](Class::Transient). In place of
    /// [`classify`](crate::class::classify).
    #[must_use]
    pub fn classify(
        mut self,
        classify: impl Fn(&(dyn StdError + 'static)) -> Class + Send + Sync + 'static,
    ) -> Self {
        self.classifier = Classifier::new(classify);
        self
    }

    /// Fails calls with [`CircuitOpen`] at once while it lets nothing through, and is ready for that.
    /// For what is called; a worker should pause.
    #[must_use]
    pub fn fail_fast(mut self) -> Self {
        self.fail_fast = true;
        self
    }

    /// How the circuit is now, for metrics and probes.
    pub fn state(&self) -> State {
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
        CircuitBreaker::new(
            inner,
            self.circuit.clone(),
            self.classifier.clone(),
            self.fail_fast,
        )
    }
}

/// That nothing was called, as the circuit is open. Its source is tower's `Overloaded`.
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

    /// How long until probes are let through; zero where those are under way already.
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
