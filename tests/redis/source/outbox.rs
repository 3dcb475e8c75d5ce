//! Follow-ups and values that are stored with the acknowledgement of a delivery.

use campanile::{
    Attempt, BoxError, Checkpoint, Client, Error, Failure, Outbox, Progress, Router,
    transport::{ChangesFrom, TaskQuery, TaskState},
};

use super::*;
use crate::support::{Options, rights::documented, version, worker::Worker};

/// Serves a handler of the task `n` until the task is settled, and returns the dead letter's reason,
/// if it became one.
async fn handle_one<H, T>(server: &RedisServer, redis: &Redis, handler: H) -> Option<String>
where
    H: campanile::Handler<T, ()> + Clone,
    T: 'static,
{
    let worker = Worker::start(redis.clone(), Router::new().task("n", handler));
    let before = redis.counts();
    task(server, "1").await;
    let settled = || async {
        let counts = redis.counts();
        (counts.done + counts.dead > before.done + before.dead).then_some(())
    };
    raw::eventually(settled, 10 * SECOND).await;
    worker.stop().await.expect("it stops");
    let letters = redis.dead_letters().list(Page::first(10)).await;
    let reason = letters.expect("the dead letters").letters.pop();
    reason.map(|letter| letter.reason)
}

/// Returns a server with a user, and a handle that logs in as this user, who has these rights.
async fn with_rights(rights: &str) -> (RedisServer, Redis) {
    let acl = format!("user worker on >pw {rights}\nuser default on nopass ~* &* +@all");
    let server = RedisServer::with(Options::new().acl(&acl)).await;
    let url = format!("redis://worker:pw@127.0.0.1:{}/", server.port());
    let redis = Redis::connect(&url).await.expect("the user can log in");
    (server, redis.stream("s").group("g"))
}

async fn exists(server: &RedisServer, key: &str) -> i64 {
    server.query(&["EXISTS", key]).await
}

#[tokio::test]
async fn values_change_in_the_step_of_the_acknowledgement() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let count = redis.value_key("count").expect("the stream has values");
    let last = redis.value_key("last").expect("the stream has values");
    assert_eq!((&*count, &*last), ("{s}:value:count", "{s}:value:last"));
    for round in 1..=3 {
        let died = handle_one(&server, &redis, async move |outbox: Outbox| {
            outbox.increment("count", 5)?;
            outbox.increment("count", -3)?;
            outbox.set("last", round.to_string())?;
            outbox.set("gone", "x")?;
            outbox.delete("gone")?;
            Ok::<_, Error>(())
        });
        assert_eq!(died.await, None);
        assert_eq!(server.query::<i64>(&["GET", &count]).await, 2 * round);
        assert_eq!(server.query::<i64>(&["GET", &last]).await, round);
        let gone = redis.value_key("gone").expect("the stream has values");
        assert_eq!(server.query::<i64>(&["EXISTS", &gone]).await, 0);
    }
}

