//! Pauses, and the purge of waiting messages.

use std::time::Instant;

use campanile::{
    Client, Error,
    transport::{PauseTarget, Streams},
};

use super::*;
use crate::support::{Options, rights::documented, version};

#[tokio::test]
async fn a_worker_that_waits_follows_a_pause_within_about_a_second() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    let waits = tokio::spawn(async move {
        let deliveries = source.next(10).await;
        (deliveries.expect("the source is open"), source)
    });
    tokio::time::sleep(SECOND / 2).await;
    let control = redis.control();
    control
        .pause(PauseTarget::Group, "")
        .await
        .expect("the server answers");
    tokio::time::sleep(SECOND + SECOND / 4).await;
    for payload in ["1", "2"] {
        task(&server, payload).await;
    }
    tokio::time::sleep(SECOND).await;
    assert!(!waits.is_finished(), "the group is paused");
    assert_eq!(pending(&server).await, (0, 0), "nothing is fetched");

    let resumed = Instant::now();
    control
        .resume(PauseTarget::Group)
        .await
        .expect("the server answers");
    let (deliveries, source) = within(20 * SECOND, waits)
        .await
        .expect("the worker goes on");
    println!("resumed after {:?}", resumed.elapsed());
    assert!(resumed.elapsed() < 2 * SECOND);
    for delivery in deliveries {
        settle(delivery, done()).await;
    }
    source.close().await.expect("the source closes");
}

#[tokio::test]
async fn one_stream_of_a_set_is_paused_alone() {
    let server = RedisServer::start().await;
    let redis = Redis::connect(&server.url())
        .await
        .expect("the server is there")
        .group("g");
    let set = redis.clone().streams(Streams::strict(["s", "t"]));
    let client = Client::new(redis.clone());
    let control = redis.clone().stream("s").control();
    control
        .pause(PauseTarget::Stream, "")
        .await
        .expect("the server answers");
    let mut source = open(&set).await;
    tokio::time::sleep(SECOND + SECOND / 4).await;
    for stream in ["s", "t"] {
        client
            .enqueue("n", ())
            .stream(stream)
            .await
            .expect("it is sent");
    }
    let delivery = next(&mut source).await;
    assert_eq!(message(&delivery).parts().stream.as_deref(), Some("t"));
    settle(delivery, done()).await;
    nothing(&mut source, SECOND / 2).await;
    control
        .resume(PauseTarget::Stream)
        .await
        .expect("the server answers");
    let delivery = next(&mut source).await;
    assert_eq!(message(&delivery).parts().stream.as_deref(), Some("s"));
    settle(delivery, done()).await;
    source.close().await.expect("the source closes");
}

#[tokio::test]
async fn a_partitioned_stream_is_paused_and_purged_as_one() {
    let server = RedisServer::start().await;
    let redis = Redis::connect(&server.url())
        .await
        .expect("the server is there")
        .group("g");
    let redis = redis.streams(Streams::partitioned("s", 4));
    let client = Client::new(redis.clone());
    let control = redis.control();
    control
        .pause(PauseTarget::Group, "a deploy")
        .await
        .expect("the server answers");
    let pauses = control.pauses().await.expect("the server answers");
    assert_eq!(pauses.len(), 1, "{pauses:?}");
    let mut source = open(&redis).await;
    tokio::time::sleep(SECOND + SECOND / 4).await;
    for n in 0..20 {
        let call = client.enqueue("n", ()).partition_key(n.to_string());
        call.await.expect("it is sent");
    }
    nothing(&mut source, SECOND / 2).await;
    assert_eq!(
        control.purge_waiting().await.expect("the server answers"),
        20
    );
    assert!(
        control
            .resume(PauseTarget::Group)
            .await
            .expect("the server answers")
    );
    nothing(&mut source, SECOND * 2).await;
    source.close().await.expect("the source closes");
}

