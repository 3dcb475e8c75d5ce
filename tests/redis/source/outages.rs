//! Temporary failures of a server: verdicts wait until they end, and so does a worker that starts.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use campanile::{Client, Router, transport::ConnectionState};
use redis::aio::MultiplexedConnection;
use support::{Options, Signal, proxy::Proxy, worker};
use tokio::net::TcpListener;
use tower::ServiceExt;

use super::*;

/// Runs a command over a connection that stays open.
async fn ask<T: redis::FromRedisValue>(control: &mut MultiplexedConnection, words: &[&str]) -> T {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    let answer = command.query_async(control).await;
    answer.expect("an answer")
}

/// A number in the response to `INFO`.
async fn info(control: &mut MultiplexedConnection, section: &str, name: &str) -> u64 {
    let info: String = ask(control, &["INFO", section]).await;
    let value = info.lines().find_map(|line| line.strip_prefix(name));
    let digits = value.unwrap_or("0").trim_start_matches([':', '=']).trim();
    digits.parse().expect("a number")
}

// A server with too many clients writes an error when it accepts a connection. That error must not
// be taken for the response to a settlement.
#[tokio::test]
async fn verdicts_wait_for_a_server_that_has_too_many_clients() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await.lease(60 * SECOND);
    let mut source = open(&redis).await;
    let mut held = Vec::new();
    for _ in 0..20 {
        task(&server, "x").await;
        held.push(next(&mut source).await);
    }
    let mut control = server.connection().await;
    let (): () = ask(&mut control, &["CONFIG", "SET", "maxclients", "1"]).await;
    let kill = ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"];
    let _: usize = ask(&mut control, &kill).await;
    let mut settling = tokio::task::JoinSet::new();
    for (n, delivery) in held.into_iter().enumerate() {
        let verdict = match n % 3 {
            0 => dead("x"),
            1 => redeliver(Some(30 * SECOND), true),
            _ => done(),
        };
        settling.spawn(delivery.settle(verdict));
    }
    let before = info(&mut control, "stats", "rejected_connections").await;
    let give_up = std::time::Instant::now() + 20 * SECOND;
    while info(&mut control, "stats", "rejected_connections").await < before + 6 {
        assert!(
            std::time::Instant::now() < give_up,
            "no attempt is rejected"
        );
        tokio::time::sleep(SECOND / 50).await;
    }
    let (): () = ask(&mut control, &["CONFIG", "SET", "maxclients", "1000"]).await;
    for settled in within(20 * SECOND, settling.join_all()).await {
        settled.expect("the verdict is carried out");
    }
    assert_eq!(pending(&server).await, (0, 0));
    let counts = redis.counts();
    assert_eq!((counts.done, counts.dead, counts.redelivered), (6, 7, 7));
}

/// The reason why a server takes no writes.
#[derive(Debug, Clone, Copy)]
enum NoWrites {
    Memory,
    Replicas,
    Disk,
}

impl NoWrites {
    async fn begin(self, server: &RedisServer) {
        let set = |name, value| ["CONFIG", "SET", name, value];
        match self {
            NoWrites::Memory => drop(server.command(&set("maxmemory", "1")).await),
            NoWrites::Replicas => drop(server.command(&set("min-replicas-to-write", "1")).await),
            NoWrites::Disk => {
                // The directory prevents the save.
                std::fs::create_dir(server.dir().join("dump.rdb")).unwrap();
                server.command(&set("save", "900 1")).await;
                server.command(&["BGSAVE"]).await;
                let control = server.connection().await;
                let failed = || {
                    let mut control = control.clone();
                    async move {
                        let info: String = ask(&mut control, &["INFO", "persistence"]).await;
                        info.contains("rdb_last_bgsave_status:err").then_some(())
                    }
                };
                raw::eventually(failed, 20 * SECOND).await;
            }
        }
    }

