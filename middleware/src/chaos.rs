//! Injects faults for tests: failures, delays, panics and duplicates.
//!
//! Each fault has a probability, and a seed decides which messages have the fault. With the same
//! seed, the n-th message of a layer has the same faults in every run.
//!
//! ```
//! use campanile::{Client, Router};
//! use campanile_middleware::ChaosLayer;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let app = Router::new().rpc("a", async || "done").layer(ChaosLayer::new(7).fail(1.0));
//! let error = Client::new(app).request::<String>("a", "").await.unwrap_err();
//! assert!(campanile::error::find::<campanile_middleware::chaos::ChaosError>(&error).is_some());
//! # }
//! ```
//! This layer injects all kinds of faults. An application that retries must still finish each task:
//!
//! ```
//! use campanile::Router;
//! use campanile_middleware::ChaosLayer;
//! use std::time::Duration;
//!
//! let app: Router = Router::new().task("a", async || {}).layer(
//!     ChaosLayer::new(7)
//!         .delay(0.5, Duration::from_millis(1), Duration::from_millis(50))
//!         .fail(0.1)
//!         .panic(0.01)
//!         .duplicate(0.2),
//! );
//! ```
//!
//! # Ordering
//! The random numbers are drawn in the order of the calls. If several threads make the calls, their
//! order may differ between runs, so the faults may hit different messages. If a fault is added to
//! the layer, its other faults still hit the same messages.
//!
//! The delay comes first. Then the call panics, fails, or handles the message once or twice.
//!
//! # Delivery guarantee
//! A duplicated message is handled twice, one run after the other, as happens after a lost
//! acknowledgement. The outcome of the first run is dropped, and the outcome of the second run is
//! returned.
//!
//! # Back-pressure
//! Before a message is handled a second time, it waits until the inner service is ready.
//!
//! # Errors
//! The error of an injected failure is [`ChaosError`].
//!
//! # Panics
//! The future panics with the probability that [`ChaosLayer::panic`] sets.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use campanile::{BoxError, Message, MessageService, Reply};
use fastrand::Rng;
use tower::{Layer, Service};

use crate::sync::lock;

/// Makes [`Chaos`] services. See the [module](self).
///
/// All services of a layer and its clones draw from one sequence of random numbers.
#[derive(Debug, Clone)]
pub struct ChaosLayer {
    settings: FaultSettings,
    rng: Arc<Mutex<Rng>>,
}

/// The probability of each fault, and the range of delays.
#[derive(Debug, Clone, Copy, Default)]
struct FaultSettings {
    delay_probability: f64,
    min_delay: Duration,
    max_delay: Duration,
    panic_probability: f64,
    fail_probability: f64,
    duplicate_probability: f64,
}

impl ChaosLayer {
    /// Creates a layer with this seed and no faults.
    pub fn new(seed: u64) -> Self {
        Self {
            settings: FaultSettings::default(),
            rng: Arc::new(Mutex::new(Rng::with_seed(seed))),
        }
    }

    /// Fails a message with this probability, before it is handled.
    ///
    /// # Panics
    /// If the probability is not between 0.0 and 1.0.
    #[must_use]
    #[track_caller]
    pub fn fail(mut self, probability: f64) -> Self {
        self.settings.fail_probability = check_probability(probability);
        self
    }

    /// Delays a message with this probability, for a random time in this range.
    ///
    /// # Panics
    /// If the probability is not between 0.0 and 1.0, or `longest` is shorter than `shortest`.
    #[must_use]
    #[track_caller]
    pub fn delay(mut self, probability: f64, shortest: Duration, longest: Duration) -> Self {
        assert!(
            longest >= shortest,
            "the longest delay must not be shorter than the shortest"
        );
        self.settings.delay_probability = check_probability(probability);
        self.settings.min_delay = shortest;
        self.settings.max_delay = longest;
        self
    }

    /// Panics with this probability, before the message is handled.
    ///
    /// # Panics
    /// If the probability is not between 0.0 and 1.0.
    #[must_use]
    #[track_caller]
    pub fn panic(mut self, probability: f64) -> Self {
        self.settings.panic_probability = check_probability(probability);
        self
    }

