//! Leases: renewals, losses, and claims from dead workers.

use std::collections::HashSet;

use campanile::Attempt;
use support::Signal;

use super::*;

/// Delivers the next entries to a consumer that does not exist, as if it had crashed, with this
/// delivery count.
async fn left_behind(server: &RedisServer, consumer: &str, ids: &[String], deliveries: u32) {
    let create = ["XGROUP", "CREATE", "s", "g", "0", "MKSTREAM"];
    let _ = server.try_command(&create).await;
    let read = [
        "XREADGROUP",
        "GROUP",
        "g",
        consumer,
        "COUNT",
        "100000",
        "STREAMS",
        "s",
        ">",
    ];
    server.command(&read).await;
    let count = deliveries.to_string();
    let mut claim = vec!["XCLAIM", "s", "g", consumer, "0"];
    claim.extend(ids.iter().map(String::as_str));
    claim.extend(["RETRYCOUNT", &count, "JUSTID"]);
    server.command(&claim).await;
}

#[tokio::test]
async fn a_worker_that_is_gone_is_relieved_and_its_late_verdict_changes_nothing() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await.lease(SECOND);
    let mut first = open(&redis).await;
    let id = task(&server, "x").await;
    let zombie = next(&mut first).await;
    // The source is dropped, not closed, so its leases are no longer renewed.
    drop(first);
    let consumers = redis.consumers().await.unwrap().expect("a group");
    let dead = &consumers[0].consumer;
    let logs = logs::Logs::start();
    let mut second = open(&redis).await;
    let delivery = next(&mut second).await;
    let claims = logs.lines(&["INFO", "claimed deliveries", "stream=s group=g"]);
    assert_eq!(claims.len(), 1, "{}", logs.text());
    for words in [format!("from={dead}"), format!("ids={id}")] {
        assert!(claims[0].contains(&words), "no {words} in {}", claims[0]);
    }
    drop(logs);
    let parts = message(&delivery).parts();
    assert_eq!(parts.id.as_ref().unwrap(), &id.as_str());
    assert_eq!(parts.attempt, Attempt(2));
    assert_eq!(redis.counts().claimed, 1);

    settle(zombie, redeliver(Some(Duration::ZERO), true)).await;
    assert_eq!(
        raw::len(&server, "{s}:retry:g").await,
        0,
        "the late verdict has no effect"
    );
    assert_eq!(redis.counts().lost_leases, 1);
    settle(delivery, done()).await;
    nothing(&mut second, SECOND).await;
}

#[tokio::test]
async fn deliveries_in_flight_are_never_claimed_however_long_they_take() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await.lease(SECOND);
    let (mut first, mut second) = (open(&redis).await, open(&redis).await);
    for _ in 0..2 {
        task(&server, "x").await;
    }
    let plain = next(&mut first).await;
    let again = next(&mut first).await;
    settle(again, redeliver(Some(Duration::ZERO), true)).await;
    let again = next(&mut first).await;
    nothing(&mut second, 4 * SECOND).await;
    acknowledge_kept(&redis, [plain, again]).await;
    assert_eq!(pending(&server).await, (0, 0));
}

#[tokio::test]
async fn a_process_that_hangs_for_longer_than_the_stall_limit_loses_its_leases() {
    let server = RedisServer::start().await;
    let url = server.url();
    task(&server, "x").await;
    let (hangs, hanging) = tokio::sync::oneshot::channel();
    let (go_on, gone_on) = std::sync::mpsc::channel::<()>();
    let hung = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let redis = Redis::connect(&url).await.expect("the server is there");
            let redis = redis.stream("s").group("g").lease(SECOND);
            let mut source = open(&redis.stall_limit(2 * SECOND)).await;
            let delivery = next(&mut source).await;
            hangs.send(()).expect("the test waits");
            // No task of this runtime is polled until the test lets it go on.
            let _ = gone_on.recv();
            drop(delivery);
        });
    });
    hanging.await.expect("the hanging worker has the delivery");
    let mut source = open(&handle(&server).await.lease(SECOND)).await;
    nothing(&mut source, 3 * SECOND / 2).await;
    let delivery = next(&mut source).await;
    assert_eq!(message(&delivery).parts().attempt, Attempt(2));
    settle(delivery, done()).await;
    go_on.send(()).expect("the hanging worker waits");
    hung.join().expect("the hanging worker ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_blocks_the_runtime_keeps_its_lease() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await.lease(SECOND);
    let mut source = open(&redis).await;
    task(&server, "x").await;
    let delivery = next(&mut source).await;
    // Blocks every thread of the runtime.
    let blocked = (0..2).map(|_| tokio::spawn(async { std::thread::sleep(3 * SECOND) }));
    let blocked: Vec<_> = blocked.collect();
    std::thread::sleep(3 * SECOND);
    for thread in blocked {
        thread.await.unwrap();
    }
    let pending: Vec<(String, String, u64, u64)> =
        server.query(&["XPENDING", "s", "g", "-", "+", "10"]).await;
    assert!(pending[0].2 < 900, "idle for {} ms", pending[0].2);
    settle(delivery, done()).await;
}

