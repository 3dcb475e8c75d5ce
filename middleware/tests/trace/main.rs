//! Tests of traces through messages on both transports: the exported spans, their parents and
//! links.

mod attributes;
mod context;
mod exported;
mod failures;
#[path = "../../../tests/support/logs.rs"]
mod logs;
mod malformed;
#[path = "../../../tests/support/mod.rs"]
mod support;

use campanile::{Client, Redis, transport::Broker};
use campanile_middleware::{Trace, TraceLayer};
use support::RedisServer;
use tower::Layer;

/// A client whose calls have spans.
fn traced<B: Broker>(broker: &B) -> Client<Trace<B>> {
    Client::new(TraceLayer::new_for_client().layer(broker.clone()))
}

async fn redis(server: &RedisServer) -> Redis {
    Redis::connect(&server.url())
        .await
        .expect("the server is reachable")
}

/// Makes a test of each function on each transport.
macro_rules! on_both {
    ($($(#[$attribute:meta])* $test:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test]
            $(#[$attribute])*
            async fn $test() {
                let broker = campanile::transport::memory::Memory::new();
                super::$test(broker, concat!("memory.", stringify!($test))).await;
            })*
        }

        mod redis {
            $(#[tokio::test]
            $(#[$attribute])*
            async fn $test() {
                let server = crate::support::RedisServer::start().await;
                let broker = crate::redis(&server).await;
                super::$test(broker, concat!("redis.", stringify!($test))).await;
            })*
        }
    };
}
use on_both;
