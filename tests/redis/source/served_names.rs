//! Workers of one group that serve different names.

use campanile::{Router, transport::Streams};
use support::worker::Worker;

use super::*;

/// An application with these tasks, and an RPC request that all of them have.
fn app(tasks: &[&'static str]) -> Router {
    let app = Router::new().rpc("shared", async || {});
    tasks
        .iter()
        .fold(app, |app, task| app.task(*task, async || {}))
}

/// A worker of this stream, once it has recorded its names.
async fn worker(server: &RedisServer, stream: &str, app: Router, lists: usize) -> Worker {
    let redis = handle(server).await.stream(stream);
    let worker = Worker::start(redis, app);
    recorded(server, stream, lists).await;
    worker
}

async fn recorded(server: &RedisServer, stream: &str, lists: usize) {
    let key = format!("{{{stream}}}:names:g");
    let count = async || {
        let count: usize = server.query(&["ZCARD", &key]).await;
        (count == lists).then_some(())
    };
    raw::eventually(count, 10 * SECOND).await;
}

fn warnings(stream: &str) -> Vec<String> {
    logs::warnings(&[&format!("stream={stream} "), "of this group"])
}

#[tokio::test]
async fn a_worker_whose_group_serves_other_names_says_so_once_with_both_sides() {
    logs::keep();
    let server = RedisServer::start().await;
    let first = worker(&server, "names-differ", app(&["bill", "mail"]), 1).await;
    assert_eq!(warnings("names-differ"), [""; 0]);
    let second = worker(&server, "names-differ", app(&["mail", "ship"]), 2).await;
    let said = async || warnings("names-differ").pop();
    let line = raw::eventually(said, 10 * SECOND).await;
    for text in [
        "workers of this group serve `task bill`, which this one does not",
        "this worker serves `task ship`, which others of this group do not",
        ".group(…)",
        "group=g",
    ] {
        assert!(line.contains(text), "{text}: {line}");
    }
    assert!(!line.contains("mail") && !line.contains("shared"), "{line}");
    // A third one with the names of the second has the same record, and says the same.
    let third = worker(&server, "names-differ", app(&["ship", "mail"]), 2).await;
    let both = async || (warnings("names-differ").len() == 2).then_some(());
    raw::eventually(both, 10 * SECOND).await;
    // A worker that leaves takes its record along.
    for (worker, left) in [(first, 1), (second, 0)] {
        worker.stop().await.unwrap();
        recorded(&server, "names-differ", left).await;
    }
    third.stop().await.unwrap();
    assert_eq!(warnings("names-differ").len(), 2);
}

#[tokio::test]
async fn workers_that_serve_the_same_or_any_name_say_nothing() {
    logs::keep();
    let server = RedisServer::start().await;
    let _one = worker(&server, "names-same", app(&["bill", "mail"]), 1).await;
    let _other = worker(&server, "names-same", app(&["mail", "bill"]), 1).await;
    let _any = worker(
        &server,
        "names-same",
        app(&["ship"]).fallback(async || {}),
        1,
    )
    .await;
    let events = Router::new().event("news", async || {});
    let _events = worker(&server, "names-same", events, 1).await;
    tokio::time::sleep(SECOND).await;
    recorded(&server, "names-same", 1).await;
    assert_eq!(warnings("names-same"), [""; 0]);
}

#[tokio::test]
async fn a_worker_of_many_streams_says_a_difference_once() {
    logs::keep();
    let server = RedisServer::start().await;
    let streams = ["names-set-1", "names-set-2", "names-set-3"];
    for (app, lists) in [(app(&["bill"]), 1), (app(&["ship"]), 2)] {
        let set = handle(&server).await.streams(Streams::in_turn(streams));
        // It serves until the end of the test.
        std::mem::forget(Worker::start(set, app));
        for stream in streams {
            recorded(&server, stream, lists).await;
        }
    }
    let said = async || warnings("names-set-1").pop();
    raw::eventually(said, 10 * SECOND).await;
    let lines = streams.map(|stream| warnings(stream).len());
    assert_eq!(lines, [1, 0, 0]);
}

#[tokio::test]
async fn the_record_is_bounded_expires_and_forgets_what_is_old() {
    logs::keep();
    let server = RedisServer::start().await;
    let key = "{names-bounded}:names:g";
    let time: (u64, u64) = server.query(&["TIME"]).await;
    let now = time.0 * 1000;
    let add = async |at: u64, list: &str| {
        server.command(&["ZADD", key, &at.to_string(), list]).await;
    };
    add(now - 200_000, "task old\n").await;
    add(now + 900_000, "task future\n").await;
    for n in 0..20 {
        add(now - 1_000 + n, &format!("task recent-{n:02}\n")).await;
    }
    let _worker = worker(&server, "names-bounded", app(&[]), 16).await;
    let said = async || warnings("names-bounded").pop();
    let line = raw::eventually(said, 10 * SECOND).await;
    assert!(
        line.contains("`task recent-05`") && line.contains("and 10 more"),
        "{line}"
    );
    assert!(
        !line.contains("task old") && !line.contains("task future"),
        "{line}"
    );
    let left: i64 = server.query(&["PTTL", key]).await;
    assert!((100_000..=150_000).contains(&left), "{left}");
}

#[tokio::test]
#[ignore = "takes a minute; run with --ignored"]
async fn a_worker_says_within_a_minute_that_one_with_other_names_has_joined() {
    logs::keep();
    let server = RedisServer::start().await;
    let _worker = worker(&server, "names-later", app(&["bill"]), 1).await;
    let time: (u64, u64) = server.query(&["TIME"]).await;
    let (key, now) = ("{names-later}:names:g", (time.0 * 1000).to_string());
    server.command(&["ZADD", key, &now, "task ship\n"]).await;
    let said = async || warnings("names-later").pop();
    let line = raw::eventually(said, 65 * SECOND).await;
    assert!(
        line.contains("serve `task ship`, which this one does not"),
        "{line}"
    );
}
