//! Functions as handlers, and their service.
//!
//! [`Handler`] has a single implementation for functions of any number of arguments. So if a
//! function is not a handler, the compiler names the condition that the function does not meet.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll},
};

use tower::Service;

use super::{
    Handler,
    function::{Function, HandlerArguments, HandlerOutput, handle},
};
use crate::{
    error::BoxError,
    message::Message,
    reply::{IntoReply, Reply},
    service::Route,
};

impl<F, M, A, S> Handler<(M, A), S> for F
where
    F: Function<A>,
    F::Output: HandlerOutput<Output: IntoReply> + Send + 'static,
    A: HandlerArguments<M, S>,
    M: 'static,
    S: Clone + Send + Sync + 'static,
{
    type Service = HandlerService<F, (M, A), S>;

    fn with_state(self, state: S) -> Self::Service {
        HandlerService::new(self, state)
    }

    fn into_route(self, state: S) -> Route {
        Route::from_fn(move |message| handle(self.clone(), message, state.clone()))
    }
}

/// A function with its state, as a `Service<Message>`. Created by
/// [`Handler::with_state`](crate::Handler::with_state).
pub struct HandlerService<F, T, S> {
    function: F,
    state: S,
    marker: PhantomData<fn() -> T>,
}

impl<F, T, S> HandlerService<F, T, S> {
    fn new(function: F, state: S) -> Self {
        Self {
            function,
            state,
            marker: PhantomData,
        }
    }
}

impl<F: Clone, T, S: Clone> Clone for HandlerService<F, T, S> {
    fn clone(&self) -> Self {
        Self::new(self.function.clone(), self.state.clone())
    }
}

impl<F, T, S> fmt::Debug for HandlerService<F, T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HandlerService")
            .field(&std::any::type_name::<F>())
            .finish()
    }
}

impl<F, M, A, S> Service<Message> for HandlerService<F, (M, A), S>
where
    F: Function<A, Output: Future<Output: IntoReply> + Send + 'static>,
    A: HandlerArguments<M, S>,
    M: 'static,
    S: Clone + Send + Sync + 'static,
{
    type Response = Reply;
    type Error = BoxError;
    type Future = HandlerFuture;

    /// A handler is always ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, message: Message) -> HandlerFuture {
        HandlerFuture::new(handle(self.function.clone(), message, self.state.clone()))
    }
}

/// The future of a [`HandlerService`].
pub struct HandlerFuture(Pin<Box<dyn Future<Output = Result<Reply, BoxError>> + Send>>);

impl HandlerFuture {
    pub(super) fn new(
        call: impl Future<Output = Result<Reply, BoxError>> + Send + 'static,
    ) -> Self {
        Self(Box::pin(call))
    }
}

impl Future for HandlerFuture {
    type Output = Result<Reply, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for HandlerFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerFuture").finish_non_exhaustive()
    }
}
