//! What can be served and called.

use tower::Service;

use crate::{error::BoxError, message::Message, reply::Reply, transport::Interest};

/// Anything that handles messages: every clonable `Service<Message>`, and a
/// [`Router`](crate::Router) that needs no more state.
///
/// [`serve`](crate::serve()) and [`Client::new`](crate::Client::new) take it. Nothing needs to
/// implement it.
pub trait IntoService {
    /// The service.
    type Service: Service<Message, Response = Reply, Error: Into<BoxError>, Future: Send + 'static>
        + Clone
        + Send
        + 'static;

    /// Which messages it wants of a source; everything on the stream and no events where it does
    /// not know.
    fn interest(&self) -> Interest {
        Interest::stream()
    }

    /// Makes the service. Layers are applied here, once, so it may need a runtime.
    fn into_service(self) -> Self::Service;
}

impl<S> IntoService for S
where
    S: Service<Message, Response = Reply, Error: Into<BoxError>, Future: Send + 'static>
        + Clone
        + Send
        + 'static,
{
    type Service = S;

    fn into_service(self) -> S {
        self
    }
}
