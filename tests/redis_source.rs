//! The serving half of the Redis transport against real servers: each step of a delivery's life.
#![cfg(feature = "redis")]

#[path = "redis_source/answers.rs"]
mod answers;
#[path = "redis_source/clock.rs"]
mod clock;
#[path = "redis_source/dead.rs"]
mod dead_letters;
#[path = "redis_source/events.rs"]
mod events;
#[path = "redis_source/faults.rs"]
mod faults;
#[path = "redis_source/leases.rs"]
mod leases;
#[path = "support/logs.rs"]
mod logs;
#[path = "redis_source/outages.rs"]
mod outages;
#[path = "redis_source/schedule.rs"]
mod schedule;
#[path = "redis_source/set_up.rs"]
mod set_up;
#[path = "redis_source/settling.rs"]
mod settling;
#[path = "redis_source/stats.rs"]
mod stats;
mod support;
#[path = "redis_source/tail.rs"]
mod tail;
#[path = "redis_source/upkeep.rs"]
mod upkeep;

use std::{future::Future, time::Duration};

use campanile::{
    Message, Redis, Reply,
    transport::{
        DeadLetter, Delivery, Interest, Page, SettleDelivery, Source, Transport, Verdict,
        redis::{RedisSettle, RedisSource},
    },
};
use support::{RedisServer, raw};

const SECOND: Duration = Duration::from_secs(1);

/// A handle on the stream `s` and the group `g`.
async fn handle(server: &RedisServer) -> Redis {
    let redis = Redis::connect(&server.url()).await;
    redis.expect("the server is there").stream("s").group("g")
}

/// A source of the stream.
async fn open(redis: &Redis) -> RedisSource {
    let source = redis.clone().open(Interest::stream()).await;
    source.expect("the source opens")
}

/// Adds a task as any client would.
async fn task(server: &RedisServer, payload: impl AsRef<[u8]>) -> String {
    let payload = payload.as_ref();
    raw::add(
        server,
        "s",
        &[("type", &b"task"[..]), ("name", b"n"), ("payload", payload)],
    )
    .await
}

/// Fails a test that hangs.
async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, future).await {
        Ok(output) => output,
        Err(_) => panic!("not done within {limit:?}"),
    }
}

/// The next delivery.
async fn next(source: &mut RedisSource) -> Delivery<RedisSettle> {
    let mut deliveries = within(20 * SECOND, source.next(1))
        .await
        .expect("a delivery");
    assert_eq!(deliveries.len(), 1, "no more than asked for");
    deliveries.pop().expect("one")
}

/// Asserts that nothing is delivered for a while.
async fn nothing(source: &mut RedisSource, wait: Duration) {
    if let Ok(found) = tokio::time::timeout(wait, source.next(10)).await {
        panic!("nothing was to be delivered: {found:?}");
    }
}

/// The message of a delivery.
fn message(delivery: &Delivery<RedisSettle>) -> &Message {
    delivery.content.as_ref().expect("a message")
}

/// The group's dead letters.
async fn letters(redis: &Redis) -> Vec<DeadLetter> {
    let page = redis.dead_letters().list(Page::first(1_000)).await;
    page.expect("they are listed").letters
}

async fn settle(delivery: Delivery<RedisSettle>, verdict: Verdict) {
    let settled = within(10 * SECOND, delivery.settle(verdict)).await;
    settled.expect("the verdict is confirmed");
}

fn done() -> Verdict {
    Verdict::Done(Ok(Reply::default()))
}

fn redeliver(after: Option<Duration>, counted: bool) -> Verdict {
    Verdict::Redeliver {
        after,
        counted,
        reason: "it failed".into(),
    }
}

fn dead(reason: &str) -> Verdict {
    Verdict::Dead {
        reason: reason.into(),
        answer: None,
    }
}

/// How much is pending on the stream and on the retry stream.
async fn pending(server: &RedisServer) -> (usize, usize) {
    (
        raw::pending(server, "s", "g").await,
        raw::pending(server, "{s}:retry:g", "g").await,
    )
}
