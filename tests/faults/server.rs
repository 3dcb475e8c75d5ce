//! A server that loses its data, or only its process.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use crate::{
    RECONNECT, SECOND,
    ledger::{Account, What, now},
    scaled,
    scene::Scene,
    support::{Options, Signal},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_twice_under_load_loses_nothing_that_it_took() {
    let scene = Arc::new(Scene::with(Options::new().persistent()).await);
    let workers = scene.workers(2).await;
    let jobs = scaled(10_000, 100_000);
    let sender = tokio::spawn({
        let scene = scene.clone();
        async move {
            for first in (0..jobs).step_by(100) {
                scene.send("work", first..first + 100, 2).await;
                // The sends are spread over time, so that the server is killed during a send.
                let enough = (first as usize).saturating_sub(500);
                let worked = |account: &Account| account.jobs(What::Finished).len() >= enough;
                scene.until(120 * SECOND, worked).await;
            }
        }
    });
    let mut recovered = Duration::ZERO;
    for third in 1..=2 {
        scene
            .finished(jobs as usize * third / 3, 120 * SECOND)
            .await;
        scene.server.signal(Signal::Kill);
        tokio::time::sleep(SECOND / 5).await;
        scene.server.restart().await;
        let at = now();
        let went_on = scene.until(30 * SECOND, |account| account.is_later(What::Finished, at));
        recovered = recovered.max(went_on.await.went_on(at));
    }
    sender.await.expect("all is sent");
    let account = scene.all_done(120 * SECOND).await;
    account.report("Redis killed twice, AOF always", recovered, RECONNECT);
    // A send may have an unknown outcome, but each job was sent once. A job whose acknowledgement
    // was lost runs again.
    let taken = account.jobs(What::Sent).len() + account.jobs(What::Unsure).len();
    assert!(account.jobs(What::Finished).len() <= taken);
    assert!(account.jobs(What::Sent).len() > jobs as usize / 2);
    for worker in workers {
        worker.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_carry_on_with_what_comes_after_a_flush_and_after_an_empty_restart() {
    let scene = Scene::new().await;
    let workers = scene.workers(2).await;
    let mut sent = 0;
    let mut recovered = Duration::ZERO;
    for flush in [true, false] {
        // Some of these jobs run when the server is emptied. Their verdicts have no effect.
        scene.send_all("work", sent..sent + 32, 500).await;
        let started = sent as usize + 16;
        scene
            .until(20 * SECOND, |account| {
                account.jobs(What::Started).len() >= started
            })
            .await;
        match flush {
            true => drop(scene.server.command(&["FLUSHALL"]).await),
            false => scene.server.restart().await,
        }
        let at = now();
        let after: BTreeSet<_> = (sent + 32..sent + 132).collect();
        scene.send_all("work", sent + 32..sent + 132, 1).await;
        let account = scene
            .until(30 * SECOND, |account| {
                account.jobs(What::Finished).is_superset(&after)
            })
            .await;
        let new = account
            .all(What::Finished)
            .filter(|line| after.contains(&line.job));
        recovered = recovered.max(new.map(|line| line.at).min().expect("a hundred") - at);
        assert!(account.repeated().keys().all(|job| !after.contains(job)));
        sent += 132;
    }
    let account = scene.ledger.read();
    // Only the jobs that were on the server are lost.
    let gone: BTreeSet<_> = (0..32).chain(132..164).collect();
    assert!(account.lost().is_subset(&gone), "{:?}", account.lost());
    account.report("Redis emptied twice, each time of 32", recovered, RECONNECT);
    for worker in workers {
        worker.terminate().await;
    }
}
