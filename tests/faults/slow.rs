//! Handlers that take longer than the lease. The lease is renewed, so no job runs twice.

use std::time::Duration;

use crate::{
    SECOND,
    ledger::{Line, What},
    scaled,
    scene::Scene,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_slower_than_its_lease_and_what_waits_behind_it_run_once() {
    let mut scene = Scene::new().await;
    scene.setup.one_at_a_time = true;
    scene.setup.max_in_flight = 2;
    let workers = scene.workers(2).await;
    // Each worker gets two jobs: one runs for three leases, and the other waits for it.
    let jobs = scaled(6, 30);
    scene.send_all("work", 0..jobs, 3_000).await;
    let account = scene.all_done(120 * SECOND).await;
    let at_once = |line: &&Line| line.attempt == 1;
    account.report(
        "handlers slower than the lease, others behind",
        Duration::ZERO,
        Duration::ZERO,
    );
    assert!(account.repeated().is_empty(), "{:?}", account.repeated());
    assert_eq!(
        account.all(What::Started).filter(at_once).count(),
        jobs as usize
    );
    drop(workers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_that_block_every_thread_for_longer_than_the_lease_run_once() {
    let mut scene = Scene::new().await;
    scene.setup.max_in_flight = 3;
    let blocked = scene.workers(1).await;
    // The worker has two threads and three jobs. The third job waits for a thread, and so do the
    // acknowledgements.
    let jobs = scaled(3, 12);
    scene.send_all("block", 0..jobs, 3_000).await;
    let running = |account: &crate::ledger::Account| account.jobs(What::Started).len() >= 2;
    scene.until(20 * SECOND, running).await;
    // An idle worker, which would claim any expired delivery.
    let idle = scene.workers(1).await;
    let account = scene.all_done(120 * SECOND).await;
    account.report(
        "handlers that block their threads",
        Duration::ZERO,
        Duration::ZERO,
    );
    assert!(account.repeated().is_empty(), "{:?}", account.repeated());
    drop((blocked, idle));
}
