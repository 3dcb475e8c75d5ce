//! The work that earlier versions have left on a server is finished by this one.
//!
//! Each file in `tests/fixtures/keys` has the keys of one version, with its work in every state: one
//! command in each line. A file is never changed. A version that stores something new adds one:
//!
//! ```text
//! CAMPANILE_RECORD=tests/fixtures/keys/0.2.0.txt \
//!     cargo test --all-features --test redis promises::the_work_of_this
//! ```

use std::{
    collections::BTreeSet,
    env, fs,
    sync::{Arc, Mutex},
};

use campanile::{
    BoxError, Client, Failure, Message, Outbox, Redis, Router,
    schedule::{Schedule, ScheduledTask},
    serve,
    transport::{Backoff, Page, PauseTarget, Selection, TaskQuery, TaskState, WorkerOrder},
};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use redis::{FromRedisValue, from_redis_value};
use tokio::time::Duration;

use crate::{
    SECOND,
    support::{RedisServer, raw::eventually},
};

const DAY: Duration = Duration::from_secs(24 * 3600);
const SOON: Duration = Duration::from_secs(20);

type Handled = Arc<Mutex<BTreeSet<String>>>;

async fn connect(server: &RedisServer) -> Redis {
    let redis = Redis::connect(&server.url()).await.expect("a handle");
    let backoff = Backoff::exponential(SECOND, SECOND);
    let redis = redis.stream("orders").group("workers").lease(SECOND);
    redis.backoff(backoff)
}

/// A worker that leaves one message in each state.
fn leaving(redis: &Redis) -> Router {
    let limit = redis.limit("exports").expect("a limit");
    Router::new()
        .task("done", async |outbox: Outbox| {
            outbox.increment("orders", 1)?;
            Ok::<_, BoxError>("the result")
        })
        .task("fails", async || Err::<(), BoxError>("not yet".into()))
        .task("dies", async || {
            Err::<(), BoxError>(Failure::dead_letter().because("no such order").into())
        })
        .task("limited", async move |message: Message| {
            match limit.acquire(message.parts(), "tenant", 1).await? {
                Ok(_permit) => std::future::pending().await,
                Err(request) => Err::<(), BoxError>(Failure::park(request).into()),
            }
        })
        .task("paused", async || {})
}

/// A worker that handles every message, and keeps the payloads.
fn finishing(redis: &Redis, handled: &Handled) -> Router {
    let limit = redis.limit("exports").expect("a limit");
    let mut app = Router::new();
    for name in ["done", "fails", "dies", "limited", "paused", "waiting"] {
        let (limit, handled) = (limit.clone(), handled.clone());
        app = app.task(name, async move |message: Message| {
            let limited = &**message.name() == "limited";
            if limited && let Err(request) = limit.acquire(message.parts(), "tenant", 1).await? {
                return Err::<(), BoxError>(Failure::park(request).into());
            }
            let payload = String::from_utf8_lossy(message.payload()).into_owned();
            handled.lock().expect("not poisoned").insert(payload);
            Ok(())
        });
    }
    app
}

fn hourly() -> ScheduledTask {
    let hourly = Schedule::cron("0 * * * *").in_zone("Europe/Berlin");
    ScheduledTask::new("hourly", hourly, "waiting", "scheduled").version(3)
}

/// Leaves work in every state. Its worker ends without a shutdown, as a killed process does.
async fn leave_work(server: &RedisServer) {
    let redis = connect(server).await;
    // The task that fails is still delayed when the worker ends.
    let redis = redis.backoff(Backoff::exponential(5 * SECOND, 5 * SECOND));
    let client = Client::new(redis.clone());
    let (control, schedules) = (redis.control(), redis.schedules());
    let name = PauseTarget::Name("paused".into());
    control
        .pause(name, "its server moves")
        .await
        .expect("it is paused");
    schedules.put(&hourly()).await.expect("it is stored");
    let calls = [
        client.enqueue("done", "done").tracked(DAY),
        client.enqueue("fails", "fails").tracked(DAY),
        client.enqueue("dies", "dies").header("x-tenant", "7"),
        client.enqueue("limited", "limited first"),
        client.enqueue("limited", "limited second").tracked(DAY),
        client.enqueue("paused", "paused"),
    ];
    let sent = calls.len();
    for call in calls {
        call.await.expect("it is sent");
    }
    let worker = tokio::spawn(serve(redis.clone(), leaving(&redis)).into_future());
    let stats = redis.clone();
    let settled = || async {
        let stats = stats.stats().await.expect("statistics");
        let group = stats.group("workers")?;
        let facts = (group.dead, group.delayed, group.parked, group.pending);
        (facts == (1, 1, 2, 1)).then_some(())
    };
    assert_eq!(sent, 6);
    eventually(settled, SOON).await;
    // An operator gives an order, and asks: the question and the answer are kept for a few seconds.
    let counted = || async { (done(&redis).await > 0).then_some(()) };
    eventually(counted, SOON).await;
    let workers = redis.workers();
    let name = workers.list().await.expect("a list")[0].worker.clone();
    let order = workers.order(&name, WorkerOrder::Limit(Some(10)), "ann");
    assert!(order.await.expect("it is stored"));
    let asked = workers.stats().await.expect("a server");
    assert_eq!(asked.answers.len(), 1);
    worker.abort();
    let _ = worker.await;
    let calls = [
        client.enqueue("waiting", "waiting").header("x-note", "é"),
        client.enqueue("waiting", "delayed").delay(SECOND),
        client.enqueue("waiting", "unique").unique("report 7"),
        client
            .enqueue("waiting", "keyed")
            .idempotency_key("order 7"),
    ];
    for call in calls {
        call.await.expect("it is sent");
    }
}

