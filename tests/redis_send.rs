//! The sending half of the Redis transport against real servers: what it puts on the wire, how it
//! hears replies, and what it says when something is wrong.
#![cfg(feature = "redis")]

#[path = "redis_send/connecting.rs"]
mod connecting;
#[path = "redis_send/failover.rs"]
mod failover;
#[path = "redis_send/idle.rs"]
mod idle;
#[path = "support/logs.rs"]
mod logs;
#[path = "redis_send/outages.rs"]
mod outages;
#[path = "redis_send/refusals.rs"]
mod refusals;
#[path = "redis_send/requests.rs"]
mod requests;
mod support;
#[cfg(feature = "redis-rustls")]
#[path = "redis_send/tls.rs"]
mod tls;
#[path = "redis_send/wire.rs"]
mod wire;

use std::{future::Future, time::Duration};

use campanile::{Error, Message, Redis, Reply};
use support::RedisServer;
use tower::ServiceExt;

/// A handle on a server, sending to the stream `s`.
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

/// Fails a test that hangs.
async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, future).await {
        Ok(output) => output,
        Err(_) => panic!("not done within {limit:?}"),
    }
}

/// Closes every connection to the server but the one that asks, as an operator or a failing network
/// would.
async fn kill_connections(server: &RedisServer) {
    for kind in ["normal", "pubsub"] {
        server.command(&["CLIENT", "KILL", "TYPE", kind]).await;
    }
}

const SECOND: Duration = Duration::from_secs(1);
