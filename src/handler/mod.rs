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
pub(crate) mod traits;

pub(crate) use self::traits::Handler;
pub use self::{
    layered::Layered,
    service::{HandlerFuture, HandlerService},
};
