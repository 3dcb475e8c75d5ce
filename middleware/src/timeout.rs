//! Limits the time of a message by its deadline and by a default timeout.
//!
//! ```
//! use campanile::Router;
//! use campanile_middleware::TimeoutLayer;
//! use std::time::Duration;
//!
//! async fn report() {}
//!
//! let app: Router = Router::new()
//!     .rpc("report", report)
//!     .layer(TimeoutLayer::new(Duration::from_secs(30)));
//! ```
//!
//! The next router applies only the callers' deadlines, and one of its handlers has a default:
//!
//! ```
//! use campanile::{Handler, Router};
//! use campanile_middleware::TimeoutLayer;
//! use std::time::Duration;
//!
//! async fn report() {}
//!
//! let app: Router = Router::new()
//!     .rpc("report", report.layer(TimeoutLayer::new(Duration::from_secs(5))))
//!     .layer(TimeoutLayer::by_deadline());
//! ```
//!
//! # Deadlines
//! A request ends at its caller's deadline or after the default, whichever is earlier. Inner layers
//! and the handler see the earlier time as the [`Deadline`] of the message. A request whose
//! deadline has passed before the call, for example in the queue of a limit, is not started.
//!
//! A task or an event ends after the default. A task with [its own
//! limit](campanile::client::Call::attempt_timeout) ends after that limit instead. The deadline of
//! a task does not limit its work: it is the time until which the task must
//! [start](campanile::client::Call::expires_after).
//!
//! # Clocks
//! A transport sends a deadline as a time to live, which starts when the server accepts the message
//! and is measured on the server's clock. A worker converts the remaining time into a [`Deadline`]
//! on the monotonic clock of its process. So the clocks of the sender and the worker need not
//! agree.
//!
//! # Back-pressure
//! The default timeout starts with the call. An earlier wait, for readiness or for a permit of an
//! outer layer, counts only towards the caller's deadline.
//!
//! # Cancel safety
//! When the time is over, the future of the inner service is dropped at its current `.await`. The
//! future is polled before the timer, so a result that is ready in time counts.
//!
//! # Errors
//! A message whose time is over fails with tower's [`Elapsed`]. A request is then answered with
//! `deadline`, a task is delivered again, and around a client's transport the error of the call [is
//! a timeout](campanile::Error::is_timeout).

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use campanile::{BoxError, Deadline, Kind, Message, MessageService, Reply};
use pin_project::pin_project;
use tokio::time::{Sleep, sleep_until};
use tower::{Layer, Service, timeout::error::Elapsed};

use crate::call_or_error::CallOrError;

/// Makes [`Timeout`] services. See the [module](self).
#[derive(Debug, Clone, Copy)]
pub struct TimeoutLayer {
    default: Option<Duration>,
}

impl TimeoutLayer {
    /// Creates a layer that limits each message to `default`, and a request also to its caller's
    /// deadline.
    ///
    /// # Panics
    /// If `default` is zero.
    #[track_caller]
    pub const fn new(default: Duration) -> Self {
        assert!(!default.is_zero(), "a timeout must be above zero");
        Self {
            default: Some(default),
        }
    }

    /// Creates a layer that limits requests to their callers' deadlines, and tasks to [their own
    /// limits](campanile::client::Call::attempt_timeout). It does not limit other messages.
    pub const fn by_deadline() -> Self {
        Self { default: None }
    }
}

impl<S> Layer<S> for TimeoutLayer {
    type Service = Timeout<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Timeout {
            inner,
            default: self.default,
        }
    }
}

/// A service with a time limit. See the [module](self).
#[derive(Debug, Clone, Copy)]
pub struct Timeout<S> {
    inner: S,
    default: Option<Duration>,
}

impl<S> Timeout<S> {
    /// Wraps a service, as [`TimeoutLayer::new`] does.
    ///
    /// # Panics
    /// If `default` is zero.
    #[track_caller]
    pub fn new(inner: S, default: Duration) -> Self {
        TimeoutLayer::new(default).layer(inner)
    }

    /// Wraps a service, as [`TimeoutLayer::by_deadline`] does.
    pub fn by_deadline(inner: S) -> Self {
        TimeoutLayer::by_deadline().layer(inner)
    }

    /// Returns the time at which the message ends. The deadline of a request is set to this time.
    fn apply_limit(&self, message: &mut Message) -> Option<Deadline> {
        let parts = message.parts_mut();
        let timeout = parts.attempt_timeout.or(self.default);
        let timed_out_at = timeout.map(Deadline::after);
        // The deadline of a task stays unchanged. It limits only the start of the task, and a
        // client's transport sends it as the task's time to live.
        if parts.kind != Kind::Rpc {
            return timed_out_at;
        }
        let limit = parts.deadline.into_iter().chain(timed_out_at).min();
        parts.deadline = limit;
        limit
    }
}

inner_accessors!(Timeout<S>);

impl<S> Service<Message> for Timeout<S>
where
    S: MessageService,
{
    type Response = Reply;
    type Error = BoxError;
    type Future = TimeoutFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut message: Message) -> Self::Future {
        let limit = self.apply_limit(&mut message);
        // Only the caller's deadline can have passed, because the timeout starts now.
        let is_late = limit.is_some_and(Deadline::has_passed);
        TimeoutFuture {
            work: match is_late {
                true => CallOrError::failed(Elapsed::new()),
                false => CallOrError::Call(self.inner.call(message)),
            },
            timer: limit.map(|limit| sleep_until(limit.0)),
        }
    }
}

