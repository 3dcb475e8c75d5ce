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
    message::Message,
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
    shared: Arc<Shared>,
    root: Route,
}

/// One count for both: a clone is made for each message, and dropped by another thread.
struct Shared {
    resolver: Arc<Resolver>,
    interest: Interest,
}

impl RouterService {
    pub(super) fn new(resolver: Arc<Resolver>, root: Route, interest: Interest) -> Self {
        let shared = Arc::new(Shared { resolver, interest });
        Self { shared, root }
    }

    /// Its routes, in the order in which they were added.
    pub fn routes(&self) -> &[RouteInfo] {
        self.shared.resolver.routes()
    }

    /// What it wants of a source: the events and patterns of its routes, and the stream where it
    /// has a task, an RPC route or a fallback.
    pub fn interest(&self) -> Interest {
        self.shared.interest.clone()
    }
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
        let resolver = &self.shared.resolver;
        resolver.dispatch(message, |message| root.call(message))
    }
}
