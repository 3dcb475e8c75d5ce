//! Tests of events from Pub/Sub.

use std::sync::{Arc, Mutex};

use campanile::{Kind, Name};
use tower::ServiceExt;

use super::*;
use crate::support::{
    rights::{assert_refused, documented},
    version,
};

/// A source of events only.
async fn listen(redis: &Redis, events: &[&str], patterns: &[&str]) -> RedisSource {
    let mut interest = Interest::default();
    interest.events = events.iter().copied().map(Name::from).collect();
    interest.patterns = patterns.iter().copied().map(Name::from).collect();
    redis
        .clone()
        .open(interest)
        .await
        .expect("the source opens")
}

/// Publishes, and returns the number of subscriptions that received it.
async fn publish(server: &RedisServer, channel: &str, payload: &str) -> usize {
    server.query(&["PUBLISH", channel, payload]).await
}

#[tokio::test]
async fn an_event_comes_once_for_each_subscription_that_matches() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = listen(&redis, &["orders.created"], &["orders.*", "*"]).await;
    // Subscriptions are confirmed when the source is open, so no later event is missed.
    assert_eq!(publish(&server, "orders.created", "x").await, 3);
    let mut patterns = Vec::new();
    for _ in 0..3 {
        let delivery = next(&mut source).await;
        let parts = message(&delivery).parts();
        assert_eq!(
            (parts.kind, parts.name.as_str()),
            (Kind::Event, "orders.created")
        );
        assert_eq!(message(&delivery).payload(), "x");
        assert!(parts.id.is_none() && parts.lease.is_none());
        patterns.push(parts.pattern.as_deref().map(str::to_owned));
        settle(delivery, done()).await;
    }
    patterns.sort();
    assert_eq!(patterns, [None, Some("*".into()), Some("orders.*".into())]);
    assert_eq!(redis.counts().events, 3);
    within(SECOND, source.close()).await.unwrap();
    raw::eventually(
        || async { (publish(&server, "orders.created", "x").await == 0).then_some(()) },
        5 * SECOND,
    )
    .await;
}

#[tokio::test]
async fn events_of_two_databases_are_kept_apart_by_a_prefix() {
    let server = RedisServer::start().await;
    let connect = async |database: u8, prefix: &'static str| {
        let redis = Redis::connect(&format!("{}/{database}", server.url())).await;
        redis.expect("the server is there").event_prefix(prefix)
    };
    let (live, staging) = (connect(0, "").await, connect(1, "staging[1]:").await);
    let mut live_source = listen(&live, &["news"], &["new?"]).await;
    let mut staging_source = listen(&staging, &["news"], &["new?", "*"]).await;
    for (redis, payload) in [(&live, "live"), (&staging, "staging")] {
        let sent = redis.clone().oneshot(Message::event("news", payload)).await;
        sent.expect("the event is published");
    }
    for (source, subscriptions, payload) in [
        (&mut live_source, 2, "live"),
        (&mut staging_source, 3, "staging"),
    ] {
        for _ in 0..subscriptions {
            let delivery = next(source).await;
            assert_eq!(message(&delivery).name(), "news");
            assert_eq!(message(&delivery).payload(), payload);
        }
        let more = tokio::time::timeout(SECOND / 2, source.next(8)).await;
        assert!(more.is_err(), "{payload}: {more:?}");
    }
}

#[tokio::test]
async fn binary_payloads_and_odd_names_arrive_as_they_are() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = listen(&redis, &["a b[*]?", "ü"], &[]).await;
    for name in ["a b[*]?", "ü"] {
        server
            .command(&[&b"PUBLISH"[..], name.as_bytes(), b"\x00\xff"])
            .await;
        let delivery = next(&mut source).await;
        assert_eq!(message(&delivery).name(), &name);
        assert_eq!(message(&delivery).payload(), &b"\x00\xff"[..]);
    }
}

