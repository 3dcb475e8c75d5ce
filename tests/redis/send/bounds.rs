//! The bound on what waits on a stream, on real servers.

use std::time::Instant;

use campanile::{
    Client,
    transport::{Interest, Source, Transport, Verdict, WhenFull, redis::RedisSource},
};
use support::{Options, rights::documented, version};

use super::*;

fn task() -> Message {
    Message::task("n", "p")
}

async fn open(redis: &Redis) -> RedisSource {
    let source = redis.clone().open(Interest::stream()).await;
    source.expect("the source opens")
}

/// Takes and settles this many tasks.
async fn take(source: &mut RedisSource, mut count: usize) {
    while count > 0 {
        let deliveries = within(20 * SECOND, source.next(count.min(64))).await;
        for delivery in deliveries.expect("deliveries") {
            count -= 1;
            let done = Verdict::Done(Ok(Reply::default()));
            delivery.settle(done).await.expect("it is settled");
        }
    }
}

/// Handles with a connection each, as those of different processes.
async fn senders(server: &RedisServer, count: usize, bound: usize) -> Vec<Redis> {
    let mut senders = Vec::new();
    for _ in 0..count {
        senders.push(handle(server).await.max_waiting(bound));
    }
    senders
}

/// Sends with all handles, from 32 tasks each, until each of them is refused.
async fn send_until_refused(senders: &[Redis]) -> usize {
    let mut sending = Vec::new();
    for redis in senders {
        for _ in 0..32 {
            let redis = redis.clone();
            sending.push(tokio::spawn(async move {
                let mut sent = 0;
                loop {
                    match send(&redis, task()).await {
                        Ok(_) => sent += 1,
                        Err(error) if error.is_overloaded() => return sent,
                        Err(error) => panic!("{error:?}"),
                    }
                }
            }));
        }
    }
    let mut sent = 0;
    for sender in sending {
        sent += sender.await.expect("it does not panic");
    }
    sent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_senders_exceed_the_bound_by_no_more_than_is_documented_and_recover() {
    const BOUND: usize = 2_000;
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut stalled = open(&redis).await;
    let senders = senders(&server, 8, BOUND).await;
    for _ in 0..3 {
        let sent = within(60 * SECOND, send_until_refused(&senders)).await;
        let on_it: usize = server.query(&["XLEN", "s"]).await;
        let most = BOUND + 7 * BOUND / 16;
        assert!((BOUND..=most).contains(&sent), "{sent} of {BOUND}");
        assert!(on_it >= sent, "{on_it} of {sent}");
        take(&mut stalled, sent).await;
        // The senders see soon that there is room.
        let end = Instant::now() + SECOND;
        while let Err(error) = send(&senders[7], task()).await {
            assert!(error.is_overloaded() && Instant::now() < end, "{error}");
            tokio::time::sleep(SECOND / 50).await;
        }
        take(&mut stalled, 1).await;
        // A sample that has found no room counts for a tenth of a second.
        tokio::time::sleep(SECOND / 5).await;
    }
    stalled.close().await.expect("it closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_handle_and_its_clones_keep_to_the_bound() {
    let server = RedisServer::start().await;
    let source = open(&handle(&server).await).await;
    for bound in [1, 7, 100] {
        server.command(&["XTRIM", "s", "MAXLEN", "0"]).await;
        server
            .command(&["XGROUP", "SETID", "s", "app_group", "$"])
            .await;
        let one = senders(&server, 1, bound).await;
        assert_eq!(within(20 * SECOND, send_until_refused(&one)).await, bound);
    }
    drop(source);
}

#[tokio::test]
async fn the_wait_that_an_error_names_follows_the_rate_of_the_workers() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    let sender = redis.clone().max_waiting(100);
    let refused = async || {
        loop {
            if let Err(error) = send(&sender, task()).await {
                return error.retry_after().expect("it is full");
            }
        }
    };
    assert_eq!(refused().await, 5 * SECOND, "no rate was measured yet");
    // Long enough for two samples between which workers take nothing.
    tokio::time::sleep(SECOND).await;
    assert_eq!(refused().await, 300 * SECOND);
    for _ in 0..4 {
        tokio::time::sleep(SECOND).await;
        take(&mut source, 50).await;
        refused().await;
    }
    // About 40 messages a second are taken, and 10 of them are a tenth of the bound.
    tokio::time::sleep(SECOND).await;
    take(&mut source, 50).await;
    let wait = refused().await;
    // Before Redis 7.0 only the decrease of what waits shows the rate, which is higher.
    let longest = match version() < (7, 0) {
        true => 30 * SECOND,
        false => 2 * SECOND,
    };
    assert!(wait <= longest, "{wait:?}");
    source.close().await.expect("it closes");
}

#[tokio::test]
async fn messages_are_counted_where_the_server_does_not_know_their_number() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    let sender = redis.clone().max_waiting(20);
    let mut ids = Vec::new();
    for _ in 0..10 {
        let reply = send(&sender, task()).await.expect("there is room");
        ids.push(reply.receipt().expect("a task has one").to_string());
    }
    take(&mut source, 2).await;
    // Redis does not count the rest of a stream with a deleted entry.
    server.command(&["XDEL", "s", &ids[5]]).await;
    let left = send_until_refused(std::slice::from_ref(&sender)).await;
    assert_eq!(left, 13, "7 of 20 wait");
    source.close().await.expect("it closes");
}

