//! Announcements of workers, questions to them, orders of operators and the history of a group: keys,
//! rights, and input of others.

use std::{sync::Arc, time::Instant};

use campanile::{
    Client, Router,
    transport::{WorkerInfo, WorkerOrder, WorkerState, Workers},
};
use serde_json::{Value, json};

use super::*;
use crate::support::{
    Options,
    rights::{assert_refused, documented},
    version,
    worker::Worker,
};

const WORKERS: &str = "{s}:workers:g";

/// A worker that handles the task `n`.
fn serve(redis: &Redis) -> Worker {
    Worker::start(redis.clone(), Router::new().task("n", async || {}))
}

/// Waits until the list of workers is as wanted.
async fn until(workers: &Workers, wanted: impl Fn(&[WorkerInfo]) -> bool) -> Vec<WorkerInfo> {
    let found = || async {
        let found = workers.list().await.expect("the server answers");
        wanted(&found).then_some(found)
    };
    raw::eventually(found, 20 * SECOND).await
}

fn are_announced(found: &[WorkerInfo]) -> bool {
    !found.is_empty() && found.iter().all(|worker| worker.fault.is_none())
}

/// The milliseconds for which a key is kept.
async fn kept(server: &RedisServer, key: &str) -> i64 {
    server.query(&["PTTL", key]).await
}

/// Creates a consumer that looks like a live worker, with this announcement.
async fn pretend(server: &RedisServer, name: &str, announcement: Option<&str>) -> String {
    let consumer = format!("campanile-lease=600000ms-{name}");
    let create = ["XGROUP", "CREATECONSUMER", "s", "g", &consumer];
    server.command(&create).await;
    if let Some(text) = announcement {
        server.command(&["HSET", WORKERS, &consumer, text]).await;
    }
    consumer
}

/// Stores the answer of a worker to any question.
async fn answer(server: &RedisServer, consumer: &str, text: &str) {
    let key = format!("{{s}}:report:1:g:{consumer}");
    let text = format!("99999999999999 {text}");
    server.command(&["SET", &key, &text]).await;
}

async fn make_group(server: &RedisServer) {
    let create = ["XGROUP", "CREATE", "s", "g", "0", "MKSTREAM"];
    server.command(&create).await;
}

#[tokio::test]
async fn what_is_stored_about_workers_is_bounded_in_time_and_leaves_with_them() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let worker = serve(&redis);
    let workers = redis.workers();
    let found = until(&workers, are_announced).await;
    for _ in 0..3 {
        task(&server, "x").await;
    }
    let done = async || {
        let stats = workers.stats().await.expect("the server answers");
        (stats.answers.first()?.done == 3).then_some(())
    };
    raw::eventually(done, 20 * SECOND).await;
    let consumer = &found[0].worker;
    let announcement: String = server.query(&["HGET", WORKERS, consumer]).await;
    assert!(announcement.len() < 16 << 10);
    let left = kept(&server, WORKERS).await;
    assert!((1..=600_000).contains(&left), "{left}");
    let left = kept(&server, &format!("{{s}}:report:1:g:{consumer}")).await;
    assert!((1..=5_000).contains(&left), "{left}");
    let left = kept(&server, "{s}:asked:g").await;
    assert!(left <= 2_500, "{left}");
    let minutes = || async {
        let keys: Vec<String> = server.query(&["KEYS", "{s}:minute:*:g"]).await;
        (!keys.is_empty()).then_some(keys)
    };
    for key in raw::eventually(minutes, 20 * SECOND).await {
        let left = kept(&server, &key).await;
        assert!((7_000_000..=7_200_000).contains(&left), "{key}: {left}");
    }
    assert_eq!(found[0].transport, "redis");
    worker.stop().await.expect("the worker ends");
    assert!(!server.query::<bool>(&["EXISTS", WORKERS]).await);
    assert_eq!(workers.list().await.expect("the server answers"), []);
}

#[tokio::test]
async fn an_idle_worker_sends_no_more_because_it_is_announced() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let worker = serve(&redis);
    until(&redis.workers(), are_announced).await;
    // The commands of clients: those within scripts are not in `total_commands_processed`.
    let calls = async || {
        let info: String = server.query(&["INFO", "commandstats"]).await;
        let calls = info.lines().filter_map(|line| {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            let sent = ["evalsha", "eval", "xreadgroup"].contains(&name);
            let scripted = name == "xreadgroup";
            let count: u64 = rest.split(',').next()?.parse().ok()?;
            (sent && !scripted).then_some(count)
        });
        calls.sum::<u64>()
    };
    let (before, began) = (calls().await, Instant::now());
    tokio::time::sleep(4 * SECOND).await;
    let scripts = calls().await - before;
    let took = began.elapsed();
    let most = 1 + took.as_secs_f64().round() as u64;
    assert!(scripts <= most, "{scripts} scripts in {took:?}");
    worker.stop().await.expect("the worker ends");
}

