//! Tests of events from Pub/Sub.

use campanile::{Kind, Name};
use tower::ServiceExt;

use super::*;

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
