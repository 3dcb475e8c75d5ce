//! The bounds of services that handle messages.

use tower::Service;

use crate::{
    error::{BoxError, IntoBoxError},
    message::Message,
    reply::Reply,
};

/// A short name for a [`tower::Service`] that handles messages: it answers with a [`Reply`], its
/// error turns into a [`BoxError`], and its future is `Send`.
///
/// Implemented for every such service; nothing else can implement it.
///
/// ```
/// use campanile::{BoxError, Message, MessageService, Reply, Router};
/// use tower::ServiceExt;
///
/// async fn ping(service: impl MessageService) -> Result<Reply, BoxError> {
///     service.oneshot(Message::rpc("ping", "")).await.map_err(Into::into)
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let app: Router = Router::new().rpc("ping", async || "pong");
/// assert_eq!(ping(app).await?.payload, "pong");
/// # Ok(())
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a service for messages",
    note = "it must implement `tower::Service<Message, Response = Reply>`, with a future that is `Send + 'static`",
    note = "a `Router<S>` whose handlers take `State<_>` is a service once it has the state: `.with_state(state)`",
    note = "an async function is added to a router, or made a service with `Handler::with_state`"
)]
pub trait MessageService:
    Service<Message, Response = Reply, Error: Into<BoxError>, Future: Send + 'static>
{
}

impl<S> MessageService for S where
    S: Service<Message, Response = Reply, Error: IntoBoxError, Future: Send + 'static>
{
}

/// A short name for a [`MessageService`] that is `Clone + Send + Sync + 'static`. All services in a
/// router are shared services, and so are the services that a layer in a router makes.
///
/// Implemented for every such service; nothing else can implement it.
///
/// ```
/// use campanile::{Router, SharedService};
///
/// /// Puts the service of another crate into a router.
/// fn app(billing: impl SharedService) -> Router {
///     Router::new().task_service("billing.charge", billing)
/// }
/// # let _ = app(Router::<()>::new());
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be part of a router, which clones its services for each message",
    note = "it must be a `MessageService` and `Clone + Send + Sync + 'static`",
    note = "tower's `RateLimit` is not `Clone`: put a buffer above it, `ServiceBuilder::new().buffer(64).rate_limit(..)`"
)]
pub trait SharedService: MessageService + Clone + Send + Sync + 'static {}

impl<S> SharedService for S where S: MessageService + Clone + Send + Sync + 'static {}