    /// Handles a message twice with this probability.
    ///
    /// # Panics
    /// If the probability is not between 0.0 and 1.0.
    #[must_use]
    #[track_caller]
    pub fn duplicate(mut self, probability: f64) -> Self {
        self.settings.duplicate_probability = check_probability(probability);
        self
    }
}

#[track_caller]
fn check_probability(probability: f64) -> f64 {
    assert!(
        (0.0..=1.0).contains(&probability),
        "a probability must be between 0.0 and 1.0"
    );
    probability
}

impl<S> Layer<S> for ChaosLayer {
    type Service = Chaos<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let layer = self.clone();
        Chaos { inner, layer }
    }
}

/// The faults of one message.
struct Faults {
    delay: Option<Duration>,
    panic: bool,
    fail: bool,
    duplicate: bool,
}

impl FaultSettings {
    /// Draws the faults of a message. Every message uses five random numbers, also for faults that
    /// the layer does not have. So a fault that is added to the layer does not change which
    /// messages have the other faults.
    fn draw(&self, rng: &mut Rng) -> Faults {
        let mut hits = |probability| rng.f64() < probability;
        let (is_delayed, panic) = (hits(self.delay_probability), hits(self.panic_probability));
        let (fail, duplicate) = (
            hits(self.fail_probability),
            hits(self.duplicate_probability),
        );
        let range = self.max_delay - self.min_delay;
        let delay = self.min_delay + range.mul_f64(rng.f64()).min(range);
        Faults {
            delay: is_delayed.then_some(delay),
            panic,
            fail,
            duplicate,
        }
    }
}

/// A service that injects faults. See the [module](self).
#[derive(Debug, Clone)]
pub struct Chaos<S> {
    inner: S,
    layer: ChaosLayer,
}

impl<S> Chaos<S> {
    /// Wraps a service without faults: every message passes unchanged. Faults can be set only on a
    /// [`ChaosLayer`].
    pub fn new(inner: S, seed: u64) -> Self {
        ChaosLayer::new(seed).layer(inner)
    }
}

inner_accessors!(Chaos<S>);

impl<S> Service<Message> for Chaos<S>
where
    S: MessageService + Clone + Send + 'static,
{
    type Response = Reply;
    type Error = BoxError;
    type Future = ChaosFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, message: Message) -> ChaosFuture {
        let mut rng = lock(&self.layer.rng);
        let faults = self.layer.settings.draw(&mut rng);
        drop(rng);
        // The future takes the ready service. The clone that stays has no reservation.
        let clone = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, clone);
        ChaosFuture(Box::pin(call_with_faults(faults, inner, message)))
    }
}

async fn call_with_faults<S>(
    faults: Faults,
    mut inner: S,
    message: Message,
) -> Result<Reply, BoxError>
where
    S: MessageService,
{
    if let Some(delay) = faults.delay {
        tokio::time::sleep(delay).await;
    }
    if faults.panic {
        panic!("an injected panic");
    }
    if faults.fail {
        return Err(ChaosError.into());
    }
    if faults.duplicate {
        let lost = inner.call(message.clone()).await;
        drop(lost);
        poll_fn(|cx| inner.poll_ready(cx))
            .await
            .map_err(Into::into)?;
    }
    inner.call(message).await.map_err(Into::into)
}

/// The future of [`Chaos`].
pub struct ChaosFuture(Pin<Box<dyn Future<Output = Result<Reply, BoxError>> + Send>>);

impl Future for ChaosFuture {
    type Output = Result<Reply, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for ChaosFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChaosFuture").finish_non_exhaustive()
    }
}

/// The error of a message that fails because of a [`ChaosLayer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChaosError;

impl fmt::Display for ChaosError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an injected fault")
    }
}

