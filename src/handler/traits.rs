//! The trait of handlers, and handlers with a layer.

use std::{fmt, marker::PhantomData};

use tower::Layer;

use crate::service::{Route, SharedService};

/// A handler of messages: an async function with up to 16 [extractors](crate::extract) as its
/// arguments.
///
/// `T` stands for the arguments of the function, and distinguishes the implementations of this
/// trait. The compiler infers `T`. `S` is the state that the arguments need.
///
/// ```
/// use campanile::{Handler, Message, State};
/// use tower::ServiceExt;
///
/// async fn greet(State(greeting): State<String>, name: String) -> String {
///     format!("{greeting} {name}")
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), campanile::BoxError> {
/// let service = greet.with_state("hello".to_owned()); // as a service, outside any router
/// let reply = service.oneshot(Message::rpc("greet", "Ada")).await?;
/// assert_eq!(reply.payload, "hello Ada");
/// # Ok(())
/// # }
/// ```
// The notes of this attribute leave out the conditions on the arguments, the future and the return
// value. Each of these conditions is a separate trait, which has its own notes.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler",
    label = "not an async function of up to 16 arguments",
    note = "a handler is an `async fn`, or a closure that returns a future and is `Clone + Send + Sync + 'static`, as everything that it captures must be",
    note = "a `tower::Service<Message>` is added with `task_service`, `rpc_service`, `event_service` or `fallback_service`",
    note = "`Batch::new(function)` is one if the function's last argument is a `Vec` of what is extracted from each message, and each before it is a `State<_>`"
)]
pub trait Handler<T, S>: Clone + Send + Sync + Sized + 'static {
    /// The service that the handler becomes.
    type Service: SharedService;

    /// Makes the service from the state, and applies the layers of the handler. A router calls this
    /// method once, when the router is first used.
    fn with_state(self, state: S) -> Self::Service;

    /// Adds a layer around only this handler.
    ///
    /// The layer is applied once, so a limit of ten is shared by all messages of the route. To
    /// share a limit between several routes, use [`Router::layer`](crate::Router::layer).
    fn layer<L>(self, layer: L) -> Layered<L, Self, T, S>
    where
        L: Layer<Self::Service> + Clone + Send + Sync + 'static,
        L::Service: SharedService,
    {
        Layered::new(layer, self)
    }

    /// Returns the maximum number of messages that the handler takes in one call. Only a batch
    /// takes more than one.
    #[doc(hidden)]
    fn batch_size(&self) -> usize {
        1
    }

    /// Makes the service as a [`Route`]. Functions and batches override this method to save an
    /// allocation for each message.
    #[doc(hidden)]
    fn into_route(self, state: S) -> Route {
        Route::new(self.with_state(state))
    }
}

/// A handler with a layer around it. Created by [`Handler::layer`].
pub struct Layered<L, H, T, S> {
    layer: L,
    handler: H,
    marker: PhantomData<fn(S) -> T>,
}

impl<L, H, T, S> Layered<L, H, T, S> {
    fn new(layer: L, handler: H) -> Self {
        Self {
            layer,
            handler,
            marker: PhantomData,
        }
    }
}

// Implemented by hand, because a derive would require `T: Clone` and `S: Clone`.
impl<L: Clone, H: Clone, T, S> Clone for Layered<L, H, T, S> {
    fn clone(&self) -> Self {
        Self::new(self.layer.clone(), self.handler.clone())
    }
}

impl<L: fmt::Debug, H, T, S> fmt::Debug for Layered<L, H, T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layered")
            .field("layer", &self.layer)
            .finish_non_exhaustive()
    }
}

/// Marks the arguments of a handler with a layer, so that the implementation of [`Handler`] for
/// [`Layered`] does not overlap with the implementation for functions.
#[derive(Debug)]
pub struct WithinLayer<T>(PhantomData<fn() -> T>);

// Without this attribute, the compiler would suggest the implementation below whenever a function
// is not a handler.
#[diagnostic::do_not_recommend]
impl<L, H, T, S> Handler<WithinLayer<T>, S> for Layered<L, H, T, S>
where
    H: Handler<T, S>,
    L: Layer<H::Service> + Clone + Send + Sync + 'static,
    L::Service: SharedService,
    T: 'static,
    S: 'static,
{
    type Service = L::Service;

    fn batch_size(&self) -> usize {
        self.handler.batch_size()
    }

    fn with_state(self, state: S) -> L::Service {
        self.layer.layer(self.handler.with_state(state))
    }
}
