//! Lost connections, servers that lose data, sources that are stopped.

use campanile::Attempt;
use support::Options;
use tower::ServiceExt;

use super::*;

/// The names of the group's consumers.
async fn consumers(server: &RedisServer) -> Vec<String> {
    let list: Vec<std::collections::HashMap<String, redis::Value>> =
        server.query(&["XINFO", "CONSUMERS", "s", "g"]).await;
    let name = |mut consumer: std::collections::HashMap<String, redis::Value>| {
        redis::from_redis_value(consumer.remove("name").unwrap()).unwrap()
    };
    list.into_iter().map(name).collect()
}

#[tokio::test]
async fn a_blocked_source_stops_at_once() {
    let server = RedisServer::start().await;
    // With this lease a read blocks for its longest time.
    let redis = handle(&server).await.lease(100 * SECOND);
    let mut source = open(&redis).await;
    nothing(&mut source, SECOND / 4).await;
    let started = std::time::Instant::now();
    source.stop().await;
    source.stop().await;
    let took = started.elapsed();
    assert!(took < SECOND / 2, "{took:?}");
    within(SECOND, source.close()).await.unwrap();
    assert!(consumers(&server).await.is_empty());
}

#[tokio::test]
async fn a_source_that_stops_gives_back_what_it_did_not_hand_out() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    // Dropping the future of `next` loses no deliveries: the source keeps them.
    nothing(&mut source, SECOND / 10).await;
    for n in 0..5 {
        task(&server, n.to_string()).await;
    }
    tokio::time::sleep(SECOND / 20).await;
    source.stop().await;
    assert_eq!(pending(&server).await, (0, 0));
    let mut other = open(&redis).await;
    for _ in 0..5 {
        let delivery = next(&mut other).await;
        assert_eq!(message(&delivery).parts().attempt, Attempt(1));
        settle(delivery, done()).await;
    }
    within(SECOND, source.close()).await.unwrap();
}

#[tokio::test]
async fn an_entry_that_a_busy_worker_does_not_ask_for_goes_to_another_worker() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut busy = open(&redis).await;
    nothing(&mut busy, SECOND / 10).await;
    task(&server, "x").await;
    let mut idle = open(&redis).await;
    let delivery = within(SECOND, next(&mut idle)).await;
    settle(delivery, done()).await;
}

#[tokio::test]
async fn returned_deliveries_can_be_settled_after_the_stop() {
    let server = RedisServer::start().await;
    let mut source = open(&handle(&server).await).await;
    task(&server, "x").await;
    let delivery = next(&mut source).await;
    source.stop().await;
    let settling = tokio::spawn(settle(delivery, dead("x")));
    tokio::task::yield_now().await;
    within(5 * SECOND, source.close()).await.unwrap();
    settling.await.unwrap();
    assert_eq!(pending(&server).await, (0, 0));
    assert!(consumers(&server).await.is_empty());
}

#[tokio::test]
async fn a_flushed_server_is_read_again_from_the_beginning() {
    let server = RedisServer::start().await;
    let mut source = open(&handle(&server).await).await;
    task(&server, "x").await;
    let before = next(&mut source).await;
    nothing(&mut source, SECOND / 10).await;
    server.command(&["FLUSHALL"]).await;
    task(&server, "y").await;
    let delivery = next(&mut source).await;
    assert_eq!(message(&delivery).payload(), "y");
    settle(delivery, redeliver(Some(Duration::ZERO), true)).await;
    let delivery = next(&mut source).await;
    settle(delivery, done()).await;
    // The flush has deleted the entry of this delivery. To settle it is no error.
    settle(before, redeliver(None, true)).await;
}

#[tokio::test]
async fn connections_that_are_killed_are_made_again_and_no_verdict_is_lost() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    for round in 0..5 {
        for _ in 0..3 {
            task(&server, "x").await;
        }
        let held = [
            next(&mut source).await,
            next(&mut source).await,
            next(&mut source).await,
        ];
        // The connections are killed during a blocked read, and during settlements.
        nothing(&mut source, SECOND / 20).await;
        let verdicts = [
            done(),
            dead("x"),
            redeliver(Some(Duration::from_millis(round)), true),
        ];
        let mut settling = tokio::task::JoinSet::new();
        for (delivery, verdict) in held.into_iter().zip(verdicts) {
            settling.spawn(settle(delivery, verdict));
        }
        server.kill_connections().await;
        within(10 * SECOND, settling.join_all()).await;
        let delivery = next(&mut source).await;
        assert_eq!(message(&delivery).parts().attempt, Attempt(2));
        settle(delivery, done()).await;
        assert_eq!(pending(&server).await, (0, 0));
    }
    assert_eq!(letters(&redis).await.len(), 5);
    assert!(redis.counts().reconnects > 0);
}

