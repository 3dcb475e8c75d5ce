//! Lets through what a function lets through.
//!
//! The function looks at each message and returns `Ok(())`, or the error that the message is to fail
//! with. The error says what becomes of the delivery:
//!
//! | error | task | request |
//! |---|---|---|
//! | [`Rejection::permanent`](campanile::Rejection::permanent) | a dead letter at once | answered `invalid`, with its text |
//! | [`Failure::discard`](campanile::Failure::discard) | dropped and counted | the same, answered with its cause |
//! | [`Failure::redeliver_after`](campanile::Failure::redeliver_after) | delivered again, for another worker | the same |
//! | [`RpcError`](campanile::RpcError) | delivered again, and then a dead letter | answered with it |
//!
//! ```
//! use campanile::{Message, Rejection, Router};
//! use campanile_middleware::FilterLayer;
//!
//! async fn create() {}
//!
//! let app: Router = Router::new().task("orders.create", create).layer(FilterLayer::new(
//!     |message: &Message| match message.headers().contains_key("x-tenant") {
//!         true => Ok(()),
//!         false => Err(Rejection::permanent("the header `x-tenant` is missing")),
//!     },
//! ));
//! ```
//!
//! What is not for this deployment is dropped, with a reason; its sender, if it waits, is told:
//!
//! ```
//! use campanile::{Failure, Message, Rejection, Router};
//! use campanile_middleware::FilterLayer;
//!
//! async fn create() {}
//!
//! let app: Router = Router::new().task("orders.create", create).layer(FilterLayer::new(
//!     |message: &Message| match message.headers().get("x-region") {
//!         Some(region) if region != "eu" => {
//!             Err(Failure::discard().because(Rejection::permanent("only `eu` is served here")))
//!         }
//!         _ => Ok(()),
//!     },
//! ));
//! ```
//!
//! # tower's filters
//! tower's `Filter` and `AsyncFilter` work unchanged. They take the message and give it back, so they
//! can change it, and an async one can ask somebody:
//!
//! ```
//! use campanile::{BoxError, Message, Rejection, Router};
//! use tower::filter::AsyncFilterLayer;
//!
//! async fn is_known(tenant: &str) -> Result<bool, BoxError> {
//!     Ok(tenant == "acme")
//! }
//!
//! async fn known_tenant(message: Message) -> Result<Message, BoxError> {
//!     let tenant = message.headers().get("x-tenant").and_then(|tenant| tenant.to_str().ok());
//!     match is_known(tenant.unwrap_or_default()).await? {
//!         true => Ok(message),
//!         false => Err(Rejection::permanent("an unknown tenant").into()),
//!     }
//! }
//!
//! # async fn create() {}
//! let app: Router = Router::new()
//!     .task("orders.create", create)
//!     .layer(AsyncFilterLayer::new(known_tenant));
//! ```
//!
//! # Back-pressure
//! The inner service has to be ready before a message is looked at, as a filter cannot know before it
//! is called. A message that is not let through gives back at once what was reserved for it when its
//! copy of the service is dropped, as `serve` does.
//!
//! # Panics
//! A panic of the function is one of the call: the delivery fails.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use campanile::{BoxError, Message, Reply};
use pin_project::pin_project;
use tower::{Layer, Service};

use crate::started::Started;

/// Makes [`Filter`] services. See the [module](self).
#[derive(Clone, Copy)]
pub struct FilterLayer<F> {
    check: F,
}

// The bound is here so that the compiler knows the type of a closure's argument.
impl<F> FilterLayer<F> {
    /// A layer that asks `check`, a `Fn(&Message) -> Result<(), E>`, about every message.
    pub const fn new<E>(check: F) -> Self
    where
        F: Fn(&Message) -> Result<(), E>,
        E: Into<BoxError>,
    {
        Self { check }
    }
}

impl<S, F: Clone> Layer<S> for FilterLayer<F> {
    type Service = Filter<S, F>;

    fn layer(&self, inner: S) -> Self::Service {
        Filter {
            inner,
            check: self.check.clone(),
        }
    }
}

impl<F> fmt::Debug for FilterLayer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilterLayer").finish_non_exhaustive()
    }
}

/// A service that is called with what is let through. See the [module](self).
#[derive(Clone, Copy)]
pub struct Filter<S, F> {
    inner: S,
    check: F,
}

impl<S, F, E> Service<Message> for Filter<S, F>
where
    S: Service<Message, Response = Reply, Error: Into<BoxError>>,
    F: Fn(&Message) -> Result<(), E>,
    E: Into<BoxError>,
{
    type Response = Reply;
    type Error = BoxError;
    type Future = FilterFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, message: Message) -> Self::Future {
        FilterFuture(match (self.check)(&message) {
            Ok(()) => Started::Called(self.inner.call(message)),
            Err(error) => Started::failed(error),
        })
    }
}

impl<S: fmt::Debug, F> fmt::Debug for Filter<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

/// The future of [`Filter`].
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct FilterFuture<W>(#[pin] Started<W>);

impl<W, E> Future for FilterFuture<W>
where
    W: Future<Output = Result<Reply, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Reply, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().0.poll(cx)
    }
}

impl<W> fmt::Debug for FilterFuture<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilterFuture").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use campanile::Rejection;

    use super::*;
    use crate::mocks::{around, call, readiness_passes, reservations_are_released};

    fn layer() -> FilterLayer<impl Fn(&Message) -> Result<(), Rejection> + Clone> {
        FilterLayer::new(|message: &Message| match message.payload().is_empty() {
            true => Err(Rejection::permanent("it is empty")),
            false => Ok(()),
        })
    }

    #[tokio::test]
    async fn what_is_let_through_is_handled_as_it_is() {
        let (mut service, mut handle) = around(&layer());
        let answer = call(&mut service, Message::task("a", "x"));
        let (message, respond) = handle.next_request().await.unwrap();
        assert_eq!(message.payload(), "x");
        respond.send_response(Reply::new("done"));
        assert_eq!(answer.await.unwrap().payload, "done");
        let answer = call(&mut service, Message::task("a", "x"));
        let (_, respond) = handle.next_request().await.unwrap();
        respond.send_error("disk full");
        assert_eq!(answer.await.unwrap_err().to_string(), "disk full");
    }

    #[tokio::test]
    async fn what_is_not_fails_with_its_error_and_is_never_handled() {
        let (mut service, mut handle) = around(&layer());
        let error = call(&mut service, Message::task("a", ""))
            .await
            .unwrap_err();
        assert!(error.downcast_ref::<Rejection>().unwrap().is_permanent());
        assert!(handle.poll_request().is_pending());
    }

    #[test]
    fn readiness_and_reservations_are_the_inner_services() {
        let all = FilterLayer::new(|_: &Message| Ok::<(), BoxError>(()));
        readiness_passes(&all);
        reservations_are_released(&all);
    }
}
