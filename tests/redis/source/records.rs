//! The records of tasks on a server: their bounds and costs, and the feed over failures.

use campanile::{
    Checkpoint, Client, Error, MessageId, Progress, Router,
    transport::{ChangesFrom, FeedItem, TaskQuery, TaskState, Tasks},
};
use futures_util::future::join_all;

use super::*;
use crate::support::worker::Worker;

async fn tracked(redis: &Redis, keep: Duration) -> MessageId {
    let call = Client::new(redis.clone()).enqueue("n", "p").tracked(keep);
    let receipt = call.await.expect("it is sent");
    receipt.id().expect("it is stored").clone()
}

/// The number of calls of a command since the last `CONFIG RESETSTAT`.
async fn calls(server: &RedisServer, command: &str) -> usize {
    let stats: String = server.query(&["INFO", "commandstats"]).await;
    let prefix = format!("cmdstat_{command}:calls=");
    let line = stats.lines().find_map(|line| line.strip_prefix(&prefix));
    let count = line.and_then(|line| line.split(',').next());
    count.map_or(0, |count| count.parse().expect("a number"))
}

async fn done_one(redis: &Redis) {
    let mut source = open(redis).await;
    settle(next(&mut source).await, done()).await;
    source.close().await.expect("it closes");
}

#[tokio::test]
async fn a_task_without_a_record_makes_no_key_and_no_further_command() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let client = Client::new(redis.clone());
    let handler = async |progress: Progress| progress.set(1);
    let app = Router::new().task("n", handler);
    let worker = Worker::start(redis.clone(), app);
    server.command(&["CONFIG", "RESETSTAT"]).await;
    for _ in 0..20 {
        client.enqueue("n", "p").await.expect("it is sent");
    }
    let handled = || async { (redis.counts().done == 20).then_some(()) };
    raw::eventually(handled, 10 * SECOND).await;
    worker.stop().await.expect("it stops");
    // The commands of records and their lists.
    for command in ["hmget", "zremrangebyrank"] {
        assert_eq!(calls(&server, command).await, 0, "{command}");
    }
    // The worker announces itself at its start, and as draining at its end.
    let announced = calls(&server, "hset").await;
    assert!(announced <= 2, "{announced}");
    assert_eq!(calls(&server, "xadd").await, 20);
    let keys: Vec<String> = server.query(&["KEYS", "*"]).await;
    let made = |key: &&String| ["task", "feed"].iter().any(|part| key.contains(part));
    assert_eq!(keys.iter().find(made), None);
}

#[tokio::test]
async fn very_many_reports_of_progress_are_few_commands() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let (tasks, id) = (redis.tasks(), tracked(&redis, 60 * SECOND).await);
    let handler = async |progress: Progress| {
        for number in 0..300_000 {
            progress.set(number)?;
            if number % 1_000 == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok::<_, Error>("done")
    };
    server.command(&["CONFIG", "RESETSTAT"]).await;
    let started = std::time::Instant::now();
    let worker = Worker::start(redis.clone(), Router::new().task("n", handler));
    let ended = within(30 * SECOND, tasks.wait(&id)).await.expect("it ends");
    assert_eq!(ended.read_progress().expect("a number"), Some(299_999));
    let seconds = started.elapsed().as_secs() as usize;
    let writes = calls(&server, "hset").await;
    // The start and the end of the task, and one report a second.
    assert!(writes <= 4 + seconds, "{writes} writes in {seconds} s");
    worker.stop().await.expect("it stops");
}

#[tokio::test]
async fn lists_of_ended_tasks_are_bounded_and_drop_records_that_have_expired() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let fill = "for i = 1, 10000 do redis.call('ZADD', KEYS[1], i, 'old-' .. i) end";
    server
        .command(&["EVAL", fill, "1", "{s}:tasks:done:g"])
        .await;
    let id = tracked(&redis, SECOND / 2).await;
    done_one(&redis).await;
    let count = || async { server.query::<usize>(&["ZCARD", "{s}:tasks:done:g"]).await };
    assert_eq!(count().await, 10_000);
    let left: i64 = server.query(&["PTTL", "{s}:tasks:done:g"]).await;
    assert!((0..=500).contains(&left), "{left}");
    server.command(&["PERSIST", "{s}:tasks:done:g"]).await;
    let query = TaskQuery::all().state(TaskState::Done);
    let list = redis.tasks().list(query.clone()).await.expect("a list");
    assert_eq!(list.tasks.len(), 1, "the others have no records");
    assert_eq!(list.tasks[0].id, id);
    assert_eq!(count().await, 1);
    let expired = || async {
        let list = redis.tasks().list(query.clone()).await.expect("a list");
        list.tasks.is_empty().then_some(())
    };
    raw::eventually(expired, 10 * SECOND).await;
    assert_eq!(count().await, 0);
}

