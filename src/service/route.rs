//! A service of any type behind a pointer.
//!
//! A clone increments a reference count. A call allocates one box. The box holds a copy of the
//! service until the copy is ready, and then the future of the call.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use pin_project::pin_project;
use tower::Service;

use super::{MessageService, SharedService};
use crate::{error::BoxError, message::Message, reply::Reply};

type Outcome = Result<Reply, BoxError>;

/// A service of any type, behind a pointer.
///
/// A router keeps its services as routes. A layer of [`Router::layer`](crate::Router::layer) wraps
/// a route.
///
/// # Back-pressure
/// A route is ready when the service in it is. A reservation is held from `poll_ready` until the
/// call, and released when the route is dropped. A clone starts without a reservation.
pub struct Route {
    service: Arc<dyn ErasedService>,
    // Never locked, only used through `get_mut`. The mutex makes the route `Sync`, although the
    // future in the box is not `Sync`.
    reserved_call: Mutex<Option<Pin<Box<dyn ErasedCall>>>>,
}

/// A type-erased service.
pub(crate) trait ErasedService: Send + Sync {
    /// Returns a copy of the service that can be made ready, or `None` if the service is always
    /// ready.
    fn prepare(&self) -> Option<Pin<Box<dyn ErasedCall>>>;

    /// Waits until a copy of the service is ready, and calls it.
    fn call(&self, message: Message) -> RouteFuture;
}

/// A copy of a service, and after `start` the future of its call.
pub(crate) trait ErasedCall: Future<Output = Outcome> + Send {
    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>>;

    /// Calls the service, after `poll_ready` has returned ready.
    fn start(self: Pin<&mut Self>, message: Message);
}

impl Route {
    pub(crate) fn new<V>(service: V) -> Self
    where
        V: SharedService,
    {
        Self::from_erased(Arc::new(AnyService(service)))
    }

    /// Creates a route to a function. The route is always ready.
    pub(crate) fn from_fn<F, Fut>(function: F) -> Self
    where
        F: Fn(Message) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Outcome> + Send + 'static,
    {
        Self::from_erased(Arc::new(FnService(function)))
    }

    pub(crate) fn from_erased(service: Arc<dyn ErasedService>) -> Self {
        Self {
            service,
            reserved_call: Mutex::new(None),
        }
    }

    pub(crate) fn erased(&self) -> &Arc<dyn ErasedService> {
        &self.service
    }

    fn reserved_call(&mut self) -> &mut Option<Pin<Box<dyn ErasedCall>>> {
        self.reserved_call
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clone for Route {
    fn clone(&self) -> Self {
        Self::from_erased(self.service.clone())
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route").finish_non_exhaustive()
    }
}

impl Service<Message> for Route {
    type Response = Reply;
    type Error = BoxError;
    type Future = RouteFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.reserved_call().is_none() {
            *self.reserved_call() = self.service.prepare();
        }
        let Some(call) = self.reserved_call() else {
            return Poll::Ready(Ok(()));
        };
        let outcome = ready!(call.as_mut().poll_ready(cx));
        if outcome.is_err() {
            *self.reserved_call() = None;
        }
        Poll::Ready(outcome)
    }

    fn call(&mut self, message: Message) -> RouteFuture {
        match self.reserved_call().take() {
            Some(mut call) => {
                call.as_mut().start(message);
                RouteFuture(call)
            }
            None => self.service.call(message),
        }
    }
}

/// The future of a [`Route`].
pub struct RouteFuture(Pin<Box<dyn Future<Output = Outcome> + Send>>);

impl RouteFuture {
    pub(crate) fn new(future: impl Future<Output = Outcome> + Send + 'static) -> Self {
        Self(Box::pin(future))
    }
}

impl Future for RouteFuture {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for RouteFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteFuture").finish_non_exhaustive()
    }
}

/// A function as a service that is always ready.
struct FnService<F>(F);

impl<F, Fut> ErasedService for FnService<F>
where
    F: Fn(Message) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    fn prepare(&self) -> Option<Pin<Box<dyn ErasedCall>>> {
        None
    }

    fn call(&self, message: Message) -> RouteFuture {
        RouteFuture::new((self.0)(message))
    }
}

/// A service that has to be ready before each call.
struct AnyService<V>(V);

impl<V> ErasedService for AnyService<V>
where
    V: SharedService,
{
    fn prepare(&self) -> Option<Pin<Box<dyn ErasedCall>>> {
        Some(Box::pin(CallState::Waiting {
            service: self.0.clone(),
            message: None,
        }))
    }

    fn call(&self, message: Message) -> RouteFuture {
        RouteFuture::new(CallState::Waiting {
            service: self.0.clone(),
            message: Some(message),
        })
    }
}

// The whole state is in one box already. Boxing the larger variant would cost a second allocation.
#[allow(clippy::large_enum_variant)]
#[pin_project(project = CallStateProjection)]
enum CallState<V: Service<Message>> {
    /// The service is not called yet. If there is a message, it is passed to the service as soon as
    /// the service is ready.
    Waiting {
        service: V,
        message: Option<Message>,
    },
    Running {
        #[pin]
        future: V::Future,
    },
}

impl<V> ErasedCall for CallState<V>
where
    V: MessageService + Send,
{
    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self.project() {
            CallStateProjection::Waiting { service, .. } => {
                service.poll_ready(cx).map_err(Into::into)
            }
            CallStateProjection::Running { .. } => Poll::Ready(Ok(())),
        }
    }

    fn start(mut self: Pin<&mut Self>, message: Message) {
        if let CallStateProjection::Waiting { service, .. } = self.as_mut().project() {
            let future = service.call(message);
            self.set(CallState::Running { future });
        }
    }
}

impl<V> Future for CallState<V>
where
    V: MessageService + Send,
{
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        loop {
            match self.as_mut().project() {
                CallStateProjection::Waiting { service, message } => {
                    ready!(service.poll_ready(cx)).map_err(Into::into)?;
                    let message = message.take().expect("only a called route is polled");
                    let future = service.call(message);
                    self.set(CallState::Running { future });
                }
                CallStateProjection::Running { future } => {
                    return future.poll(cx).map_err(Into::into);
                }
            }
        }
    }
}