/// Returns the number of messages that the workers have handled in the last hour.
async fn done(redis: &Redis) -> u64 {
    let minutes = redis.history().await.expect("a history");
    minutes.iter().map(|minute| minute.done).sum()
}

/// Moves the counts of a recorded minute to the current one, since only the last hour is shown.
async fn move_minutes(server: &RedisServer) {
    let recorded: Vec<String> = server.query(&["KEYS", "{orders}:minute:*:workers"]).await;
    let (seconds, _): (u64, u64) = server.query(&["TIME"]).await;
    let current = format!("{{orders}}:minute:{}:workers", seconds / 60);
    for key in recorded {
        server.command(&["RENAME", &key, &current]).await;
    }
}

/// Checks everything that can be looked up, and handles everything that is left.
async fn finish_work(server: &RedisServer) {
    let redis = connect(server).await;
    let client = Client::new(redis.clone());
    let tasks = redis.tasks();
    let ended = tasks.list(TaskQuery::all().state(TaskState::Done)).await;
    let ended = ended.expect("a list").tasks;
    let status = tasks.status(&ended[0].id).await.expect("a server");
    let result: String = status.expect("a status").read_result().expect("a result");
    assert_eq!((ended.len(), &*result), (1, "the result"));
    let value = redis.value_key("orders").expect("a key");
    assert_eq!(server.query::<String>(&["GET", &value]).await, "1");

    let again = client.enqueue("waiting", "twice").unique("report 7");
    assert!(again.await.expect("it is sent").is_duplicate());
    let again = client
        .enqueue("waiting", "twice")
        .idempotency_key("order 7");
    assert!(again.await.expect("it is sent").is_duplicate());

    let schedules = redis.schedules().list().await.expect("a list");
    assert_eq!(schedules.len(), 1);
    assert_eq!(schedules[0].task, Ok(hourly()));

    let workers = redis.workers().list().await.expect("a list");
    assert_eq!((workers.len(), &*workers[0].group), (1, "workers"));
    move_minutes(server).await;
    assert!(done(&redis).await > 0);

    let letters = redis.dead_letters();
    let page = letters.list(Page::first(10)).await.expect("a list").letters;
    assert!(
        page[0].reason.contains("no such order"),
        "{}",
        page[0].reason
    );
    assert_eq!(letters.replay(Selection::All).await.expect("replayed"), 1);

    let control = redis.control();
    let pauses = control.pauses().await.expect("a list");
    assert_eq!((pauses.len(), &*pauses[0].reason), (1, "its server moves"));
    let resumed = control.resume(pauses[0].target.clone()).await;
    assert!(resumed.expect("it is resumed"));

    let handled = Handled::default();
    let worker = tokio::spawn(serve(redis.clone(), finishing(&redis, &handled)).into_future());
    let left = ["fails", "dies", "limited first", "limited second", "paused"];
    let left = left
        .into_iter()
        .chain(["waiting", "delayed", "unique", "keyed"]);
    let left: BTreeSet<String> = left.map(Into::into).collect();
    let all = || async {
        let found = handled.lock().expect("not poisoned").clone();
        (found == left).then_some(())
    };
    eventually(all, SOON).await;
    let empty = || async {
        let stats = redis.stats().await.expect("statistics");
        let group = stats.group("workers").expect("the group");
        let left = group.dead + group.delayed + group.parked + group.pending;
        (left + group.lag.unwrap_or_default() == 0).then_some(())
    };
    eventually(empty, SOON).await;
    let again = client.enqueue("waiting", "once more").unique("report 7");
    assert!(!again.await.expect("it is sent").is_duplicate());
    worker.abort();
}