#[tokio::test]
async fn a_lost_lease_is_told_and_fenced_out() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await.lease(SECOND);
    let mut source = open(&redis).await;
    let id = task(&server, "x").await;
    let delivery = next(&mut source).await;
    let lease = message(&delivery).parts().lease.clone().unwrap();
    server
        .command(&["XCLAIM", "s", "g", "rival", "0", &id])
        .await;
    within(5 * SECOND, lease.token().cancelled()).await;
    assert_eq!(redis.counts().lost_leases, 1);
    settle(delivery, dead("too late")).await;
    assert!(letters(&redis).await.is_empty());
    assert_eq!(redis.counts().dead, 0);
    assert_eq!(pending(&server).await, (1, 0), "the rival has the entry");
}

#[tokio::test]
async fn a_late_success_counts_and_the_first_to_finish_wins() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await.lease(SECOND);
    let mut stalled = open(&redis).await;
    let id = task(&server, "x").await;
    let late = next(&mut stalled).await;
    let lease = message(&late).parts().lease.clone().unwrap();
    let claim = ["XCLAIM", "s", "g", "campanile-gone", "0", &id, "JUSTID"];
    server.command(&claim).await;
    within(5 * SECOND, lease.token().cancelled()).await;
    let mut other = open(&redis).await;
    let again = next(&mut other).await;
    assert_eq!(message(&again).parts().attempt, Attempt(2));

    settle(late, done()).await;
    assert_eq!(pending(&server).await, (0, 0), "the entry is done");
    settle(again, redeliver(Some(Duration::ZERO), true)).await;
    nothing(&mut other, SECOND).await;
    assert_eq!(redis.counts().redelivered, 0);
}

#[tokio::test]
async fn a_delivery_that_is_dropped_comes_again_when_its_lease_ends() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await.lease(SECOND);
    let mut source = open(&redis).await;
    task(&server, "x").await;
    drop(next(&mut source).await);
    let delivery = next(&mut source).await;
    assert_eq!(message(&delivery).parts().attempt, Attempt(2));
    settle(delivery, done()).await;
}

#[tokio::test]
async fn a_long_list_of_orphans_is_claimed_whole_and_each_only_once() {
    let server = RedisServer::start().await;
    let mut ids = Vec::new();
    for n in 0..350 {
        ids.push(task(&server, n.to_string()).await);
    }
    left_behind(&server, "campanile-gone", &ids, 1).await;
    let redis = handle(&server).await.lease(SECOND);
    let (mut first, mut second) = (open(&redis).await, open(&redis).await);
    let mut seen = HashSet::new();
    while seen.len() < ids.len() {
        for source in [&mut first, &mut second] {
            let Ok(found) = tokio::time::timeout(SECOND / 4, source.next(64)).await else {
                continue;
            };
            for delivery in found.unwrap() {
                let parts = message(&delivery).parts();
                assert_eq!(parts.attempt, Attempt(2));
                assert!(seen.insert(parts.id.clone()), "{parts:?} came twice");
                settle(delivery, done()).await;
            }
        }
    }
    assert_eq!(pending(&server).await, (0, 0));
    assert_eq!(redis.counts().claimed, 350);
}

#[tokio::test]
async fn poison_candidates_run_one_at_a_time() {
    let server = RedisServer::start().await;
    let mut ids = Vec::new();
    for n in 0..3 {
        ids.push(task(&server, n.to_string()).await);
    }
    left_behind(&server, "campanile-gone", &ids, 2).await;
    let redis = handle(&server).await.lease(SECOND);
    let mut source = open(&redis).await;
    for _ in 0..3 {
        let found = within(20 * SECOND, source.next(10)).await.unwrap();
        let [delivery] = <[_; 1]>::try_from(found).expect("one poison candidate alone");
        assert_eq!(message(&delivery).parts().attempt, Attempt(3));
        nothing(&mut source, SECOND / 2).await;
        settle(delivery, done()).await;
    }
}