#[tokio::test]
async fn a_sender_with_few_rights_keeps_to_the_bound_and_without_them_learns_what_it_lacks() {
    let rights = documented(&["sends tasks", "… with a [bound]"]);
    let plain = documented(&["sends tasks"]);
    for (rights, is_allowed) in [(rights, true), (plain, false)] {
        let server = RedisServer::start().await;
        let worker = open(&handle(&server).await).await;
        let user = ["ACL", "SETUSER", "sender", "on", ">pw", "+info"];
        let user = user
            .into_iter()
            .chain(rights.split(' ').filter(|it| !it.is_empty()));
        server.command(&selectors(user)).await;
        let url = server.url().replace("redis://", "redis://sender:pw@");
        let redis = Redis::connect(&url).await.expect("the user may log in");
        let redis = redis
            .stream("s")
            .max_waiting(3)
            .max_waiting_age(60 * SECOND);
        let sent = async || send(&redis, task()).await;
        if !is_allowed {
            let error = sent().await.expect_err("the numbers cannot be read");
            assert!(error.is_refused(), "{error}");
            assert!(error.to_string().contains("ACL SETUSER"), "{error}");
            continue;
        }
        for _ in 0..3 {
            sent().await.expect("there is room");
        }
        assert!(sent().await.expect_err("it is full").is_overloaded());
        worker.close().await.expect("it closes");
    }
}

/// Joins the words of each selector, in parentheses, to one argument.
fn selectors<'a>(words: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut args: Vec<String> = Vec::new();
    let mut is_inside = false;
    for word in words {
        match args.last_mut().filter(|_| is_inside) {
            Some(selector) => selector.extend([" ", word]),
            None => args.push(word.to_owned()),
        }
        is_inside = (is_inside || word.starts_with('(')) && !word.ends_with(')');
    }
    args
}

#[tokio::test]
async fn a_bound_holds_on_a_cluster_and_in_a_namespace() {
    let server = RedisServer::with(Options::new().cluster()).await;
    for redis in [
        handle(&server).await,
        handle(&server).await.namespace("staging"),
        handle(&server).await.stream("{s}.v2"),
    ] {
        let source = open(&redis).await;
        let sender = redis.clone().max_waiting(20);
        assert_eq!(send_until_refused(std::slice::from_ref(&sender)).await, 20);
        let error = send(&sender, task()).await.expect_err("it is full");
        assert!(!error.to_string().contains("staging"), "{error}");
        drop(source);
    }
}

#[tokio::test]
async fn a_sender_that_waits_for_room_ends_with_its_connection() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let source = open(&redis).await;
    let wait = WhenFull::Wait(60 * SECOND);
    let sender = redis.clone().max_waiting(1).when_full(wait);
    send(&sender, task()).await.expect("there is room");
    let waiting = tokio::spawn(async move { Client::new(sender).enqueue("n", "p").await });
    tokio::time::sleep(SECOND / 4).await;
    drop(server);
    let error = within(30 * SECOND, waiting).await.expect("no panic");
    let error = error.expect_err("there is no server");
    assert!(error.is_disconnected(), "{error}");
    drop(source);
}

#[tokio::test]
async fn the_rights_for_a_backlog_are_enough() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let worker = open(&redis).await;
    send(&redis, task()).await.expect("it is sent");
    let rights = documented(&["scales by the [`backlog`]"]);
    let user = ["ACL", "SETUSER", "scaler", "on", ">pw", "+info"];
    let user = user.into_iter().chain(rights.split(' '));
    server.command(&selectors(user)).await;
    let url = server.url().replace("redis://", "redis://scaler:pw@");
    let scaler = Redis::connect(&url).await.expect("the user may log in");
    let found = scaler.stream("s").backlog().await.expect("it may be read");
    assert_eq!((found.waiting, found.workers, found.total()), (1, 1, 1));
    worker.close().await.expect("it closes");
}