#[tokio::test]
async fn events_that_nobody_takes_are_bounded_and_what_is_dropped_is_counted() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await.event_buffer(10);
    let mut source = listen(&redis, &["e"], &[]).await;
    for n in 0..25 {
        publish(&server, "e", &n.to_string()).await;
    }
    raw::eventually(
        || async { (redis.counts().events == 25).then_some(()) },
        5 * SECOND,
    )
    .await;
    assert_eq!(redis.counts().events_dropped, 15);
    let found = source.next(100).await.unwrap();
    let payloads: Vec<_> = found
        .iter()
        .map(|event| message(event).payload().clone())
        .collect();
    let first: Vec<_> = (0..10).map(|n| n.to_string()).collect();
    assert_eq!(payloads, first, "the oldest are kept");
}

#[tokio::test]
async fn subscriptions_come_back_when_the_connection_is_lost() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = listen(&redis, &["e"], &["p.*"]).await;
    for round in 0..3 {
        server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        raw::eventually(
            || async { (publish(&server, "e", "x").await == 1).then_some(()) },
            5 * SECOND,
        )
        .await;
        let delivery = next(&mut source).await;
        assert_eq!(message(&delivery).payload(), "x", "round {round}");
        assert_eq!(publish(&server, "p.q", "y").await, 1);
        assert_eq!(message(&next(&mut source).await).payload(), "y");
    }
    assert!(redis.counts().reconnects >= 3);
}

/// A source of sharded events.
async fn listen_sharded(redis: &Redis, events: &[&str]) -> Result<RedisSource, campanile::Error> {
    let mut interest = Interest::default();
    interest.sharded = events.iter().copied().map(Name::from).collect();
    within(10 * SECOND, redis.clone().open(interest)).await
}

/// A sharded event.
fn sharded(name: &'static str) -> Message {
    let mut event = Message::event(name, "x");
    event.parts_mut().sharded = true;
    event
}

#[tokio::test]
async fn sharded_events_use_the_commands_and_the_channels_of_sharded_pub_sub() {
    if version() < (7, 0) {
        return;
    }
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let redis = redis.namespace("staging").event_prefix("shop.");
    let mut source = listen_sharded(&redis, &["news", "n*"]).await.unwrap();
    let mut channels: Vec<String> = server.query(&["PUBSUB", "SHARDCHANNELS"]).await;
    channels.sort();
    assert_eq!(channels, ["staging:shop.n*", "staging:shop.news"]);
    let heard: usize = server.query(&["SPUBLISH", "staging:shop.news", "x"]).await;
    assert_eq!(heard, 1);
    assert_eq!(publish(&server, "staging:shop.news", "x").await, 0);
    let sent = redis.clone().oneshot(sharded("n*")).await;
    sent.expect("the event is published");
    for name in ["news", "n*"] {
        let delivery = next(&mut source).await;
        assert_eq!(message(&delivery).name(), name);
        assert!(message(&delivery).parts().sharded);
        assert!(message(&delivery).parts().pattern.is_none());
    }
    nothing(&mut source, SECOND / 5).await;
}

#[tokio::test]
async fn all_sorts_of_subscriptions_come_back_over_one_connection() {
    if version() < (7, 0) {
        return;
    }
    let server = RedisServer::start().await;
    let gaps = Arc::<Mutex<Vec<Duration>>>::default();
    let noted = gaps.clone();
    let redis = handle(&server).await;
    let redis = redis.on_event_gap(move |gap| noted.lock().unwrap().push(gap));
    let mut interest = Interest::default();
    interest.events = vec!["e".into()];
    interest.patterns = vec!["p.*".into()];
    interest.sharded = vec!["e".into(), "f".into()];
    let mut source = redis.clone().open(interest).await.unwrap();
    for round in 1..=2 {
        let list: String = server.query(&["CLIENT", "LIST", "TYPE", "PUBSUB"]).await;
        assert_eq!(list.trim().lines().count(), 1, "{list}");
        server.command(&["CLIENT", "KILL", "TYPE", "PUBSUB"]).await;
        let reported = || async { (gaps.lock().unwrap().len() == round).then_some(()) };
        raw::eventually(reported, 5 * SECOND).await;
        for command in [
            ["PUBLISH", "e", "event"],
            ["PUBLISH", "p.q", "pattern"],
            ["SPUBLISH", "e", "sharded"],
            ["SPUBLISH", "f", "sharded"],
        ] {
            assert_eq!(server.query::<usize>(&command).await, 1, "{command:?}");
            let delivery = next(&mut source).await;
            let message = message(&delivery);
            assert_eq!(message.name(), command[1]);
            assert_eq!(message.payload(), command[2]);
            assert_eq!(message.parts().sharded, command[2] == "sharded");
        }
    }
    assert_eq!(redis.counts().reconnects, 2);
}

