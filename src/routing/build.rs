//! The plan of a router: its routes and layers, and the service that is built from them.

use std::sync::{Arc, OnceLock};

use tower::Layer;

use super::{
    RouteInfo,
    index::{Index, Resolver},
    tree::{self, ApplyLayer, Endpoint},
};
use crate::{
    contract::{Description, Named, RouteDescription},
    error::{BoxError, NotFound},
    handler::Handler,
    message::{Kind, Message, Name},
    reply::Reply,
    service::{Route, SharedService},
    transport::{Interest, glob},
};

/// The routes and layers of a router, and the service that is built from them on first use.
pub(super) struct Plan<S> {
    index: Index,
    /// The endpoints of each route, in the order of the index.
    routes: Vec<Vec<Endpoint<S>>>,
    /// The fallbacks. The fallback of the root is the first.
    fallbacks: Vec<Fallback<S>>,
    layers: Vec<ApplyLayer>,
    built: OnceLock<BuiltRouter>,
}

/// The service that is built from a plan, and the resolver that finds the routes of messages.
pub(super) struct BuiltRouter {
    pub(super) resolver: Arc<Resolver>,
    pub(super) root: Route,
}

/// The endpoint for messages that have no route and whose names are below a prefix.
struct Fallback<S> {
    prefix: Name,
    endpoint: Endpoint<S>,
    /// `false` for the default fallback of the root, which fails with `NotFound`.
    is_custom: bool,
}

/// A clone has no service, because plans are cloned only to be changed.
impl<S> Clone for Plan<S> {
    fn clone(&self) -> Self {
        Self {
            index: self.index.clone(),
            routes: self.routes.clone(),
            fallbacks: self.fallbacks.clone(),
            layers: self.layers.clone(),
            built: OnceLock::new(),
        }
    }
}

impl<S> Clone for Fallback<S> {
    fn clone(&self) -> Self {
        Self {
            prefix: self.prefix.clone(),
            endpoint: self.endpoint.clone(),
            is_custom: self.is_custom,
        }
    }
}

pub(super) fn handler_endpoint<H, T, S>(handler: H) -> Endpoint<S>
where
    H: Handler<T, S>,
    S: Clone + 'static,
{
    let batch_size = handler.batch_size();
    let mut endpoint = Endpoint::new(move |state: &S| handler.clone().into_route(state.clone()));
    endpoint.batch_size = batch_size;
    endpoint
}

pub(super) fn service_endpoint<V, S>(service: V) -> Endpoint<S>
where
    V: SharedService,
{
    let route = Route::new(service);
    Endpoint::new(move |_: &S| route.clone())
}

impl<S> Plan<S> {
    pub(super) fn new() -> Self {
        let not_found = |message: Message| async move {
            let error = NotFound::new(message.kind(), message.name().clone());
            Err::<Reply, BoxError>(error.into())
        };
        Self {
            index: Index::default(),
            routes: Vec::new(),
            fallbacks: vec![Fallback {
                prefix: Name::default(),
                endpoint: Endpoint::new(move |_: &S| Route::from_fn(not_found)),
                is_custom: false,
            }],
            layers: Vec::new(),
            built: OnceLock::new(),
        }
    }

    /// Returns a plan that can be changed, without a built service. Other clones of the router keep
    /// the shared plan and its service.
    pub(super) fn unshared(shared: Arc<Self>) -> Self {
        let mut plan = Arc::unwrap_or_clone(shared);
        plan.built = OnceLock::new();
        plan
    }

    pub(super) fn routes(&self) -> &[RouteInfo] {
        self.index.routes()
    }

    /// Describes the routes. If an event has several handlers, the description comes from the first
    /// handler that was added under a constant.
    pub(super) fn describe(&self) -> Description {
        let describe_route = |(info, endpoints): (&RouteInfo, &Vec<Endpoint<S>>)| {
            let mut route = RouteDescription::new(info.kind, &info.name);
            route.is_pattern = info.is_pattern;
            route.is_sharded = info.is_sharded;
            let mut names = endpoints.iter().filter_map(|it| it.named.as_ref());
            if let Some(constant) = names.find(|name| name.is_constant()) {
                constant.describe(&mut route);
            }
            route
        };
        let routes = self.routes().iter().zip(&self.routes).map(describe_route);
        Description::new(routes.collect())
    }

    pub(super) fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// Adds the endpoints of a route. Only the route of an event can be added more than once.
    #[track_caller]
    pub(super) fn insert(
        &mut self,
        route: RouteInfo,
        endpoints: impl IntoIterator<Item = Endpoint<S>>,
    ) {
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
        self.routes[index].extend(endpoints);
    }

    /// Sets the fallback of a prefix. The empty prefix is that of the root.
    #[track_caller]
    pub(super) fn set_fallback(&mut self, prefix: Name, endpoint: Endpoint<S>) {
        let fallback = Fallback {
            prefix,
            endpoint,
            is_custom: true,
        };
        let has_same_prefix = |known: &&mut Fallback<S>| known.prefix == fallback.prefix;
        match self.fallbacks.iter_mut().find(has_same_prefix) {
            None => self.fallbacks.push(fallback),
            Some(known) if !known.is_custom => *known = fallback,
            Some(known) if known.prefix.is_empty() => panic!("the router has a fallback already"),
            Some(known) => panic!("the prefix `{}` has a fallback already", known.prefix),
        }
    }

