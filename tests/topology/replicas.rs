//! Tasks that replicas confirm, on clusters and behind Sentinels, and failovers to replicas that lag.

use std::{collections::BTreeSet, ops::Range, path::Path, time::Duration};

use campanile::{Attempt, Client, Json, Redis, Router};
use futures_util::future::join_all;

use crate::{
    FOUND, connect,
    load::GROUP,
    support::{
        RedisServer, Signal,
        cluster::Cluster,
        ledger::{Ledger, What},
        raw,
        sentinel::SentinelGroup,
        worker::Worker,
    },
};

/// The time limit for replicas.
const WITHIN: Duration = Duration::from_secs(2);
/// The number of tasks of each kind before the replicas lag, and while they do.
const TASKS: u64 = 200;
/// The tasks that are sent without confirmation by replicas.
const PLAIN: Range<u64> = 0..2 * TASKS;
/// The tasks that replicas are to confirm.
const CONFIRMED: Range<u64> = 2 * TASKS..4 * TASKS;

/// Sends a task that one replica is to confirm, and asserts that it is on these replicas.
async fn is_confirmed(redis: &Redis, stream: &str, replicas: &[&RedisServer]) {
    let client = Client::new(redis.clone().stream(stream));
    let sent = client.enqueue("n", "").replicas(1, WITHIN).await;
    let sent = sent.expect("a replica confirms the task");
    let id = sent.id().expect("an id").as_str();
    let mut found = 0;
    for replica in replicas {
        let mut connection = replica.connection().await;
        // A replica in a cluster needs it, others refuse it.
        let _ = redis::cmd("READONLY").exec_async(&mut connection).await;
        let mut query = redis::cmd("XRANGE");
        let entries = query
            .arg(stream)
            .arg(id)
            .arg(id)
            .query_async(&mut connection);
        let entries: Vec<redis::Value> = entries.await.unwrap();
        found += entries.len();
    }
    assert!(found >= 1, "the task {id} is on no replica of {stream}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_of_each_node_of_a_cluster_confirm_tasks_before_and_after_a_failover() {
    let cluster = Cluster::start().await;
    let streams = cluster.a_name_on_each("jobs").await;
    let redis = connect(&cluster.url()).await;
    let on_all = async || {
        for stream in &streams {
            let primary = cluster.owner(stream).await;
            let replica = cluster.replica_of(primary).await;
            raw::replicated(cluster.node(primary), stream, 1).await;
            is_confirmed(&redis, stream, &[cluster.node(replica)]).await;
        }
    };
    on_all().await;
    cluster.fail_over(&streams[0]).await;
    on_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_behind_sentinels_confirm_tasks_before_and_after_a_failover() {
    let group = SentinelGroup::start().await;
    let redis = connect(&group.url(0)).await;
    let servers = [0, 1, 2].map(|index| group.server(index));
    let replicas = |primary| {
        let mut replicas = servers.to_vec();
        replicas.remove(primary);
        replicas
    };
    let primary = group.primary().await;
    is_confirmed(&redis, "jobs", &replicas(primary)).await;
    let (old, new) = group.fail_over().await;
    group.demoted(old).await;
    raw::replicated(group.server(new), "jobs", 2).await;
    is_confirmed(&redis, "jobs", &replicas(new)).await;
}

/// Tasks with and without confirmation by replicas on one stream, and their ledger.
struct Tasks {
    redis: Redis,
    ledger: Ledger,
    stream: String,
}

impl Tasks {
    fn new(redis: &Redis, stream: &str, dir: &Path) -> Self {
        Self {
            redis: redis.clone().stream(stream),
            ledger: Ledger::open(&dir.join("ledger")),
            stream: stream.to_owned(),
        }
    }

    /// Sends half of the tasks of each kind, all at once.
    async fn send_half(&self, half: u64) {
        let client = Client::new(self.redis.clone());
        let of = |kind: Range<u64>| kind.start + half * TASKS..kind.start + (half + 1) * TASKS;
        let send = async |n| {
            let task = client.enqueue("n", Json(n));
            let sent = match CONFIRMED.contains(&n) {
                true => task.replicas(1, WITHIN).await,
                false => task.await,
            };
            match sent {
                Ok(_) => self.ledger.write(What::Sent, n, 0),
                Err(error) => assert!(error.is_unreplicated(), "{error:?}"),
            }
        };
        join_all(of(PLAIN).chain(of(CONFIRMED)).map(send)).await;
    }

    /// Has a worker handle all tasks that this primary has.
    async fn work_off(&self, primary: &RedisServer) {
        let ledger = self.ledger.clone();
        let app = Router::new().task("n", async move |attempt: Attempt, Json(n): Json<u64>| {
            ledger.write(What::Started, n, attempt.0);
            ledger.write(What::Finished, n, attempt.0);
        });
        let worker = Worker::start(self.redis.clone().group(GROUP), app);
        let drained = || async {
            raw::drained(primary, &self.stream, GROUP)
                .await
                .then_some(())
        };
        raw::eventually(drained, FOUND).await;
        worker.stop().await.expect("the worker stops");
    }

    /// Prints the ledger after a failover, and asserts the numbers of the tasks without and with
    /// confirmation.
    fn report(&self, fault: &str, expected: [Numbers; 2]) {
        let account = self.ledger.read();
        let (sent, lost) = (account.jobs(What::Sent), account.lost());
        let repeated: BTreeSet<_> = account.repeated().into_keys().collect();
        let numbers = [PLAIN, CONFIRMED].map(|kind| {
            let count = |jobs: &BTreeSet<u64>| jobs.range(kind.clone()).count() as u64;
            Numbers {
                ok: count(&sent),
                lost: count(&lost),
                repeated: count(&repeated),
            }
        });
        for (call, Numbers { ok, lost, repeated }) in ["enqueue", "enqueue, replicas(1, 2 s)"]
            .iter()
            .zip(&numbers)
        {
            let sent = 2 * TASKS;
            println!(
                "ledger: {fault}: {call}: sent {sent} ok {ok} lost {lost} run twice {repeated}"
            );
        }
        assert_eq!(numbers, expected);
    }
}

/// The numbers of one kind of tasks after a failover.
#[derive(Debug, PartialEq)]
struct Numbers {
    /// Sends that returned `Ok`.
    ok: u64,
    /// Sends that returned `Ok`, and whose tasks no worker has handled.
    lost: u64,
    /// Tasks that were handled twice.
    repeated: u64,
}

/// The numbers if no replica has received the second half of the tasks, and no acknowledgement.
/// Without confirmation the fault loses tasks, so the test shows it.
const ALL_LAG: [Numbers; 2] = [
    Numbers {
        ok: 2 * TASKS,
        lost: TASKS,
        repeated: TASKS,
    },
    Numbers {
        ok: TASKS,
        lost: 0,
        repeated: TASKS,
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_of_a_cluster_to_a_lagging_replica_loses_no_confirmed_task() {
    let cluster = Cluster::start().await;
    let [stream, ..] = cluster.a_name_on_each("jobs").await;
    let redis = connect(&cluster.url()).await;
    let tasks = Tasks::new(&redis, &stream, cluster.dir());
    let old = cluster.owner(&stream).await;
    let replica = cluster.replica_of(old).await;
    tasks.send_half(0).await;
    raw::replicated(cluster.node(old), &stream, 1).await;
    cluster.node(replica).lose_primary().await;
    tasks.work_off(cluster.node(old)).await;
    tasks.send_half(1).await;
    cluster.node(old).signal(Signal::Kill);
    assert_eq!(cluster.new_owner(&stream, old).await, replica);
    tasks.work_off(cluster.node(replica)).await;
    tasks.report("cluster: primary killed, replica lags", ALL_LAG);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_by_sentinels_to_a_lagging_replica_loses_no_confirmed_task() {
    let group = SentinelGroup::start().await;
    let redis = connect(&group.url(0)).await;
    let tasks = Tasks::new(&redis, "jobs", group.dir());
    let old = group.primary().await;
    tasks.send_half(0).await;
    raw::replicated(group.server(old), "jobs", 2).await;
    for replica in (0..3).filter(|server| *server != old) {
        group.server(replica).lose_primary().await;
    }
    tasks.work_off(group.server(old)).await;
    tasks.send_half(1).await;
    group.server(old).signal(Signal::Kill);
    let new = group.new_primary(old).await;
    tasks.work_off(group.server(new)).await;
    tasks.report("Sentinel: primary killed, replicas lag", ALL_LAG);
}

/// Kills a primary of which one replica lags, while the other confirms tasks. The Sentinels promote
/// the replica with the lower number as its priority, or the one that has received more.
async fn one_of_two_lags(is_preferred: bool) {
    let group = SentinelGroup::start().await;
    let redis = connect(&group.url(0)).await;
    let tasks = Tasks::new(&redis, "jobs", group.dir());
    let old = group.primary().await;
    let [lagging, other] = [(old + 1) % 3, (old + 2) % 3];
    if is_preferred {
        let preferred = ["CONFIG", "SET", "replica-priority", "1"];
        group.server(lagging).command(&preferred).await;
        group.have_seen(lagging, |seen| seen.priority == 1).await;
    }
    tasks.send_half(0).await;
    raw::replicated(group.server(old), "jobs", 2).await;
    group.server(lagging).lose_primary().await;
    tasks.work_off(group.server(old)).await;
    tasks.send_half(1).await;
    if !is_preferred {
        let role = group.server(old).query(&["ROLE"]).await;
        let (_, all, _): (String, u64, Vec<redis::Value>) = role;
        group.have_seen(other, |seen| seen.offset >= all).await;
    }
    group.server(old).signal(Signal::Kill);
    let new = group.new_primary(old).await;
    assert_eq!(new == lagging, is_preferred);
    tasks.work_off(group.server(new)).await;
    let (fault, cost) = match is_preferred {
        true => ("Sentinel: the replica that lags is preferred", TASKS),
        false => ("Sentinel: the other replica lags", 0),
    };
    let numbers = || Numbers {
        ok: 2 * TASKS,
        lost: cost,
        repeated: cost,
    };
    tasks.report(fault, [numbers(), numbers()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_promote_the_replica_that_has_confirmed_unless_they_are_to_prefer_another() {
    tokio::join!(one_of_two_lags(false), one_of_two_lags(true));
}
