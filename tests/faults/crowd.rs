//! Many pending entries, and many workers.

use campanile::Json;

use crate::{
    CLAIM, SECOND,
    ledger::{What, now},
    scaled,
    scene::Scene,
    support::{raw::eventually, worker::Worker},
    worker::Job,
};

/// Delivers all unread entries to a consumer that does not exist, as if it had crashed.
async fn left_behind(scene: &Scene, consumer: &str) {
    let group = &scene.setup.group[..];
    let create = ["XGROUP", "CREATE", "jobs", group, "0", "MKSTREAM"];
    // The group may exist.
    let _ = scene.server.try_command(&create).await;
    let read = [
        "XREADGROUP",
        "GROUP",
        group,
        consumer,
        "COUNT",
        "1000000",
        "STREAMS",
        "jobs",
        ">",
    ];
    scene.server.command(&read).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_not_be_taken_does_not_hide_what_may() {
    let scene = Scene::new().await;
    // More entries than one scan reads before new entries are read.
    for (others, claimable) in [(5_000, 1), (scaled(10_000, 100_000), 2)] {
        let ahead = (0..others).map(|n| Json(Job { n, ms: 0 }));
        scene.client().enqueue_all("work", ahead).await;
        // A consumer of another library renews no leases, so its lease is longer. The entry behind
        // its entries can be claimed earlier.
        left_behind(&scene, "a-worker-of-another-library").await;
        scene.send_all("work", claimable..claimable + 1, 1).await;
        left_behind(&scene, "campanile-gone").await;
    }
    let at = now();
    let workers = scene.workers(2).await;
    let account = scene
        .until(60 * SECOND, |account| account.lost().is_empty())
        .await;
    account.report(
        "15,000 pending entries that may not be claimed, and 2 that may",
        account.went_on(at),
        // The scan reads thousands of entries, and two workers have to start.
        2 * CLAIM,
    );
    assert_eq!(
        account.all(What::Started).count(),
        2,
        "no other entry is claimed"
    );
    drop(workers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_workers_that_came_and_went_leave_nothing_behind() {
    let scene = Scene::new().await;
    let at = now();
    let mut killed = 0;
    for round in 0..10 {
        let redis = scene.setup.redis().await;
        let workers: Vec<_> = (0..20)
            .map(|_| Worker::start(redis.clone(), scene.setup.app()))
            .collect();
        // The consumer of a worker that ends while it joins is deleted later, by the upkeep.
        let joined = || async { (scene.consumers().await.len() >= killed + 20).then_some(()) };
        eventually(joined, 30 * SECOND).await;
        let jobs = round * 200..(round + 1) * 200;
        scene.send_all("work", jobs, 20).await;
        for (n, worker) in workers.into_iter().enumerate() {
            match n {
                // Drops the worker, as if it were killed.
                0 => killed += 1,
                _ => worker.stop().await.expect("the worker stops"),
            }
        }
    }
    let last = scene.workers(1).await;
    let account = scene.all_done(60 * SECOND).await;
    account.report("200 workers that came and went", now() - at, 90 * SECOND);
    let most = killed * scene.setup.max_in_flight;
    assert!(account.repeated().len() <= most, "{:?}", account.repeated());
    let left = scene.consumers().await.len();
    assert!(left <= killed + 1, "{left} consumers");
    if scaled(false, true) {
        // Consumers that were killed are deleted after a minute of silence.
        let gone = || async { (scene.consumers().await.len() == 1).then_some(()) };
        eventually(gone, 130 * SECOND).await;
    }
    drop(last);
}
