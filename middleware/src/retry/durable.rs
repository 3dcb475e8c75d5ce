//! Retries by redelivery.

use std::{
    error::Error as StdError,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use campanile::{
    Attempt, BoxError, Deadline, Error, Failure, Kind, Message, MessageService, Reply, error::find,
    transport::Backoff,
};
use pin_project::pin_project;
use tower::{Layer, Service, load_shed::error::Overloaded};

use crate::class::{Class, Classifier};

/// Makes [`DurableRetry`] services. See the [module](super).
#[derive(Debug, Clone)]
pub struct DurableRetryLayer {
    config: Arc<DurableRetryConfig>,
}

#[derive(Debug, Clone)]
struct DurableRetryConfig {
    max_attempts: Option<u32>,
    transient_backoff: Backoff,
    lasting_backoff: Backoff,
    classifier: Classifier,
    retry_requests: bool,
}

impl DurableRetryLayer {
    /// Creates a layer that delivers a failed task again until its last attempt. After that the task
    /// is a dead letter.
    ///
    /// The number of attempts is the worker's
    /// [`max_deliveries`](campanile::transport::Settings::max_deliveries), 10 unless set. The
    /// [sender](campanile::client::Call::max_attempts) of a task may set another number for it.
    pub fn new() -> Self {
        let backoff = Backoff::exponential(Duration::from_secs(1), Duration::from_secs(300));
        Self {
            config: Arc::new(DurableRetryConfig {
                max_attempts: None,
                transient_backoff: backoff,
                lasting_backoff: backoff,
                classifier: Classifier::default(),
                retry_requests: false,
            }),
        }
    }

    fn with(mut self, set: impl FnOnce(&mut DurableRetryConfig)) -> Self {
        set(Arc::make_mut(&mut self.config));
        self
    }

    /// Lowers the number of attempts, including the first, after which a message is given up. Use
    /// this method for a layer around some of the routes. The layer cannot raise the number: to
    /// allow more attempts, raise the worker's `max_deliveries`.
    ///
    /// # Panics
    /// If `attempts` is zero.
    #[must_use]
    #[track_caller]
    pub fn max_attempts(self, attempts: u32) -> Self {
        assert!(
            attempts > 0,
            "a durable retry must have at least one attempt"
        );
        self.with(|config| config.max_attempts = Some(attempts))
    }

    /// Sets the delay before a redelivery. From 1 s, doubling up to 5 min, unless set.
    #[must_use]
    pub fn backoff(self, backoff: Backoff) -> Self {
        self.with(|config| {
            (config.transient_backoff, config.lasting_backoff) = (backoff, backoff);
        })
    }

    /// Sets the delay before a redelivery after an error of this class. Call this method after
    /// [`backoff`](Self::backoff), which sets the delay for all classes.
    ///
    /// ```
    /// use campanile::transport::Backoff;
    /// use campanile_middleware::{Class, DurableRetryLayer};
    /// use std::time::Duration;
    ///
    /// let hours = Backoff::exponential(Duration::from_secs(60), Duration::from_secs(3600));
    /// let layer = DurableRetryLayer::new().on(Class::Lasting, hours);
    /// # drop(layer);
    /// ```
    ///
    /// # Panics
    /// For [`Class::Permanent`], since such an error makes a dead letter.
    #[must_use]
    #[track_caller]
    pub fn on(self, class: Class, backoff: Backoff) -> Self {
        assert!(
            class != Class::Permanent,
            "a permanent error is not retried, so it has no delay"
        );
        self.with(|config| match class {
            Class::Lasting => config.lasting_backoff = backoff,
            _ => config.transient_backoff = backoff,
        })
    }

    /// Classifies errors with this function instead of [`classify`](crate::class::classify). Only a
    /// [`Permanent`](Class::Permanent) error makes a dead letter immediately. The function is not
    /// called for errors with a [`Failure`] in their chain of sources.
    #[must_use]
    pub fn classify(
        self,
        classify: impl Fn(&(dyn StdError + 'static)) -> Class + Send + Sync + 'static,
    ) -> Self {
        self.with(|config| config.classifier = Classifier::new(classify))
    }

    /// Also redelivers requests after [transient](Class::Transient) errors, while their callers
    /// still wait. A request is answered with the error after the last attempt, or if the
    /// redelivery would come after the deadline. The layer never makes a dead letter of a request.
    #[must_use]
    pub fn requests(self) -> Self {
        self.with(|config| config.retry_requests = true)
    }
}

impl Default for DurableRetryLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for DurableRetryLayer {
    type Service = DurableRetry<S>;

    fn layer(&self, inner: S) -> Self::Service {
        DurableRetry {
            inner,
            config: self.config.clone(),
        }
    }
}

/// A service whose failed tasks are delivered again, up to a maximum number of attempts. See the
/// [module](super).
#[derive(Debug, Clone)]
pub struct DurableRetry<S> {
    inner: S,
    config: Arc<DurableRetryConfig>,
}

impl<S> DurableRetry<S> {
    /// Wraps a service, as [`DurableRetryLayer::new`] does.
    pub fn new(inner: S) -> Self {
        DurableRetryLayer::new().layer(inner)
    }
}

inner_accessors!(DurableRetry<S>);

impl<S> Service<Message> for DurableRetry<S>
where
    S: MessageService,
{
    type Response = Reply;
    type Error = BoxError;
    type Future = DurableRetryFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, message: Message) -> Self::Future {
        let parts = message.parts();
        let delivery = Delivery {
            kind: parts.kind,
            attempt: parts.attempt,
            max_attempts: parts.max_attempts,
            deadline: parts.deadline,
        };
        DurableRetryFuture {
            work: self.inner.call(message),
            delivery,
            config: self.config.clone(),
        }
    }
}

/// The parts of a delivery that decide if the message is delivered again.
#[derive(Debug, Clone, Copy)]
struct Delivery {
    kind: Kind,
    attempt: Attempt,
    max_attempts: Option<u32>,
    deadline: Option<Deadline>,
}

impl DurableRetryConfig {
    /// Returns the lower of two limits: the layer's and the message's.
    fn limit(&self, delivery: Delivery) -> Option<u32> {
        let limits = [self.max_attempts, delivery.max_attempts];
        limits.into_iter().flatten().min()
    }

    /// Returns the error of a failed delivery, with the [`Failure`] that redelivers the message or
    /// makes a dead letter.
    fn map_error(&self, delivery: Delivery, error: BoxError) -> BoxError {
        // Errors with a `Failure` pass unchanged, because the application has decided already.
        // Overload passes unchanged, because the transport then redelivers the message without
        // counting the attempt.
        let is_overloaded = find::<Error>(&*error).is_some_and(Error::is_overloaded);
        if find::<Failure>(&*error).is_some()
            || find::<Overloaded>(&*error).is_some()
            || is_overloaded
        {
            return error;
        }
        let class = self.classifier.class(&*error);
        let attempt = delivery.attempt.0;
        let reached_limit = self.limit(delivery).filter(|limit| attempt >= *limit);
        let backoff = match class {
            Class::Lasting => self.lasting_backoff,
            _ => self.transient_backoff,
        };
        let after = backoff.after(attempt);
        match (delivery.kind, reached_limit) {
            (Kind::Task, _) if class == Class::Permanent => {
                Failure::dead_letter().because(Permanent(error))
            }
            (Kind::Task, Some(limit)) => Failure::dead_letter().because(Exhausted {
                attempt,
                limit,
                cause: error,
            }),
            (Kind::Task, None) => Failure::redeliver_after(after).because(error),
            // A request is redelivered only while its caller still waits.
            (Kind::Rpc, None) if self.retry_requests && class == Class::Transient => {
                match delivery.deadline {
                    Some(deadline) if deadline.remaining() <= after => return error,
                    _ => Failure::redeliver_after(after).because(error),
                }
            }
            _ => return error,
        }
        .into()
    }
}

/// The future of [`DurableRetry`].
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct DurableRetryFuture<W> {
    #[pin]
    work: W,
    delivery: Delivery,
    config: Arc<DurableRetryConfig>,
}

impl<W, E> Future for DurableRetryFuture<W>
where
    W: Future<Output = Result<Reply, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Reply, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let outcome = ready!(this.work.poll(cx));
        Poll::Ready(outcome.map_err(|error| this.config.map_error(*this.delivery, error.into())))
    }
}

