//! Faults on purpose, for tests: what fails, is late, panics and is done twice.
//!
//! Each fault has a probability, and a seed decides which messages it hits: the n-th message of a
//! layer has the same fate in every run.
//!
//! ```
//! use campanile::{Client, Router};
//! use campanile_middleware::ChaosLayer;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let app = Router::new().rpc("a", async || "done").layer(ChaosLayer::new(7).fail(1.0));
//! let error = Client::new(app).request::<String>("a", "").await.unwrap_err();
//! assert!(campanile::error::find::<campanile_middleware::chaos::Fault>(&error).is_some());
//! # }
//! ```
//!
//! A bit of everything, behind which tasks still have to be done:
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
//! The seed's choices are made call by call. Where messages are called in another order, by chance of
//! threads, they change fates with each other. Adding a fault to a layer does not change which
//! messages the others hit.
//!
//! A message is first delayed; then it panics, or it fails; only what does neither is handled, once or
//! twice.
//!
//! # Delivery guarantee
//! A message that is duplicated is handled twice, one after the other, as after a lost
//! acknowledgement: the first outcome is lost, the second one counts.
//!
//! # Back-pressure
//! The second time the message waits for the inner service to be ready again.
//!
//! # Errors
//! [`Fault`].
//!
//! # Panics
//! In the future, where asked for.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use campanile::{BoxError, Message, Reply};
use fastrand::Rng;
use tower::{Layer, Service};

/// Makes [`Chaos`] services. See the [module](self).
///
/// All of them, and those of its clones, take from one sequence of choices.
#[derive(Debug, Clone)]
pub struct ChaosLayer {
    odds: Odds,
    dice: Arc<Mutex<Rng>>,
}

/// The probabilities.
#[derive(Debug, Clone, Copy, Default)]
struct Odds {
    delay: f64,
    shortest: Duration,
    longest: Duration,
    panic: f64,
    fail: f64,
    duplicate: f64,
}

impl ChaosLayer {
    /// A layer that does nothing yet, with this seed.
    pub fn new(seed: u64) -> Self {
        Self {
            odds: Odds::default(),
            dice: Arc::new(Mutex::new(Rng::with_seed(seed))),
        }
    }

    /// Fails messages with this probability, before they are handled.
    ///
    /// # Panics
    /// When it is not between 0.0 and 1.0.
    #[must_use]
    #[track_caller]
    pub fn fail(mut self, probability: f64) -> Self {
        self.odds.fail = checked(probability);
        self
    }

    /// Holds messages up with this probability, for a time between these two.
    ///
    /// # Panics
    /// When the probability is not between 0.0 and 1.0, or the longest time is shorter than the
    /// shortest.
    #[must_use]
    #[track_caller]
    pub fn delay(mut self, probability: f64, shortest: Duration, longest: Duration) -> Self {
        assert!(
            longest >= shortest,
            "the longest delay must not be shorter than the shortest"
        );
        self.odds.delay = checked(probability);
        self.odds.shortest = shortest;
        self.odds.longest = longest;
        self
    }

    /// Panics with this probability, before the message is handled.
    ///
    /// # Panics
    /// When it is not between 0.0 and 1.0.
    #[must_use]
    #[track_caller]
    pub fn panic(mut self, probability: f64) -> Self {
        self.odds.panic = checked(probability);
        self
    }

    /// Handles messages twice with this probability.
    ///
    /// # Panics
    /// When it is not between 0.0 and 1.0.
    #[must_use]
    #[track_caller]
    pub fn duplicate(mut self, probability: f64) -> Self {
        self.odds.duplicate = checked(probability);
        self
    }
}

#[track_caller]
fn checked(probability: f64) -> f64 {
    assert!(
        (0.0..=1.0).contains(&probability),
        "a probability must be between 0.0 and 1.0"
    );
    probability
}

impl<S> Layer<S> for ChaosLayer {
    type Service = Chaos<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Chaos {
            inner,
            odds: self.odds,
            dice: self.dice.clone(),
        }
    }
}

/// What happens to one message.
struct Fate {
    delay: Option<Duration>,
    panic: bool,
    fail: bool,
    duplicate: bool,
}

impl Odds {
    /// Always as many throws, so that one fault does not change the others.
    fn fate(&self, dice: &mut Rng) -> Fate {
        let mut hits = |probability| dice.f64() < probability;
        let (delay, panic) = (hits(self.delay), hits(self.panic));
        let (fail, duplicate) = (hits(self.fail), hits(self.duplicate));
        let extent = self.longest - self.shortest;
        let length = self.shortest + extent.mul_f64(dice.f64()).min(extent);
        Fate {
            delay: delay.then_some(length),
            panic,
            fail,
            duplicate,
        }
    }
}

/// A service with faults. See the [module](self).
#[derive(Debug, Clone)]
pub struct Chaos<S> {
    inner: S,
    odds: Odds,
    dice: Arc<Mutex<Rng>>,
}

impl<S> Service<Message> for Chaos<S>
where
    S: Service<Message, Response = Reply, Error: Into<BoxError> + Send, Future: Send>
        + Clone
        + Send
        + 'static,
{
    type Response = Reply;
    type Error = BoxError;
    type Future = ChaosFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, message: Message) -> ChaosFuture {
        let mut dice = self.dice.lock().unwrap_or_else(PoisonError::into_inner);
        let fate = self.odds.fate(&mut dice);
        drop(dice);
        // The one that is ready goes with the message.
        let fresh = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, fresh);
        ChaosFuture(Box::pin(suffer(fate, inner, message)))
    }
}

