//! A sender of any type, behind a pointer.

use std::task::{Context, Poll};

use tower::Service;

use crate::{
    error::BoxError,
    message::Message,
    reply::Reply,
    service::{Route, RouteFuture, SharedService},
};

/// A `Service<Message>` of any type, behind a pointer. Use it for a field whose type should not
/// name the layers around a transport.
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
/// A sender is ready when the inner service is ready. The sender keeps the reservation of
/// `poll_ready` until it is called or dropped. A clone starts without a reservation.
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
