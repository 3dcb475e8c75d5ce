//! From a router's routes and layers to one service.
//!
//! Each layer wraps all that had been added before it, as one service. So the layers form a tree:
//! routes are its leaves, and the way of a message leads from the root through the layers around
//! its route. In front of a layer's content stands a [`Dispatch`], which finds the next step by the
//! index of the route.

use std::{future::ready, pin::Pin, sync::Arc};

use super::{fan_out, index::Resolver};
use crate::{
    error::NotFound,
    message::Message,
    service::{Route, RouteFuture, Slot, Template},
};

/// Applies a layer.
pub(super) type MakeLayer = Arc<dyn Fn(Route) -> Route + Send + Sync>;

/// A handler that waits for the router's state, and the layers around it.
pub(super) struct Leaf<S> {
    make: Arc<dyn Fn(&S) -> Route + Send + Sync>,
    /// Innermost first, as indexes of the router's layers. A layer's index is above those of all
    /// layers within it.
    pub(super) layers: Vec<usize>,
    /// How many messages it takes at once.
    pub(super) at_once: usize,
}

impl<S> Leaf<S> {
    pub(super) fn new(make: impl Fn(&S) -> Route + Send + Sync + 'static) -> Self {
        Self {
            make: Arc::new(make),
            layers: Vec::new(),
            at_once: 1,
        }
    }

    /// The same handler with its state, within the same layers.
    pub(super) fn with_state<S2>(self, state: &Arc<S>) -> Leaf<S2>
    where
        S: Send + Sync + 'static,
    {
        let (make, state) = (self.make, state.clone());
        Leaf {
            make: Arc::new(move |_: &S2| make(&state)),
            layers: self.layers,
            at_once: self.at_once,
        }
    }
}

// By hand, since a derive would ask for `S: Clone`.
impl<S> Clone for Leaf<S> {
    fn clone(&self) -> Self {
        Self {
            make: self.make.clone(),
            layers: self.layers.clone(),
            at_once: self.at_once,
        }
    }
}

/// Builds the service of a whole router: `routes` has the leaves of each route and then of each
/// fallback, in the order of the resolver's indexes.
pub(super) fn build(
    routes: &[&[Leaf<()>]],
    layers: &[MakeLayer],
    resolver: &Arc<Resolver>,
) -> Route {
    debug_assert_eq!(routes.len(), resolver.len());
    let mut tree = Tree {
        resolver,
        routes: routes
            .iter()
            .map(|leaves| {
                let leaf = |leaf: &Leaf<()>| ((leaf.make)(&()), leaf.layers.clone());
                leaves.iter().map(leaf).collect()
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
    /// The leaves of each route with the layers around them.
    routes: Vec<Vec<(Route, Vec<usize>)>>,
    /// The layers that were applied so far, each with its content.
    layered: Vec<Route>,
}

impl Tree<'_> {
    /// What this layer wraps; for `None`, the whole.
    fn content(&self, layer: Option<usize>) -> Route {
        let steps: Vec<Vec<Step<'_>>> = self
            .routes
            .iter()
            .map(|leaves| steps(leaves, layer))
            .collect();
        if let Some(inner) = only_layer(&steps) {
            // The layer wraps nothing but another one. Without a step in between, the readiness of
            // the inner one reaches the outer.
            return self.layered[inner].clone();
        }
        let service = |step: &Step<'_>| match *step {
            Step::Leaf(route) => route.template().clone(),
            Step::Layer(layer) => self.layered[layer].template().clone(),
        };
        let targets = steps
            .iter()
            .map(|steps| match &steps[..] {
                [] => Target::None,
                [step] => Target::One(service(step)),
                steps => Target::Several(steps.iter().map(service).collect()),
            })
            .collect();
        Route::from_template(Arc::new(Dispatch {
            resolver: self.resolver.clone(),
            targets,
        }))
    }
}

/// Where a message goes next.
enum Step<'a> {
    Leaf(&'a Route),
    Layer(usize),
}

/// The next steps, just within this layer, towards the leaves of one route.
fn steps(leaves: &[(Route, Vec<usize>)], layer: Option<usize>) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    for (leaf, around) in leaves {
        let within = match layer {
            None => &around[..],
            Some(layer) => match around.binary_search(&layer) {
                Ok(place) => &around[..place],
                Err(_) => continue,
            },
        };
        match within.last() {
            None => steps.push(Step::Leaf(leaf)),
            // Handlers of one event that share a layer are fanned out to behind it.
            Some(&next) => {
                if !steps
                    .iter()
                    .any(|step| matches!(step, Step::Layer(known) if *known == next))
                {
                    steps.push(Step::Layer(next));
                }
            }
        }
    }
    steps
}

/// The layer that every way leads through next, if there is one.
fn only_layer(routes: &[Vec<Step<'_>>]) -> Option<usize> {
    let mut only = None;
    for step in routes.iter().flatten() {
        match (step, only) {
            (Step::Layer(layer), None) => only = Some(*layer),
            (Step::Layer(layer), Some(known)) if *layer == known => {}
            _ => return None,
        }
    }
    only
}

/// Hands a message on to its route, or to the next layer around it, by the index of the route.
struct Dispatch {
    resolver: Arc<Resolver>,
    targets: Vec<Target>,
}

enum Target {
    None,
    One(Arc<dyn Template>),
    Several(Box<[Arc<dyn Template>]>),
}

impl Dispatch {
    /// Sends on a message that has been resolved.
    fn send(&self, message: Message) -> RouteFuture {
        let route = message.parts().matched.as_ref().map(|route| route.index);
        match route.and_then(|route| self.targets.get(route)) {
            Some(Target::One(next)) => next.call(message),
            Some(Target::Several(next)) => {
                let calls = next.iter().map(|next| next.call(message.clone()));
                fan_out::join(calls.collect())
            }
            // Only a message that a layer made can lead out of that layer's content.
            Some(Target::None) | None => {
                let error = NotFound::new(message.kind(), message.name().clone());
                RouteFuture::new(ready(Err(error.into())))
            }
        }
    }
}

impl Template for Dispatch {
    fn slot(&self) -> Option<Pin<Box<dyn Slot>>> {
        None
    }

    fn call(&self, message: Message) -> RouteFuture {
        match message.parts().matched {
            Some(_) => self.send(message),
            // A layer made this message.
            None => self
                .resolver
                .dispatch(message, |message| self.send(message)),
        }
    }
}
