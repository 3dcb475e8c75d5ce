//! Two groups on one stream.

use crate::{
    SECOND,
    ledger::{Ledger, What, now},
    scaled,
    scene::Scene,
    support::raw,
    worker::WorkerProcess,
};

/// The number of entries that a stream may have beyond the slowest group's backlog. These are the
/// entries handled since the last trim, about a second ago. They are also those that Redis stores
/// in one node with an entry that is still needed.
const SLACK: usize = 40_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_group_bounds_the_stream_and_its_failures_are_its_own() {
    let mut scene = Scene::new().await;
    scene.setup.beside_others = true;
    scene.setup.max_in_flight = 256;
    scene.setup.lease = 10 * SECOND;
    let fast = scene.workers(1).await;
    let mut slow = scene.setup.clone();
    slow.group = "slow".to_owned();
    slow.ledger = scene.server.dir().join("ledger-of-the-slow");
    slow.max_in_flight = 64;
    let slow_ledger = Ledger::open(&slow.ledger);
    let behind = WorkerProcess::start(&slow);
    let joined = || async { scene.groups().await.get("slow").copied() };
    raw::eventually(joined, 30 * SECOND).await;

    let (jobs, flaky) = (scaled(100_000, 1_000_000), scaled(500, 5_000));
    let at = now();
    let mut most_beyond = 0;
    for first in (0..jobs).step_by(5_000) {
        scene.send_all("work", first..first + 5_000, 0).await;
        // The backlog is read before the length. Jobs that are handled in between only make the
        // bound looser.
        let backlog = scene.groups().await.into_values().max().unwrap_or(0);
        let length = raw::len(&scene.server, "jobs").await;
        most_beyond = most_beyond.max(length.saturating_sub(backlog));
    }
    scene.send_all("flaky", jobs..jobs + flaky, 1).await;
    let both = || async {
        let fast = raw::drained(&scene.server, "jobs", "workers").await && scene.left().await == 0;
        let slow = raw::drained(&scene.server, "jobs", "slow").await;
        (fast && slow).then_some(())
    };
    raw::eventually(both, scaled(120, 1_200) * SECOND).await;
    let all = (jobs + flaky) as usize;
    let finished =
        || async { (slow_ledger.read().jobs(What::Finished).len() == all).then_some(()) };
    raw::eventually(finished, 60 * SECOND).await;
    let account = scene.all_done(60 * SECOND).await;
    account.report(
        "two groups, the fast one",
        now() - at,
        scaled(120, 1_200) * SECOND,
    );

    assert_eq!(account.jobs(What::Finished).len(), all);
    for ledger in [&account, &slow_ledger.read()] {
        // A flaky job starts twice in each group, independently.
        assert_eq!(ledger.all(What::Started).count(), all + flaky as usize);
        assert!(ledger.all(What::Finished).all(|line| line.attempt <= 2));
    }
    assert!(
        most_beyond <= SLACK,
        "{most_beyond} entries more than are needed"
    );
    let trimmed = || async { (raw::len(&scene.server, "jobs").await <= 200).then_some(()) };
    raw::eventually(trimmed, 20 * SECOND).await;
    drop((fast, behind));
}
