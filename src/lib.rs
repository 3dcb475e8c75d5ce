//! Tasks, events and RPC over Redis as `tower` services: what axum is for HTTP, for queues.

pub mod client;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod error;
pub mod extract;
pub mod handler;
pub mod message;
pub mod payload;
pub mod reply;
pub mod routing;
pub mod serve;
mod service;
pub mod transport;

#[cfg(feature = "redis")]
pub use self::transport::redis::Redis;
pub use self::{
    error::{BoxError, Error, Failure, NotFound, RpcCode, RpcError},
    message::{
        Attempt, Deadline, Kind, Lease, MatchedRoute, Message, MessageId, Name, Parts, ReplyMode,
    },
    payload::{FromReply, IntoPayload, Json},
    reply::{IntoReply, Reply},
    service::IntoService,
};
