//! A worker process that gets two signals to stop.

use std::{fs, time::Instant};

use tokio::time::sleep;

use crate::{
    SECOND,
    ledger::What,
    scene::Scene,
    support::Signal,
    worker::{FORCED, WorkerProcess},
};

/// A worker that runs this many handlers, each for `ms`.
async fn busy(scene: &Scene, handlers: u64, ms: u64) -> WorkerProcess {
    let worker = scene.workers(1).await.remove(0);
    scene.send_all("work", 0..handlers, ms).await;
    let all =
        |account: &crate::ledger::Account| account.jobs(What::Started).len() == handlers as usize;
    scene.until(20 * SECOND, all).await;
    worker
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_signals_at_nearly_the_same_time_are_one_and_drop_no_handler() {
    let scene = Scene::new().await;
    let mut worker = busy(&scene, 3, 3_000).await;
    worker.signal(Signal::Int);
    sleep(SECOND / 20).await;
    worker.signal(Signal::Term);
    let status = worker.end(20 * SECOND).await;
    assert!(status.success(), "{status}");
    let account = scene.ledger.read();
    assert_eq!(account.all(What::Started).count(), 3, "each job ran once");
    assert_eq!(account.jobs(What::Finished).len(), 3);
    assert_eq!(scene.left().await, 0, "all is settled");
    assert!(
        scene.consumers().await.is_empty(),
        "the consumer is deleted"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_after_more_than_a_second_ends_a_worker_that_says_what_it_dropped() {
    let scene = Scene::new().await;
    let mut worker = busy(&scene, 3, 8_000).await;
    worker.signal(Signal::Int);
    sleep(SECOND + SECOND / 2).await;
    assert_eq!(worker.ended(), None);
    worker.signal(Signal::Term);
    let forced = Instant::now();
    let status = worker.end(10 * SECOND).await;
    assert!(forced.elapsed() < 2 * SECOND, "{:?}", forced.elapsed());
    let log = fs::read_to_string(&scene.setup.log).expect("the worker's log");
    assert_eq!(status.code(), Some(FORCED), "{status}: {log}");
    let said = log.lines().find(|line| line.starts_with("serve ended:"));
    let said = said.expect("the error is in the log");
    assert!(said.contains("dropped running handlers (3)"), "{said}");
    assert!(scene.ledger.read().jobs(What::Finished).is_empty());
    // Another worker claims the dropped jobs when their leases end.
    let other = scene.workers(1).await.remove(0);
    let account = scene.all_done(40 * SECOND).await;
    assert_eq!(account.all(What::Started).count(), 6, "each job ran again");
    other.terminate().await;
}