#[tokio::test]
async fn a_pause_of_an_unknown_kind_is_ignored_and_logged() {
    logs::keep();
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    server
        .command(&["HSET", "{s}:control", "moon:full", "0 x"])
        .await;
    let mut source = open(&redis).await;
    tokio::time::sleep(SECOND + SECOND / 4).await;
    task(&server, "1").await;
    settle(next(&mut source).await, done()).await;
    assert_eq!(
        redis.control().pauses().await.expect("the server answers"),
        []
    );
    let warnings = logs::warnings(&["moon:full"]);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    source.close().await.expect("the source closes");
}

#[tokio::test]
async fn a_pause_with_invalid_texts_is_refused() {
    let server = RedisServer::start().await;
    let control = handle(&server).await.control();
    for (target, reason) in [
        (PauseTarget::Name("".into()), "x".to_owned()),
        (
            PauseTarget::Name("n".repeat(1 << 20).into()),
            "x".to_owned(),
        ),
        (PauseTarget::Group, "x".repeat(2_000)),
    ] {
        let refused = control.pause(target, &reason).await;
        assert!(refused.is_err_and(|error: Error| error.is_invalid()));
    }
    assert_eq!(control.pauses().await.expect("the server answers"), []);
}

#[tokio::test]
async fn the_rights_that_the_docs_name_are_enough_to_pause_and_to_purge() {
    let rights = documented(&["pauses and purges"]);
    let options = Options::new().acl(&format!("user operator on >pw {rights} +info"));
    let server = RedisServer::with(options.login("operator", "pw")).await;
    let control = handle(&server).await.control();
    let all = [
        PauseTarget::Stream,
        PauseTarget::Group,
        PauseTarget::Name("n".into()),
    ];
    for target in all {
        assert!(
            control
                .pause(target.clone(), "")
                .await
                .expect("it is permitted")
        );
        assert_eq!(control.pauses().await.expect("it is permitted").len(), 1);
        assert!(control.resume(target).await.expect("it is permitted"));
    }
    // A task with a record, as a sender stores it.
    server
        .command(&["XGROUP", "CREATE", "s", "g", "0", "MKSTREAM"])
        .await;
    let fields = [
        ("type", &b"task"[..]),
        ("name", b"n"),
        ("payload", b""),
        ("~i", b"1"),
        ("~j", b"g"),
    ];
    raw::add(&server, "s", &fields).await;
    let record: Vec<_> = "HSET {s}:task:g:1 state waiting name n attempt 0 keep 1000 unique k"
        .split(' ')
        .collect();
    server.command(&record).await;
    assert_eq!(control.purge_waiting().await.expect("it is permitted"), 1);
}

#[tokio::test]
async fn a_purge_of_a_stream_that_was_trimmed_leaves_no_lag() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    open(&redis).await.close().await.expect("the source closes");
    for _ in 0..20 {
        task(&server, "1").await;
    }
    server.command(&["XTRIM", "s", "MAXLEN", "5"]).await;
    let purged = redis.control().purge_waiting().await;
    assert_eq!(purged.expect("the server answers"), 5);
    let lag = async || {
        let stats = redis.stats().await.expect("the server answers");
        stats.group("g").expect("the group exists").lag
    };
    assert_eq!(lag().await, Some(0));
    task(&server, "2").await;
    // Before Redis 7.0 the lag is unknown while entries are unread.
    let one_unread = (version() >= (7, 0)).then_some(1);
    assert_eq!(lag().await, one_unread);
}

#[tokio::test]
async fn all_messages_of_a_resumed_name_are_moved_before_the_call_returns() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let control = redis.control();
    let name = || PauseTarget::Name("n".into());
    control.pause(name(), "").await.expect("the server answers");
    let mut source = open(&redis).await;
    for n in 0..1_200 {
        task(&server, n.to_string()).await;
    }
    let parked = || async { (redis.counts().parked == 1_200).then_some(()) };
    tokio::select! {
        found = source.next(1) => panic!("the name is paused: {found:?}"),
        () = raw::eventually(parked, 30 * SECOND) => {}
    }
    source.close().await.expect("the source closes");
    control.resume(name()).await.expect("the server answers");
    assert_eq!(raw::len(&server, "{s}:retry:g").await, 1_200);
    assert!(!server.query::<bool>(&["EXISTS", "{s}:parking:g"]).await);
}