async fn suffer<S>(fate: Fate, mut inner: S, message: Message) -> Result<Reply, BoxError>
where
    S: Service<Message, Response = Reply, Error: Into<BoxError>>,
{
    if let Some(delay) = fate.delay {
        tokio::time::sleep(delay).await;
    }
    if fate.panic {
        panic!("a panic on purpose");
    }
    if fate.fail {
        return Err(Fault.into());
    }
    if fate.duplicate {
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

/// The error of a message that a [`ChaosLayer`] has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault;

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a fault on purpose")
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::Instant;
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::mocks::{mistake, readiness_passes, reservations_are_released};

    const SECOND: Duration = Duration::from_secs(1);

    /// What becomes of each of a hundred messages: how often it is handled, what comes of it, and
    /// after how long.
    async fn hundred(layer: &ChaosLayer) -> Vec<(u32, &'static str, Duration)> {
        let handled = Arc::new(AtomicU32::new(0));
        let count = handled.clone();
        let service = layer.layer(service_fn(move |_: Message| {
            count.fetch_add(1, Ordering::SeqCst);
            std::future::ready(Ok::<_, BoxError>(Reply::default()))
        }));
        let mut fates = Vec::new();
        for _ in 0..100 {
            let started = Instant::now();
            let call = service.clone().oneshot(Message::task("a", ""));
            let outcome = match tokio::spawn(call).await {
                Ok(Ok(_)) => "done",
                Ok(Err(error)) if error.is::<Fault>() => "failed",
                Ok(Err(error)) => panic!("{error}"),
                Err(ended) if ended.is_panic() => "panicked",
                Err(ended) => panic!("{ended}"),
            };
            fates.push((
                handled.swap(0, Ordering::SeqCst),
                outcome,
                started.elapsed(),
            ));
        }
        fates
    }

    fn all() -> ChaosLayer {
        ChaosLayer::new(7)
            .delay(0.5, SECOND, 9 * SECOND)
            .panic(0.1)
            .fail(0.3)
            .duplicate(0.5)
    }

    #[tokio::test(start_paused = true)]
    async fn each_fault_hits_some_and_the_same_in_every_run() {
        let fates = hundred(&all()).await;
        assert_eq!(fates, hundred(&all()).await);
        let count = |is: fn(&(u32, &str, Duration)) -> bool| fates.iter().filter(|f| is(f)).count();
        let failed = count(|fate| fate.1 == "failed");
        assert!((10..=45).contains(&failed), "{failed}");
        let panicked = count(|fate| fate.1 == "panicked");
        assert!((2..=25).contains(&panicked), "{panicked}");
        let twice = count(|fate| fate.0 == 2);
        assert!((10..=55).contains(&twice), "{twice}");
        let late = count(|fate| fate.2 >= SECOND && fate.2 <= 9 * SECOND);
        assert!((30..=70).contains(&late), "{late}");
        assert_eq!(late + count(|fate| fate.2.is_zero()), 100);
        assert_eq!(count(|fate| fate.1 != "done" && fate.0 > 0), 0);
        let other = ChaosLayer {
            dice: ChaosLayer::new(8).dice,
            ..all()
        };
        assert_ne!(fates, hundred(&other).await);
    }

    #[tokio::test(start_paused = true)]
    async fn another_fault_does_not_change_whom_the_others_hit() {
        let failed = |fates: Vec<(u32, &'static str, Duration)>| -> Vec<usize> {
            let hits = fates.iter().enumerate();
            hits.filter(|(_, fate)| fate.1 == "failed")
                .map(|(n, _)| n)
                .collect()
        };
        let alone = failed(hundred(&ChaosLayer::new(7).fail(0.3)).await);
        let beside = all().panic(0.0).duplicate(0.9);
        assert_eq!(alone, failed(hundred(&beside).await));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_happens_unless_it_was_asked_for() {
        let untouched = (1, "done", Duration::ZERO);
        assert_eq!(hundred(&ChaosLayer::new(7)).await, vec![untouched; 100]);
        let always = ChaosLayer::new(7).delay(1.0, SECOND, SECOND).duplicate(1.0);
        assert_eq!(hundred(&always).await, vec![(2, "done", SECOND); 100]);
    }

    #[test]
    fn readiness_and_reservations_are_the_inner_services() {
        readiness_passes(&ChaosLayer::new(7));
        reservations_are_released(&ChaosLayer::new(7));
    }

    #[test]
    fn numbers_that_cannot_work_are_refused_where_they_stand() {
        let layer = || ChaosLayer::new(7);
        for odds in [-0.1, 1.1, f64::NAN] {
            let texts = [
                mistake(|| layer().fail(odds)),
                mistake(|| layer().panic(odds)),
                mistake(|| layer().duplicate(odds)),
                mistake(|| layer().delay(odds, SECOND, SECOND)),
            ];
            assert_eq!(texts, ["a probability must be between 0.0 and 1.0"; 4]);
        }
        let text = mistake(|| layer().delay(0.5, 2 * SECOND, SECOND));
        assert_eq!(
            text,
            "the longest delay must not be shorter than the shortest"
        );
    }
}
