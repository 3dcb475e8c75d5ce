//! Tasks, events and RPC over Redis as `tower` services: like axum, for queues instead of HTTP.
//!
//! A message is the request of a tower service. Everything that handles messages is a
//! `tower::Service<Message>`: a handler, a [`Router`], a service with layers, and the sending half
//! of a transport. So the same layers wrap both sides, and a test can call the router instead of
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
//! | module | subject |
//! |---|---|
//! | [`routing`], [`extract`] | applications: routes, handlers and their arguments |
//! | [`client`] | calls |
//! | [`contract`] | names with the types of their payloads, shared by senders and workers |
//! | [`serve`](mod@serve) | the serving loop and its shutdown |
//! | [`transport`] | Redis, memory, and custom transports |
//! | `schedule` (a feature) | tasks that are sent repeatedly, at fixed times |
//! | [`error`] | the ways in which a handler can fail |
//! | [`guide`] | the guarantees, the server's settings, and more pages |
//!
//! # Features
//! - `redis` (default): the Redis transport.
//! - `redis-rustls`: TLS for `rediss://` URLs.
//! - `dashboard`: a [dashboard](guide::dashboard) for operators, as an HTTP service.
//! - `conformance`: the test suite for transports.
//! - `http`: HTTP services that handle messages, and HTTP requests that become messages.
//! - `schedule`: tasks that are sent at the times of a cron line, or at fixed intervals.
//! - `schema`: the JSON Schemas of [contracts](contract), and AsyncAPI documents.
//! - `msgpack`, `cbor`, `protobuf`: payloads in these formats, beside JSON.
//! - `testing`: the test kit for applications. For `dev-dependencies`.
//! - `full`: all of these.
//! - `cli`: the program `campanile`, for a [terminal](guide::terminal). Not in `full`, since no
//!   library needs it.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "ablation")]
#[doc(hidden)]
pub mod ablation;
#[cfg(not(feature = "ablation"))]
mod ablation;
pub mod client;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod contract;
#[cfg(feature = "dashboard")]
pub mod dashboard;
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
mod outbox;
mod payload;
mod progress;
mod reply;
pub mod routing;
#[cfg(feature = "schedule")]
pub mod schedule;
pub mod serve;
mod service;
mod sync;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transport;

#[cfg(feature = "cbor")]
pub use self::payload::Cbor;
#[cfg(feature = "msgpack")]
pub use self::payload::MsgPack;
#[cfg(feature = "protobuf")]
pub use self::payload::Protobuf;
#[cfg(feature = "redis")]
pub use self::transport::redis::handle::Redis;
pub use self::{
    client::{boxed::BoxSender, receipt::Receipt, typed::Client},
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
        name::{DeadLetterId, IdempotencyKey, MessageId, Name, PartitionKey, UniqueKey},
        parts::{Attempt, Deadline, Due, Kind, MatchedRoute, Message, Parts, ReplyMode},
    },
    outbox::Outbox,
    payload::{IntoPayload, Json},
    progress::{Checkpoint, Progress},
    reply::{FromReply, IntoReply, Reply},
    routing::router::Router,
    serve::builder::serve,
    service::{MessageService, Servable, SharedService, WithInterest},
};

/// Runs the README's code as doc tests.
#[cfg(all(doctest, feature = "redis"))]
#[doc = include_str!("../README.md")]
struct Readme;