impl<W> fmt::Debug for DurableRetryFuture<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurableRetryFuture")
            .field("delivery", &self.delivery)
            .finish_non_exhaustive()
    }
}

/// The error of a task whose last attempt failed. Its source is the error of that attempt.
#[derive(Debug)]
pub struct Exhausted {
    attempt: u32,
    limit: u32,
    cause: BoxError,
}

impl Exhausted {
    /// Returns the number of attempts at the task.
    pub fn attempts(&self) -> u32 {
        self.attempt
    }
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "given up by DurableRetryLayer after attempt {} of {}",
            self.attempt, self.limit
        )
    }
}

impl StdError for Exhausted {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.cause)
    }
}

/// The error of a task that failed with a permanent error. Its source is the permanent error.
#[derive(Debug)]
struct Permanent(BoxError);

impl fmt::Display for Permanent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("given up by DurableRetryLayer as permanent")
    }
}

impl StdError for Permanent {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.0)
    }
}

#[cfg(test)]
mod tests {
    use campanile::{Rejection, RpcError, error::FailureVerdict};

    use super::*;
    use crate::{
        mocks::{around, call, readiness_passes, reservations_are_released},
        panics::panic_text,
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn layer() -> DurableRetryLayer {
        let backoff = Backoff::exponential(SECOND, 60 * SECOND).jitter(0.0);
        DurableRetryLayer::new().max_attempts(3).backoff(backoff)
    }

    /// Returns the error of the layered service if the inner service fails with `error`.
    async fn failing(
        layer: &DurableRetryLayer,
        kind: Kind,
        attempt: u32,
        error: impl Into<BoxError>,
    ) -> BoxError {
        let mut message = Message::new(kind, "a", "");
        message.parts_mut().attempt = Attempt(attempt);
        message.parts_mut().deadline = Some(Deadline::after(3 * SECOND));
        let (mut service, mut handle) = around(layer);
        let answer = call(&mut service, message);
        let (_, respond) = handle.next_request().await.unwrap();
        respond.send_error(error);
        answer.await.unwrap_err()
    }

    fn settled(error: &BoxError) -> Option<FailureVerdict> {
        find::<Failure>(&**error).map(Failure::verdict)
    }

    fn again(after: Duration) -> Option<FailureVerdict> {
        Some(FailureVerdict::Redeliver {
            after: Some(after),
            counted: true,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_task_is_redelivered_after_its_back_off_and_is_a_dead_letter_in_the_end() {
        for (attempt, settle) in [
            (1, again(SECOND)),
            (2, again(2 * SECOND)),
            (3, Some(FailureVerdict::DeadLetter)),
            (4, Some(FailureVerdict::DeadLetter)),
        ] {
            let error = failing(&layer(), Kind::Task, attempt, "disk full").await;
            assert_eq!(settled(&error), settle, "{attempt}");
            let exhausted = find::<Exhausted>(&*error).map(Exhausted::attempts);
            assert_eq!(exhausted, (attempt >= 3).then_some(attempt));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_permanent_error_is_a_dead_letter_at_once() {
        let error = failing(&layer(), Kind::Task, 1, Rejection::permanent("no JSON")).await;
        assert_eq!(settled(&error), Some(FailureVerdict::DeadLetter));
        assert!(find::<Rejection>(&*error).is_some(), "the cause is kept");
        assert!(find::<Exhausted>(&*error).is_none());
        let own = layer().classify(|_| Class::Permanent);
        let error = failing(&own, Kind::Task, 1, "disk full").await;
        assert_eq!(settled(&error), Some(FailureVerdict::DeadLetter));
        // A lasting error is retried.
        let error = failing(&layer(), Kind::Task, 1, Rejection::ordinary("no layer")).await;
        assert_eq!(settled(&error), again(SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_never_overridden_at_any_attempt() {
        let strict = layer().classify(|_| Class::Permanent);
        for attempt in [1, 3, 9] {
            let asked = Failure::redeliver_after(9 * SECOND).because(Rejection::permanent("x"));
            let error = failing(&strict, Kind::Task, attempt, asked).await;
            assert_eq!(settled(&error), again(9 * SECOND));
            let error = failing(&strict, Kind::Task, attempt, Failure::discard()).await;
            assert_eq!(settled(&error), Some(FailureVerdict::Discard));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_lower_limit_of_the_layer_and_of_the_message_counts() {
        let unlimited = DurableRetryLayer::new();
        for (layer, message_limit, last) in [
            (&unlimited, None, None),
            (&unlimited, Some(5), Some(5)),
            (&layer(), Some(5), Some(3)),
            (&layer(), Some(2), Some(2)),
        ] {
            let delivery = |attempt| Delivery {
                kind: Kind::Task,
                attempt: Attempt(attempt),
                max_attempts: message_limit,
                deadline: None,
            };
            let settle = |attempt| {
                let error = layer
                    .config
                    .map_error(delivery(attempt), "disk full".into());
                settled(&error) == Some(FailureVerdict::DeadLetter)
            };
            assert_eq!((1..=100).find(|attempt| settle(*attempt)), last);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_class_of_errors_has_its_back_off() {
        let fixed = |wait| Backoff::exponential(wait, wait).jitter(0.0);
        let layer = layer()
            .backoff(fixed(SECOND))
            .on(Class::Lasting, fixed(60 * SECOND));
        let error = failing(&layer, Kind::Task, 1, "disk full").await;
        assert_eq!(settled(&error), again(SECOND));
        let error = failing(&layer, Kind::Task, 1, Rejection::ordinary("no layer")).await;
        assert_eq!(settled(&error), again(60 * SECOND));
        let text = panic_text(move || layer.on(Class::Permanent, fixed(SECOND)));
        assert_eq!(text, "a permanent error is not retried, so it has no delay");
    }

    #[tokio::test(start_paused = true)]
    async fn overload_passes_and_does_not_count_as_an_attempt() {
        let error = failing(&layer(), Kind::Task, 3, Overloaded::new()).await;
        assert!(error.is::<Overloaded>());
    }

    #[tokio::test(start_paused = true)]
    async fn errors_of_requests_and_events_pass_unless_requests_are_retried() {
        for kind in [Kind::Rpc, Kind::Event] {
            let error = failing(&layer(), kind, 1, "disk full").await;
            assert_eq!(settled(&error), None);
        }
        let layer = layer().requests();
        let error = failing(&layer, Kind::Rpc, 1, "disk full").await;
        assert_eq!(settled(&error), again(SECOND));
        // These are not retried: an error reply, a permanent error, the last attempt, and a wait
        // that would end after the deadline.
        let error = failing(&layer, Kind::Rpc, 1, RpcError::not_found("user")).await;
        assert!(error.is::<RpcError>());
        let error = failing(&layer, Kind::Rpc, 1, Rejection::permanent("no JSON")).await;
        assert!(error.is::<Rejection>());
        let error = failing(&layer, Kind::Rpc, 3, "disk full").await;
        assert_eq!(settled(&error), None);
        let slow = layer.backoff(Backoff::exponential(4 * SECOND, 4 * SECOND).jitter(0.0));
        let error = failing(&slow, Kind::Rpc, 1, "disk full").await;
        assert_eq!(settled(&error), None);
    }

    #[tokio::test]
    async fn a_success_passes() {
        let (mut service, mut handle) = around(&layer());
        let answer = call(&mut service, Message::task("a", ""));
        let (_, respond) = handle.next_request().await.unwrap();
        respond.send_response(Reply::new("done"));
        assert_eq!(answer.await.unwrap().payload, "done");
    }

    #[test]
    fn readiness_and_reservations_of_the_inner_service_pass() {
        readiness_passes(&layer());
        reservations_are_released(&layer());
    }

    #[test]
    fn a_layer_without_an_attempt_panics_at_the_callers_location() {
        let text = panic_text(|| DurableRetryLayer::new().max_attempts(0));
        assert_eq!(text, "a durable retry must have at least one attempt");
    }
}
