//! The sending half of the Redis transport against real servers: its wire format, replies, and
//! errors.

mod bounds;
mod connecting;
mod failover;
mod idle;
mod outages;
mod refusals;
mod replicas;
mod requests;
#[cfg(feature = "redis-rustls")]
mod tls;
mod wire;

use campanile::{Error, Message, Redis, Reply};
use tower::ServiceExt;

use crate::{
    SECOND, logs,
    support::{self, RedisServer},
    within,
};

/// A handle that sends to the stream `s`.
async fn handle(server: &RedisServer) -> Redis {
    Redis::connect(&server.url())
        .await
        .expect("the server is there")
        .stream("s")
}

/// Sends one message.
async fn send(redis: &Redis, message: Message) -> Result<Reply, Error> {
    redis.clone().oneshot(message).await
}
