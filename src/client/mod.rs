//! The calling side: typed calls over any `Service<Message>`.
//!
//! A [`Client`](crate::Client) calls the sending half of a transport, or a router. Either may have
//! layers around it. A router runs the handlers in place, so an application can be tested without a
//! transport.
//!
//! ```
//! use campanile::{Client, Json, Router};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), campanile::Error> {
//! let app: Router = Router::new().rpc("double", async |Json(n): Json<u32>| Json(2 * n));
//! let client = Client::new(app);
//!
//! let Json(n): Json<u32> = client.request("double", Json(21)).await?;
//! assert_eq!(n, 42);
//! # Ok(())
//! # }
//! ```
//!
//! This call has a prefix, a header and a timeout:
//!
//! ```
//! use std::time::Duration;
//! use campanile::{Client, transport::memory::Memory};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), campanile::Error> {
//! let client = Client::new(Memory::new());
//! let receipt = client
//!     .nest("orders")
//!     .enqueue("create", r#"{"id":7}"#)
//!     .header("x-tenant", "acme")
//!     .timeout(Duration::from_secs(1))
//!     .await?;
//! assert!(receipt.id().is_some());
//! # Ok(())
//! # }
//! ```
//!
//! This task is due in an hour, and expires ten minutes after that. It is stored once, even if the
//! call is repeated:
//!
//! ```
//! use std::time::Duration;
//! use campanile::{Client, transport::memory::Memory};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), campanile::Error> {
//! let memory = Memory::new();
//! let receipt = Client::new(memory.clone())
//!     .enqueue("reminders.send", "the milk")
//!     .delay(Duration::from_secs(3600))
//!     .expires_after(Duration::from_secs(600))
//!     .idempotency_key("reminder 7")
//!     .await?;
//! let id = receipt.id().expect("it is on a transport");
//! assert!(memory.tasks().cancel(id, "no longer needed").await?, "it was not due yet");
//! # Ok(())
//! # }
//! ```
//!
//! # Over a router
//! A receipt has no id, because nothing is stored. Nothing is redelivered or delayed, and
//! idempotency keys have no effect. `enqueue` and `publish` return the error of the handler.
//!
//! # Cancel safety
//! A call sends its message once its future is polled and the service is ready. Dropping the future
//! after that does not take the message back. A dropped request stops waiting immediately, and its
//! reply is ignored.
//!
//! # Errors
//! Every call fails with an [`Error`](crate::Error). Its predicates tell whether the server
//! [refused](crate::Error::is_refused) the message, the message was [never
//! sent](crate::Error::is_disconnected), or it [may have been
//! stored](crate::Error::is_unknown_outcome). [`Error::rpc`](crate::Error::rpc) returns the error
//! reply to a request.

pub(crate) mod boxed;
mod call;
pub(crate) mod receipt;
pub(crate) mod typed;

pub use self::call::{Call, CallFuture};
pub(crate) use self::receipt::Receipt;
