//! Handlers: async functions as services.
//!
//! A [`Handler`] is any `async fn` whose arguments are up to 16 [extractors](crate::extract) and
//! whose return value is a reply ([`IntoReply`](crate::IntoReply)). Closures that are `Clone` are
//! handlers, too.
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
//! The next handler has a layer, and is called without a router:
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
//! # Conditions
//! - Each argument is an [extractor](crate::extract#extractors), and only the last one takes the
//!   payload.
//! - The return value is a reply, or a `Result` of a reply and an error that converts into a
//!   [`BoxError`](crate::BoxError).
//! - The future is `Send`: all values that it holds across an `.await` are `Send`. An `Rc` and a
//!   guard of `std::sync::Mutex` are not `Send`. End the scope of such a value before the `.await`,
//!   or drop the value. A macro such as `info!` may hold values that are not `Send` while it
//!   evaluates its arguments. So do not write `info!("{}", count().await)`: write
//!   `let count = count().await;` before the macro.
//!
//! If a condition does not hold, the compiler's message names the condition.
//!
//! # Back-pressure
//! A handler is always ready. If a [layer](crate::Handler::layer) around a handler is not ready,
//! the future of the call waits for that layer. A timeout layer of the router includes this wait.
//!
//! # Cancel safety
//! Dropping the future of a call drops the handler at its current `.await`.

pub mod batch;
mod fits;
mod function;
mod service;
pub(crate) mod traits;

pub(crate) use self::traits::Handler;
pub use self::{
    fits::{Accepts, BatchRepliesAs, RepliesAs, RepliesOfBatch, TakesPayload},
    service::{HandlerFuture, HandlerService},
    traits::Layered,
};
