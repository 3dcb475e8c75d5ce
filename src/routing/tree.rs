//! Builds one service from a router's routes and layers.
//!
//! Each layer wraps everything that was added before it, as one service. So the services form a
//! tree. Its leaves are the endpoints, and a message goes from the root through the layers around
//! its route to the endpoint. The service inside each layer is a [`Dispatch`]: it finds the next
//! layer, or the endpoint, by the index of the route.

use std::{future::ready, pin::Pin, sync::Arc};

use super::{fan_out, index::Resolver};
use crate::{
    contract::Named,
    error::NotFound,
    message::Message,
    service::{ErasedCall, ErasedService, Route, RouteFuture},
};

/// Applies a layer to a service.
pub(super) type ApplyLayer = Arc<dyn Fn(Route) -> Route + Send + Sync>;

/// A handler that has no state yet, and the layers around it.
pub(super) struct Endpoint<S> {
    /// Makes the service from the state.
    make: Arc<dyn Fn(&S) -> Route + Send + Sync>,
    /// The indexes of the layers around the handler, innermost first. The indexes increase, because
    /// an outer layer is added later.
    pub(super) layers: Vec<usize>,
    /// The maximum number of messages that the handler takes in one call. More than one for a
    /// batch.
    pub(super) batch_size: usize,
    /// The name under which the handler was added, without the prefixes of outer routers, and the
    /// constant of this name if there is one. `None` for a pattern and for a fallback.
    pub(super) named: Option<Named>,
}

impl<S> Endpoint<S> {
    pub(super) fn new(make: impl Fn(&S) -> Route + Send + Sync + 'static) -> Self {
        Self {
            make: Arc::new(make),
            layers: Vec::new(),
            batch_size: 1,
            named: None,
        }
    }

    /// Names the endpoint. If the name is a constant, the endpoint checks the versions of messages.
    pub(super) fn with_name(mut self, named: Named) -> Self
    where
        S: 'static,
    {
        if named.is_constant() {
            let (make, named) = (self.make, named.clone());
            self.make = Arc::new(move |state: &S| {
                let inner = make(state).erased().clone();
                let named = named.clone();
                Route::from_erased(Arc::new(VersionedEndpoint { inner, named }))
            });
        }
        self.named = Some(named);
        self
    }

    /// Provides the handler's state, and keeps its layers.
    pub(super) fn with_state<S2>(self, state: &Arc<S>) -> Endpoint<S2>
    where
        S: Send + Sync + 'static,
    {
        let (make, state) = (self.make, state.clone());
        Endpoint {
            make: Arc::new(move |_: &S2| make(&state)),
            layers: self.layers,
            batch_size: self.batch_size,
            named: self.named,
        }
    }
}

// Implemented by hand, because a derive would require `S: Clone`.
impl<S> Clone for Endpoint<S> {
    fn clone(&self) -> Self {
        Self {
            make: self.make.clone(),
            layers: self.layers.clone(),
            batch_size: self.batch_size,
            named: self.named.clone(),
        }
    }
}

/// An endpoint that was added under a constant. Takes payloads of the constant's version, and lifts
/// payloads of older versions to that version. Refuses all other payloads.
struct VersionedEndpoint {
    inner: Arc<dyn ErasedService>,
    named: Named,
}

impl ErasedService for VersionedEndpoint {
    /// Returns `None`, because a [`Dispatch`] calls endpoints without making them ready: each call
    /// waits in its future until the service is ready.
    fn prepare(&self) -> Option<Pin<Box<dyn ErasedCall>>> {
        None
    }

    fn call(&self, message: Message) -> RouteFuture {
        match self.named.admit(message) {
            Ok(message) => self.inner.call(message),
            Err(error) => RouteFuture::new(ready(Err(error))),
        }
    }
}

/// Builds the service of a router. `routes` has the endpoints of each route, then those of each
/// fallback, in the order of the resolver's indexes.
pub(super) fn build(
    routes: &[&[Endpoint<()>]],
    layers: &[ApplyLayer],
    resolver: &Arc<Resolver>,
) -> Route {
    debug_assert_eq!(routes.len(), resolver.len());
    let mut tree = Tree {
        resolver,
        routes: routes
            .iter()
            .map(|endpoints| {
                let with_layers =
                    |endpoint: &Endpoint<()>| ((endpoint.make)(&()), endpoint.layers.clone());
                endpoints.iter().map(with_layers).collect()
            })
            .collect(),
        layer_services: Vec::with_capacity(layers.len()),
    };
    // Inner layers have lower indexes, so their services exist before an outer layer needs them.
    for (layer, apply) in layers.iter().enumerate() {
        let service = apply(tree.inner_service(Some(layer)));
        tree.layer_services.push(service);
    }
    tree.inner_service(None)
}

/// A tree of services under construction.
struct Tree<'a> {
    resolver: &'a Arc<Resolver>,
    /// The endpoints of each route with the layers around them.
    routes: Vec<Vec<(Route, Vec<usize>)>>,
    /// The services that the layers made, in the order of their indexes.
    layer_services: Vec<Route>,
}

impl Tree<'_> {
    /// Makes the service that this layer wraps. For `None`, makes the service of the whole router.
    fn inner_service(&self, layer: Option<usize>) -> Route {
        let segments: Vec<Vec<Segment<'_>>> = self
            .routes
            .iter()
            .map(|endpoints| segments(endpoints, layer))
            .collect();
        if let Some(inner) = only_layer(&segments) {
            // This layer wraps only one other layer. The two layers are connected without a
            // `Dispatch`, so that the outer layer is ready only if the inner layer is.
            return self.layer_services[inner].clone();
        }
        let service = |segment: &Segment<'_>| match *segment {
            Segment::Endpoint(route) => route.erased().clone(),
            Segment::Layer(layer) => self.layer_services[layer].erased().clone(),
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

/// Returns the next segment on each path from this layer to the endpoints of one route. For `None`,
/// the paths start at the root.
fn segments(endpoints: &[(Route, Vec<usize>)], layer: Option<usize>) -> Vec<Segment<'_>> {
    let mut segments = Vec::new();
    for (endpoint, layers) in endpoints {
        let inner_layers = match layer {
            None => &layers[..],
            Some(layer) => match layers.binary_search(&layer) {
                Ok(position) => &layers[..position],
                // The endpoint is not inside this layer.
                Err(_) => continue,
            },
        };
        match inner_layers.last() {
            None => segments.push(Segment::Endpoint(endpoint)),
            // If several handlers of an event share a layer, the event goes through the layer only
            // once, and to each handler inside it.
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

/// If all segments of all routes are the same layer, returns this layer.
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
    /// The route has no endpoint inside this layer.
    None,
    One(Arc<dyn ErasedService>),
    /// Several handlers of an event.
    Several(Box<[Arc<dyn ErasedService>]>),
}

impl Dispatch {
    /// Calls the next services for a message that has a matched route.
    fn send(&self, message: Message) -> RouteFuture {
        let index = message
            .parts()
            .matched_route
            .as_ref()
            .map(|route| route.index);
        match index.and_then(|index| self.routes.get(index)) {
            Some(ResolvedRoute::One(next)) => next.call(message),
            Some(ResolvedRoute::Several(next)) => {
                let calls = next.iter().map(|next| next.call(message.clone()));
                fan_out::join(calls.collect())
            }
            // A layer made or changed this message, and the route of the message is not inside that
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
        match message.parts().matched_route {
            Some(_) => self.send(message),
            // A layer made this message, so no route was matched yet.
            None => self
                .resolver
                .dispatch(message, |message| self.send(message)),
        }
    }
}
