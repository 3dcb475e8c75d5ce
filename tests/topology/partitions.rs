//! Partitioned streams on a cluster: spread over its nodes, in order over a failover, and
//! in growing number.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use campanile::{Attempt, Client, Json, Message, Redis, Router, serve, transport::Streams};
use futures_util::future::join_all;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    FOUND, SECOND, connect, scaled,
    support::{
        cluster::Cluster,
        ledger::{Ledger, What, now},
        raw::eventually,
        worker::Worker,
    },
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

/// The number of keys of the jobs. The key of a job is its number's remainder.
const KEYS: u64 = 20;

/// Sends jobs to all keys until it is stopped, each key's one after the other. The ledger has those
/// that the cluster confirmed, and those that it may have.
async fn load(redis: Redis, ledger: Ledger, stop: CancellationToken) {
    let client = Client::new(redis);
    let of_key = |key| {
        let (client, ledger, stop) = (&client, &ledger, &stop);
        async move {
            for job in (key..).step_by(KEYS as usize) {
                if stop.is_cancelled() {
                    return;
                }
                let call = client.enqueue("job", Json(job));
                match call.partition_key(format!("key-{key}")).await {
                    Ok(_) => ledger.write(What::Sent, job, 0),
                    Err(error) if error.is_unknown_outcome() => {
                        ledger.write(What::Unsure, job, 0);
                    }
                    Err(error) => {
                        assert!(error.is_disconnected() || error.is_refused(), "{error:?}")
                    }
                }
                sleep(SECOND / 20).await;
            }
        }
    };
    join_all((0..KEYS).map(of_key)).await;
}

fn recording(ledger: &Ledger) -> Router {
    let ledger = ledger.clone();
    Router::new().task(
        "job",
        async move |attempt: Attempt, Json(job): Json<u64>| {
            ledger.write(What::Started, job, attempt.0);
            sleep(SECOND / 200).await;
            ledger.write(What::Finished, job, attempt.0);
        },
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owned_partitions_keep_the_order_of_every_key_over_a_failover() {
    let cluster = Cluster::start().await;
    let ledger = Ledger::open(&cluster.dir().join("ledger"));
    let mut workers = Vec::new();
    for _ in 0..2 {
        let redis = partitioned(connect(&cluster.url()).await, true);
        workers.push(Worker::start(redis, recording(&ledger)));
    }
    let redis = partitioned(connect(&cluster.url()).await, true);
    let stop = CancellationToken::new();
    let load = tokio::spawn(load(redis, ledger.clone(), stop.clone()));
    // Each key has this many jobs that were sent after a time and are finished.
    let goes_on = async |after: Duration| {
        let every_key = async || {
            let account = ledger.read();
            let sent = account.all(What::Sent).filter(|line| line.at > after);
            let sent: BTreeSet<_> = sent.map(|line| line.job).collect();
            let done = &sent & &account.jobs(What::Finished);
            let mut of_key = [0; KEYS as usize];
            done.iter()
                .for_each(|job| of_key[(job % KEYS) as usize] += 1);
            of_key.iter().all(|done| *done >= 10).then_some(())
        };
        eventually(every_key, 3 * FOUND).await;
    };
    goes_on(Duration::ZERO).await;
    let at = now();
    for round in 0..scaled(3, 9) {
        cluster
            .fail_over(&format!("orders:{}", round % PARTITIONS))
            .await;
        goes_on(now()).await;
    }
    stop.cancel();
    load.await.expect("it does not panic");
    let finished = async || ledger.read().lost().is_empty().then_some(());
    eventually(finished, 3 * FOUND).await;
    for worker in workers {
        timeout(Duration::from_secs(30), worker.stop())
            .await
            .expect("in time")
            .expect("it stops");
    }
    let account = ledger.read();
    let paused = account.longest_pause_of_a_key(KEYS, |_| true, at..now());
    account.report("cluster: owned partitions, CLUSTER FAILOVER", paused, FOUND);
    assert_eq!(account.lost(), BTreeSet::new());
    let confirmed = &account.jobs(What::Sent) | &account.jobs(What::Unsure);
    let finished = account.jobs(What::Finished);
    assert!(
        finished.is_subset(&confirmed),
        "a job that was never sent ran"
    );
    println!("outcome unknown: {}", account.jobs(What::Unsure).len());
    account.assert_in_order(KEYS, |_| true);
    assert_eq!(account.repeated(), BTreeMap::new());
}

/// Sends the numbers of some jobs in order.
async fn send_jobs(redis: &Redis, ledger: &Ledger, jobs: std::ops::Range<u64>) {
    let client = Client::new(redis.clone());
    for job in jobs {
        let call = client.enqueue("job", Json(job));
        let call = call.partition_key(format!("key-{}", job % KEYS));
        call.await.expect("it is sent");
        ledger.write(What::Sent, job, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_gets_more_partitions_keeps_the_order_of_what_was_sent_with_each_number() {
    const BEFORE: u64 = 30 * KEYS;
    const ALL: u64 = 50 * KEYS;
    let cluster = Cluster::of_primaries().await;
    let ledger = Ledger::open(&cluster.dir().join("ledger"));
    let owning = async |partitions| {
        let redis = connect(&cluster.url()).await;
        let streams = Streams::partitioned("orders", partitions).owned();
        redis.streams(streams).group("workers").lease(2 * SECOND)
    };
    let finished = async |count: usize| {
        let enough = async || (ledger.read().jobs(What::Finished).len() >= count).then_some(());
        eventually(enough, 3 * FOUND).await;
    };
    let few = owning(4).await;
    send_jobs(&few, &ledger, 0..BEFORE).await;
    let old = [
        Worker::start(few.clone(), recording(&ledger)),
        Worker::start(owning(4).await, recording(&ledger)),
    ];
    finished(5 * KEYS as usize).await;
    for worker in old {
        worker.stop().await.expect("it stops");
    }
    let stopped = ledger.read().jobs(What::Finished).len() as u64;
    assert!(stopped < BEFORE, "messages wait in the old partitions");

    let many = owning(12).await;
    let grown = now();
    let new = [
        Worker::start(many.clone(), recording(&ledger)),
        Worker::start(owning(12).await, recording(&ledger)),
    ];
    // The workers record the new number. Until then a sender that has it is refused.
    let accepted = async || {
        let call = Client::new(many.clone()).enqueue("job", Json(BEFORE));
        call.partition_key("key-0").await.ok()
    };
    eventually(accepted, FOUND).await;
    ledger.write(What::Sent, BEFORE, 0);
    let half = BEFORE + (ALL - BEFORE) / 2;
    send_jobs(&many, &ledger, BEFORE + 1..half).await;
    // A sender with the old number is still accepted.
    send_jobs(&few, &ledger, half..ALL).await;
    finished(ALL as usize).await;
    for worker in new {
        worker.stop().await.expect("it stops");
    }
    let refused = serve(few, recording(&ledger)).await;
    let refused = refused.expect_err("a worker with the old number would not read all");
    assert!(refused.is_config(), "{refused}");

    let account = ledger.read();
    let first = account.all(What::Started).find(|line| line.at > grown);
    let first = first.expect("work went on").at - grown;
    account.report("cluster: partitions grow from 4 to 12", first, FOUND);
    assert_eq!(account.lost(), BTreeSet::new());
    assert_eq!(account.repeated(), BTreeMap::new());
    let with_many = BEFORE..half;
    account.assert_in_order(KEYS, |line| with_many.contains(&line.job));
    account.assert_in_order(KEYS, |line| !with_many.contains(&line.job));
}
