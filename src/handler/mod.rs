//! Handlers: async functions as services.
//!
//! Any `async fn` of up to 16 [extractors](crate::extract) that returns a reply
//! ([`IntoReply`](crate::IntoReply)) is a [`Handler`]; so is a closure that is `Clone`.
//!
//! ```
//! use campanile::{Json, Router, RpcError};
//!
//! async fn double(Json(number): Json<u32>) -> Result<Json<u32>, RpcError> {
//!     match number.checked_mul(2) {
//!         Some(doubled) => Ok(Json(doubled)),
//!         None => Err(RpcError::invalid("too large")),
//!     }
//! }
//!
//! let app: Router = Router::new().rpc("double", double);
//! ```
//!
//! With a layer of its own, and outside any router:
//!
//! ```
//! use campanile::{Handler, Message};
//! use tower::{ServiceExt, limit::ConcurrencyLimitLayer};
//!
//! async fn shout(text: String) -> String {
//!     text.to_uppercase()
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let service = shout.layer(ConcurrencyLimitLayer::new(10)).with_state(());
//! let reply = service.oneshot(Message::rpc("shout", "hey")).await.unwrap();
//! assert_eq!(reply.payload, "HEY");
//! # }
//! ```
//!
//! # What the compiler asks of a handler
//! - Each argument is an [extractor](crate::extract#extractors), and only the last one takes the payload.
//! - What it returns is a reply, or a `Result` of one whose error turns into a
//!   [`BoxError`](crate::BoxError).
//! - Its future is `Send`: nothing that is not, such as an `Rc` or a guard of `std::sync::Mutex`, is held
//!   over an `.await`. End its scope before, or drop it. A macro holds its arguments too: in place of
//!   `info!("{}", count().await)` write `let count = count().await;` first.
//!
//! A message of the compiler names the one that does not hold.
//!
//! # Back-pressure
//! A handler is always ready. A layer on it may not be: a message waits for such a layer inside its
//! own delivery, after every layer of the router has let it through.
//!
//! # Cancel safety
//! Dropping the future of a call drops the handler at the `await` it has reached.

pub mod batch;
mod function;
mod layered;
mod service;

use tower::Layer;

use crate::service::{Route, SharedService};

pub use self::{
    batch::Batch,
    layered::Layered,
    service::{HandlerFuture, HandlerService},
};

/// What a router can route to: an async function of up to 16 [extractors](crate::extract).
///
/// `T` is the function's arguments; it keeps the implementations for functions of different lengths
/// apart and is never written by hand. `S` is the state that the arguments need.
// The conditions on arguments, future and return value have texts of their own, where they are.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler",
    label = "not an async function of up to 16 arguments",
    note = "a handler is an `async fn`, or a closure that returns a future and is `Clone + Send + Sync + 'static`, as everything that it captures must be",
    note = "a `tower::Service<Message>` is added with `task_service`, `rpc_service`, `event_service` or `fallback_service`",
    note = "`Batch::new(function)` is one if the function's last argument is a `Vec` of what is extracted from each message, and each before it is a `State<_>`"
)]
pub trait Handler<T, S>: Clone + Send + Sync + Sized + 'static {
    /// The service that it becomes.
    type Service: SharedService;

    /// Makes the service. Layers of the handler are applied here: once for a router, when it is
    /// first used.
    fn with_state(self, state: S) -> Self::Service;

    /// Puts a layer around this handler alone.
    ///
    /// It is applied once, so that a limit of ten is ten over all messages of the route. Several
    /// routes that are to share one limit need [`Router::layer`](crate::Router::layer).
    fn layer<L>(self, layer: L) -> Layered<L, Self, T, S>
    where
        L: Layer<Self::Service> + Clone + Send + Sync + 'static,
        L::Service: SharedService,
    {
        Layered::new(layer, self)
    }

    /// How many messages it takes at once, if there are as many.
    #[doc(hidden)]
    fn at_once(&self) -> usize {
        1
    }

    /// The service behind a pointer; functions need one allocation less a message here.
    #[doc(hidden)]
    fn into_route(self, state: S) -> Route {
        Route::new(self.with_state(state))
    }
}
