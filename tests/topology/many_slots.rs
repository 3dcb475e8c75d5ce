//! Workers of more slots than they have connections for: the server tells them which streams were
//! written.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use campanile::{Client, Json, Message, Redis, Router, transport::Streams};

use crate::{
    FOUND, SECOND, connect,
    support::{
        Options, Signal,
        cluster::Cluster,
        raw::eventually,
        rights::{ON_A_CLUSTER, documented, with_user},
        worker::Worker,
    },
};

/// Long enough that no read is due in a test, except for one that a written stream has caused.
const LEASE: Duration = Duration::from_secs(120);
/// The limit for the start of a task. A third of the lease is much longer.
const SOON: Duration = Duration::from_secs(5);

/// The time at which each task ran, in the order of the runs.
#[derive(Debug, Clone, Default)]
struct Ran(Arc<Mutex<Vec<(u64, Instant)>>>);

impl Ran {
    fn app(&self) -> Router {
        let ran = self.clone();
        Router::new().task("n", async move |Json(n): Json<u64>| {
            ran.0.lock().unwrap().push((n, Instant::now()));
        })
    }

    /// Waits until all of these tasks have run, and returns the time of each. None may run twice.
    async fn all(&self, tasks: usize, within: Duration) -> BTreeMap<u64, Instant> {
        let all = async || {
            let ran = self.0.lock().unwrap();
            let times: BTreeMap<_, _> = ran.iter().copied().collect();
            assert_eq!(times.len(), ran.len(), "a task has run twice");
            (times.len() >= tasks).then_some(times)
        };
        eventually(all, within).await
    }
}

fn partitioned(redis: Redis, partitions: usize) -> Redis {
    let streams = Streams::partitioned("orders", partitions);
    redis.streams(streams).group("workers").lease(LEASE)
}

/// Sends one task to each partition, one after the other, and returns the median and the longest
/// time until they ran.
async fn latency(redis: &Redis, ran: &Ran, first: u64, partitions: usize) -> (Duration, Duration) {
    let client = Client::new(redis.clone());
    let mut times = Vec::new();
    for n in first..first + partitions as u64 {
        let stream = format!("orders:{}", n - first);
        let sent = Instant::now();
        let sending = client.enqueue("n", Json(n)).stream(stream);
        sending.await.expect("it is sent");
        let ran = ran.all(n as usize + 1, SOON).await[&n];
        times.push(ran - sent);
    }
    times.sort();
    (times[times.len() / 2], times[times.len() - 1])
}

/// The number of connections of clients to a node, and the numbers of scripts and of reads that it
/// has run.
async fn load_of(cluster: &Cluster, node: usize) -> (usize, u64, u64) {
    let info: String = cluster.node(node).query(&["INFO", "everything"]).await;
    let after = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name));
        let number = line.map(|line| line.split(',').next().expect("the first part"));
        number.map_or(0, |number| number.trim().parse().expect("a number"))
    };
    let scripts = after("cmdstat_evalsha:calls=");
    let reads = after("cmdstat_xreadgroup:calls=");
    (after("connected_clients:") as usize, scripts, reads)
}