    async fn end(self, server: &RedisServer) {
        let (name, value) = match self {
            NoWrites::Memory => ("maxmemory", "0"),
            NoWrites::Replicas => ("min-replicas-to-write", "0"),
            NoWrites::Disk => ("stop-writes-on-bgsave-error", "no"),
        };
        server.command(&["CONFIG", "SET", name, value]).await;
    }
}

/// Asks for uncounted redeliveries of three messages while the server takes no writes for ten
/// leases. Each message must be delivered once more, with the same attempt.
async fn asks_for_redelivery(no_writes: NoWrites) {
    let server = RedisServer::start().await;
    let redis = handle(&server).await.lease(SECOND).max_deliveries(4);
    let mut source = open(&redis).await;
    let mut held = Vec::new();
    for n in 0..3 {
        task(&server, n.to_string()).await;
        held.push(next(&mut source).await);
    }
    no_writes.begin(&server).await;
    let mut settling = tokio::task::JoinSet::new();
    for delivery in held {
        settling.spawn(delivery.settle(redeliver(Some(SECOND / 10), false)));
    }
    let end = tokio::time::Instant::now() + 10 * SECOND;
    let mut attempts = Vec::new();
    while let Ok(again) = tokio::time::timeout_at(end, source.next(3)).await {
        for delivery in again.expect("the source goes on") {
            attempts.push(message(&delivery).parts().attempt.0);
            settling.spawn(delivery.settle(redeliver(Some(SECOND / 10), false)));
        }
    }
    let early = std::mem::take(&mut attempts);
    no_writes.end(&server).await;
    let mut failures = Vec::new();
    let give_up = tokio::time::Instant::now() + 15 * SECOND;
    let mut done = 0;
    while done < 3 {
        let Ok(again) = tokio::time::timeout_at(give_up, source.next(3)).await else {
            break;
        };
        for delivery in again.expect("the source goes on") {
            attempts.push(message(&delivery).parts().attempt.0);
            done += 1;
            settling.spawn(delivery.settle(self::done()));
        }
    }
    while let Some(settled) = within(10 * SECOND, settling.join_next()).await {
        failures.extend(settled.unwrap().err().map(|error| error.to_string()));
    }
    let letters = letters(&redis).await.len();
    assert!(
        early.is_empty() && attempts == [1; 3] && failures.is_empty() && letters == 0,
        "{no_writes:?}: attempts {early:?} meanwhile and {attempts:?} afterwards, {letters} dead \
         letters, verdicts given up: {failures:?}"
    );
    assert_eq!(pending(&server).await, (0, 0));
}

// Redis 6.2 wraps the errors of commands within scripts.
#[tokio::test]
async fn uncounted_redeliveries_wait_for_a_server_that_takes_no_writes() {
    tokio::join!(
        asks_for_redelivery(NoWrites::Memory),
        asks_for_redelivery(NoWrites::Replicas),
        asks_for_redelivery(NoWrites::Disk),
    );
}

/// A router that counts its tasks.
fn counting() -> (Router, Arc<AtomicUsize>) {
    let count = Arc::<AtomicUsize>::default();
    let handled = count.clone();
    let router = Router::new().task("n", async move || {
        handled.fetch_add(1, Ordering::SeqCst);
    });
    (router, count)
}

/// Waits until this many tasks were handled.
async fn handled(count: &AtomicUsize, tasks: usize) {
    let done = || async { (count.load(Ordering::SeqCst) == tasks).then_some(()) };
    raw::eventually(done, 20 * SECOND).await;
}

#[tokio::test]
async fn a_worker_that_begins_while_the_server_is_away_waits_for_it() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    server.signal(Signal::Kill);
    let absent = TcpListener::bind(("127.0.0.1", server.port())).await;
    let absent = absent.expect("the port is free");
    let (app, count) = counting();
    let worker = worker::Worker::start(redis.clone(), app);
    let (told, _) = counting();
    let told = worker::Worker::start(redis.clone(), told);
    for _ in 0..6 {
        drop(within(20 * SECOND, absent.accept()).await.unwrap());
    }
    // The shutdown signal works while a worker waits for the server.
    within(SECOND, told.stop()).await.unwrap();
    drop(absent);
    server.restart().await;
    let client = Client::new(redis);
    client.enqueue("n", ()).await.unwrap();
    handled(&count, 1).await;
    within(5 * SECOND, worker.stop()).await.unwrap();
}