#[tokio::test]
async fn a_follow_up_that_the_server_cannot_store_makes_a_dead_letter_and_changes_nothing() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let _: String = server.query(&["SET", "text", "x"]).await;
    let _: String = server.query(&["SET", "{s}:value:text", "12x"]).await;
    let _: String = server
        .query(&["SET", "{s}:value:large", "999999999999999"])
        .await;
    let _: i64 = server.query(&["LPUSH", "{s}:value:list", "x"]).await;
    for (case, expected) in [
        ("text", "`text` is a string and not a stream"),
        ("not a number", "`{s}:value:text` is not an integer"),
        (
            "too large",
            "`{s}:value:large` is not an integer of at most 15 digits",
        ),
        ("a list", "`{s}:value:list` is a list and not a string"),
        ("set before", "`{s}:value:new` is not an integer"),
    ] {
        let reason = handle_one(&server, &redis, async move |outbox: Outbox| {
            outbox.increment("before", 1)?;
            outbox.enqueue("before", "").await?;
            match case {
                "text" => drop(outbox.enqueue("a", "").stream("text").await?),
                "not a number" => outbox.increment("text", 1)?,
                "too large" => outbox.increment("large", 1)?,
                "a list" => outbox.increment("list", 1)?,
                _ => {
                    outbox.set("new", "one")?;
                    outbox.increment("new", 1)?;
                }
            }
            Ok::<_, Error>(())
        });
        let reason = reason.await.expect("a dead letter");
        assert!(reason.contains("outbox was refused"), "{case}: {reason}");
        assert!(reason.contains(expected), "{case}: {reason}");
        assert_eq!(pending(&server).await, (0, 0), "{case}");
    }
    let changed: i64 = server
        .query(&["EXISTS", "{s}:value:before", "{s}:value:new"])
        .await;
    assert_eq!(changed, 0);
    let entries: Vec<(String, Vec<String>)> = server.query(&["XRANGE", "s", "-", "+"]).await;
    let before = |(_, fields): &(String, Vec<String>)| fields.contains(&"before".to_owned());
    assert!(!entries.iter().any(before), "{entries:?}");
}

#[tokio::test]
async fn a_worker_without_the_right_to_a_stream_makes_a_dead_letter() {
    let (server, redis) = with_rights("~s ~{s}* &* +@all").await;
    let reason = handle_one(&server, &redis, async |outbox: Outbox| {
        outbox.increment("before", 1)?;
        outbox.enqueue("a", "").stream("other").await?;
        Ok::<_, Error>(())
    });
    let reason = reason.await.expect("a dead letter");
    assert!(reason.contains("outbox was refused"), "{reason}");
    assert!(
        reason.contains("NOPERM") || reason.contains("permission"),
        "{reason}"
    );
    assert_eq!(exists(&server, "{s}:value:before").await, 0);
}

#[tokio::test]
async fn a_command_without_permission_is_found_before_anything_changes() {
    if version() < (7, 0) {
        // Older servers cannot say what is permitted.
        return;
    }
    let (server, redis) = with_rights("~* &* +@all -del").await;
    let reason = handle_one(&server, &redis, async |outbox: Outbox| {
        outbox.increment("before", 1)?;
        outbox.delete("other")?;
        Ok::<_, Error>(())
    });
    let reason = reason.await.expect("a dead letter");
    assert!(reason.contains("no permission for `DEL`"), "{reason}");
    assert_eq!(exists(&server, "{s}:value:before").await, 0);
}

#[tokio::test]
async fn follow_ups_wait_while_the_server_has_no_memory_and_come_once() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let (started, mut starts) = tokio::sync::mpsc::unbounded_channel();
    let (go, gone) = tokio::sync::watch::channel(false);
    let handler = async move |outbox: Outbox| {
        outbox.publish("event", "").await?;
        outbox.increment("count", 1)?;
        outbox.enqueue("next", "").stream("next").await?;
        let _ = started.send(());
        let _ = gone.clone().wait_for(|gone| *gone).await;
        Ok::<_, Error>(())
    };
    let worker = Worker::start(redis.clone(), Router::new().task("n", handler));
    task(&server, "1").await;
    starts.recv().await.expect("it starts");
    let _: String = server.query(&["CONFIG", "SET", "maxmemory", "1"]).await;
    go.send_replace(true);
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(
        server
            .query::<i64>(&["EXISTS", "{s}:value:count", "next"])
            .await,
        0
    );
    assert_eq!(pending(&server).await.0, 1, "it is not acknowledged");
    let _: String = server.query(&["CONFIG", "SET", "maxmemory", "0"]).await;
    let settled = || async { (redis.counts().done == 1).then_some(()) };
    raw::eventually(settled, 10 * SECOND).await;
    assert_eq!(server.query::<i64>(&["GET", "{s}:value:count"]).await, 1);
    assert_eq!(raw::len(&server, "next").await, 1);
    worker.stop().await.expect("it stops");
}