/// Measures workers of 12, 128 and 256 partitions: with 12, each has a connection that reads it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_on_one_of_very_many_partitions_starts_at_once_over_few_connections() {
    for partitions in [12, 128, 256] {
        let cluster = Cluster::of_primaries().await;
        let redis = partitioned(connect(&cluster.url()).await, partitions);
        let ran = Ran::default();
        let opening = Instant::now();
        let worker = Worker::start(redis.clone(), ran.app());
        let client = Client::new(redis.clone());
        let first = (0..partitions as u64).map(Json);
        let sent = client.enqueue_all("n", first).await;
        assert!(sent.iter().all(Result::is_ok), "{sent:?}");
        ran.all(partitions, FOUND).await;
        let opened = opening.elapsed();
        let (median, longest) = latency(&redis, &ran, partitions as u64, partitions).await;
        tokio::time::sleep(SECOND).await;
        let (mut connections, mut scripts, mut reads) = (Vec::new(), 0, 0);
        for node in 0..3 {
            let (connected, scripts_before, reads_before) = load_of(&cluster, node).await;
            tokio::time::sleep(2 * SECOND).await;
            let (_, scripts_after, reads_after) = load_of(&cluster, node).await;
            connections.push(connected);
            scripts += (scripts_after - scripts_before) / 2;
            reads += (reads_after - reads_before) / 2;
        }
        println!(
            "{partitions} partitions: opened in {opened:.1?}, a task starts after {median:.1?}, at \
             most {longest:.1?}; connections of the nodes {connections:?}; idle, {scripts} scripts \
             and {reads} reads a second"
        );
        assert!(median < SECOND / 10, "{median:?}");
        if partitions > 64 {
            // Two of the handle, three of the worker, the test, and the look-up of the nodes.
            let many = connections.iter().filter(|count| **count > 8);
            assert_eq!(many.count(), 0, "{connections:?}");
            assert!(reads < 10, "{reads}");
        }
        // A tick a second, and little else.
        assert!(scripts < 2 * partitions as u64, "{scripts}");
        worker.stop().await.expect("it stops");
        assert_eq!(ran.0.lock().unwrap().len(), 2 * partitions);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_in_a_slot_that_has_moved_starts_at_once() {
    let cluster = Cluster::of_primaries().await;
    let redis = partitioned(connect(&cluster.url()).await, 70);
    let ran = Ran::default();
    let worker = Worker::start(redis.clone(), ran.app());
    latency(&redis, &ran, 0, 70).await;
    let slot = cluster.slot("orders:7").await;
    let from = cluster.owner("orders:7").await;
    let client = Client::new(redis.clone());
    let send = async |n: u64| {
        let sending = client.enqueue("n", Json(n)).stream("orders:7");
        sending.await.expect("it is sent");
    };
    // While the keys move, a task may wait for the rest of them.
    let moving = cluster.move_slot(slot, (from + 1) % 3, SECOND / 4);
    tokio::join!(moving, send(70));
    ran.all(71, SOON).await;
    send(71).await;
    ran.all(72, SOON).await;
    cluster.move_slot(slot, from, SECOND / 100).await;
    send(72).await;
    ran.all(73, SOON).await;
    latency(&redis, &ran, 73, 70).await;
    worker.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_of_very_many_partitions_start_soon_after_a_failover_and_after_a_death() {
    let cluster = Cluster::start().await;
    let redis = partitioned(connect(&cluster.url()).await, 70);
    let ran = Ran::default();
    let worker = Worker::start(redis.clone(), ran.app());
    latency(&redis, &ran, 0, 70).await;
    let (_, new) = cluster.fail_over("orders:0").await;
    let sent = ran.0.lock().unwrap().len() as u64;
    let (median, longest) = latency(&redis, &ran, sent, 70).await;
    println!("after a failover: a task starts after {median:.1?}, at most {longest:.1?}");
    cluster.replica_of(new).await;
    cluster.node(new).signal(Signal::Kill);
    cluster.new_owner("orders:0", new).await;
    let client = Client::new(redis.clone());
    let again = async || {
        client
            .enqueue("n", Json(140_u64))
            .stream("orders:0")
            .await
            .ok()
    };
    eventually(again, FOUND).await;
    ran.all(141, FOUND).await;
    let (median, longest) = latency(&redis, &ran, 141, 70).await;
    println!("after a death: a task starts after {median:.1?}, at most {longest:.1?}");
    worker.stop().await.expect("it stops");
}

/// Every worker of a group gets the notice of each task. None runs it twice, and no worker holds more
/// than it has room for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_of_very_many_partitions_share_the_tasks_and_hold_no_more_than_they_can_start() {
    let cluster = Cluster::of_primaries().await;
    let redis = partitioned(connect(&cluster.url()).await, 70).max_in_flight(4);
    let client = Client::new(redis.clone());
    let sent = client.enqueue_all("n", (0..700_u64).map(Json)).await;
    assert!(sent.iter().all(Result::is_ok), "{sent:?}");
    let ran = Ran::default();
    let block = Arc::new(tokio::sync::Semaphore::new(0));
    let app = {
        let (ran, block) = (ran.clone(), block.clone());
        Router::new().task("n", async move |message: Message| {
            let _permit = block.acquire().await.expect("it is open");
            let n = std::str::from_utf8(message.payload()).expect("a number");
            let n = n.parse().expect("a number");
            ran.0.lock().unwrap().push((n, Instant::now()));
        })
    };
    let workers = [(); 3].map(|()| Worker::start(redis.clone(), app.clone()));
    let pending = async || {
        let mut pending = 0;
        for partition in 0..70 {
            let stream = format!("orders:{partition}");
            let node = cluster.node(cluster.owner(&stream).await);
            pending += crate::support::raw::pending(node, &stream, "workers").await;
        }
        pending
    };
    let full = async || (pending().await == 12).then_some(());
    eventually(full, FOUND).await;
    for _ in 0..3 {
        assert_eq!(pending().await, 12, "four for each worker");
    }
    block.add_permits(1);
    ran.all(700, FOUND).await;
    for worker in workers {
        worker.stop().await.expect("it stops");
    }
}

#[tokio::test]
async fn a_worker_of_very_many_slots_needs_the_documented_rights() {
    let rights = |rows: &[&str]| {
        let rights = documented(rows)
            .replace("~s ~{s}:*", "~orders:* ~{orders:*")
            .replace("{s}:partitions", "{orders}:partitions")
            .replace("{s}:members", "{orders}:members")
            .replace("{s}:*", "{orders:*");
        format!("{rights} {ON_A_CLUSTER}")
    };
    let acl = format!(
        "user worker on >pw resetchannels {}\n\
         user narrow on >pw resetchannels {}\n\
         user default on nopass ~* &* +@all",
        rights(&[
            "serves tasks",
            "… on partitions",
            "… over more than 64 slots"
        ]),
        rights(&["serves tasks", "… on partitions"])
    );
    let cluster = Cluster::with(Options::new().acl(&acl), 0).await;
    let url = |user: &str| with_user(&cluster.url(), user);
    let redis = partitioned(connect(&url("worker")).await, 70);
    let ran = Ran::default();
    let worker = Worker::start(redis, ran.app());
    let sender = partitioned(connect(&cluster.url()).await, 70);
    latency(&sender, &ran, 0, 70).await;
    worker.stop().await.expect("it stops");
    let narrow = partitioned(connect(&url("narrow")).await, 70);
    let refused = Worker::start(narrow, ran.app()).ended().await;
    let refused = refused.expect_err("it may not track keys");
    assert!(
        refused.to_string().contains("+client|tracking"),
        "{refused:?}"
    );
}
