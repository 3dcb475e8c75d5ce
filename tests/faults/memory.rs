//! A server without memory.

use crate::{
    SECOND,
    ledger::{What, now},
    scaled,
    scene::Scene,
    support::raw,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_memory_senders_are_told_and_workers_go_on() {
    let mut scene = Scene::new().await;
    scene.setup.lease = 2 * SECOND;
    let workers = scene.workers(2).await;
    let jobs = scaled(6_000, 60_000);
    scene.send_all("work", 0..jobs, 20).await;
    scene.send_all("flaky", jobs..jobs + 10, 20).await;
    scene
        .server
        .command(&["CONFIG", "SET", "maxmemory", "1"])
        .await;
    let at = now();

    let refused = scene.send("work", jobs + 10..jobs + 20, 1).await;
    assert_eq!(refused.len(), 10);
    for error in refused {
        assert!(error.is_refused(), "{error:?}");
        assert!(error.to_string().contains("memory"), "{error}");
    }
    let account = scene
        .finished(jobs as usize, scaled(60, 300) * SECOND)
        .await;
    let recovered = account.went_on(at);
    let first = account.all(What::Started).filter(|line| line.job >= jobs);
    assert_eq!(
        first.count(),
        10,
        "the failed tasks wait for memory before they can be redelivered"
    );
    // Handled tasks are trimmed, which frees memory.
    let trimmed = || async { (raw::len(&scene.server, "jobs").await <= 200).then_some(()) };
    raw::eventually(trimmed, 30 * SECOND).await;

    scene
        .server
        .command(&["CONFIG", "SET", "maxmemory", "0"])
        .await;
    scene.send_all("work", jobs + 20..jobs + 30, 1).await;
    let account = scene.all_done(60 * SECOND).await;
    account.report("maxmemory reached", recovered, 10 * SECOND);
    let twice = account.repeated();
    assert!(
        twice.keys().all(|job| (jobs..jobs + 10).contains(job)),
        "{twice:?}"
    );
    for worker in workers {
        worker.terminate().await;
    }
}
