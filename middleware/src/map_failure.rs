//! Maps an application's errors to settlements.
//!
//! Handlers keep their error types. One function, around a router or a handler, decides how the
//! delivery is settled after an error.
//!
//! ```
//! use campanile::{Failure, Router};
//! use campanile_middleware::MapFailureLayer;
//! use std::num::ParseIntError;
//!
//! async fn import(line: String) -> Result<(), ParseIntError> {
//!     line.parse::<u32>().map(drop)
//! }
//!
//! let app: Router = Router::new()
//!     .task("import", import)
//!     // A second try would read the same line, so the task becomes a dead letter.
//!     .layer(MapFailureLayer::new(|error| {
//!         error.is::<ParseIntError>().then(Failure::dead_letter)
//!     }));
//! ```
//!
//! # Errors
//! If the function returns a [`Failure`], the service fails with this `Failure`, and the original
//! error is its source. If the function returns `None`, the error is returned unchanged.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use campanile::{BoxError, Failure, Message, MessageService, Reply};
use pin_project::pin_project;
use tower::{Layer, Service};

/// Makes [`MapFailure`] services. See the [module](self).
#[derive(Clone, Copy)]
pub struct MapFailureLayer<F> {
    map: F,
}

// The bound is on `new`, so that the compiler can infer the type of a closure's argument.
impl<F: Fn(&BoxError) -> Option<Failure>> MapFailureLayer<F> {
    /// Creates a layer that calls `map`, a `Fn(&BoxError) -> Option<Failure>`, with every error.
    pub const fn new(map: F) -> Self {
        Self { map }
    }
}

impl<S, F: Clone> Layer<S> for MapFailureLayer<F> {
    type Service = MapFailure<S, F>;

    fn layer(&self, inner: S) -> Self::Service {
        MapFailure {
            inner,
            map: self.map.clone(),
        }
    }
}

impl<F> fmt::Debug for MapFailureLayer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapFailureLayer").finish_non_exhaustive()
    }
}

/// A service whose errors are mapped to [`Failure`]s. See the [module](self).
#[derive(Clone, Copy)]
pub struct MapFailure<S, F> {
    inner: S,
    map: F,
}

impl<S, F: Fn(&BoxError) -> Option<Failure>> MapFailure<S, F> {
    /// Wraps a service, as [`MapFailureLayer::new`] does.
    pub const fn new(inner: S, map: F) -> Self {
        Self { inner, map }
    }
}

inner_accessors!(MapFailure<S, F>);

impl<S, F> Service<Message> for MapFailure<S, F>
where
    S: MessageService,
    F: Fn(&BoxError) -> Option<Failure> + Clone,
{
    type Response = Reply;
    type Error = BoxError;
    type Future = MapFailureFuture<S::Future, F>;

    // An error of `poll_ready` belongs to no message, so it is not mapped.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, message: Message) -> Self::Future {
        MapFailureFuture {
            work: self.inner.call(message),
            map: self.map.clone(),
        }
    }
}

impl<S: fmt::Debug, F> fmt::Debug for MapFailure<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapFailure")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

/// The future of [`MapFailure`].
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct MapFailureFuture<W, F> {
    #[pin]
    work: W,
    map: F,
}

impl<W, E, F> Future for MapFailureFuture<W, F>
where
    W: Future<Output = Result<Reply, E>>,
    E: Into<BoxError>,
    F: Fn(&BoxError) -> Option<Failure>,
{
    type Output = Result<Reply, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        Poll::Ready(ready!(this.work.poll(cx)).map_err(|error| {
            let error = error.into();
            match (this.map)(&error) {
                Some(failure) => failure.because(error).into(),
                None => error,
            }
        }))
    }
}

impl<W, F> fmt::Debug for MapFailureFuture<W, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapFailureFuture").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{io, task::Poll};

    use campanile::error::{FailureVerdict, find};
    use tower_test::{assert_request_eq, mock};

    use super::*;

    fn layer() -> MapFailureLayer<impl Fn(&BoxError) -> Option<Failure> + Clone> {
        MapFailureLayer::new(|error: &BoxError| error.is::<io::Error>().then(Failure::dead_letter))
    }

    /// Returns the error of the layered service if the inner service fails with `error`.
    async fn failing_with(error: impl Into<BoxError>) -> BoxError {
        // The mock's requests must be comparable, so the mock receives only the message's name.
        let (inner, mut handle) = mock::pair::<String, Reply>();
        let inner = tower::util::MapRequest::new(inner, |m: Message| m.name().to_string());
        let mut service = mock::Spawn::new(layer().layer(inner));
        assert!(service.poll_ready().is_ready());
        let answer = service.call(Message::task("a", ""));
        assert_request_eq!(handle, "a".to_owned()).send_error(error);
        answer.await.unwrap_err()
    }

    #[tokio::test]
    async fn a_mapped_error_is_the_source_of_its_failure() {
        let error = failing_with(io::Error::other("broken pipe")).await;
        assert_eq!(
            find::<Failure>(&*error).unwrap().verdict(),
            FailureVerdict::DeadLetter
        );
        assert_eq!(
            find::<io::Error>(&*error).unwrap().to_string(),
            "broken pipe"
        );
    }

    #[tokio::test]
    async fn an_error_that_is_not_mapped_passes_unchanged() {
        let error = failing_with("something else").await;
        assert_eq!(error.to_string(), "something else");
        assert!(find::<Failure>(&*error).is_none());
    }

    #[tokio::test]
    async fn the_inner_services_readiness_and_its_error_pass() {
        let (inner, mut handle) = mock::pair::<Message, Reply>();
        let mut service = mock::Spawn::new(layer().layer(inner));
        handle.allow(0);
        assert!(service.poll_ready().is_pending());
        handle.send_error("gone");
        match service.poll_ready() {
            Poll::Ready(Err(error)) => assert_eq!(error.to_string(), "gone"),
            other => panic!("{other:?}"),
        }
    }
}
