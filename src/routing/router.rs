//! The builder.

use std::{fmt, sync::Arc};

use tower::{Layer, Service};

use super::{
    RouteInfo, RouterService, glob,
    index::{Index, Resolver},
    service::interest,
    tree::{self, Leaf, MakeLayer},
};
use crate::{
    error::{BoxError, NotFound},
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
    index: Index,
    /// The handlers of each route, in the order of the index.
    routes: Vec<Vec<Leaf<S>>>,
    /// The first is the root's.
    fallbacks: Vec<Fallback<S>>,
    layers: Vec<MakeLayer>,
}

struct Fallback<S> {
    prefix: Name,
    leaf: Leaf<S>,
    custom: bool,
}

/// The methods of one kind of route: for a handler and for a service.
macro_rules! route_methods {
    ($(
        $(#[$handler_doc:meta])* $handler_method:ident;
        $(#[$service_doc:meta])* $service_method:ident;
        $kind:expr, $is_pattern:expr;
    )*) => {$(
        $(#[$handler_doc])*
        #[track_caller]
        pub fn $handler_method<H, T>(self, name: impl Into<Name>, handler: H) -> Self
        where
            H: Handler<T, S>,
        {
            let leaf = Leaf::new(|state: &S| handler.into_route(state.clone()));
            self.add($kind, name.into(), $is_pattern, leaf)
        }

        $(#[$service_doc])*
        #[track_caller]
        pub fn $service_method<V>(self, name: impl Into<Name>, service: V) -> Self
        where
            V: Service<Message, Response = Reply, Error: Into<BoxError>, Future: Send + 'static>
                + Clone
                + Send
                + Sync
                + 'static,
        {
            let leaf = Leaf::new(|_: &S| Route::new(service));
            self.add($kind, name.into(), $is_pattern, leaf)
        }
    )*};
}

impl<S> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    /// A router without routes: it answers every message with [`NotFound`].
    pub fn new() -> Self {
        let not_found = |message: Message| async move {
            let error = NotFound::new(message.kind(), message.name().clone());
            Err::<Reply, BoxError>(error.into())
        };
        Self {
            index: Index::default(),
            routes: Vec::new(),
            fallbacks: vec![Fallback {
                prefix: Name::default(),
                leaf: Leaf::new(move |_: &S| Route::from_fn(not_found)),
                custom: false,
            }],
            layers: Vec::new(),
        }
    }

    route_methods! {
        /// Adds a handler for the tasks of this name.
        ///
        /// # Panics
        /// When the name is empty, longer than [`Name::MAX_LEN`] or already routed.
        task;
        /// Adds a service for the tasks of this name. See [`task`](Self::task).
        ///
        /// # Panics
        /// As [`task`](Self::task) does.
        task_service;
        Kind::Task, false;

        /// Adds a handler for the RPC requests of this name.
        ///
        /// # Panics
        /// When the name is empty, longer than [`Name::MAX_LEN`] or already routed.
        rpc;
        /// Adds a service for the RPC requests of this name. See [`rpc`](Self::rpc).
        ///
        /// # Panics
        /// As [`rpc`](Self::rpc) does.
        rpc_service;
        Kind::Rpc, false;

        /// Adds a handler for the events of this name.
        ///
        /// Several may listen to one event: they run concurrently, each to its end even when
        /// another fails, and the error is a [`FanOutError`](super::FanOutError).
        ///
        /// # Panics
        /// When the name is empty or longer than [`Name::MAX_LEN`].
        event;
        /// Adds a service for the events of this name. See [`event`](Self::event).
        ///
        /// # Panics
        /// As [`event`](Self::event) does.
        event_service;
        Kind::Event, false;

        /// Adds a handler for the events whose names match a Redis glob pattern: `*`, `?`,
        /// `[abc]`, `[^a]`, `[a-z]`, and `\` before a character that is meant literally.
        ///
        /// An event that matches several subscriptions is handled once for each of them, as Redis
        /// delivers it.
        ///
        /// # Panics
        /// When the pattern is empty or longer than [`Name::MAX_LEN`].
        event_pattern;
        /// Adds a service for the events whose names match a Redis glob pattern. See
        /// [`event_pattern`](Self::event_pattern).
        ///
        /// # Panics
        /// As [`event_pattern`](Self::event_pattern) does.
        event_pattern_service;
        Kind::Event, true;
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
        let leaf = Leaf::new(|state: &S| handler.into_route(state.clone()));
        self.set_fallback(Name::default(), leaf)
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
        self.set_fallback(Name::default(), Leaf::new(|_: &S| Route::new(service)))
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
        let has_fallback = self.has_fallback();
        let prefixes = self
            .fallbacks
            .iter()
            .map(|fallback| fallback.prefix.clone());
        let resolver = Arc::new(Resolver::new(self.index, prefixes.collect()));
        let fallbacks = self
            .fallbacks
            .into_iter()
            .map(|fallback| vec![fallback.leaf]);
        let leaves = self.routes.into_iter().chain(fallbacks).collect();
        let root = tree::build(&state, leaves, self.layers, &resolver);
        RouterService::new(resolver, root, has_fallback)
    }

    #[track_caller]
    fn add(mut self, kind: Kind, name: Name, is_pattern: bool, leaf: Leaf<S>) -> Self {
        self.insert(
            RouteInfo {
                kind,
                name,
                is_pattern,
            },
            [leaf],
        );
        self
    }

    #[track_caller]
    fn insert(&mut self, route: RouteInfo, leaves: impl IntoIterator<Item = Leaf<S>>) {
        let (kind, name) = (route.kind, route.name.clone());
        if let Some(fault) = name.fault() {
            panic!("{kind} `{name}` cannot be routed: {fault}");
        }
        let (index, is_new) = self.index.insert(route);
        if is_new {
            self.routes.push(Vec::new());
        } else if kind != Kind::Event {
            panic!("{kind} `{name}` is already routed");
        }
        self.routes[index].extend(leaves);
    }

    #[track_caller]
    fn set_fallback(mut self, prefix: Name, leaf: Leaf<S>) -> Self {
        let fallback = Fallback {
            prefix,
            leaf,
            custom: true,
        };
        let same = |known: &&mut Fallback<S>| known.prefix == fallback.prefix;
        match self.fallbacks.iter_mut().find(same) {
            None => self.fallbacks.push(fallback),
            Some(known) if !known.custom => *known = fallback,
            Some(known) if known.prefix.is_empty() => panic!("the router has a fallback already"),
            Some(known) => panic!("the prefix `{}` has a fallback already", known.prefix),
        }
        self
    }

    fn push_layer<L>(&mut self, layer: L) -> usize
    where
        L: Layer<Route> + Send + 'static,
        L::Service: Service<Message, Response = Reply, Error: Into<BoxError>, Future: Send + 'static>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        let index = self.layers.len();
        self.layers
            .push(Box::new(move |inner| Route::new(layer.layer(inner))));
        for leaf in self.routes.iter_mut().flatten() {
            leaf.layers.push(index);
        }
        index
    }

    #[track_caller]
    fn absorb(mut self, prefix: &Name, router: Router<S>) -> Self {
        // Layers are known by their place, which moves.
        let offset = self.layers.len();
        let moved = |mut leaf: Leaf<S>| {
            for layer in &mut leaf.layers {
                *layer += offset;
            }
            leaf
        };
        self.layers.extend(router.layers);
        for (route, leaves) in router.index.routes().iter().zip(router.routes) {
            let name = match route.is_pattern {
                true => Name::join(&glob::escape(prefix).into(), &route.name),
                false => Name::join(prefix, &route.name),
            };
            let route = RouteInfo {
                name,
                ..route.clone()
            };
            self.insert(route, leaves.into_iter().map(moved));
        }
        for fallback in router.fallbacks.into_iter().filter(|it| it.custom) {
            let prefix = Name::join(prefix, &fallback.prefix);
            self = self.set_fallback(prefix, moved(fallback.leaf));
        }
        self
    }
}

impl<S> Router<S> {
    /// Its routes, in the order in which they were added.
    pub fn routes(&self) -> &[RouteInfo] {
        self.index.routes()
    }

    fn has_fallback(&self) -> bool {
        self.fallbacks.iter().any(|fallback| fallback.custom)
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
        interest(self.routes(), self.has_fallback())
    }

    fn into_service(self) -> RouterService {
        self.with_state(())
    }
}