#[tokio::test]
async fn a_worker_that_vanishes_is_not_alive_after_its_lease_and_is_not_asked() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await.lease(SECOND / 2);
    let worker = serve(&redis);
    let workers = redis.workers();
    until(&workers, are_announced).await;
    drop(worker);
    until(&workers, |found| found.len() == 1 && !found[0].alive).await;
    let asked = Instant::now();
    let found = workers.stats().await.expect("the server answers");
    assert_eq!((found.answers.len(), found.silent.len()), (0, 0));
    assert!(asked.elapsed() < SECOND);
    let ordered = workers.order("nobody", WorkerOrder::Drain, "ada").await;
    assert!(!ordered.expect("the server answers"));
}

#[tokio::test]
async fn the_rights_that_the_docs_name_let_operators_give_orders_and_workers_read_them() {
    let users = [
        ("worker", documented(&["serves tasks"])),
        ("sender", documented(&["sends tasks", "… with a delay"])),
        (
            "operator",
            documented(&["lists [`workers`]", "… and gives them orders"]),
        ),
        ("admin", documented(&["[drops groups]"])),
    ];
    let users = users.map(|(name, rights)| format!("user {name} on >pw resetchannels {rights}"));
    let acl = format!("{}\nuser default on nopass ~* &* +@all", users.join("\n"));
    let server = RedisServer::with(Options::new().acl(&acl)).await;
    let url = |user| format!("redis://{user}:pw@127.0.0.1:{}/", server.port());
    let connect = async |user| {
        let redis = Redis::connect(&url(user)).await.expect("a login");
        redis.stream("s").group("g")
    };
    let worker = serve(&connect("worker").await);
    let operator = connect("operator").await;
    let workers = operator.workers();
    let found = until(&workers, are_announced).await;
    task(&server, "x").await;
    let done = async || {
        let history = operator.history().await.expect("it is permitted");
        history.iter().any(|minute| minute.done == 1).then_some(())
    };
    raw::eventually(done, 20 * SECOND).await;
    assert_eq!(
        workers
            .stats()
            .await
            .expect("it is permitted")
            .answers
            .len(),
        1
    );
    assert_eq!(
        workers.ping().await.expect("it is permitted").answers.len(),
        1
    );
    let name = &found[0].worker;
    let ordered = workers
        .order(name, WorkerOrder::Limit(Some(2)), "ada")
        .await;
    assert!(ordered.expect("it is permitted"));
    until(&workers, |found| found[0].limit == Some(2)).await;
    for user in ["worker", "sender"] {
        let order = "XADD campanile:orders:{s}:g * do drain";
        assert_refused(&url(user), &[order, "DEL campanile:orders:{s}:g"]).await;
    }
    worker.stop().await.expect("the worker ends");
    task(&server, "x").await;
    let admin = connect("admin").await;
    assert_eq!(admin.drop_group(false).await.expect("it is permitted"), 1);
}

