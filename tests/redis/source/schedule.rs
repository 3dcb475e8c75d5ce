//! Tasks with a delay or an idempotency key.

use std::time::Instant;

use campanile::{Client, Due, transport::Selection};
use support::{
    Options,
    rights::{assert_refused, documented},
};

use super::*;

fn client(redis: &Redis) -> Client<Redis> {
    Client::new(redis.clone())
}

#[tokio::test]
async fn a_delayed_task_outlives_its_sender_and_the_server() {
    let server = RedisServer::with(Options::new().persistent()).await;
    let redis = handle(&server).await;
    let start = Instant::now();
    let call = client(&redis).enqueue("n", "p").delay(3 * SECOND);
    let receipt = call.header("x-a", "1").await.unwrap();
    drop(redis);
    server.restart().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    let delivery = next(&mut source).await;
    let late = start.elapsed().saturating_sub(3 * SECOND);
    assert!(start.elapsed() >= 3 * SECOND, "{:?}", start.elapsed());
    assert!(late < SECOND, "late by {late:?}");
    assert_eq!(message(&delivery).parts().id.as_ref(), receipt.id());
    assert_eq!(message(&delivery).headers()["x-a"], "1");
    settle(delivery, done()).await;
    for key in ["{s}:due", "{s}:bodies", "{s}:retry:g"] {
        let kind: String = server.query(&["TYPE", key]).await;
        assert!(
            kind == "none" || kind == "stream",
            "{key} is left as a {kind}"
        );
    }
    source.close().await.unwrap();
}

#[tokio::test]
async fn a_short_delay_is_kept_to_tens_of_milliseconds_by_an_idle_worker() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    let mut worst = Duration::ZERO;
    for delay in [20, 150, 400] {
        let delay = Duration::from_millis(delay);
        let start = Instant::now();
        client(&redis).enqueue("n", "").delay(delay).await.unwrap();
        let delivery = next(&mut source).await;
        worst = worst.max(start.elapsed().saturating_sub(delay));
        settle(delivery, done()).await;
    }
    // Without the sender's timer, a task could be late by most of a second.
    assert!(worst < Duration::from_millis(400), "late by {worst:?}");
    source.close().await.unwrap();
}

#[tokio::test]
async fn every_group_gets_a_delayed_task_once() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let redis = redis.unknown_names(campanile::transport::UnknownNames::Ignore);
    let mut one = open(&redis).await;
    let other = redis.clone().group("other");
    let mut two = open(&other.start(campanile::transport::Start::Beginning)).await;
    for _ in 0..150 {
        let call = client(&redis).enqueue("n", "").delay(SECOND / 4);
        call.await.unwrap();
    }
    for source in [&mut one, &mut two] {
        for _ in 0..150 {
            settle(next(source).await, done()).await;
        }
        nothing(source, SECOND / 4).await;
    }
}

#[tokio::test]
async fn foreign_entries_among_the_delayed_tasks_hold_nothing_up() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    server.command(&["ZADD", "{s}:due", "0", "no body"]).await;
    server.command(&["ZADD", "{s}:due", "0", "bad body"]).await;
    server
        .command(&["HSET", "{s}:bodies", "bad body", "\u{1}"])
        .await;
    let mut source = open(&redis).await;
    client(&redis)
        .enqueue("n", "")
        .delay(SECOND / 10)
        .await
        .unwrap();
    settle(next(&mut source).await, done()).await;
    let left: usize = server.query(&["ZCARD", "{s}:due"]).await;
    assert_eq!(left, 0);
    assert_eq!(redis.counts().deleted, 2);
    source.close().await.unwrap();
}

#[tokio::test]
async fn a_key_is_forgotten_by_the_server_itself() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await.idempotency_window(60 * SECOND);
    let send = || client(&redis).enqueue("n", "p").idempotency_key("{x} 7");
    let first = send().await.unwrap();
    let second = send().await.unwrap();
    assert_eq!(second.id(), first.id());
    assert!(second.is_duplicate() && !first.is_duplicate());
    let entries = raw::entries(&server, "s").await;
    assert_eq!(entries.len(), 1);
    assert_eq!(first.id().unwrap(), entries[0].0.as_str());
    let left: i64 = server.query(&["PTTL", "{s}:idem:{x} 7"]).await;
    assert!((50_000..=60_000).contains(&left), "{left}");
}

#[tokio::test]
async fn delays_and_keys_hold_on_a_cluster_and_for_a_sender_with_few_rights() {
    let rights = documented(&["sends tasks", "… with a delay"]);
    let rights = format!("user sender on >pw +info {rights}");
    for (options, restricted) in [
        (Options::new().cluster(), false),
        (Options::new().acl(&rights).login("sender", "pw"), true),
    ] {
        let server = RedisServer::with(options).await;
        let redis = handle(&server).await;
        let send = || {
            let call = client(&redis).enqueue("n", "p").idempotency_key("k");
            call.delay(Duration::from_secs(3600))
        };
        let receipt = send().await.unwrap();
        assert_eq!(send().await.unwrap().id(), receipt.id());
        assert!(
            redis
                .tasks()
                .cancel(receipt.id().unwrap(), "")
                .await
                .unwrap()
        );
        client(&redis)
            .enqueue("n", "p")
            .delay(SECOND / 100)
            .await
            .unwrap();
        tokio::time::sleep(SECOND / 2).await;
        // There is no worker, so the sender's timer has moved the task.
        let call = client(&redis)
            .enqueue("n", "p")
            .at(std::time::SystemTime::UNIX_EPOCH);
        let last = call.await.unwrap();
        let sequence: u64 = last
            .id()
            .unwrap()
            .split('-')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        assert!(sequence > 0);
        if restricted {
            let forbidden = [
                "XRANGE s - +",
                "XREAD STREAMS s 0",
                "XTRIM s MAXLEN 0",
                "DEL s",
            ];
            assert_refused(&server.url(), &forbidden).await;
        }
    }
}

