//! Recorded tasks of a partitioned stream whose partitions are on all nodes of a cluster.

use std::collections::BTreeSet;

use campanile::{
    Client, MessageId, Router,
    transport::{ChangesFrom, FeedItem, Streams, TaskQuery, TaskState},
};
use tokio::time::timeout;

use crate::{
    FOUND, SECOND, connect,
    support::{cluster::Cluster, raw::eventually, worker::Worker},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_on_all_nodes_are_waited_for_and_followed_over_a_failover() {
    let cluster = Cluster::start().await;
    let redis = connect(&cluster.url()).await.group("g").lease(2 * SECOND);
    let redis = redis.streams(Streams::partitioned("jobs", 6));
    let (tasks, client) = (redis.tasks(), Client::new(redis.clone()));
    let mut changes = tasks.changes(ChangesFrom::Now).await.expect("a feed");
    let mut ids = BTreeSet::<MessageId>::new();
    for number in 0..30 {
        let call = client
            .enqueue("work", "p")
            .partition_key(number.to_string());
        let receipt = call.tracked(600 * SECOND).await.expect("it is sent");
        ids.insert(receipt.id().expect("it is stored").clone());
    }
    let listed = tasks.list(TaskQuery::all().state(TaskState::Waiting)).await;
    let listed = listed.expect("a list").tasks.into_iter();
    assert_eq!(listed.map(|task| task.id).collect::<BTreeSet<_>>(), ids);
    let waits: Vec<_> = ids
        .iter()
        .cloned()
        .map(|id| {
            let tasks = tasks.clone();
            tokio::spawn(async move { tasks.wait(&id).await })
        })
        .collect();
    // Gives the calls time to read their records.
    let mut seen = 0;
    while seen < ids.len() {
        let item = timeout(FOUND, changes.next()).await.expect("in time");
        seen += usize::from(matches!(item, Ok(FeedItem::Change(_))));
    }
    cluster.fail_over("jobs:0").await;
    let worker = Worker::start(redis.clone(), Router::new().task("work", async || "result"));
    for wait in waits {
        let ended = timeout(3 * FOUND, wait).await.expect("it ends in time");
        let ended = ended.expect("no panic").expect("the task has ended");
        assert_eq!(ended.state, TaskState::Done);
        assert_eq!(ended.read_result::<String>().expect("a text"), "result");
    }
    let mut done = BTreeSet::new();
    while done.len() < ids.len() {
        let item = timeout(FOUND, changes.next()).await.expect("in time");
        match item.expect("a failover is no error of the feed") {
            FeedItem::Change(change) if change.state == TaskState::Done => {
                done.insert(change.id);
            }
            // An asynchronous replica may have missed the last changes.
            _ => {}
        }
    }
    assert_eq!(done, ids);
    worker.stop().await.expect("it stops");

    let delayed = client
        .enqueue("work", "p")
        .tracked(SECOND)
        .delay(600 * SECOND);
    delayed.await.expect("it is sent");
    let cancelled = async || tasks.cancel_all(TaskQuery::all(), "").await.ok();
    assert_eq!(eventually(cancelled, FOUND).await, 1);
}
