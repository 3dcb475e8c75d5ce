//! What a router is made of, and what its methods do.

use std::sync::{Arc, OnceLock};

use tower::Layer;

use super::{
    RouteInfo,
    index::{Index, Resolver},
    tree::{self, Leaf, MakeLayer},
};
use crate::{
    error::{BoxError, NotFound},
    handler::Handler,
    message::{Kind, Message, Name},
    reply::Reply,
    service::{Route, SharedService},
    transport::{Interest, glob},
};

/// The routes and layers of a router, and the service that was built from them.
pub(super) struct Plan<S> {
    index: Index,
    /// The handlers of each route, in the order of the index.
    routes: Vec<Vec<Leaf<S>>>,
    /// The first is the root's.
    fallbacks: Vec<Fallback<S>>,
    layers: Vec<MakeLayer>,
    built: OnceLock<Built>,
}

/// The service of a router.
pub(super) struct Built {
    pub(super) resolver: Arc<Resolver>,
    pub(super) root: Route,
}

/// A handler for what has no route below a prefix.
struct Fallback<S> {
    prefix: Name,
    leaf: Leaf<S>,
    custom: bool,
}

/// A plan that is cloned is about to be changed, so what was built of it is left behind.
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
            leaf: self.leaf.clone(),
            custom: self.custom,
        }
    }
}

pub(super) fn handler_leaf<H, T, S>(handler: H) -> Leaf<S>
where
    H: Handler<T, S>,
    S: Clone + 'static,
{
    let at_once = handler.at_once();
    let mut leaf = Leaf::new(move |state: &S| handler.clone().into_route(state.clone()));
    leaf.at_once = at_once;
    leaf
}

pub(super) fn service_leaf<V, S>(service: V) -> Leaf<S>
where
    V: SharedService,
{
    let route = Route::new(service);
    Leaf::new(move |_: &S| route.clone())
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
                leaf: Leaf::new(move |_: &S| Route::from_fn(not_found)),
                custom: false,
            }],
            layers: Vec::new(),
            built: OnceLock::new(),
        }
    }

    /// The plan of a router, to be changed: not what was built of it, and not what its clones use.
    pub(super) fn unshared(shared: Arc<Self>) -> Self {
        let mut plan = Arc::unwrap_or_clone(shared);
        plan.built = OnceLock::new();
        plan
    }

    pub(super) fn routes(&self) -> &[RouteInfo] {
        self.index.routes()
    }

    pub(super) fn layers(&self) -> usize {
        self.layers.len()
    }

    #[track_caller]
    pub(super) fn insert(&mut self, route: RouteInfo, leaves: impl IntoIterator<Item = Leaf<S>>) {
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
    pub(super) fn set_fallback(&mut self, prefix: Name, leaf: Leaf<S>) {
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
    }

    /// Puts a layer around the routes, and around the fallbacks too if it is to be around all.
    pub(super) fn push_layer<L>(&mut self, layer: L, around_fallbacks: bool)
    where
        L: Layer<Route> + Send + Sync + 'static,
        L::Service: SharedService,
    {
        let index = self.layers.len();
        self.layers
            .push(Arc::new(move |inner| Route::new(layer.layer(inner))));
        for leaf in self.routes.iter_mut().flatten() {
            leaf.layers.push(index);
        }
        if around_fallbacks {
            for fallback in &mut self.fallbacks {
                fallback.leaf.layers.push(index);
            }
        }
    }

    #[track_caller]
    pub(super) fn absorb(&mut self, prefix: &Name, other: Plan<S>) {
        // Layers are known by their place, which moves.
        let offset = self.layers.len();
        let moved = |mut leaf: Leaf<S>| {
            for layer in &mut leaf.layers {
                *layer += offset;
            }
            leaf
        };
        self.layers.extend(other.layers);
        for (route, leaves) in other.index.routes().iter().zip(other.routes) {
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
        for fallback in other.fallbacks.into_iter().filter(|it| it.custom) {
            let prefix = Name::join(prefix, &fallback.prefix);
            self.set_fallback(prefix, moved(fallback.leaf));
        }
    }

    /// The same routes, whose handlers have this state and need another one, or none.
    pub(super) fn with_state<S2>(self, state: S) -> Plan<S2>
    where
        S: Send + Sync + 'static,
    {
        let state = Arc::new(state);
        let routes = self.routes.into_iter().map(|leaves| {
            let leaves = leaves.into_iter();
            leaves.map(|leaf| leaf.with_state(&state)).collect()
        });
        let fallbacks = self.fallbacks.into_iter().map(|fallback| Fallback {
            prefix: fallback.prefix,
            leaf: fallback.leaf.with_state(&state),
            custom: fallback.custom,
        });
        Plan {
            index: self.index,
            routes: routes.collect(),
            fallbacks: fallbacks.collect(),
            layers: self.layers,
            built: OnceLock::new(),
        }
    }

    /// What it wants of a source.
    pub(super) fn interest(&self) -> Interest {
        let fallbacks = self.fallbacks.iter().map(|fallback| &fallback.leaf);
        let leaves = self.routes.iter().flatten().chain(fallbacks);
        let mut interest = Interest {
            stream: self.fallbacks.iter().any(|fallback| fallback.custom),
            at_once: leaves.map(|leaf| leaf.at_once).max().unwrap_or_default(),
            ..Interest::default()
        };
        for route in self.routes() {
            match (route.kind, route.is_pattern) {
                (Kind::Event, true) => interest.patterns.push(route.name.clone()),
                (Kind::Event, false) => interest.events.push(route.name.clone()),
                (Kind::Task | Kind::Rpc, _) => interest.stream = true,
            }
        }
        interest
    }
}

impl Plan<()> {
    /// The service, which is built when it is first asked for. Here each layer is applied, once.
    pub(super) fn built(&self) -> &Built {
        self.built.get_or_init(|| {
            let prefixes = self.fallbacks.iter().map(|it| it.prefix.clone());
            let resolver = Arc::new(Resolver::new(self.index.clone(), prefixes.collect()));
            let fallbacks = self
                .fallbacks
                .iter()
                .map(|it| std::slice::from_ref(&it.leaf));
            let routes = self.routes.iter().map(Vec::as_slice);
            let leaves: Vec<&[Leaf<()>]> = routes.chain(fallbacks).collect();
            let root = tree::build(&leaves, &self.layers, &resolver);
            Built { resolver, root }
        })
    }
}