    /// Adds a layer around the routes, and around the fallbacks too if `around_fallbacks`.
    pub(super) fn push_layer<L>(&mut self, layer: L, around_fallbacks: bool)
    where
        L: Layer<Route> + Send + Sync + 'static,
        L::Service: SharedService,
    {
        let index = self.layers.len();
        self.layers
            .push(Arc::new(move |inner| Route::new(layer.layer(inner))));
        for endpoint in self.routes.iter_mut().flatten() {
            endpoint.layers.push(index);
        }
        if around_fallbacks {
            for fallback in &mut self.fallbacks {
                fallback.endpoint.layers.push(index);
            }
        }
    }

    /// Adds the routes, fallbacks and layers of another plan, below a prefix.
    #[track_caller]
    pub(super) fn absorb(&mut self, prefix: &Name, other: Plan<S>) {
        // Endpoints refer to their layers by index, and the layers of the other plan get new
        // indexes.
        let offset = self.layers.len();
        let with_new_indexes = |mut endpoint: Endpoint<S>| {
            for layer in &mut endpoint.layers {
                *layer += offset;
            }
            endpoint
        };
        self.layers.extend(other.layers);
        for (route, endpoints) in other.index.routes().iter().zip(other.routes) {
            let name = match route.is_pattern {
                true => Name::join(&glob::escape(prefix).into(), &route.name),
                false => Name::join(prefix, &route.name),
            };
            let route = RouteInfo {
                name,
                ..route.clone()
            };
            self.insert(route, endpoints.into_iter().map(with_new_indexes));
        }
        for fallback in other.fallbacks.into_iter().filter(|it| it.is_custom) {
            let prefix = Name::join(prefix, &fallback.prefix);
            self.set_fallback(prefix, with_new_indexes(fallback.endpoint));
        }
    }

    /// Provides the state of the handlers. The returned plan can have any state `S2`.
    pub(super) fn with_state<S2>(self, state: S) -> Plan<S2>
    where
        S: Send + Sync + 'static,
    {
        let state = Arc::new(state);
        let routes = self.routes.into_iter().map(|endpoints| {
            let endpoints = endpoints.into_iter();
            endpoints
                .map(|endpoint| endpoint.with_state(&state))
                .collect()
        });
        let fallbacks = self.fallbacks.into_iter().map(|fallback| Fallback {
            prefix: fallback.prefix,
            endpoint: fallback.endpoint.with_state(&state),
            is_custom: fallback.is_custom,
        });
        Plan {
            index: self.index,
            routes: routes.collect(),
            fallbacks: fallbacks.collect(),
            layers: self.layers,
            built: OnceLock::new(),
        }
    }

    /// Returns the messages that these routes want from a source.
    pub(super) fn interest(&self) -> Interest {
        let fallbacks = self.fallbacks.iter().map(|fallback| &fallback.endpoint);
        let endpoints = self.routes.iter().flatten().chain(fallbacks);
        let has_fallback = self.fallbacks.iter().any(|fallback| fallback.is_custom);
        let is_on_stream = |route: &&RouteInfo| matches!(route.kind, Kind::Task | Kind::Rpc);
        let stream_routes = self.routes().iter().filter(is_on_stream);
        let stream_routes = stream_routes.map(|route| (route.kind, route.name.clone()));
        // A fallback handles any name, so the names of the other routes are then left out.
        let mut interest = Interest {
            stream: has_fallback,
            routes: (!has_fallback).then(|| stream_routes.collect()),
            batch_size: endpoints
                .map(|endpoint| endpoint.batch_size)
                .max()
                .unwrap_or_default(),
            ..Interest::default()
        };
        for (route, endpoints) in self.routes().iter().zip(&self.routes) {
            let names = endpoints.iter().filter_map(|it| it.named.as_ref());
            let version = names.map(Named::version).max().unwrap_or(1);
            if route.kind == Kind::Task && version > 1 {
                interest.versions.push((route.name.clone(), version));
            }
            match route.kind {
                Kind::Event if route.is_pattern => interest.patterns.push(route.name.clone()),
                Kind::Event if route.is_sharded => interest.sharded.push(route.name.clone()),
                Kind::Event => interest.events.push(route.name.clone()),
                Kind::Task | Kind::Rpc => interest.stream = true,
            }
        }
        interest
    }
}

impl Plan<()> {
    /// Returns the service. The first call builds it, so each layer is applied only once.
    pub(super) fn get_or_build(&self) -> &BuiltRouter {
        self.built.get_or_init(|| {
            let prefixes = self.fallbacks.iter().map(|it| it.prefix.clone());
            let resolver = Arc::new(Resolver::new(self.index.clone(), prefixes.collect()));
            let fallbacks = self
                .fallbacks
                .iter()
                .map(|it| std::slice::from_ref(&it.endpoint));
            let routes = self.routes.iter().map(Vec::as_slice);
            let endpoints: Vec<&[Endpoint<()>]> = routes.chain(fallbacks).collect();
            let root = tree::build(&endpoints, &self.layers, &resolver);
            BuiltRouter { resolver, root }
        })
    }
}