#[tokio::test]
async fn announcements_and_answers_of_others_are_read_or_named() {
    let server = RedisServer::start().await;
    make_group(&server).await;
    let newer = json!({
        "worker": "newer", "service": "s", "since": 7, "state": "dreaming",
        "mood": {"good": true}, "orders": [],
    });
    let newer = pretend(&server, "newer", Some(&newer.to_string())).await;
    let long = "x".repeat(300 << 10);
    for (name, text) in [
        ("garbage", "{\"worker\": 7"),
        ("anonymous", "{}"),
        ("long", long.as_str()),
    ] {
        pretend(&server, name, Some(text)).await;
    }
    pretend(&server, "older", None).await;
    let silent = json!({ "worker": "silent" }).to_string();
    pretend(&server, "silent", Some(&silent)).await;
    let liar = json!({ "worker": "liar" }).to_string();
    let liar = pretend(&server, "liar", Some(&liar)).await;
    let workers = handle(&server).await.workers();
    let found = workers.list().await.expect("the server answers");
    assert_eq!(found.len(), 7);
    let info = |name: &str| {
        found
            .iter()
            .find(|it| it.worker.ends_with(name))
            .expect(name)
    };
    assert_eq!(
        (info("newer").state, &*info("newer").service),
        (WorkerState::Unknown, "s")
    );
    for (name, part) in [
        ("garbage", "cannot be read"),
        ("anonymous", "does not name it"),
        ("long", "307200 bytes"),
        ("older", "announced nothing"),
    ] {
        let fault = info(name).fault.as_deref().expect("it has a fault");
        assert!(fault.contains(part), "{fault}");
        assert!(info(name).alive);
    }

    let stats = json!({ "worker": "newer", "routes": [], "done": 7, "mood": 3 });
    answer(&server, &newer, &stats.to_string()).await;
    answer(
        &server,
        &liar,
        &json!({ "worker": "newer", "routes": [] }).to_string(),
    )
    .await;
    let asked = Instant::now();
    let found = workers.stats().await.expect("the server answers");
    assert!(asked.elapsed() < 4 * SECOND, "{:?}", asked.elapsed());
    assert_eq!(found.answers.len(), 1);
    assert_eq!(
        (&*found.answers[0].worker, found.answers[0].done),
        ("newer", 7)
    );
    assert_eq!(found.silent.len(), 6);
    assert!(found.silent.contains(&"liar".to_owned()));
    let found = workers.ping().await.expect("the server answers");
    assert_eq!((found.answers.len(), found.silent.len()), (2, 5));
}