#[tokio::test]
async fn a_unique_task_that_is_not_tracked_leaves_nothing_but_changes() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let call = Client::new(redis.clone()).enqueue("n", "p").unique("k");
    let id = call.await.expect("it is sent").id().expect("an id").clone();
    let (tasks, waited) = (redis.tasks(), id.clone());
    let wait = tokio::spawn(async move { tasks.wait(&waited).await });
    let waits = || async { (blocked(&server).await == 1).then_some(()) };
    raw::eventually(waits, 10 * SECOND).await;
    done_one(&redis).await;
    let ended = within(10 * SECOND, wait).await.unwrap().expect("it ends");
    assert_eq!((ended.state, ended.id), (TaskState::Done, id));
    let gone = || async {
        let keys: Vec<String> = server.query(&["KEYS", "{s}:[tu]*"]).await;
        keys.is_empty().then_some(())
    };
    raw::eventually(gone, 10 * SECOND).await;
    assert_eq!(raw::len(&server, "{s}:feed:g").await, 3);
}

/// The number of clients in a blocked read.
async fn blocked(server: &RedisServer) -> usize {
    let clients: String = server.query(&["INFO", "clients"]).await;
    let blocked = clients
        .lines()
        .find_map(|line| line.strip_prefix("blocked_clients:"));
    blocked.expect("the count").parse().expect("a number")
}

#[tokio::test]
async fn calls_that_wait_share_one_reader_which_ends_with_the_last() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let (first, second) = (
        tracked(&redis, 60 * SECOND).await,
        tracked(&redis, 60 * SECOND).await,
    );
    let wait = |id: &MessageId| {
        let (tasks, id) = (redis.tasks(), id.clone());
        tokio::spawn(async move { tasks.wait(&id).await })
    };
    let of_first: Vec<_> = (0..100).map(|_| wait(&first)).collect();
    let of_second = wait(&second);
    let count = async |count: usize| {
        let is_met = || async { (blocked(&server).await == count).then_some(()) };
        raw::eventually(is_met, 10 * SECOND).await;
    };
    count(1).await;
    tokio::time::sleep(SECOND / 2).await;
    count(1).await;
    let mut source = open(&redis).await;
    settle(next(&mut source).await, done()).await;
    for ended in within(10 * SECOND, join_all(of_first)).await {
        let ended = ended.unwrap().expect("it ends");
        assert_eq!((ended.id, ended.state), (first.clone(), TaskState::Done));
    }
    source.close().await.expect("it closes");
    count(1).await;
    assert!(!of_second.is_finished());
    of_second.abort();
    count(0).await;
}

#[tokio::test]
async fn a_feed_says_that_changes_were_dropped() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let tasks = redis.tasks();
    let mut changes = tasks.changes(ChangesFrom::Now).await.expect("a feed");
    let mut next_id = async || match within(10 * SECOND, changes.next()).await {
        Ok(FeedItem::Change(change)) => Some(change.id),
        Ok(_) => None,
        Err(error) => panic!("{error}"),
    };
    let first = tracked(&redis, 60 * SECOND).await;
    assert_eq!(next_id().await, Some(first));
    // The reader waits for a change behind this one, so the next change alone is no gap.
    let second = tracked(&redis, 60 * SECOND).await;
    assert_eq!(next_id().await, Some(second));
    let _: redis::Value = server.query(&["XTRIM", "{s}:feed:g", "MAXLEN", "0"]).await;
    assert_eq!(next_id().await, None, "a gap");
    let third = tracked(&redis, 60 * SECOND).await;
    assert_eq!(next_id().await, Some(third));

    // The feed stays bounded over many changes.
    for _ in 0..3 {
        let add = "for i = 1, 5000 do redis.call('XADD', KEYS[1], '*', 'id', i) end";
        server.command(&["EVAL", add, "1", "{s}:feed:g"]).await;
        tracked(&redis, SECOND).await;
    }
    let length = raw::len(&server, "{s}:feed:g").await;
    assert!((10_000..10_200).contains(&length), "{length}");
}

#[tokio::test]
async fn a_wait_survives_lost_connections() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let ids = [
        tracked(&redis, 60 * SECOND).await,
        tracked(&redis, 60 * SECOND).await,
    ];
    let waits = ids.clone().map(|id| {
        let tasks = redis.tasks();
        tokio::spawn(async move { tasks.wait(&id).await })
    });
    let waiting = || async { (blocked(&server).await == 1).then_some(()) };
    raw::eventually(waiting, 10 * SECOND).await;
    server.kill_connections().await;
    // One ends while the reader has no connection, and one after it has another.
    assert!(cancelled(&redis.tasks(), &ids[0]).await);
    raw::eventually(waiting, 20 * SECOND).await;
    server.kill_connections().await;
    raw::eventually(waiting, 20 * SECOND).await;
    assert!(cancelled(&redis.tasks(), &ids[1]).await);
    for wait in waits {
        let ended = within(20 * SECOND, wait).await.unwrap().expect("it ends");
        assert_eq!(ended.state, TaskState::Cancelled);
    }
}