/// Asserts that verdicts wait, senders get errors and the handle's state shows the outage while the
/// server takes no writes.
async fn outwaits(server: &RedisServer, begin: &[&str], end: &[&str]) {
    let redis = handle(server).await;
    let mut source = open(&redis).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        task(server, "x").await;
        held.push(next(&mut source).await);
    }
    server.command(begin).await;
    let send = || redis.clone().oneshot(Message::task("n", ""));
    raw::eventually(
        || async { send().await.is_err_and(|e| e.is_refused()).then_some(()) },
        5 * SECOND,
    )
    .await;
    let mut settling = tokio::task::JoinSet::new();
    let verdicts = [done(), dead("x"), redeliver(Some(30 * SECOND), true)];
    for (delivery, verdict) in held.into_iter().zip(verdicts) {
        settling.spawn(settle(delivery, verdict));
    }
    raw::eventually(
        || async { (!redis.state().is_ready()).then_some(()) },
        5 * SECOND,
    )
    .await;
    assert_eq!(pending(server).await, (3, 0));
    server.command(end).await;
    within(10 * SECOND, settling.join_all()).await;
    assert_eq!(pending(server).await, (0, 0));
    let counts = redis.counts();
    assert_eq!((counts.done, counts.dead, counts.redelivered), (1, 1, 1));
}

#[tokio::test]
async fn verdicts_wait_for_a_server_that_misses_its_replicas() {
    let server = RedisServer::start().await;
    let demand = |replicas| ["CONFIG", "SET", "min-replicas-to-write", replicas];
    outwaits(&server, &demand("1"), &demand("0")).await;
}

#[tokio::test]
async fn verdicts_wait_for_a_server_that_cannot_save() {
    let server = RedisServer::start().await;
    // Snapshots are enabled, and fail: a directory has the name of their file.
    let seldom = ["CONFIG", "SET", "save", "3600 1000000"];
    server.command(&seldom).await;
    std::fs::create_dir_all(server.dir().join("dump.rdb/full")).unwrap();
    let strict = |strict| ["CONFIG", "SET", "stop-writes-on-bgsave-error", strict];
    outwaits(&server, &["BGSAVE"], &strict("no")).await;
}

#[tokio::test]
async fn entries_whose_answer_was_lost_are_fetched_again_without_an_attempt() {
    let server = RedisServer::start().await;
    let mut source = open(&handle(&server).await).await;
    let held = task(&server, "held").await;
    let held_delivery = next(&mut source).await;
    nothing(&mut source, SECOND / 10).await;
    let me = consumers(&server).await.remove(0);
    // Another client reads in the name of the consumer, as if a response had been lost.
    tokio::time::sleep(2 * SECOND).await;
    let lost = task(&server, "lost").await;
    let read = ["XREADGROUP", "GROUP", "g", &me, "STREAMS", "s", ">"];
    server.command(&read).await;
    assert_eq!(pending(&server).await, (2, 0));
    let waiting = tokio::spawn(async move { (next(&mut source).await, source) });
    tokio::time::sleep(SECOND / 10).await;
    server.kill_connections().await;
    let (delivery, _source) = within(10 * SECOND, waiting).await.unwrap();
    let parts = message(&delivery).parts();
    assert_eq!(parts.id.as_ref().unwrap(), &lost.as_str(), "and not {held}");
    assert_eq!(parts.attempt, Attempt(1));
    settle(delivery, done()).await;
    settle(held_delivery, done()).await;
    assert_eq!(pending(&server).await, (0, 0));
}

#[tokio::test]
async fn a_restarted_server_is_worked_on_as_if_nothing_had_happened() {
    let server = RedisServer::with(Options::new().persistent()).await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    task(&server, "held").await;
    let held = next(&mut source).await;
    server.restart().await;
    settle(held, done()).await;
    task(&server, "x").await;
    let delivery = next(&mut source).await;
    assert_eq!(message(&delivery).payload(), "x");
    settle(delivery, redeliver(Some(Duration::ZERO), true)).await;
    let delivery = next(&mut source).await;
    settle(delivery, done()).await;
    assert_eq!(pending(&server).await, (0, 0));
}

#[tokio::test]
async fn every_step_holds_on_a_cluster() {
    let server = RedisServer::with(Options::new().cluster()).await;
    let redis = handle(&server).await.lease(SECOND);
    let mut source = open(&redis).await;
    for verdict in [
        done(),
        dead("x"),
        redeliver(Some(Duration::ZERO), true),
        redeliver(Some(Duration::from_millis(10)), true),
        Verdict::Release,
    ] {
        let again = matches!(verdict, Verdict::Redeliver { .. } | Verdict::Release);
        task(&server, "x").await;
        let delivery = next(&mut source).await;
        settle(delivery, verdict).await;
        if again {
            let delivery = next(&mut source).await;
            settle(delivery, done()).await;
        }
    }
    task(&server, "x").await;
    drop(next(&mut source).await);
    let delivery = next(&mut source).await;
    assert_eq!(message(&delivery).parts().attempt, Attempt(2), "taken over");
    settle(delivery, done()).await;
    assert_eq!(pending(&server).await, (0, 0));
    within(5 * SECOND, source.close()).await.unwrap();
}

#[tokio::test]
async fn resp3_works_as_well() {
    let server = RedisServer::start().await;
    let url = format!("{}?protocol=resp3", server.url());
    let redis = Redis::connect(&url)
        .await
        .unwrap()
        .stream("s")
        .group("g")
        .lease(SECOND);
    let mut source = open(&redis).await;
    task(&server, "x").await;
    let delivery = next(&mut source).await;
    settle(delivery, redeliver(Some(Duration::from_millis(10)), true)).await;
    let delivery = next(&mut source).await;
    drop(delivery);
    let delivery = next(&mut source).await;
    assert_eq!(message(&delivery).parts().attempt, Attempt(3));
    settle(delivery, dead("x")).await;
    assert_eq!(letters(&redis).await.len(), 1);
    source.stop().await;
    within(5 * SECOND, source.close()).await.unwrap();
}
