//! Calls a function with each message, and rejects the messages for which it returns an error.
//!
//! The function returns `Ok(())`, or the error with which the message fails. The error decides how
//! the delivery is settled:
//!
//! | error | task | request |
//! |---|---|---|
//! | [`Rejection::permanent`](campanile::Rejection::permanent) | a dead letter at once | answered with `invalid` and its text |
//! | [`Failure::discard`](campanile::Failure::discard) | dropped and counted | dropped and counted, and answered with the failure's source |
//! | [`Failure::redeliver_after`](campanile::Failure::redeliver_after) | delivered again, perhaps to another worker | delivered again, perhaps to another worker |
//! | [`RpcError`](campanile::RpcError) | delivered again, and a dead letter after the last attempt | answered with that error |
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
//! The next filter discards messages for another deployment. The caller of a request gets the
//! reason:
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
//! tower's `Filter` and `AsyncFilter` work unchanged. Their functions take the message and return
//! it, so the functions can change the message. The function of an `AsyncFilter` can also query a
//! service:
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
//! The inner service must be ready before the function is called. If the function rejects a
//! message, the inner service keeps its reservation until the service is called or dropped. `serve`
//! drops the service immediately.
//!
//! # Panics
//! If the function panics, the call panics, and the delivery fails.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use campanile::{BoxError, Message, MessageService, Reply};
use pin_project::pin_project;
use tower::{Layer, Service};

use crate::call_or_error::CallOrError;

/// Makes [`Filter`] services. See the [module](self).
#[derive(Clone, Copy)]
pub struct FilterLayer<F> {
    check: F,
}

// The bounds are on `new`, so that the compiler can infer the type of a closure's argument.
impl<F> FilterLayer<F> {
    /// Creates a layer that calls `check`, a `Fn(&Message) -> Result<(), E>`, with every message.
    /// If it returns an error, the message is rejected.
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

/// A service that is called only with messages that its function accepts. See the [module](self).
#[derive(Clone, Copy)]
pub struct Filter<S, F> {
    inner: S,
    check: F,
}

impl<S, F> Filter<S, F> {
    /// Wraps a service, as [`FilterLayer::new`] does.
    pub const fn new<E>(inner: S, check: F) -> Self
    where
        F: Fn(&Message) -> Result<(), E>,
        E: Into<BoxError>,
    {
        Self { inner, check }
    }
}

inner_accessors!(Filter<S, F>);

impl<S, F, E> Service<Message> for Filter<S, F>
where
    S: MessageService,
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
            Ok(()) => CallOrError::Call(self.inner.call(message)),
            Err(error) => CallOrError::failed(error),
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
pub struct FilterFuture<W>(#[pin] CallOrError<W>);

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
            true => Err(Rejection::permanent("the payload is empty")),
            false => Ok(()),
        })
    }

    #[tokio::test]
    async fn an_accepted_message_and_its_outcome_pass_unchanged() {
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
    async fn a_rejected_message_fails_with_the_error_and_does_not_reach_the_inner_service() {
        let (mut service, mut handle) = around(&layer());
        let error = call(&mut service, Message::task("a", ""))
            .await
            .unwrap_err();
        assert!(error.downcast_ref::<Rejection>().unwrap().is_permanent());
        assert!(handle.poll_request().is_pending());
    }

    #[test]
    fn readiness_and_reservations_of_the_inner_service_pass() {
        let all = FilterLayer::new(|_: &Message| Ok::<(), BoxError>(()));
        readiness_passes(&all);
        reservations_are_released(&all);
    }
}
