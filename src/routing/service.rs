//! A finished router.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use tower::Service;

use super::{RouteInfo, index::Resolver};
use crate::{
    error::BoxError,
    handler::{Route, RouteFuture},
    message::{Kind, Message},
    reply::Reply,
    transport::Interest,
};

/// A [`Router`](super::Router) with its state: a `Service<Message>`, cheap to clone.
///
/// # Back-pressure
/// Where everything in the router stands behind one layer, its readiness is that layer's; a limit
/// there pauses the source. Otherwise it is always ready, and a message waits, in its own delivery,
/// for the layers that it meets.
#[derive(Clone)]
pub struct RouterService {
    resolver: Arc<Resolver>,
    root: Route,
    // Whether a message that has no route may still be handled.
    has_fallback: bool,
}

impl RouterService {
    pub(super) fn new(resolver: Arc<Resolver>, root: Route, has_fallback: bool) -> Self {
        Self {
            resolver,
            root,
            has_fallback,
        }
    }

    /// Its routes, in the order in which they were added.
    pub fn routes(&self) -> &[RouteInfo] {
        self.resolver.routes()
    }

    /// What it wants of a source: the events and patterns of its routes, and the stream where it
    /// has a task, an RPC route or a fallback.
    pub fn interest(&self) -> Interest {
        interest(self.routes(), self.has_fallback)
    }
}

pub(super) fn interest(routes: &[RouteInfo], has_fallback: bool) -> Interest {
    let mut interest = Interest {
        stream: has_fallback,
        ..Interest::default()
    };
    for route in routes {
        match (route.kind, route.is_pattern) {
            (Kind::Event, true) => interest.patterns.push(route.name.clone()),
            (Kind::Event, false) => interest.events.push(route.name.clone()),
            (Kind::Task | Kind::Rpc, _) => interest.stream = true,
        }
    }
    interest
}

impl fmt::Debug for RouterService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouterService")
            .field("routes", &self.routes())
            .finish_non_exhaustive()
    }
}

impl Service<Message> for RouterService {
    type Response = Reply;
    type Error = BoxError;
    type Future = RouteFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.root.poll_ready(cx)
    }

    fn call(&mut self, message: Message) -> RouteFuture {
        let root = &mut self.root;
        // Of several calls the first gets what was made ready; the others wait for themselves.
        self.resolver
            .dispatch(message, |message| root.call(message))
    }
}