#[tokio::test]
async fn a_worker_that_begins_while_the_server_takes_no_writes_waits_for_it() {
    for (begin, end) in [
        (
            ["min-replicas-to-write", "1"],
            ["min-replicas-to-write", "0"],
        ),
        (["maxmemory", "1"], ["maxmemory", "0"]),
    ] {
        let server = RedisServer::start().await;
        let redis = handle(&server).await;
        let mut control = server.connection().await;
        let set = |[name, value]: [&'static str; 2]| ["CONFIG", "SET", name, value];
        let (): () = ask(&mut control, &set(begin)).await;
        let (app, count) = counting();
        let worker = worker::Worker::start(redis.clone(), app);
        let refused = || async {
            let mut control = control.clone();
            // Redis 6.2 counts errors within scripts as `ERR`.
            let mut refused = 0;
            for code in ["NOREPLICAS", "OOM", "ERR"] {
                let name = format!("errorstat_{code}:count=");
                refused += info(&mut control, "errorstats", &name).await;
            }
            (refused > 0).then_some(())
        };
        raw::eventually(refused, 20 * SECOND).await;
        let (): () = ask(&mut control, &set(end)).await;
        let sent = redis.clone().oneshot(Message::task("n", ""));
        within(10 * SECOND, sent).await.unwrap();
        handled(&count, 1).await;
        within(5 * SECOND, worker.stop()).await.unwrap();
        // The failed attempts have left no consumers.
        let rest: Vec<redis::Value> = server.query(&["XINFO", "CONSUMERS", "s", "g"]).await;
        assert_eq!(rest.len(), 0, "{rest:?}");
    }
}

#[tokio::test]
async fn a_worker_that_begins_with_a_wrong_password_ends_with_the_reason() {
    let server = RedisServer::with(Options::new().password("right")).await;
    let redis = handle(&server).await;
    let mut control = server.connection().await;
    let (): () = ask(&mut control, &["CONFIG", "SET", "requirepass", "new"]).await;
    let worker = worker::Worker::start(redis, counting().0);
    let error = within(10 * SECOND, worker.ended()).await.unwrap_err();
    assert!(error.is_config(), "{error:?}");
    assert!(error.to_string().contains("password"), "{error}");
}

// Redis 7.2.0 to 7.2.3 restart a `BLOCK` each time that another reader was faster
// (https://github.com/redis/redis/pull/12998). The proxy makes the read of this test as long.
#[tokio::test]
async fn a_read_that_blocks_for_longer_than_it_was_told_to_is_no_lost_connection() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    let redis = Redis::connect(&proxy.url()).await.expect("a connection");
    let redis = redis.stream("s").group("g");
    let mut source = open(&redis).await;
    proxy.replace("BLOCK\r\n$4\r\n1000\r\n", "BLOCK\r\n$5\r\n30000\r\n");
    // The handle counts as connected only after the worker's first renewal.
    let connected = || async { (redis.state() == ConnectionState::Connected).then_some(()) };
    raw::eventually(connected, 10 * SECOND).await;
    let started = std::time::Instant::now();
    let (mut samples, mut others) = (0, Vec::new());
    while started.elapsed() < 15 * SECOND {
        nothing(&mut source, SECOND / 20).await;
        samples += 1;
        let state = redis.state();
        if state != ConnectionState::Connected {
            others.push((started.elapsed(), state));
        }
    }
    let (reconnects, first) = (redis.counts().reconnects, others.first());
    assert!(
        reconnects == 0 && others.is_empty(),
        "{reconnects} reconnects in 15 s; {} of {samples} samples are not `Connected`, the first is \
         {first:?}",
        others.len()
    );
    task(&server, "x").await;
    let delivery = within(SECOND, next(&mut source)).await;
    settle(delivery, done()).await;
}
