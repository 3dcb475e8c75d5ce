//! Builds one service from a router's routes and layers.
//!
//! Each layer wraps everything that was added before it, as one service. So the services form a
//! tree whose leaves are the endpoints, and a message passes from the root through the layers
//! around its route. The service in each layer is a [`Dispatch`]: it finds the next layer, or the
//! endpoint, by the index of the route.

use std::{future::ready, pin::Pin, sync::Arc};

use super::{fan_out, index::Resolver};
use crate::{
    error::NotFound,
    message::Message,
    service::{ErasedCall, ErasedService, Route, RouteFuture},
};

/// Applies a layer to a service.
pub(super) type MakeLayer = Arc<dyn Fn(Route) -> Route + Send + Sync>;

/// A handler whose state is not known yet, and the layers around it.
pub(super) struct Endpoint<S> {
    /// Makes the service from the state.
    make: Arc<dyn Fn(&S) -> Route + Send + Sync>,
    /// The indexes of the layers around it, innermost first: a layer has a higher index than the
    /// layers in it.
    pub(super) layers: Vec<usize>,
    /// The number of messages that the handler takes at once, more than one for a batch.
    pub(super) at_once: usize,
}

impl<S> Endpoint<S> {
    pub(super) fn new(make: impl Fn(&S) -> Route + Send + Sync + 'static) -> Self {
        Self {
            make: Arc::new(make),
            layers: Vec::new(),
            at_once: 1,
        }
    }

    /// Gives the handler its state. The layers stay.
    pub(super) fn with_state<S2>(self, state: &Arc<S>) -> Endpoint<S2>
    where
        S: Send + Sync + 'static,
    {
        let (make, state) = (self.make, state.clone());
        Endpoint {
            make: Arc::new(move |_: &S2| make(&state)),
            layers: self.layers,
            at_once: self.at_once,
        }
    }
}

// Implemented by hand, since a derive would require `S: Clone`.
impl<S> Clone for Endpoint<S> {
    fn clone(&self) -> Self {
        Self {
            make: self.make.clone(),
            layers: self.layers.clone(),
            at_once: self.at_once,
        }
    }
}

/// Builds the service of a router. `routes` has the endpoints of each route and then of each
/// fallback, in the order of the resolver's indexes.
pub(super) fn build(
    routes: &[&[Endpoint<()>]],
    layers: &[MakeLayer],
    resolver: &Arc<Resolver>,
) -> Route {
    debug_assert_eq!(routes.len(), resolver.len());
    let mut tree = Tree {
        resolver,
        routes: routes
            .iter()
            .map(|endpoints| {
                let endpoint =
                    |endpoint: &Endpoint<()>| ((endpoint.make)(&()), endpoint.layers.clone());
                endpoints.iter().map(endpoint).collect()
            })
            .collect(),
        layered: Vec::with_capacity(layers.len()),
    };
    for (layer, apply) in layers.iter().enumerate() {
        let layered = apply(tree.content(Some(layer)));
        tree.layered.push(layered);
    }
    tree.content(None)
}

struct Tree<'a> {
    resolver: &'a Arc<Resolver>,
    /// The endpoints of each route with the layers around them.
    routes: Vec<Vec<(Route, Vec<usize>)>>,
    /// The services that the layers made, in the order of their indexes.
    layered: Vec<Route>,
}

impl Tree<'_> {
    /// Makes the service that this layer wraps; for `None`, the service of the whole router.
    fn content(&self, layer: Option<usize>) -> Route {
        let segments: Vec<Vec<Segment<'_>>> = self
            .routes
            .iter()
            .map(|endpoints| segments(endpoints, layer))
            .collect();
        if let Some(inner) = only_layer(&segments) {
            // The layer wraps only another layer. Without a `Dispatch` between them, the outer
            // layer sees whether the inner one is ready.
            return self.layered[inner].clone();
        }
        let service = |segment: &Segment<'_>| match *segment {
            Segment::Endpoint(route) => route.erased().clone(),
            Segment::Layer(layer) => self.layered[layer].erased().clone(),
        };
        let routes = segments
            .iter()
            .map(|segments| match &segments[..] {
                [] => ResolvedRoute::None,
                [segment] => ResolvedRoute::One(service(segment)),
                segments => ResolvedRoute::Several(segments.iter().map(service).collect()),
            })
            .collect();
        Route::from_erased(Arc::new(Dispatch {
            resolver: self.resolver.clone(),
            routes,
        }))
    }
}

/// The next service for a message: an endpoint, or the layer with this index.
enum Segment<'a> {
    Endpoint(&'a Route),
    Layer(usize),
}

/// The segments directly in this layer that lead to the endpoints of one route.
fn segments(endpoints: &[(Route, Vec<usize>)], layer: Option<usize>) -> Vec<Segment<'_>> {
    let mut segments = Vec::new();
    for (endpoint, around) in endpoints {
        let within = match layer {
            None => &around[..],
            Some(layer) => match around.binary_search(&layer) {
                Ok(place) => &around[..place],
                Err(_) => continue,
            },
        };
        match within.last() {
            None => segments.push(Segment::Endpoint(endpoint)),
            // An event passes a layer that several of its handlers share only once. Inside the
            // layer it goes to each handler.
            Some(&next) => {
                if !segments
                    .iter()
                    .any(|segment| matches!(segment, Segment::Layer(known) if *known == next))
                {
                    segments.push(Segment::Layer(next));
                }
            }
        }
    }
    segments
}

/// The layer that is the next segment of every route, if there is one.
fn only_layer(routes: &[Vec<Segment<'_>>]) -> Option<usize> {
    let mut only = None;
    for segment in routes.iter().flatten() {
        match (segment, only) {
            (Segment::Layer(layer), None) => only = Some(*layer),
            (Segment::Layer(layer), Some(known)) if *layer == known => {}
            _ => return None,
        }
    }
    only
}

/// Calls the endpoint of a message's route, or the next layer around it, by the index of the route.
struct Dispatch {
    resolver: Arc<Resolver>,
    routes: Vec<ResolvedRoute>,
}

/// The services to call for the messages of one route.
enum ResolvedRoute {
    None,
    One(Arc<dyn ErasedService>),
    Several(Box<[Arc<dyn ErasedService>]>),
}

impl Dispatch {
    /// Calls the next services for a message whose route is known.
    fn send(&self, message: Message) -> RouteFuture {
        let route = message.parts().matched.as_ref().map(|route| route.index);
        match route.and_then(|route| self.routes.get(route)) {
            Some(ResolvedRoute::One(next)) => next.call(message),
            Some(ResolvedRoute::Several(next)) => {
                let calls = next.iter().map(|next| next.call(message.clone()));
                fan_out::join(calls.collect())
            }
            // A layer made or changed this message, and the message's route is not inside that
            // layer.
            Some(ResolvedRoute::None) | None => {
                let error = NotFound::new(message.kind(), message.name().clone());
                RouteFuture::new(ready(Err(error.into())))
            }
        }
    }
}

impl ErasedService for Dispatch {
    fn prepare(&self) -> Option<Pin<Box<dyn ErasedCall>>> {
        None
    }

    fn call(&self, message: Message) -> RouteFuture {
        match message.parts().matched {
            Some(_) => self.send(message),
            // A layer made this message, so it has no route yet.
            None => self
                .resolver
                .dispatch(message, |message| self.send(message)),
        }
    }
}
