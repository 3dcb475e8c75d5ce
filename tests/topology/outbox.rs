//! Follow-ups for streams in other slots of a cluster: each is moved to its stream once.

use std::{collections::BTreeSet, time::Duration};

use campanile::{Client, Error, Message, Outbox, Router};

use crate::{
    FOUND, SECOND, connect,
    support::{cluster::Cluster, raw::eventually, worker::Worker},
};

/// The payloads of the tasks on a stream, in their order.
async fn payloads(cluster: &Cluster, stream: &str) -> Vec<String> {
    let node = cluster.node(cluster.owner(stream).await);
    let read = ["XRANGE", stream, "-", "+"];
    let Ok(entries) = node.try_command(&read).await else {
        return Vec::new();
    };
    let entries: Vec<(String, Vec<(String, String)>)> =
        redis::from_redis_value(entries).expect("a list of entries");
    let payload = |(_, fields): (String, Vec<(String, String)>)| {
        let payload = fields.into_iter().find(|(field, _)| field == "payload");
        payload.expect("a task has a payload").1
    };
    entries.into_iter().map(payload).collect()
}

/// Handles a task by adding two follow-ups for another stream, and one that is delayed.
fn app(to: String) -> Router {
    let first = async move |outbox: Outbox, message: Message| {
        let payload = message.payload().clone();
        outbox
            .enqueue("next", payload.clone())
            .stream(to.clone())
            .await?;
        let late = outbox.enqueue("next", [b"late-", &payload[..]].concat());
        late.stream(to.clone()).delay(SECOND / 2).await?;
        outbox.increment("count", 1)?;
        Ok::<_, Error>(())
    };
    Router::new().task("first", first)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follow_ups_for_another_node_come_once_over_failovers_of_both() {
    let cluster = Cluster::start().await;
    let [from, to, _] = cluster.a_name_on_each("jobs").await;
    let redis = connect(&cluster.url()).await;
    let redis = redis.stream(from.clone()).lease(2 * SECOND);
    let worker = Worker::start(redis.clone(), app(to.clone()));
    let client = Client::new(redis.clone());
    let mut sent = BTreeSet::new();
    for number in 0..600 {
        // A failover takes a moment, in which a task may be refused.
        if client.enqueue("first", number.to_string()).await.is_ok() {
            sent.insert(number.to_string());
            sent.insert(format!("late-{number}"));
        }
        match number {
            200 => drop(cluster.fail_over(&to).await),
            400 => drop(cluster.fail_over(&from).await),
            _ => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
    let outbox = format!("{{{from}}}:outbox");
    let moved = async || {
        let node = cluster.node(cluster.owner(&outbox).await);
        let left: usize = node.query(&["XLEN", &outbox]).await;
        let found = payloads(&cluster, &to).await;
        (left == 0 && found.len() >= sent.len()).then_some(found)
    };
    let found = eventually(moved, 3 * FOUND).await;
    // A task whose sender does not know its outcome may have run, too.
    let distinct: BTreeSet<_> = found.iter().cloned().collect();
    assert_eq!(distinct.len(), found.len(), "a follow-up came twice");
    let lost: Vec<_> = sent.difference(&distinct).collect();
    assert!(lost.is_empty(), "follow-ups were lost: {lost:?}");
    let node = cluster.node(cluster.owner(&from).await);
    let key = redis.value_key("count").expect("the stream has values");
    let count: usize = node.query(&["GET", &key]).await;
    assert_eq!(2 * count, found.len());
    worker.stop().await.expect("it stops");
    println!(
        "outbox: {count} tasks, {} follow-ups on another node",
        found.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_worker_has_left_in_the_outbox_is_moved_and_a_bad_entry_holds_nothing_up() {
    let cluster = Cluster::of_primaries().await;
    let [from, to, _] = cluster.a_name_on_each("jobs").await;
    let node = cluster.node(cluster.owner(&from).await);
    let outbox = format!("{{{from}}}:outbox");
    let bad: String = node.query(&["XADD", &outbox, "*", "what", "is this"]).await;
    let entry = ["due", "0", "to", &to, "window", "60000"];
    let task = ["type", "task", "name", "n", "payload", "left"];
    let record = ["keep", "", "conflict", "", "unique", "", "group", "g"];
    let add = [&["XADD", &*outbox, "*"][..], &entry, &record, &task].concat();
    let _: String = node.query(&add).await;
    let redis = connect(&cluster.url()).await;
    let redis = redis.stream(from.clone()).lease(SECOND);

    let worker = Worker::start(redis, app(to.clone()));
    let moved = async || {
        let found = payloads(&cluster, &to).await;
        (!found.is_empty()).then_some(found)
    };
    assert_eq!(eventually(moved, FOUND).await, ["left"]);
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(payloads(&cluster, &to).await, ["left"]);
    let left: Vec<(String, Vec<String>)> = node.query(&["XRANGE", &outbox, "-", "+"]).await;
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(left[0].0, bad, "it is kept, and the log names it");
    worker.stop().await.expect("it stops");
}
