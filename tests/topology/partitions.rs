//! Partitioned streams on a cluster: spread over its nodes, and in order over a failover.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use campanile::{Client, Message, Redis, Router, transport::Streams};

use crate::{
    FOUND, SECOND, connect,
    support::{cluster::Cluster, raw::eventually, worker::Worker},
};

const PARTITIONS: usize = 12;

/// The numbers that were handled for each key, in order.
#[derive(Debug, Clone, Default)]
struct Handled(Arc<Mutex<BTreeMap<String, Vec<u32>>>>);

impl Handled {
    fn app(&self) -> Router {
        let handled = self.clone();
        Router::new().task("n", async move |message: Message| {
            let key = message.parts().partition_key.clone();
            let key = key.expect("a key is sent").to_string();
            let number = std::str::from_utf8(message.payload()).ok();
            let number = number.and_then(|number| number.parse().ok());
            let number = number.expect("a number is sent");
            handled
                .0
                .lock()
                .unwrap()
                .entry(key)
                .or_default()
                .push(number);
        })
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().values().map(Vec::len).sum()
    }

    async fn until(&self, count: usize) -> BTreeMap<String, Vec<u32>> {
        let all = async || (self.count() >= count).then_some(());
        eventually(all, 3 * FOUND).await;
        self.0.lock().unwrap().clone()
    }
}

/// Sends numbers for each of some keys, one after the other. Returns those that the cluster has
/// confirmed.
async fn send(redis: &Redis, keys: usize, numbers: std::ops::Range<u32>) -> usize {
    let client = Client::new(redis.clone());
    let mut sent = 0;
    for number in numbers {
        for key in 0..keys {
            let call = client.enqueue("n", number.to_string());
            match call.partition_key(format!("key-{key}")).await {
                Ok(_) => sent += 1,
                // During the failover some tasks are not sent, or nobody knows.
                Err(error) => assert!(
                    error.is_unknown_outcome() || error.is_disconnected() || error.is_refused(),
                    "{error:?}"
                ),
            }
        }
        tokio::time::sleep(SECOND / 100).await;
    }
    sent
}

fn partitioned(redis: Redis, owned: bool) -> Redis {
    let streams = Streams::partitioned("orders", PARTITIONS);
    let streams = match owned {
        true => streams.owned(),
        false => streams,
    };
    redis.streams(streams).group("workers").lease(2 * SECOND)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_are_spread_over_the_nodes_and_used_as_one_stream() {
    let cluster = Cluster::of_primaries().await;
    let redis = partitioned(connect(&cluster.url()).await, false);
    let handled = Handled::default();
    let worker = Worker::start(redis.clone(), handled.app());
    assert_eq!(send(&redis, 50, 0..4).await, 200);
    let handled = handled.until(200).await;
    assert!(
        handled.values().all(|numbers| numbers.len() == 4),
        "{handled:?}"
    );
    let stats = redis.stats().await.expect("statistics");
    assert_eq!((&*stats.stream, stats.groups.len()), ("orders", 1));
    let mut nodes = 0;
    for node in 0..3 {
        let keys: Vec<String> = cluster.node(node).query(&["KEYS", "orders:*"]).await;
        nodes += usize::from(!keys.is_empty());
    }
    assert_eq!(nodes, 3, "each node has partitions");
    worker.stop().await.expect("it stops");
    let tagged = connect(&cluster.url()).await;
    let tagged = tagged.streams(Streams::partitioned("{shop}.orders", 4));
    let refused = Client::new(tagged).enqueue("n", "1").await;
    let refused = refused.expect_err("one node would have all partitions");
    assert!(refused.to_string().contains("braces"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owned_partitions_keep_the_order_of_every_key_over_a_failover() {
    let cluster = Cluster::start().await;
    let redis = partitioned(connect(&cluster.url()).await, true);
    let handled = Handled::default();
    let workers = [
        Worker::start(redis.clone(), handled.app()),
        Worker::start(
            partitioned(connect(&cluster.url()).await, true),
            handled.app(),
        ),
    ];
    let before = send(&redis, 20, 0..20).await;
    let sending = tokio::spawn({
        let redis = redis.clone();
        async move { send(&redis, 20, 20..120).await }
    });
    tokio::time::sleep(SECOND / 5).await;
    cluster.fail_over("orders:0").await;
    let sent = before + sending.await.expect("it does not panic");
    let all = handled.until(sent).await;
    for (key, numbers) in &all {
        assert!(numbers.is_sorted(), "{key}: {numbers:?}");
    }
    let later = send(&redis, 20, 120..130).await;
    assert_eq!(later, 200, "the cluster is whole again");
    let all = handled.until(sent + later).await;
    let repeated: usize = all
        .values()
        .map(|numbers| numbers.windows(2).filter(|pair| pair[0] == pair[1]).count())
        .sum();
    println!("sent {sent}, repeated {repeated}");
    for (key, numbers) in &all {
        assert!(numbers.is_sorted(), "{key}: {numbers:?}");
        assert_eq!(numbers.last(), Some(&129), "{key}");
    }
    for worker in workers {
        tokio::time::timeout(Duration::from_secs(30), worker.stop())
            .await
            .expect("in time")
            .expect("it stops");
    }
}