#[tokio::test]
async fn a_server_without_sharded_events_is_an_error_that_says_what_to_do() {
    let mut options = support::Options::new();
    // A newer server, without its commands, answers as an older one does.
    if version() >= (7, 0) {
        for command in ["SSUBSCRIBE", "SPUBLISH"] {
            options = options.args(["--rename-command", command, ""]);
        }
    }
    let server = RedisServer::with(options).await;
    let redis = handle(&server).await;
    let refused = [
        listen_sharded(&redis, &["news"]).await.unwrap_err(),
        redis.clone().oneshot(sharded("news")).await.unwrap_err(),
    ];
    for error in refused {
        assert!(error.is_config(), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("update it to Redis 7.0"), "{text}");
    }
}

#[tokio::test]
async fn the_rights_that_the_docs_name_are_enough_for_sharded_events() {
    if version() < (7, 0) {
        return;
    }
    let user = |name: &str, row: &str| {
        let rights = documented(&[row]).replace("&<event names>", "&news");
        format!("user {name} on >pw resetchannels {rights}\n")
    };
    let acl = user("hears", "… and to sharded")
        + &user("sends", "… that are sharded")
        + "user default on nopass ~* &* +@all";
    let server = RedisServer::with(support::Options::new().acl(&acl)).await;
    let url = |user: &str| format!("redis://{user}:pw@127.0.0.1:{}/", server.port());
    let hears = Redis::connect(&url("hears")).await.unwrap();
    let sends = Redis::connect(&url("sends")).await.unwrap();
    let mut source = listen_sharded(&hears, &["news"]).await.unwrap();
    sends.clone().oneshot(sharded("news")).await.unwrap();
    assert_eq!(message(&next(&mut source).await).name(), "news");
    let refused = listen_sharded(&hears, &["other"]).await.unwrap_err();
    assert!(refused.is_refused(), "{refused:?}");
    assert!(refused.to_string().contains("ACL SETUSER"), "{refused}");
    let refused = sends.clone().oneshot(sharded("other")).await.unwrap_err();
    assert!(refused.is_refused(), "{refused:?}");
    assert_refused(&url("hears"), &["SPUBLISH news x", "PUBLISH news x"]).await;
    assert_refused(&url("sends"), &["SSUBSCRIBE news", "PUBLISH news x"]).await;
}

#[tokio::test]
async fn a_busy_stream_does_not_starve_events() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut interest = Interest::stream();
    interest.events = vec!["e".into()];
    let mut source = redis.clone().open(interest).await.unwrap();
    for n in 0..200 {
        task(&server, n.to_string()).await;
        publish(&server, "e", "x").await;
    }
    let mut kinds = Vec::new();
    for _ in 0..40 {
        let delivery = next(&mut source).await;
        kinds.push(message(&delivery).kind());
        settle(delivery, done()).await;
    }
    let events = kinds.iter().filter(|kind| **kind == Kind::Event).count();
    assert!((10..=30).contains(&events), "{events} of 40 were events");
}

#[tokio::test]
async fn a_channel_without_a_right_is_an_error_that_says_so() {
    let acl =
        "user worker on >pw ~* resetchannels &orders.* +@all\nuser default on nopass ~* &* +@all";
    let server = RedisServer::with(support::Options::new().acl(acl)).await;
    let url = format!("redis://worker:pw@127.0.0.1:{}/", server.port());
    let redis = Redis::connect(&url).await.unwrap();
    let mut interest = Interest::default();
    interest.events = vec!["other".into()];
    let error = within(10 * SECOND, redis.clone().open(interest))
        .await
        .unwrap_err();
    assert!(error.is_refused(), "{error:?}");
    assert!(error.to_string().contains("ACL SETUSER"), "{error}");
    let mut source = listen(&redis, &["orders.created"], &["orders.*"]).await;
    publish(&server, "orders.created", "x").await;
    next(&mut source).await;
}
