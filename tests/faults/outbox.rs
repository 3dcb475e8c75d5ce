//! Follow-ups while workers are killed and frozen, and the server is restarted: each is stored exactly
//! once.

use std::collections::BTreeSet;

use crate::{
    CLAIM, SECOND,
    ledger::{What, now},
    scaled,
    scene::Scene,
    support::{Options, Signal, raw},
    worker::WorkerProcess,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_follow_up_is_stored_exactly_once_whatever_happens_to_workers_and_server() {
    let scene = Scene::with(Options::new().persistent()).await;
    let mut workers = scene.workers(3).await;
    let jobs = scaled(6_000, 100_000);
    // Long enough that the workers have a backlog, and running tasks, at each disturbance.
    let send = scene.send_all("chain", 0..jobs, 200);
    let disturb = async {
        let mut last = now();
        for round in 1..=6 {
            let finished = jobs as usize * round / 8;
            scene.finished(finished, 300 * SECOND).await;
            last = now();
            match round % 3 {
                0 => scene.server.restart().await,
                1 => drop(workers.remove(0)),
                // Frozen for longer than its lease, so that its verdicts come too late.
                _ => {
                    workers[0].signal(Signal::Stop);
                    tokio::time::sleep(3 * SECOND).await;
                    workers[0].signal(Signal::Cont);
                }
            }
            if workers.len() < 3 {
                workers.push(WorkerProcess::start(&scene.setup));
            }
        }
        last
    };
    let ((), last) = tokio::join!(send, disturb);
    let account = scene.all_done(300 * SECOND).await;
    account.report("follow-ups, under kills", account.went_on(last), CLAIM);

    let stored = scene.follow_ups().await;
    let distinct: BTreeSet<_> = stored.iter().copied().collect();
    assert_eq!(distinct.len() as u64, jobs, "a follow-up was lost");
    assert_eq!(stored.len() as u64, jobs, "a follow-up was stored twice");
    let count: u64 = scene.server.query(&["GET", "{jobs}:value:count"]).await;
    assert_eq!(count, jobs, "a task was counted twice, or not");
    let repeated = account.repeated().len();
    assert!(
        repeated > 0,
        "no task was started twice, so nothing was tested"
    );
    println!(
        "outbox: {jobs} tasks, {repeated} started more than once, {} follow-ups, counter {count}",
        stored.len()
    );
    assert_eq!(account.jobs(What::Finished).len() as u64, jobs);
    assert_eq!(raw::len(&scene.server, "{jobs}:dead:workers").await, 0);
}