/// Cancels a task, once there is a connection.
async fn cancelled(tasks: &Tasks, id: &MessageId) -> bool {
    let attempt = || async {
        match tasks.cancel(id, "").await {
            // An earlier attempt with an unknown outcome may have cancelled it.
            Ok(false) => tasks.status(id).await.ok()??.ended_at.map(|_| true),
            Ok(true) => Some(true),
            Err(_) => None,
        }
    };
    raw::eventually(attempt, 20 * SECOND).await
}

#[tokio::test]
async fn a_wait_ends_if_the_server_has_forgotten_the_task() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let id = tracked(&redis, 60 * SECOND).await;
    let tasks = redis.tasks();
    let wait = tokio::spawn(async move { tasks.wait(&id).await });
    let waiting = || async { (blocked(&server).await == 1).then_some(()) };
    raw::eventually(waiting, 10 * SECOND).await;
    server.command(&["FLUSHALL"]).await;
    let ended = within(20 * SECOND, wait).await.unwrap();
    assert!(ended.is_err_and(|error| error.is_invalid()));
}

#[tokio::test]
async fn a_feed_or_a_list_of_another_type_stops_no_task() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    for key in ["{s}:feed:g", "{s}:tasks:waiting:g", "{s}:tasks:done:g"] {
        server.command(&["SET", key, "x"]).await;
    }
    let id = tracked(&redis, 60 * SECOND).await;
    let tasks = redis.tasks();
    let refused = within(10 * SECOND, tasks.wait(&id)).await;
    assert!(refused.is_err_and(|error| error.is_refused()));
    let mut changes = tasks.changes(ChangesFrom::Beginning).await.expect("a feed");
    let refused = within(10 * SECOND, changes.next()).await;
    assert!(refused.is_err_and(|error| error.is_refused()));
    let query = TaskQuery::all().state(TaskState::Done);
    assert!(
        tasks
            .list(query)
            .await
            .is_err_and(|error| error.is_refused())
    );
    done_one(&redis).await;
    let ended = tasks.wait(&id).await.expect("it has ended");
    assert_eq!(ended.state, TaskState::Done);
    server.command(&["DEL", "{s}:feed:g"]).await;
    tracked(&redis, SECOND).await;
    // Errors of earlier reads may be left in the feed's queue.
    let goes_on = async { while changes.next().await.is_err() {} };
    within(10 * SECOND, goes_on).await;
}

#[tokio::test]
async fn a_task_without_a_record_is_dead_at_once_if_it_needs_a_checkpoint() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let app = Router::new().task("n", async |_: Checkpoint| {});
    let worker = Worker::start(redis.clone(), app);
    task(&server, "p").await;
    let dead = || async { (redis.counts().dead == 1).then_some(()) };
    raw::eventually(dead, 10 * SECOND).await;
    let reason = &letters(&redis).await[0].reason;
    assert!(reason.contains(".tracked("), "{reason}");
    worker.stop().await.expect("it stops");
}

#[tokio::test]
async fn the_record_of_a_task_with_very_many_headers_follows_its_retries() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let tasks = redis.tasks();
    let mut call = Client::new(redis.clone()).enqueue("n", "p");
    for n in 0..1_000 {
        call = call.header(format!("h{n}"), "x");
    }
    let receipt = call.tracked(60 * SECOND).unique("k").await;
    let receipt = receipt.expect("it is sent");
    let id = receipt.id().expect("it is stored");
    let mut source = open(&redis).await;
    for attempt in 1..4 {
        let delivery = next(&mut source).await;
        assert_eq!(message(&delivery).parts().attempt.0, attempt);
        let again = Verdict::Redeliver {
            after: Some(Duration::ZERO),
            counted: true,
            reason: format!("failure {attempt}"),
        };
        settle(delivery, again).await;
        let status = tasks.status(id).await.expect("the server answers");
        let status = status.expect("it is recorded");
        assert_eq!(status.state, TaskState::Waiting);
        assert_eq!(status.reason, format!("failure {attempt}"));
        let again = Client::new(redis.clone()).enqueue("n", "p").unique("k");
        assert!(again.await.expect("it is answered").is_duplicate());
    }
    assert!(tasks.cancel(id, "").await.expect("the server answers"));
    nothing(&mut source, SECOND / 2).await;
    source.close().await.expect("the source closes");
}
