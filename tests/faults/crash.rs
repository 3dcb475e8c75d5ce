//! Workers that are killed or frozen.

use std::{collections::BTreeSet, future::Future};

use campanile::{Json, transport::Page};

use crate::{
    CLAIM, SECOND,
    ledger::{Account, Line, What, now},
    scaled,
    scene::Scene,
    support::Signal,
    worker::{Job, WorkerProcess},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_is_relieved_and_only_what_it_had_started_runs_twice() {
    let scene = Scene::new().await;
    let workers = scene.workers(3).await;
    let jobs = scaled(10_000, 100_000);
    scene.send_all("work", 0..jobs, 5).await;
    scene.finished(jobs as usize / 4, 60 * SECOND).await;

    let killed = workers[0].pid();
    freeze_in_mid_handler(&scene, &workers[0]).await;
    workers[0].signal(Signal::Kill);
    let at = now();
    let account = scene.all_done(120 * SECOND).await;

    let in_hand = account.in_hand(killed);
    assert!(!in_hand.is_empty(), "the worker was killed in mid-handler");
    let repeated: BTreeSet<_> = account.repeated().into_keys().collect();
    account.report(
        "kill -9 of one of 3 workers",
        account.claimed(&in_hand, killed, at),
        CLAIM,
    );
    assert_eq!(account.jobs(What::Finished).len(), jobs as usize);
    // The killed worker may have finished a job and not acknowledged it. A job that it had fetched
    // and not started is started once.
    let started = account.all(What::Started);
    let of_killed: BTreeSet<_> = started
        .filter(|line| line.pid == killed)
        .map(|line| line.job)
        .collect();
    assert!(
        repeated.is_subset(&of_killed),
        "{:?}",
        &repeated - &of_killed
    );
    assert!(repeated.len() <= scene.setup.max_in_flight);
    assert!(account.repeated().values().all(|starts| *starts == 2));
}

/// Freezes a worker while it runs a handler. Handlers of the same duration end together, so a
/// worker that is frozen at a random time may be running none.
async fn freeze_in_mid_handler(scene: &Scene, worker: &WorkerProcess) {
    loop {
        worker.signal(Signal::Stop);
        // Waits until the current line of the worker's log is written.
        tokio::time::sleep(SECOND / 50).await;
        let account = scene.ledger.read();
        if !account.in_hand(worker.pid()).is_empty() {
            return;
        }
        assert!(!account.lost().is_empty(), "some jobs are not finished yet");
        worker.signal(Signal::Cont);
        tokio::time::sleep(SECOND / 500).await;
    }
}

/// Starts a worker again after each crash, until `work` is done.
async fn supervised<T>(scene: &Scene, count: usize, work: impl Future<Output = T>) -> (T, usize) {
    let mut workers = scene.workers(count).await;
    let mut deaths = 0;
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return (done, deaths),
            () = tokio::time::sleep(SECOND / 20) => {}
        }
        for worker in &mut workers {
            if worker.ended().is_some() {
                deaths += 1;
                *worker = WorkerProcess::start(&scene.setup);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_kills_its_worker_becomes_a_dead_letter_and_no_other_does() {
    let mut scene = Scene::new().await;
    scene.setup.max_deliveries = 4;
    let innocents = scaled(300, 3_000);
    let poisons = scaled(2, 5);
    let work = async {
        let poisonous = 1_000_000..1_000_000 + poisons;
        scene.send_all("work", 0..innocents / 2, 50).await;
        // These messages are not recorded in the ledger, since they never finish.
        for n in poisonous {
            let poison = Json(Job { n, ms: 20 });
            scene
                .client()
                .enqueue("poison", poison)
                .await
                .expect("the message is sent");
        }
        scene.send_all("work", innocents / 2..innocents, 50).await;
        let at = now();
        let account = scene.all_done(120 * SECOND).await;
        (account, now() - at)
    };
    let ((account, took), deaths) = supervised(&scene, 2, work).await;
    // Each abort costs the time to start a worker and to claim the message.
    account.report(
        "a message that aborts its worker",
        took,
        scaled(60, 300) * SECOND,
    );
    let dead = scene.redis.dead_letters().list(Page::first(100)).await;
    let dead = dead.expect("the dead letters are listed").letters;
    let reasons: Vec<_> = dead.iter().map(|letter| letter.reason.as_str()).collect();
    assert_eq!(
        dead.len(),
        poisons as usize,
        "only poisonous messages are dead letters: {reasons:?}"
    );
    for letter in dead {
        let name = letter.fields.iter().find(|(field, _)| field == "name");
        assert_eq!(name.map(|(_, name)| &name[..]), Some(&b"poison"[..]));
        assert_eq!(letter.attempts, scene.setup.max_deliveries);
    }
    // At first, two poisonous messages may crash the same worker.
    assert!(deaths as u64 <= poisons * u64::from(scene.setup.max_deliveries));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_was_frozen_past_its_lease_takes_nothing_back() {
    let mut scene = Scene::new().await;
    scene.setup.max_in_flight = 8;
    let frozen = scene.workers(1).await.remove(0);
    // When the worker wakes, half of the handlers are still running. The timers of the others have
    // expired.
    scene.send_all("work", 0..4, 12_000).await;
    scene.send_all("work", 4..8, 3_000).await;
    let running = |account: &Account| account.jobs(What::Started).len() == 8;
    scene.until(20 * SECOND, running).await;
    let other = scene.workers(1).await;
    tokio::time::sleep(2 * SECOND).await;
    frozen.signal(Signal::Stop);
    let at = now();
    let all_again = |account: &Account| account.repeated().len() == 8;
    scene.until(30 * SECOND, all_again).await;
    frozen.signal(Signal::Cont);
    let woken = now();
    scene.send_all("work", 100..200, 1).await;
    let account = scene.all_done(60 * SECOND).await;

    let all = (0..8).collect();
    let recovered = account.claimed(&all, frozen.pid(), at);
    account.report("a worker frozen past its lease", recovered, CLAIM);
    let told: BTreeSet<_> = account.all(What::Told).map(|line| line.job).collect();
    assert!((0..4).all(|job| told.contains(&job)), "told: {told:?}");
    assert!(account.repeated().values().all(|starts| *starts == 2));
    let stolen = |line: &&Line| line.pid == frozen.pid() && line.at > woken && line.job < 8;
    assert_eq!(account.all(What::Started).filter(stolen).count(), 0);
    let dead = scene.redis.dead_letters().count().await;
    assert_eq!(dead.expect("the dead letters are counted"), 0);
    frozen.terminate().await;
    drop(other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_terminated_loses_nothing_repeats_nothing_and_holds_up_nobody() {
    let mut scene = Scene::new().await;
    // The lease is so long that none expires.
    scene.setup.lease = 60 * SECOND;
    let mut workers = scene.workers(2).await;
    let jobs = scaled(4_000, 40_000);
    scene.send_all("work", 0..jobs, 5).await;
    scene.finished(jobs as usize / 4, 60 * SECOND).await;
    let terminated = workers.remove(0);
    let pid = terminated.pid();
    let at = now();
    terminated.terminate().await;
    let took = now() - at;
    let account = scene.all_done(60 * SECOND).await;
    account.report("SIGTERM of one of 2 workers", took, 10 * SECOND);
    assert!(account.repeated().is_empty(), "{:?}", account.repeated());
    assert!(
        account.in_hand(pid).is_empty(),
        "every started job has finished"
    );
    assert_eq!(account.jobs(What::Finished).len(), jobs as usize);
    let names = scene.consumers().await;
    assert_eq!(names.len(), 1, "the consumer is deleted: {names:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_terminated_worker_had_not_started_is_with_another_in_under_a_second() {
    let mut scene = Scene::new().await;
    scene.setup.lease = 60 * SECOND;
    scene.setup.max_in_flight = 4;
    let busy = scene.workers(1).await.remove(0);
    // The worker runs four jobs, and more arrive while it shuts down.
    scene.send_all("work", 0..4, 1_500).await;
    scene
        .until(20 * SECOND, |account| {
            account.jobs(What::Started).len() == 4
        })
        .await;
    scene.send_all("work", 4..20, 10).await;
    let other = scene.workers(1).await;
    let pid = busy.pid();
    let at = now();
    busy.terminate().await;
    let account = scene.all_done(30 * SECOND).await;
    let by_other = account.all(What::Finished).filter(|line| line.pid != pid);
    let last = by_other
        .map(|line| line.at)
        .max()
        .expect("the other worker works");
    account.report("SIGTERM of a busy worker", last.saturating_sub(at), SECOND);
    assert!(account.repeated().is_empty(), "{:?}", account.repeated());
    drop(other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_arrived_for_a_frozen_worker_are_not_started_when_it_wakes() {
    let mut scene = Scene::new().await;
    scene.setup.lease = 2 * SECOND;
    let frozen = scene.workers(1).await.remove(0);
    // The worker must be frozen during a blocked read. A blocked read ends by itself after a short
    // time, so this may take several attempts.
    let mut job = 0;
    loop {
        tokio::time::sleep(SECOND / 2).await;
        frozen.signal(Signal::Stop);
        scene.send_all("work", job..job + 1, 1).await;
        if scene.left().await == 1 {
            break;
        }
        frozen.signal(Signal::Cont);
        scene.all_done(20 * SECOND).await;
        job += 1;
        assert!(job < 20, "no read of the frozen worker brought anything");
    }
    let at = now();
    let other = scene.workers(1).await;
    scene.all_done(30 * SECOND).await;
    frozen.signal(Signal::Cont);
    tokio::time::sleep(2 * SECOND).await;
    let account = scene.ledger.read();
    // The lease is one second longer than in `CLAIM`, and the other worker has to start.
    account.report(
        "a worker frozen in its read",
        account.went_on(at),
        CLAIM + 5 * SECOND,
    );
    assert!(account.repeated().is_empty(), "{:?}", account.repeated());
    frozen.terminate().await;
    drop(other);
}