/// Returns all keys of a server as commands that make them again, one in each line.
async fn record(server: &RedisServer) -> String {
    let mut commands = Vec::new();
    let keys: BTreeSet<String> = server.query(&["KEYS", "*"]).await;
    for key in keys {
        let kind: String = server.query(&["TYPE", &key]).await;
        if kind == "stream" {
            record_stream(server, &key, &mut commands).await;
        } else {
            let (read, write): (&[&str], _) = match &*kind {
                "string" => (&["GET", &key], "SET"),
                "hash" => (&["HGETALL", &key], "HSET"),
                "list" => (&["LRANGE", &key, "0", "-1"], "RPUSH"),
                "zset" => (&["ZRANGE", &key, "0", "-1", "WITHSCORES"], "ZADD"),
                kind => panic!("{key} is a {kind}"),
            };
            let mut values = match kind == "string" {
                true => vec![server.query::<Vec<u8>>(read).await],
                false => server.query::<Vec<Vec<u8>>>(read).await,
            };
            if kind == "zset" {
                values.chunks_mut(2).for_each(|pair| pair.swap(0, 1));
            }
            let head = [write.as_bytes().to_vec(), key.clone().into_bytes()];
            commands.push(head.into_iter().chain(values).collect::<Vec<_>>());
        }
        let lasts: i64 = server.query(&["PTTL", &key]).await;
        if lasts > 0 {
            commands.push(command(&["PEXPIRE", &key, &lasts.to_string()]));
        }
    }
    let lines = commands.iter().map(|command| {
        let parts = command.iter().map(|part| percent_encode(part, &ENCODED));
        parts.map(|it| it.to_string()).collect::<Vec<_>>().join(" ") + "\n"
    });
    lines.collect()
}

/// The bytes that are written as they are, so that the file can be read.
const ENCODED: percent_encoding::AsciiSet = NON_ALPHANUMERIC
    .remove(b'{')
    .remove(b'}')
    .remove(b':')
    .remove(b'~')
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'*');

fn command(parts: &[&str]) -> Vec<Vec<u8>> {
    parts.iter().map(|part| part.as_bytes().to_vec()).collect()
}

async fn record_stream(server: &RedisServer, key: &str, commands: &mut Vec<Vec<Vec<u8>>>) {
    type Entries = Vec<(String, Vec<Vec<u8>>)>;
    let entries: Entries = server.query(&["XRANGE", key, "-", "+"]).await;
    for (id, fields) in entries {
        let mut add = command(&["XADD", key, &id]);
        add.extend(fields);
        commands.push(add);
    }
    let groups = server.command(&["XINFO", "GROUPS", key]).await;
    let groups: Vec<redis::Value> = from_redis_value(groups).expect("a list of groups");
    for group in groups {
        let facts = std::collections::HashMap::<String, redis::Value>::from_redis_value(group);
        let facts = facts.expect("facts");
        let text = |fact: &str| String::from_redis_value_ref(&facts[fact]).expect("a text");
        let (group, last) = (text("name"), text("last-delivered-id"));
        commands.push(command(&[
            "XGROUP", "CREATE", key, &group, &last, "MKSTREAM",
        ]));
        let pending: Vec<(String, String, u64, u64)> = server
            .query(&["XPENDING", key, &group, "-", "+", "1000"])
            .await;
        for (id, consumer, idle, count) in pending {
            let (idle, count) = (idle.to_string(), count.to_string());
            let times = ["IDLE", &idle, "RETRYCOUNT", &count, "FORCE", "JUSTID"];
            let claim = ["XCLAIM", key, &group, &consumer, "0", &id];
            commands.push(command(&[&claim[..], &times[..]].concat()));
        }
    }
}

async fn restore(server: &RedisServer, recorded: &str) {
    for line in recorded.lines() {
        let parts = line
            .split(' ')
            .map(|part| percent_decode_str(part).collect());
        let parts: Vec<Vec<u8>> = parts.collect();
        server.command(&parts).await;
    }
}

#[tokio::test]
async fn the_work_of_this_version_can_be_recorded_and_finished() {
    let server = RedisServer::start().await;
    leave_work(&server).await;
    let recorded = record(&server).await;
    if let Ok(path) = env::var("CAMPANILE_RECORD") {
        fs::write(path, &recorded).expect("the file can be written");
    }
    let other = RedisServer::start().await;
    restore(&other, &recorded).await;
    finish_work(&other).await;
}

#[tokio::test]
async fn the_work_of_earlier_versions_is_finished() {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/keys");
    let mut versions = 0;
    for file in fs::read_dir(fixtures).expect("the fixtures") {
        let path = file.expect("a file").path();
        println!("{}", path.display());
        let server = RedisServer::start().await;
        restore(&server, &fs::read_to_string(path).expect("text")).await;
        finish_work(&server).await;
        versions += 1;
    }
    assert!(versions > 0, "there is a file for each version");
}
