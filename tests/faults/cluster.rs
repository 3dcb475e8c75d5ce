//! Servers in cluster mode. All keys of a script are in one slot. The slot may be on another node
//! than the URL names, from the start or after a fail-over.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use campanile::{Client, Error, Json, Redis, Router};
use tokio::time::sleep;

use crate::{
    CLAIM, SECOND,
    ledger::{What, now},
    scene::Scene,
    support::{Options, RedisServer, Signal, cluster::Cluster, proxy::Proxy, raw, worker::Worker},
    worker::Job,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_script_runs_on_a_cluster() {
    let mut scene = Scene::with(Options::new().cluster()).await;
    scene.setup.max_deliveries = 2;
    let mut workers = scene.workers(2).await;
    // The messages below are renewed, claimed, redelivered later, released, answered and made dead
    // letters, so that every script runs.
    scene.send_all("work", 0..16, 2_500).await;
    scene
        .until(20 * SECOND, |account| {
            account.jobs(What::Started).len() >= 16
        })
        .await;
    workers.remove(0).signal(Signal::Kill);
    let at = now();
    // Sent only after the kill: these tasks fail once. A lost worker and that failure would use up
    // both deliveries.
    scene.send_all("flaky", 100..110, 1).await;
    let request = Json(Job { n: 21, ms: 1 });
    let Json(doubled): Json<u64> = scene
        .client()
        .request("double", request)
        .await
        .expect("a reply");
    assert_eq!(doubled, 42);
    scene
        .client()
        .enqueue("unknown", ())
        .await
        .expect("the message is sent");
    let account = scene.all_done(60 * SECOND).await;
    account.report(
        "a cluster of one node, a worker killed",
        account.went_on(at),
        CLAIM,
    );
    let dead = scene.redis.dead_letters().count().await;
    assert_eq!(dead.expect("the dead letters are counted"), 1);
    for worker in workers {
        worker.terminate().await;
    }
    let log = std::fs::read_to_string(&scene.setup.log).expect("the workers' log");
    assert!(!log.contains("CROSSSLOT"), "{log}");
}

/// The longest time in which the new primary must be found after a fail-over.
const FOUND: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_on_another_node_than_the_urls_is_found() {
    let cluster = Cluster::start().await;
    let owner = cluster.owner("jobs").await;
    let url = cluster.url_of(&[cluster.node((owner + 1) % 3).port()]);
    let redis = Redis::connect(&url).await;
    let redis = redis.expect("the node is there").stream("jobs");
    let client = Client::new(redis.clone()).request_timeout(5 * SECOND);
    client
        .enqueue("work", ())
        .await
        .expect("the message is sent");
    assert_eq!(raw::len(cluster.node(owner), "jobs").await, 1);
    let app = Router::new()
        .task("work", async || ())
        .rpc("answer", async || Json(42));
    let worker = Worker::start(redis, app);
    let Json(answer): Json<u64> = client.request("answer", ()).await.expect("a reply");
    assert_eq!(answer, 42);
    let settled = || async {
        let pending = raw::pending(cluster.node(owner), "jobs", "app_group").await;
        (pending == 0).then_some(())
    };
    raw::eventually(settled, 10 * SECOND).await;
    worker.stop().await.expect("the worker stops");
}

/// Fails over while handlers run and tasks are sent, over connections to `url`. Calls `switched`
/// with the new primary.
async fn follows_a_fail_over(cluster: &Cluster, url: &str, switched: impl FnOnce(&RedisServer)) {
    const HELD: u64 = 8;
    // Long enough that no handler runs again because of an expired lease.
    let redis = Redis::connect(url).await;
    let redis = redis.expect("the node is there");
    let redis = redis.stream("jobs").group("workers").lease(60 * SECOND);
    let runs = Arc::<Mutex<BTreeMap<u64, u32>>>::default();
    let count = runs.clone();
    let app = Router::new().task("work", async move |Json(job): Json<Job>| {
        *count.lock().unwrap().entry(job.n).or_default() += 1;
        sleep(Duration::from_millis(job.ms)).await;
    });
    let worker = Worker::start(redis.clone(), app);
    let client = Client::new(redis.clone());
    for n in 0..HELD {
        let job = Json(Job { n, ms: 4_000 });
        client
            .enqueue("work", job)
            .await
            .expect("the message is sent");
    }
    let all_run = || async { (runs.lock().unwrap().len() as u64 == HELD).then_some(()) };
    raw::eventually(all_run, 20 * SECOND).await;

    let stop = Arc::<AtomicBool>::default();
    let load = tokio::spawn({
        let (client, stop) = (client.clone(), stop.clone());
        async move {
            let mut sent: Vec<(u64, Instant, Result<(), Error>)> = Vec::new();
            for n in 1_000.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let result = client.enqueue("work", Json(Job { n, ms: 1 })).await;
                sent.push((n, Instant::now(), result.map(drop)));
                sleep(SECOND / 50).await;
            }
            sent
        }
    });
    sleep(SECOND / 2).await;
    let (_, new) = cluster.fail_over("jobs").await;
    let new = cluster.node(new);
    switched(new);
    let at = Instant::now();
    let pending = || raw::pending(new, "jobs", "workers");
    while at.elapsed() < FOUND && (at.elapsed() < 6 * SECOND || pending().await > 0) {
        sleep(SECOND / 10).await;
    }
    stop.store(true, Ordering::SeqCst);
    let sent = load.await.expect("the load ends");

    // Failures are collected, so that all of them are shown.
    let mut wrong = Vec::new();
    let (before, after): (Vec<_>, Vec<_>) = sent.iter().partition(|(_, sent, _)| *sent < at);
    assert!(before.iter().any(|(_, _, result)| result.is_ok()));
    let refused = |sent: &[&(u64, Instant, Result<(), Error>)]| {
        let failed = sent
            .iter()
            .filter_map(|(_, _, result)| result.as_ref().err());
        failed.map(ToString::to_string).collect::<Vec<_>>()
    };
    let last = &after[after.len().saturating_sub(20)..];
    if last.is_empty() || last.iter().any(|(_, _, result)| result.is_err()) {
        let refusals = refused(&after);
        let last = refusals.last();
        let (failed, all) = (refusals.len(), after.len());
        wrong.push(format!(
            "{failed} of {all} sends fail, also among the last 20: {last:?}"
        ));
    }
    let left = pending().await;
    if left > 0 {
        wrong.push(format!("{left} deliveries are not settled"));
    }
    let runs = runs.lock().unwrap().clone();
    let taken = sent.iter().filter(|(_, _, result)| result.is_ok());
    let lost: Vec<_> = (taken.map(|(n, _, _)| *n))
        .filter(|n| !runs.contains_key(n))
        .collect();
    if !lost.is_empty() {
        wrong.push(format!("{lost:?} were taken and never run"));
    }
    let twice: Vec<_> = runs.iter().filter(|(_, runs)| **runs > 1).collect();
    if !twice.is_empty() {
        wrong.push(format!("these ran more than once: {twice:?}"));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    worker.stop().await.expect("the worker stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fail_over_in_a_cluster_is_followed_and_no_verdict_is_lost() {
    let cluster = Cluster::start().await;
    follows_a_fail_over(&cluster, &cluster.url(), |_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fail_over_in_a_cluster_is_followed_where_the_name_leads_to_the_new_primary() {
    let cluster = Cluster::start().await;
    let owner = cluster.node(cluster.owner("jobs").await);
    let proxy = Proxy::start(owner.port()).await;
    let lead = |new: &RedisServer| proxy.lead_to(new.port());
    follows_a_fail_over(&cluster, &cluster.url_of(&[proxy.port()]), lead).await;
}
