//! Turns panics into errors.
//!
//! Without this layer, a panic of a handler unwinds through all outer layers, and the worker fails
//! the delivery. With this layer, the outer layers get an error: a retry can try again, and a
//! circuit breaker counts the failure.
//!
//! ```
//! use campanile::Router;
//! use campanile_middleware::CatchPanicLayer;
//!
//! async fn work() {
//!     panic!("a bug");
//! }
//!
//! let app: Router = Router::new().task("work", work).layer(CatchPanicLayer::new());
//! ```
//!
//! Put this layer inside the layers that need the error:
//!
//! ```
//! use campanile::{Client, Message, Router};
//! use campanile_middleware::{CatchPanicLayer, MapFailureLayer, catch_panic::Panicked};
//! use campanile::Failure;
//! use tower::ServiceBuilder;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! // A second try would panic again, so the task becomes a dead letter.
//! let stack = ServiceBuilder::new()
//!     .layer(MapFailureLayer::new(|error| error.is::<Panicked>().then(Failure::dead_letter)))
//!     .layer(CatchPanicLayer::new());
//! let app = Router::new().task("work", async || panic!("a bug") as ()).layer(stack);
//! let error = Client::new(app).send(Message::task("work", "")).await.unwrap_err();
//! assert!(campanile::error::find::<Panicked>(&error).is_some());
//! # }
//! ```
//!
//! # Errors
//! If the inner service panics, the error is [`Panicked`], with the text of the panic. A task is
//! delivered again, as after any error. A request is answered with `internal`, and its caller gets
//! the text of the panic only if the worker sets
//! [`expose_error_text`](campanile::serve::Serve::expose_error_text).
//!
//! # Panics
//! The layer catches panics of the inner service's `call`, and of the future that `call` returns.
//! It does not catch panics of `poll_ready`, because they belong to no delivery. With
//! `panic = "abort"` no panic can be caught.
//!
//! The panic hook still runs. Unless the application has replaced the hook, it prints the panic to
//! standard error.
//!
//! After a panic, the inner service still gets the next messages. State that it keeps between
//! messages may be inconsistent. For example, a `std` mutex that was locked during the panic is
//! poisoned.

use std::{
    any::Any,
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};

use campanile::{BoxError, Message, MessageService, Reply};
use pin_project::pin_project;
use tower::{Layer, Service};

use crate::call_or_error::CallOrError;

/// Makes [`CatchPanic`] services. See the [module](self).
#[derive(Debug, Clone, Copy, Default)]
pub struct CatchPanicLayer;

impl CatchPanicLayer {
    /// Creates the layer.
    pub const fn new() -> Self {
        Self
    }
}

impl<S> Layer<S> for CatchPanicLayer {
    type Service = CatchPanic<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CatchPanic::new(inner)
    }
}

/// A service that returns an error if the inner service panics. See the [module](self).
#[derive(Debug, Clone, Copy)]
pub struct CatchPanic<S> {
    inner: S,
}

impl<S> CatchPanic<S> {
    /// Wraps a service.
    pub const fn new(inner: S) -> Self {
        Self { inner }
    }
}

inner_accessors!(CatchPanic<S>);

impl<S> Service<Message> for CatchPanic<S>
where
    S: MessageService,
{
    type Response = Reply;
    type Error = BoxError;
    type Future = CatchPanicFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, message: Message) -> Self::Future {
        CatchPanicFuture(match catch(|| self.inner.call(message)) {
            Ok(work) => CallOrError::Call(work),
            Err(panicked) => CallOrError::failed(panicked),
        })
    }
}

fn catch<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    // `AssertUnwindSafe`: a future that has panicked is not polled again. A service that has
    // panicked is called again, so its state may be inconsistent, as the module's documentation
    // says.
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| Panicked::new(&*payload))
}

/// The future of [`CatchPanic`].
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct CatchPanicFuture<W>(#[pin] CallOrError<W>);

impl<W, E> Future for CatchPanicFuture<W>
where
    W: Future<Output = Result<Reply, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Reply, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let work = self.project().0;
        catch(|| work.poll(cx)).unwrap_or_else(|panicked| Poll::Ready(Err(panicked.into())))
    }
}

impl<W> fmt::Debug for CatchPanicFuture<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CatchPanicFuture").finish_non_exhaustive()
    }
}

/// The error of a message if its handler has panicked, or a layer inside [`CatchPanic`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panicked {
    text: String,
}

impl Panicked {
    fn new(payload: &(dyn Any + Send)) -> Self {
        let text = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        Self {
            text: text.unwrap_or("no panic message").to_owned(),
        }
    }

    /// Returns the text of the panic, or `no panic message` if the payload of the panic is not a
    /// string.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the handler panicked: {}", self.text)
    }
}

impl std::error::Error for Panicked {}

#[cfg(test)]
mod tests {
    use std::panic::panic_any;

    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::mocks::{around, call, readiness_passes, reservations_are_released};

    /// Calls a service inside the layer, and returns its error.
    async fn error_of<F>(inner: impl FnMut(Message) -> F) -> BoxError
    where
        F: Future<Output = Result<Reply, BoxError>> + Send + 'static,
    {
        let service = CatchPanicLayer::new().layer(service_fn(inner));
        service.oneshot(Message::task("a", "")).await.unwrap_err()
    }

    fn text(error: &BoxError) -> &str {
        error.downcast_ref::<Panicked>().expect("a panic").text()
    }

    #[tokio::test]
    async fn a_panic_of_the_future_is_an_error_also_after_it_has_waited() {
        let error = error_of(|_| async { panic!("at once") }).await;
        assert_eq!(text(&error), "at once");
        assert_eq!(error.to_string(), "the handler panicked: at once");
        let error = error_of(|_| async {
            tokio::task::yield_now().await;
            panic!("{} later", "a bit")
        });
        assert_eq!(text(&error.await), "a bit later");
    }

    #[tokio::test]
    async fn a_panic_of_the_call_is_an_error() {
        let error = error_of(|message| -> std::future::Ready<_> { panic!("{}", message.name()) });
        assert_eq!(text(&error.await), "a");
    }

    #[tokio::test]
    async fn a_panic_with_a_value_of_any_type_is_an_error() {
        let error = error_of(|_| async { panic_any(7_u8) }).await;
        assert_eq!(text(&error), "no panic message");
    }

    #[tokio::test]
    async fn answers_and_other_errors_pass() {
        let error = error_of(|_| async { Err("disk full".into()) }).await;
        assert_eq!(error.to_string(), "disk full");
        let (mut service, mut handle) = around(&CatchPanicLayer);
        let answer = call(&mut service, Message::task("a", ""));
        let (_, respond) = handle.next_request().await.unwrap();
        respond.send_response(Reply::new("done"));
        assert_eq!(answer.await.unwrap().payload, "done");
    }

    #[test]
    fn readiness_and_reservations_of_the_inner_service_pass() {
        readiness_passes(&CatchPanicLayer);
        reservations_are_released(&CatchPanicLayer);
    }
}
