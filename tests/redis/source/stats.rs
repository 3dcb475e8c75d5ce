//! Tests of the statistics and the state of a handle, on real servers.

use std::sync::{Arc, Mutex};

use campanile::transport::ConnectionState;
use support::{Options, Signal, rights::documented};

use super::*;

#[tokio::test]
async fn foreign_consumers_are_alive_for_longer_and_a_stream_of_others_has_numbers_too() {
    let server = RedisServer::start().await;
    let redis = handle(&server)
        .await
        .lease(SECOND / 10)
        .foreign_lease(60 * SECOND);
    let first = task(&server, "1").await;
    task(&server, "2").await;
    server.command(&["XGROUP", "CREATE", "s", "go", "0"]).await;
    for consumer in ["worker-1", "campanile-gone"] {
        let read = [
            "XREADGROUP",
            "GROUP",
            "go",
            consumer,
            "COUNT",
            "1",
            "STREAMS",
            "s",
            ">",
        ];
        server.command(&read).await;
    }
    tokio::time::sleep(SECOND / 5).await;
    let stats = redis.stats().await.unwrap();
    assert_eq!(stats.entries, 2);
    let group = stats.group("go").unwrap();
    assert_eq!((group.lag, group.pending, group.consumers), (Some(0), 2, 1));
    let sent: u128 = first.split('-').next().unwrap().parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let age = Duration::from_millis((now.unwrap().as_millis() - sent) as u64);
    let counted = group.oldest_pending.unwrap();
    assert!(
        counted <= age && counted >= SECOND / 5,
        "{counted:?} of {age:?}"
    );
}

#[tokio::test]
async fn consumers_are_listed_with_their_pending_deliveries_of_both_streams() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    assert_eq!(redis.consumers().await.unwrap(), None, "no stream");
    task(&server, "1").await;
    assert_eq!(redis.consumers().await.unwrap(), None, "no group");
    let mut source = open(&redis).await;
    let first = next(&mut source).await;
    settle(first, redeliver(Some(Duration::ZERO), true)).await;
    task(&server, "2").await;
    let held = [next(&mut source).await, next(&mut source).await];
    let read = "XREADGROUP GROUP g worker-1 COUNT 1 STREAMS s >";
    task(&server, "3").await;
    server.command(&read.split(' ').collect::<Vec<_>>()).await;
    let consumers = redis.consumers().await.unwrap().expect("a group");
    let [ours, foreign] = &consumers[..] else {
        panic!("{consumers:?}");
    };
    assert!(ours.consumer.starts_with("campanile-"), "{ours:?}");
    assert!(!ours.foreign && ours.pending == 2, "{ours:?}");
    assert!(ours.idle < 10 * SECOND, "{ours:?}");
    assert_eq!((&*foreign.consumer, foreign.foreign), ("worker-1", true));
    assert_eq!(foreign.pending, 1);
    drop(held);
}

#[tokio::test]
async fn a_group_that_no_worker_can_be_in_does_not_spoil_the_numbers_of_the_others() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    task(&server, "1").await;
    for group in ["", "go"] {
        server.command(&["XGROUP", "CREATE", "s", group, "0"]).await;
    }
    let stats = redis.stats().await.expect("the other groups have numbers");
    let groups: Vec<_> = stats.groups.iter().map(|group| &*group.group).collect();
    assert_eq!(groups, ["go"]);
}

#[tokio::test]
async fn an_unknown_lag_is_none_and_a_known_one_is_computed() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(task(&server, "").await);
    }
    let start = ids[1].clone();
    let mut source = open(
        &redis
            .clone()
            .start(campanile::transport::Start::After(start)),
    )
    .await;
    // With a gap before its end, the server cannot compute the lag.
    server.command(&["XDEL", "s", &ids[2]]).await;
    task(&server, "").await;
    let lag = async || redis.stats().await.unwrap().group("g").unwrap().lag;
    assert_eq!(lag().await, None);
    for _ in 0..2 {
        settle(next(&mut source).await, done()).await;
    }
    assert_eq!(lag().await, Some(0));
    source.close().await.unwrap();
}

