//! The calling side: typed words over any `Service<Message>`.
//!
//! A [`Client`] stands on a transport's sending half, on that inside layers, or on a router: then
//! the handlers run in place, which is how an application is tested without a transport.
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
//! With a prefix, a header and a timeout:
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
//! A task for later, which is sent once however often the call is made, and not done when it is late:
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
//! assert!(memory.cancel(id).await?, "it was not due yet");
//! # Ok(())
//! # }
//! ```
//!
//! # Over a router
//! There is no entry and so no id in the receipt, nothing is redelivered, delayed or remembered, and
//! `enqueue` and `publish` return what the handler failed with.
//!
//! # Cancel safety
//! Nothing is sent before the future is first polled. Dropping it later does not take back what
//! was sent; a dropped request frees its slot at once, and its reply is ignored.
//!
//! # Errors
//! Every call fails with an [`Error`](crate::Error): ask it whether it
//! [was refused](crate::Error::is_refused), [never left](crate::Error::is_disconnected), or
//! [may have been taken](crate::Error::is_unknown_outcome). An answered error is in
//! [`Error::rpc`](crate::Error::rpc).

pub(crate) mod boxed;
mod call;
pub(crate) mod typed;

pub use self::call::{Call, CallFuture};
pub(crate) use self::typed::Receipt;