/// The future of [`Timeout`].
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct TimeoutFuture<W> {
    #[pin]
    work: CallOrError<W>,
    #[pin]
    timer: Option<Sleep>,
}

impl<W, E> Future for TimeoutFuture<W>
where
    W: Future<Output = Result<Reply, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Reply, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(outcome) = this.work.poll(cx) {
            return Poll::Ready(outcome);
        }
        match this.timer.as_pin_mut() {
            None => Poll::Pending,
            Some(timer) => {
                ready!(timer.poll(cx));
                Poll::Ready(Err(Elapsed::new().into()))
            }
        }
    }
}

impl<W> fmt::Debug for TimeoutFuture<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimeoutFuture").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, advance};
    use tokio_test::task;
    use tower_test::mock::Spawn;

    use super::*;
    use crate::{
        mocks::{Answers, Inner, around, call, readiness_passes, reservations_are_released},
        panics::panic_text,
    };

    const SECOND: Duration = Duration::from_secs(1);

    /// Calls the layer with a message that is never answered. Returns the time until it fails, and
    /// the deadline that the inner service saw.
    async fn waited(layer: TimeoutLayer, message: Message) -> (Duration, Option<Duration>) {
        let (mut service, mut handle): (Spawn<Timeout<Inner>>, Answers) = around(&layer);
        let started = Instant::now();
        let answer = tokio::spawn(call(&mut service, message));
        let (inside, _respond) = handle.next_request().await.unwrap();
        let seen = inside.parts().deadline.map(|d| d.0 - started);
        let error = answer.await.unwrap().unwrap_err();
        assert!(error.is::<Elapsed>(), "{error}");
        (started.elapsed(), seen)
    }

    fn with_deadline(mut message: Message, after: Duration) -> Message {
        message.parts_mut().deadline = Some(Deadline::after(after));
        message
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_ends_at_its_deadline_or_after_the_default_whichever_is_earlier() {
        let layer = TimeoutLayer::new(3 * SECOND);
        for (deadline, ends) in [(1, 1), (3, 3), (9, 3)] {
            let request = with_deadline(Message::rpc("a", ""), deadline * SECOND);
            let ends = ends * SECOND;
            assert_eq!(waited(layer, request).await, (ends, Some(ends)));
        }
        let request = Message::rpc("a", "");
        assert_eq!(waited(layer, request).await, (3 * SECOND, Some(3 * SECOND)));
        let request = with_deadline(Message::rpc("a", ""), 9 * SECOND);
        let seen = waited(TimeoutLayer::by_deadline(), request).await;
        assert_eq!(seen, (9 * SECOND, Some(9 * SECOND)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_ends_after_the_default_and_its_time_to_live_stays_as_it_is() {
        let layer = TimeoutLayer::new(3 * SECOND);
        for life in [1, 9] {
            let task = with_deadline(Message::task("a", ""), life * SECOND);
            assert_eq!(waited(layer, task).await, (3 * SECOND, Some(life * SECOND)));
        }
        assert_eq!(
            waited(layer, Message::event("a", "")).await,
            (3 * SECOND, None)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_with_a_limit_of_its_own_ends_after_that() {
        for layer in [TimeoutLayer::new(3 * SECOND), TimeoutLayer::by_deadline()] {
            for limit in [SECOND, 9 * SECOND] {
                let mut task = Message::task("a", "");
                task.parts_mut().attempt_timeout = Some(limit);
                assert_eq!(waited(layer, task).await, (limit, None));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_without_a_limit_runs_to_its_end() {
        let (mut service, mut handle) = around(&TimeoutLayer::by_deadline());
        let task = with_deadline(Message::task("a", ""), SECOND);
        let answer = tokio::spawn(call(&mut service, task));
        let (_, respond) = handle.next_request().await.unwrap();
        tokio::time::sleep(3600 * SECOND).await;
        respond.send_response(Reply::new("late"));
        assert_eq!(answer.await.unwrap().unwrap().payload, "late");
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_is_done_when_the_time_is_over_is_not_lost() {
        let (mut service, mut handle) = around(&TimeoutLayer::new(SECOND));
        let mut answer = task::spawn(call(&mut service, Message::task("a", "")));
        assert!(answer.poll().is_pending());
        let (_, respond) = handle.next_request().await.unwrap();
        respond.send_response(Reply::new("just in time"));
        advance(9 * SECOND).await;
        match answer.poll() {
            Poll::Ready(Ok(reply)) => assert_eq!(reply.payload, "just in time"),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_past_its_deadline_is_not_started() {
        let (mut service, mut handle) = around(&TimeoutLayer::new(SECOND));
        let request = with_deadline(Message::rpc("a", ""), Duration::ZERO);
        let error = call(&mut service, request).await.unwrap_err();
        assert!(error.is::<Elapsed>());
        assert!(handle.poll_request().is_pending());
    }

    #[tokio::test(start_paused = true)]
    async fn readiness_and_reservations_of_the_inner_service_pass() {
        readiness_passes(&TimeoutLayer::new(SECOND));
        reservations_are_released(&TimeoutLayer::new(SECOND));
    }

    #[test]
    fn a_time_out_of_zero_panics_at_the_callers_location() {
        let text = panic_text(|| TimeoutLayer::new(Duration::ZERO));
        assert_eq!(text, "a timeout must be above zero");
    }
}
