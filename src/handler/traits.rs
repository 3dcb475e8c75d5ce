//! The trait of handlers.

use tower::Layer;

use super::Layered;
use crate::service::{Route, SharedService};

/// What a router can route to: an async function of up to 16 [extractors](crate::extract).
///
/// `T` is the function's arguments; it keeps the implementations for functions of different lengths
/// apart and is never written by hand. `S` is the state that the arguments need.
// The conditions on arguments, future and return value have texts of their own, where they are.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler",
    label = "not an async function of up to 16 arguments",
    note = "a handler is an `async fn`, or a closure that returns a future and is `Clone + Send + Sync + 'static`, as everything that it captures must be",
    note = "a `tower::Service<Message>` is added with `task_service`, `rpc_service`, `event_service` or `fallback_service`",
    note = "`Batch::new(function)` is one if the function's last argument is a `Vec` of what is extracted from each message, and each before it is a `State<_>`"
)]
pub trait Handler<T, S>: Clone + Send + Sync + Sized + 'static {
    /// The service that it becomes.
    type Service: SharedService;

    /// Makes the service. Layers of the handler are applied here: once for a router, when it is
    /// first used.
    fn with_state(self, state: S) -> Self::Service;

    /// Puts a layer around this handler alone.
    ///
    /// It is applied once, so that a limit of ten is ten over all messages of the route. Several
    /// routes that are to share one limit need [`Router::layer`](crate::Router::layer).
    fn layer<L>(self, layer: L) -> Layered<L, Self, T, S>
    where
        L: Layer<Self::Service> + Clone + Send + Sync + 'static,
        L::Service: SharedService,
    {
        Layered::new(layer, self)
    }

    /// How many messages it takes at once, if there are as many.
    #[doc(hidden)]
    fn at_once(&self) -> usize {
        1
    }

    /// The service behind a pointer; functions need one allocation less a message here.
    #[doc(hidden)]
    fn into_route(self, state: S) -> Route {
        Route::new(self.with_state(state))
    }
}
