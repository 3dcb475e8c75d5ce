//! The builder.

use std::fmt;

use tower::{Layer, Service};

use super::{
    RouteInfo, RouterService,
    build::{Fallback, handler_leaf, service_leaf},
    index::Index,
    tree::{Leaf, MakeLayer},
};
use crate::{
    error::BoxError,
    handler::{Handler, Route},
    message::{Kind, Message, Name},
    reply::Reply,
    service::IntoService,
    transport::Interest,
};

/// Finds the handler of each message by its kind and name. See the [module](super).
///
/// `S` is the state that its handlers need; [`with_state`](Self::with_state) provides it and
/// finishes the router. One that needs none can be served and called as it is.
#[must_use = "a router does nothing until it is served or called"]
pub struct Router<S = ()> {
    pub(super) index: Index,
    /// The handlers of each route, in the order of the index.
    pub(super) routes: Vec<Vec<Leaf<S>>>,
    /// The first is the root's.
    pub(super) fallbacks: Vec<Fallback<S>>,
    pub(super) layers: Vec<MakeLayer>,
}

impl<S> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    /// A router without routes: it answers every message with [`NotFound`](crate::NotFound).
    pub fn new() -> Self {
        Self::empty()
    }

    /// Adds a handler for the tasks of this name.
    ///
    /// # Panics
    /// When the name is empty, longer than [`Name::MAX_LEN`] or already routed.
    #[track_caller]
    pub fn task<H, T>(self, name: impl Into<Name>, handler: H) -> Self
    where
        H: Handler<T, S>,
    {
        self.add(Kind::Task, name.into(), false, handler_leaf(handler))
    }

    /// Adds a service for the tasks of this name. See [`task`](Self::task).
    ///
    /// # Panics
    /// As [`task`](Self::task) does.
    #[track_caller]
    pub fn task_service<V>(self, name: impl Into<Name>, service: V) -> Self
    where
        V: Service<Message, Response = Reply, Error: Into<BoxError>, Future: Send + 'static>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        self.add(Kind::Task, name.into(), false, service_leaf(service))
    }

    /// Adds a handler for the RPC requests of this name.
    ///
    /// # Panics
    /// When the name is empty, longer than [`Name::MAX_LEN`] or already routed.
    #[track_caller]
    pub fn rpc<H, T>(self, name: impl Into<Name>, handler: H) -> Self
    where
        H: Handler<T, S>,
    {
        self.add(Kind::Rpc, name.into(), false, handler_leaf(handler))
    }

    /// Adds a service for the RPC requests of this name. See [`rpc`](Self::rpc).
    ///
    /// # Panics
    /// As [`rpc`](Self::rpc) does.
    #[track_caller]
    pub fn rpc_service<V>(self, name: impl Into<Name>, service: V) -> Self
    where
        V: Service<Message, Response = Reply, Error: Into<BoxError>, Future: Send + 'static>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        self.add(Kind::Rpc, name.into(), false, service_leaf(service))
    }

    /// Adds a handler for the events of this name.
    ///
    /// Several may listen to one event: they run concurrently, each to its end even when another
    /// fails, and the error is a [`FanOutError`](super::FanOutError).
    ///
    /// # Panics
    /// When the name is empty or longer than [`Name::MAX_LEN`].
    #[track_caller]
    pub fn event<H, T>(self, name: impl Into<Name>, handler: H) -> Self
    where
        H: Handler<T, S>,
    {
        self.add(Kind::Event, name.into(), false, handler_leaf(handler))
    }

    /// Adds a service for the events of this name. See [`event`](Self::event).
    ///
    /// # Panics
    /// As [`event`](Self::event) does.
    #[track_caller]
    pub fn event_service<V>(self, name: impl Into<Name>, service: V) -> Self
    where
        V: Service<Message, Response = Reply, Error: Into<BoxError>, Future: Send + 'static>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        self.add(Kind::Event, name.into(), false, service_leaf(service))
    }

    /// Adds a handler for the events whose names match a Redis glob pattern: `*`, `?`, `[abc]`,
    /// `[^a]`, `[a-z]`, and `\` before a character that is meant literally.
    ///
    /// An event that matches several subscriptions is handled once for each of them, as Redis
    /// delivers it.
    ///
    /// # Panics
    /// When the pattern is empty or longer than [`Name::MAX_LEN`].
    #[track_caller]
    pub fn event_pattern<H, T>(self, pattern: impl Into<Name>, handler: H) -> Self
    where
        H: Handler<T, S>,
    {
        self.add(Kind::Event, pattern.into(), true, handler_leaf(handler))
    }

    /// Adds a service for the events whose names match a Redis glob pattern. See [`event_pattern`](Self::event_pattern).
    ///
    /// # Panics
    /// As [`event_pattern`](Self::event_pattern) does.
    #[track_caller]
    pub fn event_pattern_service<V>(self, pattern: impl Into<Name>, service: V) -> Self
    where
        V: Service<Message, Response = Reply, Error: Into<BoxError>, Future: Send + 'static>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        self.add(Kind::Event, pattern.into(), true, service_leaf(service))
    }

    /// Adds a handler for every message that has no route.
    ///
    /// # Panics
    /// When the router has one already.
    #[track_caller]
    pub fn fallback<H, T>(self, handler: H) -> Self
    where
        H: Handler<T, S>,
    {
        self.set_fallback(Name::default(), handler_leaf(handler))
    }

    /// Adds a service for every message that has no route.
    ///
    /// # Panics
    /// When the router has a fallback already.
    #[track_caller]
    pub fn fallback_service<V>(self, service: V) -> Self
    where
        V: Service<Message, Response = Reply, Error: Into<BoxError>, Future: Send + 'static>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        self.set_fallback(Name::default(), service_leaf(service))
    }

    /// Adds the routes of another router with a prefix and a dot before their names, so that
    /// `create` within `orders` is `orders.create`. An empty prefix adds nothing.
    ///
    /// Handlers see the whole name. The other router's layers stay around its own routes, and its
    /// fallback, where it was given one, serves the names below the prefix. In front of a pattern
    /// the prefix is meant literally.
    ///
    /// # Panics
    /// When a name becomes longer than [`Name::MAX_LEN`] or is already routed, or when the prefix
    /// has a fallback already.
    #[track_caller]
    pub fn nest(self, prefix: impl Into<Name>, router: Router<S>) -> Self {
        self.absorb(&prefix.into(), router)
    }

    /// Adds the routes of another router as they are. Each router's layers stay around its own
    /// routes.
    ///
    /// # Panics
    /// When both have a route of the same task or request, or both were given a fallback.
    #[track_caller]
    pub fn merge(self, router: Router<S>) -> Self {
        self.absorb(&Name::default(), router)
    }

    /// Puts a layer around everything that was added so far, routes and fallback, as one service.
    ///
    /// It is applied once, when the router is finished: a limit of ten is ten over all of these
    /// routes. Routes that are added later are outside. The last layer is the outermost.
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<Route> + Send + 'static,
        L::Service: Service<Message, Response = Reply, Error: Into<BoxError>, Future: Send + 'static>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        let index = self.push_layer(layer);
        for fallback in &mut self.fallbacks {
            fallback.leaf.layers.push(index);
        }
        self
    }

    /// Puts a layer around the routes that were added so far, as one service, and not around the
    /// fallback. Messages without a route do not reach it.
    ///
    /// # Panics
    /// When there is no route yet.
    #[track_caller]
    pub fn route_layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<Route> + Send + 'static,
        L::Service: Service<Message, Response = Reply, Error: Into<BoxError>, Future: Send + 'static>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        assert!(
            !self.routes.is_empty(),
            "a `route_layer` before any route does nothing: add it after the routes it is for"
        );
        self.push_layer(layer);
        self
    }

    /// Provides the state and finishes the router. Here each layer is applied, once; some of
    /// tower's need a runtime for that.
    pub fn with_state(self, state: S) -> RouterService {
        self.finish(&state)
    }
}

impl<S> Router<S> {
    /// Its routes, in the order in which they were added.
    pub fn routes(&self) -> &[RouteInfo] {
        self.index.routes()
    }
}

impl<S> Default for Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    fn default() -> Self {
        Self::new()
    }
}

impl<S> fmt::Debug for Router<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router")
            .field("routes", &self.routes())
            .field("layers", &self.layers.len())
            .finish_non_exhaustive()
    }
}

impl IntoService for Router<()> {
    type Service = RouterService;

    fn interest(&self) -> Interest {
        Router::interest(self)
    }

    fn into_service(self) -> RouterService {
        self.with_state(())
    }
}
