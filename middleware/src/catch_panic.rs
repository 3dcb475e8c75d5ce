//! Panics as errors.
//!
//! Without this layer a panic ends the delivery all the same, as a failed one; but the layers around
//! the handler never hear of it. With it they see an error like any other: a retry tries again, a
//! trace shows it, a circuit breaker counts it.
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
//! Inside of what has to see it:
//!
//! ```
//! use campanile::{Client, Message, Router};
//! use campanile_middleware::{CatchPanicLayer, MapFailureLayer, catch_panic::Panicked};
//! use campanile::Failure;
//! use tower::ServiceBuilder;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! // A bug in these handlers does not go away by itself: no second try.
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
//! [`Panicked`], with the text of the panic. A task is delivered again, as after any error. A request
//! is answered `internal`, and the text does not reach its caller, unless
//! [that was asked for](campanile::serve::Serve::expose_error_text).
//!
//! # Panics
//! It catches what unwinds from the inner service's call and from its future. A panic of `poll_ready`
//! passes: a service that cannot even be asked is broken. Where panics abort (`panic = "abort"`)
//! nothing can be caught.
//!
//! What a panic leaves behind in values that outlive the message, such as the state, is for the
//! application to bear: a `std` mutex is poisoned, say. The panic hook has run, so the panic itself is
//! on standard error, or wherever the hook writes.

use std::{
    any::Any,
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};

use campanile::{BoxError, Message, Reply};
use pin_project::pin_project;
use tower::{Layer, Service};

use crate::started::Started;

/// Makes [`CatchPanic`] services. See the [module](self).
#[derive(Debug, Clone, Copy, Default)]
pub struct CatchPanicLayer;

impl CatchPanicLayer {
    /// The layer.
    pub const fn new() -> Self {
        Self
    }
}

impl<S> Layer<S> for CatchPanicLayer {
    type Service = CatchPanic<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CatchPanic { inner }
    }
}

/// A service that fails where the inner one panics. See the [module](self).
#[derive(Debug, Clone, Copy)]
pub struct CatchPanic<S> {
    inner: S,
}

impl<S> Service<Message> for CatchPanic<S>
where
    S: Service<Message, Response = Reply, Error: Into<BoxError>>,
{
    type Response = Reply;
    type Error = BoxError;
    type Future = CatchPanicFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, message: Message) -> Self::Future {
        CatchPanicFuture(match caught(|| self.inner.call(message)) {
            Ok(work) => Started::Called(work),
            Err(panicked) => Started::failed(panicked),
        })
    }
}

fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    // Nobody calls or polls again what has panicked.
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| Panicked::new(&*payload))
}

/// The future of [`CatchPanic`].
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct CatchPanicFuture<W>(#[pin] Started<W>);

impl<W, E> Future for CatchPanicFuture<W>
where
    W: Future<Output = Result<Reply, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Reply, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let work = self.project().0;
        caught(|| work.poll(cx)).unwrap_or_else(|panicked| Poll::Ready(Err(panicked.into())))
    }
}

impl<W> fmt::Debug for CatchPanicFuture<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CatchPanicFuture").finish_non_exhaustive()
    }
}

/// That a handler, or a layer within, has panicked.
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
            text: text.unwrap_or("without a text").to_owned(),
        }
    }

    /// What the panic said.
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

    /// What a message fails with where the inner service does this.
    async fn failing<F>(inner: impl FnMut(Message) -> F) -> BoxError
    where
        F: Future<Output = Result<Reply, BoxError>>,
    {
        let service = CatchPanicLayer::new().layer(service_fn(inner));
        service.oneshot(Message::task("a", "")).await.unwrap_err()
    }

    fn text(error: &BoxError) -> &str {
        error.downcast_ref::<Panicked>().expect("a panic").text()
    }

    #[tokio::test]
    async fn a_panic_of_the_future_is_an_error_also_after_it_has_waited() {
        let error = failing(|_| async { panic!("at once") }).await;
        assert_eq!(text(&error), "at once");
        assert_eq!(error.to_string(), "the handler panicked: at once");
        let error = failing(|_| async {
            tokio::task::yield_now().await;
            panic!("{} later", "a bit")
        });
        assert_eq!(text(&error.await), "a bit later");
    }

    #[tokio::test]
    async fn a_panic_of_the_call_is_an_error() {
        let error = failing(|message| -> std::future::Ready<_> { panic!("{}", message.name()) });
        assert_eq!(text(&error.await), "a");
    }

    #[tokio::test]
    async fn a_panic_with_a_value_of_any_type_is_an_error() {
        let error = failing(|_| async { panic_any(7_u8) }).await;
        assert_eq!(text(&error), "without a text");
    }

    #[tokio::test]
    async fn answers_and_other_errors_pass() {
        let error = failing(|_| async { Err("disk full".into()) }).await;
        assert_eq!(error.to_string(), "disk full");
        let (mut service, mut handle) = around(&CatchPanicLayer);
        let answer = call(&mut service, Message::task("a", ""));
        let (_, respond) = handle.next_request().await.unwrap();
        respond.send_response(Reply::new("done"));
        assert_eq!(answer.await.unwrap().payload, "done");
    }

    #[test]
    fn readiness_and_reservations_are_the_inner_services() {
        readiness_passes(&CatchPanicLayer);
        reservations_are_released(&CatchPanicLayer);
    }
}
