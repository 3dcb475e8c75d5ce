//! What the builder's methods do.

use std::sync::Arc;

use tower::{Layer, Service};

use super::{
    RouteInfo, Router, RouterService,
    index::{Index, Resolver},
    tree::{self, Leaf},
};
use crate::{
    error::{BoxError, NotFound},
    handler::{Handler, Route},
    message::{Kind, Message, Name},
    reply::Reply,
    transport::{Interest, glob},
};

/// A handler for what has no route below a prefix.
pub(super) struct Fallback<S> {
    prefix: Name,
    pub(super) leaf: Leaf<S>,
    custom: bool,
}

pub(super) fn handler_leaf<H, T, S>(handler: H) -> Leaf<S>
where
    H: Handler<T, S>,
    S: Clone + 'static,
{
    let at_once = handler.at_once();
    let mut leaf = Leaf::new(|state: &S| handler.into_route(state.clone()));
    leaf.at_once = at_once;
    leaf
}

pub(super) fn service_leaf<V, S>(service: V) -> Leaf<S>
where
    V: Service<Message, Response = Reply, Error: Into<BoxError>, Future: Send + 'static>
        + Clone
        + Send
        + Sync
        + 'static,
{
    Leaf::new(|_: &S| Route::new(service))
}

impl<S> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    pub(super) fn empty() -> Self {
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

    #[track_caller]
    pub(super) fn add(mut self, kind: Kind, name: Name, is_pattern: bool, leaf: Leaf<S>) -> Self {
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
    pub(super) fn set_fallback(mut self, prefix: Name, leaf: Leaf<S>) -> Self {
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

    pub(super) fn push_layer<L>(&mut self, layer: L) -> usize
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
    pub(super) fn absorb(mut self, prefix: &Name, router: Router<S>) -> Self {
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

    pub(super) fn finish(self, state: &S) -> RouterService {
        let interest = self.interest();
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
        let root = tree::build(state, leaves, self.layers, &resolver);
        RouterService::new(resolver, root, interest)
    }
}

impl<S> Router<S> {
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