#[tokio::test]
async fn the_rights_that_the_docs_name_are_enough_for_outboxes_and_recorded_tasks() {
    let worker = documented(&["serves tasks", "… whose [outboxes]"]).replace("~t", "~other");
    let worker = worker.replace("~{t}", "~{other}");
    let sender = documented(&["sends tasks", "… with a delay", "… that are [unique]"]);
    let operator = documented(&["looks up and cancels", "… lists them"]);
    let user = |name: &str, rights: &str| format!("user {name} on >pw resetchannels {rights}\n");
    let users = user("worker", &worker) + &user("sender", &sender) + &user("operator", &operator);
    let users = users + "user default on nopass ~* &* +@all";
    let server = RedisServer::with(Options::new().acl(&users)).await;
    let login = async |name: &str| {
        let url = format!("redis://{name}:pw@127.0.0.1:{}/", server.port());
        let redis = Redis::connect(&url).await.expect("the user can log in");
        redis.stream("s").group("g").lease(SECOND)
    };
    let client = Client::new(login("sender").await);
    let tasks = login("operator").await.tasks();
    let handler = async |outbox: Outbox,
                         progress: Progress,
                         checkpoint: Option<Checkpoint>,
                         attempt: Attempt,
                         payload: String| {
        progress.set(&payload)?;
        if let Some(checkpoint) = checkpoint {
            checkpoint.load::<String>().await?;
            checkpoint.save(&payload).await?;
        }
        outbox
            .enqueue("n", "")
            .stream("other")
            .delay(SECOND)
            .await?;
        outbox
            .enqueue("n", "")
            .stream("other")
            .idempotency_key("k")
            .await?;
        outbox.increment("count", 1)?;
        match (&*payload, attempt) {
            ("again", Attempt(1)) => Err(BoxError::from(Failure::redeliver())),
            ("dead", _) => Err(Failure::dead_letter().into()),
            _ => Ok(()),
        }
    };
    let app = Router::new().task("n", handler);
    let worker = Worker::start(login("worker").await, app);
    let mut changes = tasks.changes(ChangesFrom::Now).await.expect("the right");
    let mut ids = Vec::new();
    for payload in ["done", "again", "dead"] {
        let call = client.enqueue("n", payload).unique(payload);
        let call = call.tracked(60 * SECOND).delay(SECOND / 10);
        let receipt = call.await.expect("the sender has the right");
        ids.push(receipt.id().expect("it is stored").clone());
    }
    for (id, expected) in ids
        .iter()
        .zip([TaskState::Done, TaskState::Done, TaskState::Dead])
    {
        let ended = within(20 * SECOND, tasks.wait(id)).await;
        assert_eq!(ended.expect("the operator has the right").state, expected);
    }
    changes.next().await.expect("the operator has the right");
    let list = tasks.list(TaskQuery::all().max(1)).await;
    let next = list.expect("the operator has the right").next;
    let list = tasks.list(next.expect("there are more")).await;
    list.expect("the operator has the right");
    let cancelled = client.enqueue("n", "x").tracked(SECOND).delay(60 * SECOND);
    let cancelled = cancelled.await.expect("the sender has the right");
    let cancelled = tasks
        .cancel(cancelled.id().expect("it is stored"), "")
        .await;
    assert!(cancelled.expect("the operator has the right"));
    worker.stop().await.expect("it stops");
    let denied: Vec<Vec<redis::Value>> = server.query(&["ACL", "LOG"]).await;
    let objects = denied.iter().filter_map(|entry| entry.get(7));
    // The version is read only if that is permitted, and a refused `PING` is a response too.
    let optional = ["info", "ping"].map(|name| redis::Value::BulkString(name.into()));
    let refused: Vec<_> = objects
        .filter(|object| !optional.contains(object))
        .collect();
    assert!(refused.is_empty(), "{refused:?}");
}