#[tokio::test]
async fn deliveries_used_up_by_dead_workers_become_dead_letters_undecoded() {
    let server = RedisServer::start().await;
    let mut ids = Vec::new();
    let fields: Vec<_> = (0..10_000).map(|n| (format!("f{n}"), b"\xff")).collect();
    let fields: Vec<_> = fields
        .iter()
        .map(|(field, value)| (&field[..], value))
        .collect();
    ids.push(raw::add(&server, "s", &fields).await);
    left_behind(&server, "campanile-gone", &ids, 2).await;
    ids.push(task(&server, "innocent").await);
    left_behind(&server, "campanile-gone", &ids[1..], 1).await;
    let redis = handle(&server).await.lease(SECOND).max_deliveries(2);
    let mut source = open(&redis).await;
    let delivery = next(&mut source).await;
    assert_eq!(message(&delivery).payload(), "innocent");
    let letters = letters(&redis).await;
    assert_eq!(letters[0].message_id, ids[0].as_str());
    assert_eq!(letters[0].fields.len(), 10_000);
    assert_eq!(letters[0].reason, "delivered 2 times and never settled");
    assert_eq!(letters[0].attempts, 2);
    let counts = redis.counts();
    assert_eq!((counts.dead, counts.undecodable), (1, 0));
    settle(delivery, done()).await;
    assert_eq!(pending(&server).await, (0, 0));
}

#[tokio::test]
async fn entries_that_were_deleted_are_acknowledged_and_counted() {
    let server = RedisServer::start().await;
    let mut ids = vec![task(&server, "deleted").await];
    ids.push(task(&server, "there").await);
    left_behind(&server, "campanile-gone", &ids, 1).await;
    server.command(&["XDEL", "s", &ids[0]]).await;
    let redis = handle(&server).await.lease(SECOND);
    let mut source = open(&redis).await;
    let delivery = next(&mut source).await;
    assert_eq!(message(&delivery).payload(), "there");
    settle(delivery, done()).await;
    assert_eq!(pending(&server).await, (0, 0));
    assert_eq!(redis.counts().deleted, 1);
}

#[tokio::test]
async fn a_consumer_of_another_library_has_a_lease_of_its_own() {
    let server = RedisServer::start().await;
    let ids = [task(&server, "x").await];
    left_behind(&server, "vm-1", &ids, 1).await;
    let redis = handle(&server)
        .await
        .lease(SECOND)
        .foreign_lease(5 * SECOND);
    let started = std::time::Instant::now();
    let mut source = open(&redis).await;
    let delivery = next(&mut source).await;
    let waited = started.elapsed();
    assert!(waited > 4 * SECOND, "{waited:?}");
    settle(delivery, done()).await;
}

#[tokio::test]
async fn a_server_that_stood_still_costs_nobody_a_lease() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await.lease(SECOND);
    let (mut first, mut second) = (open(&redis).await, open(&redis).await);
    for _ in 0..2 {
        task(&server, "x").await;
    }
    let held = [next(&mut first).await, next(&mut second).await];
    // A worker scans only after it was healthy for longer than a lease.
    nothing(&mut first, 2 * SECOND).await;
    server.signal(Signal::Stop);
    tokio::time::sleep(3 * SECOND).await;
    server.signal(Signal::Cont);
    nothing(&mut first, 3 * SECOND).await;
    nothing(&mut second, SECOND / 10).await;
    acknowledge_kept(&redis, held).await;
}

#[tokio::test]
async fn consumers_that_are_gone_are_removed_and_others_are_not() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut first = open(&redis).await;
    let second = open(&redis).await;
    task(&server, "x").await;
    let delivery = next(&mut first).await;
    let names = || async {
        let consumers: Vec<std::collections::HashMap<String, redis::Value>> =
            server.query(&["XINFO", "CONSUMERS", "s", "g"]).await;
        consumers.len()
    };
    assert_eq!(names().await, 2);
    within(5 * SECOND, second.close()).await.unwrap();
    assert_eq!(
        names().await,
        1,
        "a consumer without pending entries is deleted"
    );
    drop(delivery);
    within(5 * SECOND, first.close()).await.unwrap();
    assert_eq!(names().await, 1, "a consumer with a pending entry stays");
    assert_eq!(pending(&server).await, (1, 0));
}
