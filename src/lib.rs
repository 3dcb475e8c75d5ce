//! Tasks, events and RPC over Redis as `tower` services: what axum is for HTTP, for queues.
//!
//! A message is a request, and whatever handles one is a `tower::Service<Message>`: a handler, a
//! [`Router`], what a layer makes of one, and the sending half of a transport. So the same layers
//! wrap what is served and what is called, and a test calls the router where production calls
//! Redis.
//!
//! ```
//! use campanile::{Client, Json, Router, State, serve, transport::memory::Memory};
//! use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
//!
//! #[derive(Clone, Default)]
//! struct Total(Arc<AtomicU64>);
//!
//! async fn add(State(total): State<Total>, Json(n): Json<u64>) {
//!     total.0.fetch_add(n, Ordering::Relaxed);
//! }
//!
//! async fn total(State(total): State<Total>) -> Json<u64> {
//!     Json(total.0.load(Ordering::Relaxed))
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), campanile::Error> {
//! let app = Router::new().task("add", add).rpc("total", total).with_state(Total::default());
//! let memory = Memory::new().max_in_flight(1); // one after the other
//! let worker = tokio::spawn(serve(memory.clone(), app).into_future());
//!
//! let client = Client::new(memory);
//! client.enqueue("add", Json(20)).await?;
//! client.enqueue("add", Json(22)).await?;
//! let Json(sum): Json<u64> = client.request("total", ()).await?;
//! assert_eq!(sum, 42);
//! # worker.abort();
//! # Ok(())
//! # }
//! ```
//!
//! Where to read on: [`routing`] and [`extract`] for what is served, [`client`] for what is called,
//! [`serve`](mod@serve) for the loop between them and its shutdown, [`transport`] for Redis, memory
//! and transports of one's own, [`error`] for how a handler fails, and the [`guide`] for what is
//! guaranteed and what the server's settings have to do with it.
//!
//! # Features
//! - `redis` (default): the Redis transport.
//! - `redis-rustls`: TLS for `rediss://` URLs.
//! - `conformance`: the suite that transports are tested with.
//! - `http`: HTTP services that handle messages, and HTTP requests that become messages.
//! - `testing`: the kit that applications are tested with. For `dev-dependencies`.
//! - `full`: all of them.
//! - `cli`: the program `campanile`, for a [terminal](guide::terminal). No library needs it, so it is not
//!   in `full`.

#[cfg(feature = "ablation")]
#[doc(hidden)]
pub mod ablation;
#[cfg(not(feature = "ablation"))]
mod ablation;
pub mod client;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod error;
pub mod extract;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
pub mod guide;
pub mod handler;
#[cfg(feature = "http")]
pub mod http_bridge;
pub mod message;
mod payload;
mod reply;
pub mod routing;
pub mod serve;
mod service;
mod sync;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transport;

#[cfg(feature = "redis")]
pub use self::transport::redis::Redis;
pub use self::{
    client::{
        boxed::BoxSender,
        typed::{Client, Receipt},
    },
    error::{
        boxed::BoxError,
        failure::Failure,
        not_found::NotFound,
        operation::Error,
        rejection::Rejection,
        rpc::{RpcCode, RpcError},
    },
    extract::{
        extension::Extension,
        state::{FromRef, State},
        traits::{FromMessage, FromMessageParts},
    },
    handler::{batch::service::Batch, traits::Handler},
    message::{
        correlation::CorrelationId,
        lease::Lease,
        name::{DeadLetterId, IdempotencyKey, MessageId, Name},
        parts::{Attempt, Deadline, Due, Kind, MatchedRoute, Message, Parts, ReplyMode},
    },
    payload::{IntoPayload, Json},
    reply::{FromReply, IntoReply, Reply},
    routing::router::Router,
    serve::builder::serve,
    service::{MessageService, Servable, SharedService, WithInterest},
};

/// The code in the README is tested like any other.
#[cfg(all(doctest, feature = "redis"))]
#[doc = include_str!("../README.md")]
struct Readme;