#[tokio::test]
async fn a_scrape_needs_few_rights_and_works_under_resp3() {
    let rights = documented(&["scrapes"]);
    let rights = format!("user scraper on >pw {rights} +info +hello");
    let options = Options::new().acl(&rights).login("scraper", "pw");
    let server = RedisServer::with(options).await;
    let url = format!("{}?protocol=resp3", server.url());
    for url in [server.url(), url] {
        let redis = Redis::connect(&url).await.unwrap().stream("s").group("g");
        assert_eq!(redis.stats().await.unwrap().groups, []);
        assert_eq!(redis.consumers().await.unwrap(), None);
    }
    let group = ["XGROUP", "CREATE", "s", "g", "0", "MKSTREAM"];
    let mut admin = redis::Client::open(format!("redis://127.0.0.1:{}/", server.port()))
        .unwrap()
        .get_multiplexed_async_connection()
        .await
        .unwrap();
    let made: redis::RedisResult<()> = redis::cmd(group[0])
        .arg(&group[1..])
        .query_async(&mut admin)
        .await;
    made.unwrap();
    for protocol in ["resp2", "resp3"] {
        let url = format!("{}?protocol={protocol}", server.url());
        let redis = Redis::connect(&url).await.unwrap().stream("s").group("g");
        assert_eq!(
            redis.stats().await.unwrap().group("g").unwrap().lag,
            Some(0)
        );
    }
}

/// Waits until the handle has this state.
async fn until(redis: &Redis, state: ConnectionState, limit: Duration) {
    let change = async {
        while redis.state() != state {
            redis.state_changed(redis.state()).await;
        }
    };
    within(limit, change).await;
}

#[tokio::test]
async fn the_state_of_a_worker_is_what_its_loops_show() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await.lease(3 * SECOND);
    assert_eq!(redis.state(), ConnectionState::Connected);
    let mut source = open(&redis).await;
    until(&redis, ConnectionState::Connected, 5 * SECOND).await;
    // The state is good while the worker's loops run, idle or busy.
    for _ in 0..20 {
        tokio::time::sleep(SECOND / 10).await;
        assert!(redis.state().is_ready(), "{}", redis.state());
        let _ = tokio::time::timeout(SECOND / 10, source.next(1)).await;
    }
    // The server is frozen: connections stay open without any response.
    server.signal(Signal::Stop);
    until(&redis, ConnectionState::Lagging, 4 * SECOND).await;
    server.signal(Signal::Cont);
    until(&redis, ConnectionState::Connected, 20 * SECOND).await;
    // The server is killed, and started again.
    server.signal(Signal::Kill);
    until(&redis, ConnectionState::Reconnecting, 10 * SECOND).await;
    server.restart().await;
    let waiting = tokio::spawn(async move {
        let delivery = next(&mut source).await;
        settle(delivery, done()).await;
        source
    });
    until(&redis, ConnectionState::Connected, 20 * SECOND).await;
    task(&server, "").await;
    let source = within(20 * SECOND, waiting).await.unwrap();
    source.close().await.unwrap();
    assert_eq!(
        redis.state(),
        ConnectionState::Connected,
        "a closed source does not affect the state"
    );
}

#[tokio::test]
async fn a_gap_in_the_events_is_told_to_the_hook_and_to_the_probe() {
    let server = RedisServer::start().await;
    let gaps = Arc::new(Mutex::new(Vec::new()));
    let heard = gaps.clone();
    let redis = handle(&server)
        .await
        .on_event_gap(move |gap| heard.lock().unwrap().push(gap));
    let mut interest = Interest::default();
    interest.events.push("news".into());
    let source = redis.clone().open(interest).await.unwrap();
    assert_eq!(redis.state(), ConnectionState::Connected);
    server.signal(Signal::Kill);
    until(&redis, ConnectionState::Reconnecting, 10 * SECOND).await;
    assert!(gaps.lock().unwrap().is_empty(), "the gap has not ended");
    tokio::time::sleep(SECOND / 5).await;
    server.restart().await;
    raw::eventually(
        || async { (!gaps.lock().unwrap().is_empty()).then_some(()) },
        20 * SECOND,
    )
    .await;
    until(&redis, ConnectionState::Connected, 20 * SECOND).await;
    let gaps = gaps.lock().unwrap().clone();
    assert!(gaps.len() == 1 && gaps[0] >= SECOND / 5, "{gaps:?}");
    source.close().await.unwrap();
}

#[tokio::test]
async fn a_worker_that_has_nothing_to_do_is_alive_all_the_same() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await.lease(SECOND);
    let source = open(&redis).await;
    tokio::time::sleep(3 * SECOND).await;
    let group = |stats: campanile::transport::StreamStats| stats.groups[0].consumers;
    assert_eq!(group(redis.stats().await.unwrap()), 1);
    source.close().await.unwrap();
    assert_eq!(group(redis.stats().await.unwrap()), 0);
}
