//! The store on a cluster and behind Sentinels, over a failover.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use campanile::{Client, Message, Redis, Router};
use campanile_middleware::{IdempotencyLayer, idempotency::RedisStore};

use super::{
    MILLI, SECOND, settings,
    support::{
        Signal,
        cluster::Cluster,
        raw::{eventually, replicated},
        sentinel::SentinelGroup,
        worker::Worker,
    },
    until,
};

/// The number of messages that are sent before the failover, and of others that are sent after it.
const MESSAGES: usize = 30;

/// Runs messages, and sends them again after `fail_over`, with others. The outcomes must be replicated
/// before the failover.
async fn a_message_runs_once_over(redis: Redis, fail_over: impl AsyncFnOnce()) {
    let runs = Arc::<Mutex<BTreeMap<String, u32>>>::default();
    let counted = runs.clone();
    let ran = || runs.lock().unwrap().len();
    let layer = IdempotencyLayer::new(RedisStore::new(&redis, "g:once:"))
        .key(|message: &Message| String::from_utf8(message.payload().to_vec()).ok())
        .retry_after(50 * MILLI);
    let app = Router::new()
        .task("a", async move |payload: String| {
            *counted.lock().unwrap().entry(payload).or_default() += 1;
        })
        .layer(layer.clone());
    let redis = redis.with_settings(settings());
    let worker = Worker::start(redis.clone(), app);
    let client = Client::new(redis.clone());
    // A task whose outcome is unknown is sent again. That is harmless: the layer is tested here.
    let send = async |n: usize| {
        let sent = async || client.enqueue("a", format!("order {n}")).await.ok();
        eventually(sent, 20 * SECOND).await
    };
    for n in 0..MESSAGES {
        send(n).await;
    }
    until(async || redis.counts().done >= MESSAGES as u64).await;
    assert_eq!((ran(), layer.suppressed()), (MESSAGES, 0));
    fail_over().await;
    for n in 0..2 * MESSAGES {
        send(n).await;
    }
    until(async || ran() == 2 * MESSAGES && layer.suppressed() >= MESSAGES as u64).await;
    worker.stop().await.expect("the worker stops");
    let twice = runs.lock().unwrap().clone();
    let twice: Vec<_> = twice.into_iter().filter(|(_, runs)| *runs > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_runs_once_although_a_primary_of_the_cluster_was_killed() {
    let cluster = Cluster::start().await;
    let names = cluster.a_name_on_each("jobs").await;
    let redis = Redis::connect(&cluster.url()).await;
    let redis = redis.expect("the cluster is there");
    a_message_runs_once_over(redis, async || {
        for (node, name) in names.iter().enumerate() {
            let keys: Vec<String> = cluster.node(node).query(&["KEYS", "g:once:*"]).await;
            assert!(!keys.is_empty(), "no outcome is stored on node {node}");
            replicated(cluster.node(node), name, 1).await;
        }
        cluster.node(0).signal(Signal::Kill);
        cluster.new_owner(&names[0], 0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_runs_once_although_the_primary_of_sentinels_was_killed() {
    let group = SentinelGroup::start().await;
    let redis = Redis::connect(&group.url(0)).await;
    let redis = redis.expect("the primary is there");
    a_message_runs_once_over(redis, async || {
        let old = group.primary().await;
        replicated(group.server(old), "jobs", 2).await;
        group.server(old).signal(Signal::Kill);
        group.new_primary(old).await;
    })
    .await;
}
