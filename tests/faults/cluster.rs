//! A server in cluster mode: every script's keys are in one slot.

use campanile::Json;

use crate::{
    SECOND, TAKE_OVER,
    ledger::{What, now},
    scene::Scene,
    support::{Options, Signal},
    worker::Job,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_script_runs_on_a_cluster() {
    let mut scene = Scene::with(Options::new().cluster()).await;
    scene.setup.max_deliveries = 2;
    let mut workers = scene.workers(2).await;
    // Renewed, taken over, redelivered later, given back, answered and buried.
    scene.send_all("work", 0..16, 2_500).await;
    scene
        .until(20 * SECOND, |account| {
            account.jobs(What::Started).len() >= 16
        })
        .await;
    workers.remove(0).signal(Signal::Kill);
    let at = now();
    // Not before: with two deliveries at most, a failure and the loss of its worker are one too many.
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
        .expect("it is sent");
    let account = scene.all_done(60 * SECOND).await;
    account.report(
        "a cluster of one node, a worker killed",
        account.went_on(at),
        TAKE_OVER,
    );
    let dead = scene.redis.dead_letters().count().await;
    assert_eq!(dead.expect("they are counted"), 1);
    for worker in workers {
        worker.terminate().await;
    }
    let log = std::fs::read_to_string(&scene.setup.log).expect("the workers' log");
    assert!(!log.contains("CROSSSLOT"), "{log}");
}
