//! The policy that retries within a delivery or a call.

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use campanile::{
    BoxError, Error, Failure, Message, Reply, error::find, message::EscapedText, transport::Backoff,
};
use tokio::time::{Sleep, sleep};
use tower::{
    retry::{Policy, budget::Budget},
    timeout::error::Elapsed,
};

use crate::class::{Class, Classifier};

/// A policy for tower's [`Retry`](tower::retry::Retry), with a back-off between tries. See the
/// [module](super).
#[derive(Clone)]
pub struct RetryPolicy {
    config: Arc<RetryConfig>,
    /// The number of failed tries of this message.
    failed_tries: u32,
}

#[derive(Clone)]
struct RetryConfig {
    tries: u32,
    backoff: Backoff,
    classifier: Classifier,
    budget: Option<Arc<dyn Budget + Send + Sync>>,
}

impl RetryPolicy {
    /// Creates a policy that tries each message up to `tries` times, including the first.
    ///
    /// # Panics
    /// If `tries` is zero.
    #[track_caller]
    pub fn new(tries: u32) -> Self {
        assert!(tries > 0, "a retry policy must have at least one try");
        Self {
            config: Arc::new(RetryConfig {
                tries,
                backoff: Backoff::exponential(Duration::from_millis(50), Duration::from_secs(1)),
                classifier: Classifier::default(),
                budget: None,
            }),
            failed_tries: 0,
        }
    }

    fn with(mut self, set: impl FnOnce(&mut RetryConfig)) -> Self {
        set(Arc::make_mut(&mut self.config));
        self
    }

    /// Sets the wait between tries. From 50 ms, doubling up to 1 s, unless set.
    #[must_use]
    pub fn backoff(self, backoff: Backoff) -> Self {
        self.with(|config| config.backoff = backoff)
    }

    /// Sets a retry budget that all messages share. Each retry withdraws from the budget, and each
    /// success deposits into it. While the budget is empty nothing is retried, so that retries do
    /// not multiply the load on a service that is down. No budget unless set.
    #[must_use]
    pub fn budget(self, budget: impl Budget + Send + Sync + 'static) -> Self {
        self.with(|config| config.budget = Some(Arc::new(budget)))
    }

