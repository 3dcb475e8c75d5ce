//! The layers that work by key, on both transports: in memory and on real Redis servers.

mod concurrency;
mod idempotency;
mod ordered;
mod rate_limit;
mod redis_store;
mod shared_limit;
mod stores;
mod topologies;
mod two_streams;

use std::time::Duration;

use campanile::transport::{Backoff, Settings};

use crate::{
    logs, support,
    transports::{Transport, until},
};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Settings with short waits.
fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.backoff = Backoff::exponential(20 * MILLI, 200 * MILLI);
    settings
}

/// Makes tests of scenarios, which are functions of a transport: on each transport, and on several
/// threads.
macro_rules! on_both {
    ($($scenario:ident($settings:expr);)*) => {
        mod on_memory {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $scenario() {
                    let memory = campanile::transport::memory::Memory::new();
                    super::$scenario(memory.with_settings($settings)).await;
                }
            )*
        }

        mod on_redis {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $scenario() {
                    let server = crate::support::RedisServer::start().await;
                    let redis = campanile::Redis::connect(&server.url()).await;
                    let redis = redis.expect("the server is reachable");
                    super::$scenario(redis.with_settings($settings)).await;
                }
            )*
        }
    };
}
pub(crate) use on_both;