impl std::error::Error for ChaosError {}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::Instant;
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::{
        mocks::{readiness_passes, reservations_are_released},
        panics::panic_text,
    };

    const SECOND: Duration = Duration::from_secs(1);

    /// Sends a hundred messages through the layer. Returns for each message how often it was
    /// handled, its outcome and its duration.
    async fn hundred_outcomes(layer: &ChaosLayer) -> Vec<(u32, &'static str, Duration)> {
        let handled = Arc::new(AtomicU32::new(0));
        let count = handled.clone();
        let service = layer.layer(service_fn(move |_: Message| {
            count.fetch_add(1, Ordering::SeqCst);
            std::future::ready(Ok::<_, BoxError>(Reply::default()))
        }));
        let mut outcomes = Vec::new();
        for _ in 0..100 {
            let started = Instant::now();
            let call = service.clone().oneshot(Message::task("a", ""));
            let outcome = match tokio::spawn(call).await {
                Ok(Ok(_)) => "done",
                Ok(Err(error)) if error.is::<ChaosError>() => "failed",
                Ok(Err(error)) => panic!("{error}"),
                Err(ended) if ended.is_panic() => "panicked",
                Err(ended) => panic!("{ended}"),
            };
            outcomes.push((
                handled.swap(0, Ordering::SeqCst),
                outcome,
                started.elapsed(),
            ));
        }
        outcomes
    }

    fn all() -> ChaosLayer {
        ChaosLayer::new(7)
            .delay(0.5, SECOND, 9 * SECOND)
            .panic(0.1)
            .fail(0.3)
            .duplicate(0.5)
    }

    #[tokio::test(start_paused = true)]
    async fn each_fault_hits_some_messages_and_the_same_ones_in_every_run() {
        let outcomes = hundred_outcomes(&all()).await;
        assert_eq!(outcomes, hundred_outcomes(&all()).await);
        let count =
            |is: fn(&(u32, &str, Duration)) -> bool| outcomes.iter().filter(|f| is(f)).count();
        let failed = count(|outcome| outcome.1 == "failed");
        assert!((10..=45).contains(&failed), "{failed}");
        let panicked = count(|outcome| outcome.1 == "panicked");
        assert!((2..=25).contains(&panicked), "{panicked}");
        let twice = count(|outcome| outcome.0 == 2);
        assert!((10..=55).contains(&twice), "{twice}");
        let late = count(|outcome| outcome.2 >= SECOND && outcome.2 <= 9 * SECOND);
        assert!((30..=70).contains(&late), "{late}");
        assert_eq!(late + count(|outcome| outcome.2.is_zero()), 100);
        assert_eq!(count(|outcome| outcome.1 != "done" && outcome.0 > 0), 0);
        let other = ChaosLayer {
            rng: ChaosLayer::new(8).rng,
            ..all()
        };
        assert_ne!(outcomes, hundred_outcomes(&other).await);
    }

    #[tokio::test(start_paused = true)]
    async fn another_fault_does_not_change_which_messages_the_others_hit() {
        let failed = |outcomes: Vec<(u32, &'static str, Duration)>| -> Vec<usize> {
            let hits = outcomes.iter().enumerate();
            hits.filter(|(_, outcome)| outcome.1 == "failed")
                .map(|(n, _)| n)
                .collect()
        };
        let alone = failed(hundred_outcomes(&ChaosLayer::new(7).fail(0.3)).await);
        let beside = all().panic(0.0).duplicate(0.9);
        assert_eq!(alone, failed(hundred_outcomes(&beside).await));
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_faults_that_are_set_happen() {
        let untouched = (1, "done", Duration::ZERO);
        assert_eq!(
            hundred_outcomes(&ChaosLayer::new(7)).await,
            vec![untouched; 100]
        );
        let always = ChaosLayer::new(7).delay(1.0, SECOND, SECOND).duplicate(1.0);
        assert_eq!(
            hundred_outcomes(&always).await,
            vec![(2, "done", SECOND); 100]
        );
    }

    #[test]
    fn readiness_and_reservations_of_the_inner_service_pass() {
        readiness_passes(&ChaosLayer::new(7));
        reservations_are_released(&ChaosLayer::new(7));
    }

    #[test]
    fn invalid_numbers_panic_at_the_callers_location() {
        let layer = || ChaosLayer::new(7);
        for probability in [-0.1, 1.1, f64::NAN] {
            let texts = [
                panic_text(|| layer().fail(probability)),
                panic_text(|| layer().panic(probability)),
                panic_text(|| layer().duplicate(probability)),
                panic_text(|| layer().delay(probability, SECOND, SECOND)),
            ];
            assert_eq!(texts, ["a probability must be between 0.0 and 1.0"; 4]);
        }
        let text = panic_text(|| layer().delay(0.5, 2 * SECOND, SECOND));
        assert_eq!(
            text,
            "the longest delay must not be shorter than the shortest"
        );
    }
}