#[tokio::test]
async fn an_expired_task_is_dropped_or_a_dead_letter_as_chosen() {
    use campanile::transport::Expired;
    use support::worker::Worker;

    let server = RedisServer::start().await;
    for (stream, expired) in [("drop", Expired::Drop), ("keep", Expired::DeadLetter)] {
        let redis = handle(&server).await.stream(stream).expired(expired);
        let (seen, mut runs) = tokio::sync::mpsc::unbounded_channel();
        let send = client(&redis)
            .enqueue("n", "late")
            .expires_after(SECOND / 20);
        send.await.unwrap();
        tokio::time::sleep(SECOND / 10).await;
        client(&redis)
            .enqueue("n", "in time")
            .expires_after(60 * SECOND)
            .await
            .unwrap();
        let app: campanile::Router = campanile::Router::new().task("n", move |payload: String| {
            let seen = seen.clone();
            async move { seen.send(payload).unwrap() }
        });
        let worker = Worker::start(redis.clone(), app);
        assert_eq!(within(10 * SECOND, runs.recv()).await.unwrap(), "in time");
        let dead = redis.dead_letters();
        if expired == Expired::Drop {
            raw::eventually(
                || async { (redis.counts().expired == 1).then_some(()) },
                10 * SECOND,
            )
            .await;
            assert_eq!(dead.count().await.unwrap(), 0);
        } else {
            raw::eventually(
                || async { (dead.count().await.unwrap() == 1).then_some(()) },
                10 * SECOND,
            )
            .await;
            // A replayed task runs although it has expired.
            dead.replay(campanile::transport::Selection::All)
                .await
                .unwrap();
            assert_eq!(within(10 * SECOND, runs.recv()).await.unwrap(), "late");
        }
        worker.stop().await.unwrap();
    }
}

#[tokio::test]
async fn a_message_that_is_sent_on_is_not_delayed_again() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    client(&redis)
        .enqueue("n", "")
        .delay(SECOND / 20)
        .await
        .unwrap();
    let delivery = next(&mut source).await;
    assert_eq!(message(&delivery).parts().due, None::<Due>);
    settle(delivery, done()).await;
    source.close().await.unwrap();
}

/// The receipts are compared by their ids: there is no other way yet.
#[tokio::test]
async fn a_key_whose_task_became_a_dead_letter_lets_the_task_be_sent_again() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    let send = || client(&redis).enqueue("n", "p").idempotency_key("k");
    let first = send().await.unwrap();
    let again = send().await.unwrap();
    assert_eq!(again.id(), first.id(), "the task is not done yet");
    assert!(again.is_duplicate() && !first.is_duplicate());
    settle(next(&mut source).await, dead("it failed")).await;
    let second = send().await.unwrap();
    assert!(
        !second.is_duplicate(),
        "the receipt is that of the task which died"
    );
    assert_ne!(second.id(), first.id());
    let delivery = next(&mut source).await;
    assert_eq!(message(&delivery).parts().id.as_ref(), second.id());
    assert!(send().await.unwrap().is_duplicate(), "while the task runs");
    settle(delivery, done()).await;
    source.close().await.unwrap();
}

#[tokio::test]
async fn a_key_whose_dead_letter_was_purged_lets_the_task_be_sent_again() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    let send = || client(&redis).enqueue("n", "p").idempotency_key("k");
    let first = send().await.unwrap();
    settle(next(&mut source).await, dead("it failed")).await;
    let purged = redis.dead_letters().purge(Selection::All).await;
    assert_eq!(purged.unwrap(), 1);
    let second = send().await.unwrap();
    assert!(
        !second.is_duplicate(),
        "the receipt is that of the purged task"
    );
    assert_ne!(second.id(), first.id());
    let delivery = next(&mut source).await;
    assert_eq!(message(&delivery).parts().id.as_ref(), second.id());
    settle(delivery, done()).await;
    source.close().await.unwrap();
}

/// The delay is longer than the window, and the second call comes between the two.
#[tokio::test]
async fn a_key_is_remembered_until_its_delayed_task_is_due_and_for_its_window_after_that() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await.idempotency_window(SECOND / 2);
    let send = || {
        let call = client(&redis).enqueue("n", "p").idempotency_key("k");
        call.delay(Duration::from_secs(3600))
    };
    let first = send().await.unwrap();
    // The wait is longer than the window, on the server's clock.
    tokio::time::sleep(SECOND).await;
    let second = send().await.unwrap();
    assert_eq!(second.id(), first.id());
    assert!(second.is_duplicate());
    let delayed: usize = server.query(&["ZCARD", "{s}:due"]).await;
    assert_eq!(delayed, 1);
}