    /// Classifies errors with this function instead of [`classify`](crate::class::classify). Only
    /// [`Transient`](Class::Transient) errors are retried.
    #[must_use]
    pub fn classify(
        self,
        classify: impl Fn(&(dyn StdError + 'static)) -> Class + Send + Sync + 'static,
    ) -> Self {
        self.with(|config| config.classifier = Classifier::new(classify))
    }

    /// Counts a failed try. Returns the wait before the next try, or `None` if there is no further
    /// try.
    fn next_wait(
        &mut self,
        message: &Message,
        error: &(dyn StdError + 'static),
    ) -> Option<Duration> {
        let config = &*self.config;
        self.failed_tries += 1;
        let parts = message.parts();
        let is_last = self.failed_tries >= config.tries
            || find::<Failure>(error).is_some()
            || config.classifier.class(error) != Class::Transient
            || may_have_been_sent(message, error)
            || parts.lease.as_ref().is_some_and(|lease| lease.is_lost());
        if is_last {
            return None;
        }
        let wait = config.backoff.after(self.failed_tries);
        let too_late = parts.deadline.is_some_and(|d| d.remaining() <= wait);
        let budget_is_empty = || {
            config
                .budget
                .as_ref()
                .is_some_and(|budget| !budget.withdraw())
        };
        if too_late || budget_is_empty() {
            return None;
        }
        let (name, failed) = (EscapedText::new(message.name()), self.failed_tries);
        let error = error.to_string();
        let error = EscapedText::new(&error);
        tracing::debug!(%name, failed, ?wait, %error, "retrying in place");
        Some(wait)
    }

    fn succeeded(&self) {
        if let Some(budget) = &self.config.budget {
            budget.deposit();
        }
    }

    /// Returns a copy of the message if a failure of the next try could be retried.
    fn copy(&self, message: &Message) -> Option<Message> {
        (self.failed_tries + 1 < self.config.tries).then(|| message.clone())
    }
}

/// Returns `true` if the transport may have accepted the message, so that a retry could store it
/// twice. A message with an id was delivered by a transport. A retry handles such a message again,
/// and sends nothing.
fn may_have_been_sent(message: &Message, error: &(dyn StdError + 'static)) -> bool {
    let parts = message.parts();
    let is_sending = parts.id.is_none() && parts.idempotency_key.is_none();
    let may_be_stored =
        |error: &Error| error.is_unknown_outcome() || error.is_unreplicated() || error.is_timeout();
    // A timeout layer may end the call after the message was sent.
    is_sending
        && (find::<Elapsed>(error).is_some() || find::<Error>(error).is_some_and(may_be_stored))
}

/// Implements [`Policy`] for an error type. Other error types need tower's `map_err`.
macro_rules! policy_for {
    ($type:ty, |$error:ident| $as_dyn:expr) => {
        impl Policy<Message, Reply, $type> for RetryPolicy {
            type Future = Sleep;

            fn retry(
                &mut self,
                message: &mut Message,
                outcome: &mut Result<Reply, $type>,
            ) -> Option<Sleep> {
                match outcome {
                    Err($error) => self.next_wait(message, $as_dyn).map(sleep),
                    Ok(_) => {
                        self.succeeded();
                        None
                    }
                }
            }

            fn clone_request(&mut self, message: &Message) -> Option<Message> {
                self.copy(message)
            }
        }
    };
}

policy_for!(BoxError, |error| &**error);
policy_for!(Error, |error| error);

impl fmt::Debug for RetryPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryPolicy")
            .field("tries", &self.config.tries)
            .field("backoff", &self.config.backoff)
            .field("classifier", &self.config.classifier)
            .field("budget", &self.config.budget.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use campanile::{Deadline, Lease, Rejection};
    use tokio::time::Instant;
    use tower::{
        Layer, ServiceExt,
        retry::{RetryLayer, budget::TpsBudget},
        service_fn,
    };

    use super::*;
    use crate::{
        mocks::{readiness_passes, reservations_are_released},
        panics::panic_text,
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn policy(tries: u32) -> RetryPolicy {
        let backoff = Backoff::exponential(SECOND, 10 * SECOND).jitter(0.0);
        RetryPolicy::new(tries).backoff(backoff)
    }

    /// Calls a service that always fails. Returns the number of tries and the total duration.
    async fn tries<E>(
        policy: RetryPolicy,
        message: Message,
        fail: impl Fn() -> E + Clone,
    ) -> (u32, Duration)
    where
        RetryPolicy: Policy<Message, Reply, E>,
    {
        let count = Arc::new(AtomicU32::new(0));
        let counted = count.clone();
        let service = RetryLayer::new(policy).layer(service_fn(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            std::future::ready(Err::<Reply, E>(fail()))
        }));
        let started = Instant::now();
        assert!(service.oneshot(message).await.is_err());
        (count.load(Ordering::SeqCst), started.elapsed())
    }

    fn task() -> Message {
        Message::task("a", "")
    }

    fn disk_full() -> BoxError {
        "disk full".into()
    }

    #[tokio::test(start_paused = true)]
    async fn a_transient_error_is_retried_with_growing_waits_up_to_the_number_of_tries() {
        let seen = tries(policy(4), task(), disk_full).await;
        assert_eq!(seen, (4, 7 * SECOND));
        assert_eq!(
            tries(policy(1), task(), disk_full).await,
            (1, Duration::ZERO)
        );
        let seen = tries(policy(2), task(), || Error::disconnected("")).await;
        assert_eq!(seen, (2, SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_success_ends_the_retries() {
        let calls = Arc::new(AtomicU32::new(0));
        let service = RetryLayer::new(policy(5)).layer(service_fn(|_: Message| {
            let calls = calls.clone();
            async move {
                match calls.fetch_add(1, Ordering::SeqCst) {
                    0 | 1 => Err(disk_full()),
                    _ => Ok(Reply::new("done")),
                }
            }
        }));
        assert_eq!(service.oneshot(task()).await.unwrap().payload, "done");
        assert_eq!(calls.load(Ordering::SeqCst), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn permanent_and_lasting_errors_are_not_retried() {
        let once = (1, Duration::ZERO);
        let permanent = || BoxError::from(Rejection::permanent("no JSON"));
        assert_eq!(tries(policy(4), task(), permanent).await, once);
        let lasting = || BoxError::from(Rejection::ordinary("no layer"));
        assert_eq!(tries(policy(4), task(), lasting).await, once);
        let own = policy(4).classify(|_| Class::Permanent);
        assert_eq!(tries(own, task(), disk_full).await, once);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_not_retried() {
        let later = || BoxError::from(Failure::redeliver_after(SECOND).because("x"));
        assert_eq!(tries(policy(4), task(), later).await.0, 1);
        let own = policy(4).classify(|_| Class::Transient);
        assert_eq!(tries(own, task(), later).await.0, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_is_not_retried_after_its_deadline_or_without_its_lease() {
        let mut message = task();
        message.parts_mut().deadline = Some(Deadline::after(5 * SECOND));
        // After 1 s and 2 s; a third wait of 4 s would end after the deadline.
        assert_eq!(tries(policy(9), message, disk_full).await, (3, 3 * SECOND));
        let mut message = task();
        let lease = Lease::new();
        lease.lose();
        message.parts_mut().lease = Some(lease);
        assert_eq!(tries(policy(9), message, disk_full).await.0, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_may_be_stored_is_retried_only_with_an_idempotency_key() {
        let unknown = || Error::unknown_outcome("lost");
        assert_eq!(tries(policy(3), task(), unknown).await.0, 1);
        let late = || BoxError::from(Error::timeout("late"));
        assert_eq!(tries(policy(3), task(), late).await.0, 1);
        let given_up = || BoxError::from(Elapsed::new());
        assert_eq!(tries(policy(3), task(), given_up).await.0, 1);
        let stored = || Error::unreplicated("1-0".into(), "no replica has it");
        assert_eq!(tries(policy(3), task(), stored).await.0, 1);
        let mut keyed = task();
        keyed.parts_mut().idempotency_key = Some("k".into());
        assert_eq!(tries(policy(3), keyed, unknown).await.0, 3);
        // A message with an id is handled again, even if the error comes from a call that its
        // handler made.
        let mut delivered = task();
        delivered.parts_mut().id = Some("1-0".into());
        assert_eq!(tries(policy(3), delivered.clone(), unknown).await.0, 3);
        assert_eq!(tries(policy(3), delivered, given_up).await.0, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_is_shared_by_all_messages() {
        // No reserve, and one retry for each success.
        let budget = TpsBudget::new(10 * SECOND, 0, 1.0);
        let policy = policy(5).budget(budget);
        assert_eq!(tries(policy.clone(), task(), disk_full).await.0, 1);
        let well = service_fn(|_| std::future::ready(Ok::<_, BoxError>(Reply::default())));
        let well = RetryLayer::new(policy.clone()).layer(well);
        well.oneshot(task()).await.unwrap();
        assert_eq!(tries(policy.clone(), task(), disk_full).await.0, 2);
        assert_eq!(tries(policy, task(), disk_full).await.0, 1);
    }

    #[test]
    fn readiness_and_reservations_of_the_inner_service_pass() {
        readiness_passes(&RetryLayer::new(policy(2)));
        reservations_are_released(&RetryLayer::new(policy(2)));
    }

    #[test]
    fn a_policy_without_a_try_panics_at_the_callers_location() {
        let text = panic_text(|| RetryPolicy::new(0));
        assert_eq!(text, "a retry policy must have at least one try");
    }
}
