//! What can be served and called.

use std::any::Any;

use tower::Service;

use crate::{
    error::BoxError, message::Message, reply::Reply, routing::RouterService, transport::Interest,
};

/// Anything that handles messages: every clonable `Service<Message>`, and a
/// [`Router`](crate::Router) that needs no more state.
///
/// [`serve`](crate::serve()) and [`Client::new`](crate::Client::new) take it. Nothing needs to
/// implement it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be served or called yet",
    label = "neither a `Service<Message>` nor a router that is ready",
    note = "a `Router<S>` whose handlers take `State<_>` is missing that state: finish it with `.with_state(state)`",
    note = "any other service must implement `tower::Service<Message, Response = Reply>` and be `Clone + Send + 'static`, and so must its future be `Send + 'static`"
)]
pub trait IntoService {
    /// The service.
    type Service: Service<Message, Response = Reply, Error: Into<BoxError>, Future: Send + 'static>
        + Clone
        + Send
        + 'static;

    /// Which messages it wants of a source.
    fn interest(&self) -> Interest;

    /// Makes the service. Layers are applied here, once, so it may need a runtime.
    fn into_service(self) -> Self::Service;
}

/// A service other than a [`RouterService`] does not say what it listens to: it is given everything
/// on the stream and no events. [`WithInterest`] says it for one.
// A router without its state would be told that it is no `Service`, and not what it lacks.
#[diagnostic::do_not_recommend]
impl<S> IntoService for S
where
    S: Service<Message, Response = Reply, Error: Into<BoxError>, Future: Send + 'static>
        + Clone
        + Send
        + 'static,
{
    type Service = S;

    fn interest(&self) -> Interest {
        // A finished router is a service like any other, so this implementation is the one that it
        // gets; it is the only one that can say what it listens to.
        match (self as &dyn Any).downcast_ref::<RouterService>() {
            Some(router) => router.interest(),
            None => Interest::stream(),
        }
    }

    fn into_service(self) -> S {
        self
    }
}

/// A service together with what it wants of a source.
///
/// A service that is wrapped around a router hides the router's events from
/// [`serve`](crate::serve()). Prefer [`Router::layer`](crate::Router::layer), which keeps them, or
/// say what the service listens to:
///
/// ```
/// use campanile::{IntoService, Router, WithInterest};
/// use std::time::Duration;
/// use tower::ServiceBuilder;
///
/// let router = Router::new().event("orders.events", async || {}).with_state(());
/// let interest = router.interest();
/// let service = ServiceBuilder::new().timeout(Duration::from_secs(1)).service(router);
/// assert!(service.interest().events.is_empty());
/// assert_eq!(WithInterest::new(service, interest).interest().events, ["orders.events"]);
/// ```
#[derive(Debug, Clone)]
pub struct WithInterest<S> {
    service: S,
    interest: Interest,
}

impl<S> WithInterest<S> {
    /// This service, wanting these messages.
    pub fn new(service: S, interest: Interest) -> Self {
        Self { service, interest }
    }
}

impl<S> IntoService for WithInterest<S>
where
    S: Service<Message, Response = Reply, Error: Into<BoxError>, Future: Send + 'static>
        + Clone
        + Send
        + 'static,
{
    type Service = S;

    fn interest(&self) -> Interest {
        self.interest.clone()
    }

    fn into_service(self) -> S {
        self.service
    }
}