#[tokio::test]
async fn an_order_of_a_newer_version_is_ignored_and_logged_once() {
    logs::keep();
    let server = RedisServer::start().await;
    let redis = handle(&server).await.stream("unknown-orders");
    let worker = serve(&redis);
    let workers = redis.workers();
    let found = until(&workers, are_announced).await;
    let name = &found[0].worker;
    let orders = "campanile:orders:{unknown-orders}:g";
    for _ in 0..2 {
        let unknown = [
            "XADD", orders, "*", "worker", name, "do", "dance", "to", "a\x1bb", "by", "ada",
        ];
        server.command(&unknown).await;
        server
            .command(&["XADD", orders, "*", "other", "fields"])
            .await;
    }
    let ordered = workers
        .order(name, WorkerOrder::Limit(Some(5)), "ada")
        .await;
    assert!(ordered.expect("the server answers"));
    let found = until(&workers, |found| found[0].limit == Some(5)).await;
    assert_eq!(found[0].orders.len(), 1);
    let lines = logs::warnings(&["unknown-orders", "dance", "does not know"]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    worker.stop().await.expect("the worker ends");
}

#[tokio::test]
async fn keys_of_another_type_stop_no_worker_and_are_named() {
    logs::keep();
    let server = RedisServer::start().await;
    let redis = handle(&server).await.stream("wrong-types");
    let keys = [
        "{wrong-types}:workers:g",
        "campanile:orders:{wrong-types}:g",
    ];
    for key in keys {
        server.command(&["SET", key, "x"]).await;
    }
    server
        .command(&["LPUSH", "{wrong-types}:asked:g", "x"])
        .await;
    let worker = serve(&redis);
    let workers = redis.workers();
    let client = Client::new(redis.clone());
    client.enqueue("n", ()).await.expect("it is sent");
    let is_done = async || {
        let history = redis.history().await.expect("the server answers");
        history.iter().any(|minute| minute.done == 1).then_some(())
    };
    raw::eventually(is_done, 20 * SECOND).await;
    let refused = workers.list().await.expect_err("the key has another type");
    assert!(refused.is_invalid(), "{refused}");
    assert!(
        refused.to_string().contains("{wrong-types}:workers:g"),
        "{refused}"
    );
    let logged = async || {
        let lines = logs::warnings(&["wrong-types", "the worker cannot be announced"]);
        (!lines.is_empty()).then_some(())
    };
    raw::eventually(logged, 20 * SECOND).await;
    for key in keys {
        server.command(&["DEL", key]).await;
    }
    // The question replaces what is stored there.
    until(&workers, are_announced).await;
    let found = workers.stats().await.expect("the server answers");
    assert_eq!((found.answers.len(), found.silent.len()), (1, 0));
    worker.stop().await.expect("the worker ends");
}

#[tokio::test]
async fn three_hundred_workers_are_listed_and_asked_in_steps() {
    let server = RedisServer::start().await;
    make_group(&server).await;
    let routes: Vec<_> = (0..100)
        .map(|n| format!("task orders.create-{n}"))
        .collect();
    let running = json!({ "id": "1-1", "kind": "task", "name": "n", "running_for": 7.0 });
    let running: Vec<Value> = vec![running; 100];
    for number in 0..300 {
        let name = format!("worker-{number}");
        let info = json!({ "worker": name, "routes": routes });
        let consumer = pretend(&server, &name, Some(&info.to_string())).await;
        let stats = json!({ "worker": name, "routes": [], "running": running });
        answer(&server, &consumer, &stats.to_string()).await;
    }
    let workers = Arc::new(handle(&server).await.workers());
    let found = workers.list().await.expect("the server answers");
    assert_eq!(found.len(), 300);
    assert!(
        found
            .iter()
            .all(|worker| worker.alive && worker.routes.len() == 100)
    );
    // Several at once, as dashboards do.
    let asked = (0..4).map(|_| {
        let workers = workers.clone();
        tokio::spawn(async move { workers.stats().await.expect("the server answers") })
    });
    for found in futures_util::future::join_all(asked).await {
        let found = found.expect("no panic");
        assert_eq!((found.answers.len(), found.silent.len()), (300, 0));
        assert!(found.answers.iter().all(|stats| stats.running.len() == 100));
    }
}

#[tokio::test]
async fn a_group_without_workers_shows_what_it_holds_up_until_it_is_dropped() {
    let server = RedisServer::start().await;
    let served = handle(&server)
        .await
        .unknown_names(campanile::transport::UnknownNames::Ignore);
    let old = served.clone().group("old");
    for group in ["g", "old"] {
        server
            .command(&["XGROUP", "CREATE", "s", group, "0", "MKSTREAM"])
            .await;
    }
    let worker = serve(&served);
    for _ in 0..20 {
        task(&server, "x").await;
    }
    let read = [
        "XREADGROUP",
        "GROUP",
        "old",
        "alien",
        "COUNT",
        "2",
        "STREAMS",
        "s",
        ">",
    ];
    server.command(&read).await;
    let all_done = async || {
        let stats = served.stats().await.expect("the server answers");
        (stats.group("g")?.lag == Some(0) && stats.group("g")?.pending == 0).then_some(stats)
    };
    let stats = raw::eventually(all_done, 20 * SECOND).await;
    let (group, old_group) = (stats.group("g").unwrap(), stats.group("old").unwrap());
    // Before Redis 7.0 the number of entries that `old` has not read is unknown.
    let known = |count: u64| (version() >= (7, 0)).then_some(count);
    assert_eq!(
        (group.foreign, group.kept_entries, group.consumers),
        (0, known(0), 1)
    );
    assert_eq!((old_group.foreign, old_group.foreign_pending), (1, 2));
    assert_eq!(
        (old_group.unfinished, old_group.kept_entries),
        (known(20), known(20))
    );
    assert!(old_group.idle.is_some());

    // The foreign consumer was active just now.
    let refused = old.drop_group(false).await.expect_err("it is live");
    assert!(
        refused.is_invalid() && refused.to_string().contains("1 live"),
        "{refused}"
    );
    let refused = old
        .drop_consumer("alien", false)
        .await
        .expect_err("it is live");
    assert!(
        refused
            .to_string()
            .contains("`alien` is live, with 2 pending"),
        "{refused}"
    );
    let missing = old
        .drop_consumer("nobody", true)
        .await
        .expect_err("it does not exist");
    assert!(
        missing.to_string().contains("no consumer `nobody`"),
        "{missing}"
    );
    assert_eq!(
        old.drop_consumer("alien", true)
            .await
            .expect("it is forced"),
        2
    );
    assert_eq!(old.drop_group(false).await.expect("nobody is live"), 18);
    let gone = old.drop_group(false).await.expect_err("it is gone");
    assert!(gone.to_string().contains("no group `old`"), "{gone}");
    let keys: Vec<String> = server.query(&["KEYS", "*:old"]).await;
    assert_eq!(keys, [""; 0]);

    let refused = served.drop_group(false).await.expect_err("it has a worker");
    assert!(refused.to_string().contains("1 live workers"), "{refused}");
    task(&server, "x").await;
    raw::eventually(all_done, 20 * SECOND).await;
    worker.stop().await.expect("the worker ends");
}
