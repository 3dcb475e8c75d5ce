//! The bound that every service for messages meets.

use tower::Service;

use crate::{error::BoxError, message::Message, reply::Reply};

/// A short name for a [`tower::Service`] that handles messages: it answers with a [`Reply`], its
/// error turns into a [`BoxError`], and its future is `Send`.
///
/// Implemented for every such service; nothing else can implement it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a service for messages",
    label = "one of the three conditions below does not hold",
    note = "1. it implements `tower::Service<Message, Response = Reply>`; a `Router<S>` does once it has its state: `.with_state(state)`",
    note = "2. its `Error` turns into a `BoxError`: it implements `std::error::Error + Send + Sync`, or is a `BoxError`; tower's `.map_err(..)` makes one of any other",
    note = "3. its `Future` is `Send + 'static`"
)]
pub trait MessageService:
    Service<Message, Response = Reply, Error: Into<BoxError>, Future: Send + 'static>
{
}

// Without it the compiler would name one condition, and not how to meet it.
#[diagnostic::do_not_recommend]
impl<S> MessageService for S where
    S: Service<Message, Response = Reply, Error: Into<BoxError>, Future: Send + 'static>
{
}
