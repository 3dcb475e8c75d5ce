//! Any service behind one pointer.
//!
//! A clone costs a count, a call one allocation: the clone of the service that is made ready for a
//! message and the future of that message share one box, as two states of it.

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

/// A service of any type, as a router keeps it and as its layers wrap it.
///
/// It is what a `tower::Layer` given to [`Router::layer`](crate::Router::layer) is applied to.
///
/// # Back-pressure
/// Its readiness is that of the service in it. A reservation is held from `poll_ready` until the
/// call, and given up when the route is dropped; a clone starts without one.
pub struct Route {
    template: Arc<dyn Template>,
    // Never locked: only the exclusive access of `get_mut` is used. It makes the route `Sync`
    // although the future that the slot turns into is not.
    reserved: Mutex<Option<Pin<Box<dyn Slot>>>>,
}

/// What a route clones from.
pub(crate) trait Template: Send + Sync {
    /// A copy of the service that can be made ready; `None` where it always is.
    fn slot(&self) -> Option<Pin<Box<dyn Slot>>>;

    /// Calls a copy of the service as soon as it is ready.
    fn call(&self, message: Message) -> RouteFuture;
}

/// One copy of a service, and then the future of its call.
pub(crate) trait Slot: Future<Output = Outcome> + Send {
    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>>;

    /// Calls the service, which was ready.
    fn start(self: Pin<&mut Self>, message: Message);
}

impl Route {
    pub(crate) fn new<V>(service: V) -> Self
    where
        V: SharedService,
    {
        Self::from_template(Arc::new(Whole(service)))
    }

    /// A route that is always ready.
    pub(crate) fn from_fn<F, Fut>(function: F) -> Self
    where
        F: Fn(Message) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Outcome> + Send + 'static,
    {
        Self::from_template(Arc::new(Function(function)))
    }

    pub(crate) fn from_template(template: Arc<dyn Template>) -> Self {
        Self {
            template,
            reserved: Mutex::new(None),
        }
    }

    pub(crate) fn template(&self) -> &Arc<dyn Template> {
        &self.template
    }

    fn reserved(&mut self) -> &mut Option<Pin<Box<dyn Slot>>> {
        self.reserved
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clone for Route {
    fn clone(&self) -> Self {
        Self::from_template(self.template.clone())
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
        if self.reserved().is_none() {
            *self.reserved() = self.template.slot();
        }
        let Some(slot) = self.reserved() else {
            return Poll::Ready(Ok(()));
        };
        let outcome = ready!(slot.as_mut().poll_ready(cx));
        if outcome.is_err() {
            *self.reserved() = None;
        }
        Poll::Ready(outcome)
    }

    fn call(&mut self, message: Message) -> RouteFuture {
        match self.reserved().take() {
            Some(mut slot) => {
                slot.as_mut().start(message);
                RouteFuture(slot)
            }
            None => self.template.call(message),
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

struct Function<F>(F);

impl<F, Fut> Template for Function<F>
where
    F: Fn(Message) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    fn slot(&self) -> Option<Pin<Box<dyn Slot>>> {
        None
    }

    fn call(&self, message: Message) -> RouteFuture {
        RouteFuture::new((self.0)(message))
    }
}

struct Whole<V>(V);

impl<V> Template for Whole<V>
where
    V: SharedService,
{
    fn slot(&self) -> Option<Pin<Box<dyn Slot>>> {
        Some(Box::pin(State::Waiting {
            service: self.0.clone(),
            message: None,
        }))
    }

    fn call(&self, message: Message) -> RouteFuture {
        RouteFuture::new(State::Waiting {
            service: self.0.clone(),
            message: Some(message),
        })
    }
}

// Both are states of one box; a further box for the message would be the allocation saved here.
#[allow(clippy::large_enum_variant)]
#[pin_project(project = StateProjection)]
enum State<V: Service<Message>> {
    /// Not called yet; with a message, to be called as soon as it is ready.
    Waiting {
        service: V,
        message: Option<Message>,
    },
    Running {
        #[pin]
        future: V::Future,
    },
}

impl<V> Slot for State<V>
where
    V: MessageService + Send,
{
    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self.project() {
            StateProjection::Waiting { service, .. } => service.poll_ready(cx).map_err(Into::into),
            StateProjection::Running { .. } => Poll::Ready(Ok(())),
        }
    }

    fn start(mut self: Pin<&mut Self>, message: Message) {
        if let StateProjection::Waiting { service, .. } = self.as_mut().project() {
            let future = service.call(message);
            self.set(State::Running { future });
        }
    }
}

impl<V> Future for State<V>
where
    V: MessageService + Send,
{
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        loop {
            match self.as_mut().project() {
                StateProjection::Waiting { service, message } => {
                    ready!(service.poll_ready(cx)).map_err(Into::into)?;
                    let message = message.take().expect("only a called route is polled");
                    let future = service.call(message);
                    self.set(State::Running { future });
                }
                StateProjection::Running { future } => {
                    return future.poll(cx).map_err(Into::into);
                }
            }
        }
    }
}
