//! The layers that work by key, on both transports: in memory and on real Redis servers.

mod concurrency;
mod idempotency;
mod ordered;
mod rate_limit;
mod redis_store;
mod stores;
mod two_streams;

use std::time::Duration;

use campanile::{
    Redis,
    transport::{Backoff, Broker, Counts, DeadLetters, Settings, memory::Memory},
};

use crate::{logs, support};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A transport of these tests: both halves, its counts, and its dead letters.
trait Counted: Broker {
    fn counted(&self) -> Counts;
    fn dead(&self) -> DeadLetters;
}

impl Counted for Memory {
    fn counted(&self) -> Counts {
        self.counts()
    }

    fn dead(&self) -> DeadLetters {
        self.dead_letters()
    }
}

impl Counted for Redis {
    fn counted(&self) -> Counts {
        self.counts()
    }

    fn dead(&self) -> DeadLetters {
        self.dead_letters()
    }
}

/// Settings with short waits.
fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.backoff = Backoff::exponential(20 * MILLI, 200 * MILLI);
    settings
}

/// Waits until a condition holds. Panics after a minute.
async fn eventually(is_so: impl Fn() -> bool) {
    let check = || async { is_so().then_some(()) };
    support::raw::eventually(check, 60 * SECOND).await;
}

/// Makes tests of scenarios, which are functions of a transport, on each transport and several
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
