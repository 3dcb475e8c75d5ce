//! The sending half of a transport, behind a pointer.

use std::task::{Context, Poll};

use tower::Service;

use crate::{
    error::BoxError,
    message::Message,
    reply::Reply,
    service::{Route, RouteFuture, SharedService},
};

/// A service for messages of any type, behind a pointer. Use it for a field that should not name
/// the types of the layers around a transport.
///
/// A sender is cheap to clone. A call costs one allocation.
///
/// ```
/// use campanile::{BoxSender, Client, transport::memory::Memory};
/// use std::time::Duration;
/// use tower::ServiceBuilder;
///
/// struct Orders {
///     client: Client<BoxSender>,
/// }
///
/// let sender = ServiceBuilder::new()
///     .concurrency_limit(64)
///     .timeout(Duration::from_secs(5))
///     .service(Memory::new());
/// let orders = Orders { client: Client::new(BoxSender::new(sender)) };
/// ```
///
/// # Back-pressure
/// A sender is ready when the inner service is ready. A reservation is held from `poll_ready` until
/// the call, and released when the sender is dropped; a clone starts without one.
#[derive(Debug, Clone)]
pub struct BoxSender {
    inner: Route,
}

impl BoxSender {
    /// Puts a service behind a pointer.
    pub fn new<S>(inner: S) -> Self
    where
        S: SharedService,
    {
        Self {
            inner: Route::new(inner),
        }
    }
}

impl Service<Message> for BoxSender {
    type Response = Reply;
    type Error = BoxError;
    type Future = RouteFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, message: Message) -> RouteFuture {
        self.inner.call(message)
    }
}
