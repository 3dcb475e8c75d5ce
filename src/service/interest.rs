//! Services that say which messages they want.

use std::task::{Context, Poll};

use tower::Service;

use super::MessageService;
use crate::{
    message::{Message, Name},
    transport::Interest,
};

/// A service that [`serve`](crate::serve()) can serve: it says which messages it wants.
///
/// A [`Router`](crate::Router) derives these messages from its routes. For any other service, and
/// for a service wrapped around a router by hand, use [`WithInterest`].
///
/// ```
/// use campanile::{Error, Router, Servable, serve, transport::memory::Memory};
///
/// /// Serves a router, or another service in a `WithInterest`.
/// async fn run(app: impl Servable) -> Result<(), Error> {
///     serve(Memory::new(), app).with_graceful_shutdown(async {}).await
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// run(Router::<()>::new().task("greet", async || {})).await
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be served: it is neither a router that has its state nor a service that says which messages it wants",
    label = "not `Servable`",
    note = "for a `Router<S>` whose handlers take `State<_>`: provide the state with `.with_state(state)`",
    note = "for a layer around a router: add it with `Router::layer(layer)`, which keeps the router's events",
    note = "for any other service: `WithInterest::stream(service)` takes tasks and RPC requests, `.event(name)` adds events"
)]
pub trait Servable: MessageService + Clone + Send + 'static {
    /// Returns the messages that the service wants from a source. `serve` calls this method once,
    /// before it opens the source.
    fn interest(&self) -> Interest;

    /// Returns the kinds and names of the service's routes, for the log line of a starting worker.
    /// Unless overridden, these are the events of its [`interest`](Self::interest).
    fn route_names(&self) -> Vec<String> {
        let interest = self.interest();
        let names = interest.events.iter().chain(&interest.patterns);
        let sharded = interest.sharded.iter();
        names
            .map(|name| format!("event {name}"))
            .chain(sharded.map(|name| format!("sharded event {name}")))
            .collect()
    }

    /// Returns the [description](crate::contract::Description) of the service as JSON. Running
    /// workers answer [`Workers::describe`](crate::transport::Workers::describe) with it. `None`
    /// unless overridden.
    fn description(&self) -> Option<String> {
        None
    }
}

/// A service together with the messages that it wants from a source.
///
/// A layer that is wrapped around a router by hand hides the router's events from
/// [`serve`](crate::serve()). Use [`Router::layer`](crate::Router::layer), which keeps the events,
/// or name the messages that the service wants:
///
/// ```
/// use campanile::{Reply, Router, Servable, WithInterest};
/// use std::{convert::Infallible, time::Duration};
/// use tower::ServiceBuilder;
///
/// // A layer around a router: the interest is that of the router.
/// let router: Router = Router::new().event("orders.events", async || {});
/// let interest = router.interest();
/// let timed = ServiceBuilder::new().timeout(Duration::from_secs(1)).service(router);
/// let served = WithInterest::new(timed, interest);
/// assert_eq!(served.interest().events, ["orders.events"]);
///
/// // Any other service: tasks, RPC requests and one event.
/// let service = tower::service_fn(async |_| Ok::<_, Infallible>(Reply::default()));
/// let served = WithInterest::stream(service).event("orders.events");
/// assert!(served.interest().stream);
/// ```
#[derive(Debug, Clone)]
pub struct WithInterest<S> {
    inner: S,
    interest: Interest,
}

impl<S> WithInterest<S> {
    /// Creates a service that wants these messages.
    pub fn new(inner: S, interest: Interest) -> Self {
        Self { inner, interest }
    }

    /// Creates a service that wants the tasks and RPC requests of the stream, and no events.
    pub fn stream(inner: S) -> Self {
        Self::new(inner, Interest::stream())
    }

    /// Adds the events of this name.
    #[must_use]
    pub fn event(mut self, name: impl Into<Name>) -> Self {
        self.interest.events.push(name.into());
        self
    }

    /// Adds the events whose names match this Redis glob pattern.
    #[must_use]
    pub fn event_pattern(mut self, pattern: impl Into<Name>) -> Self {
        self.interest.patterns.push(pattern.into());
        self
    }

    /// Adds the sharded events of this name.
    #[must_use]
    pub fn event_sharded(mut self, name: impl Into<Name>) -> Self {
        self.interest.sharded.push(name.into());
        self
    }

    /// Returns a reference to the inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns a mutable reference to the inner service.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Returns the inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: Service<Message>> Service<Message> for WithInterest<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, message: Message) -> S::Future {
        self.inner.call(message)
    }
}

impl<S: MessageService + Clone + Send + 'static> Servable for WithInterest<S> {
    fn interest(&self) -> Interest {
        self.interest.clone()
    }
}
