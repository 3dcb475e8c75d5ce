//! The serving half of the Redis transport against real servers: each step of a delivery's life.

mod answers;
mod clock;
#[path = "dead.rs"]
mod dead_letters;
mod events;
mod faults;
mod leases;
mod limits;
mod outages;
mod outbox;
mod owned;
mod pauses;
mod records;
mod schedule;
mod served_names;
mod set_up;
mod sets;
mod settling;
mod stats;
mod tail;
mod upkeep;
mod workers;

use std::time::Duration;

use campanile::{
    Message, Redis, Reply,
    transport::{
        DeadLetter, Delivery, Interest, Page, SettleDelivery, Source, Transport, Verdict,
        redis::{RedisSettler, RedisSource},
    },
};

use crate::{
    SECOND, logs,
    support::{self, RedisServer, raw},
    within,
};

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

/// Adds a task with the fields that any client writes.
async fn task(server: &RedisServer, payload: impl AsRef<[u8]>) -> String {
    let payload = payload.as_ref();
    raw::add(
        server,
        "s",
        &[("type", &b"task"[..]), ("name", b"n"), ("payload", payload)],
    )
    .await
}

/// The next delivery.
async fn next(source: &mut RedisSource) -> Delivery<RedisSettler> {
    let mut deliveries = within(20 * SECOND, source.next(1))
        .await
        .expect("a delivery");
    assert_eq!(deliveries.len(), 1, "no more than asked for");
    deliveries.pop().expect("one")
}

/// Asserts that nothing is delivered for a while.
async fn nothing(source: &mut RedisSource, wait: Duration) {
    if let Ok(found) = tokio::time::timeout(wait, source.next(10)).await {
        panic!("unexpected deliveries: {found:?}");
    }
}

/// The message of a delivery.
fn message(delivery: &Delivery<RedisSettler>) -> &Message {
    delivery.content.as_ref().expect("a message")
}

/// The dead letters of the group.
async fn letters(redis: &Redis) -> Vec<DeadLetter> {
    let page = redis.dead_letters().list(Page::first(1_000)).await;
    page.expect("the dead letters are listed").letters
}

async fn settle(delivery: Delivery<RedisSettler>, verdict: Verdict) {
    let settled = within(10 * SECOND, delivery.settle(verdict)).await;
    settled.expect("the verdict is confirmed");
}

/// Acknowledges deliveries, and asserts that no worker has claimed any of them.
async fn acknowledge_kept(
    redis: &Redis,
    deliveries: impl IntoIterator<Item = Delivery<RedisSettler>>,
) {
    for delivery in deliveries {
        assert!(!message(&delivery).parts().lease.as_ref().unwrap().is_lost());
        settle(delivery, done()).await;
    }
    let counts = redis.counts();
    assert_eq!((counts.claimed, counts.lost_leases), (0, 0));
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
    Verdict::DeadLetter {
        reason: reason.into(),
        answer: None,
    }
}

/// The numbers of pending entries on the stream and on the retry stream.
async fn pending(server: &RedisServer) -> (usize, usize) {
    (
        raw::pending(server, "s", "g").await,
        raw::pending(server, "{s}:retry:g", "g").await,
    )
}
