//! Workers that own partitions, and are killed, frozen and terminated: order by key holds over all of
//! them.

use std::{collections::BTreeMap, time::Duration};

use campanile::{Client, Json};
use futures_util::future::join_all;
use tokio::time::sleep;

use crate::{
    SECOND,
    ledger::{Account, Line, What, now},
    scaled,
    scene::Scene,
    support::{Signal, raw::eventually},
    worker::{Job, WorkerProcess},
};

const PARTITIONS: usize = 8;
const KEYS: u64 = 40;

/// The longest time until all partitions of a dead worker are owned again: its lease of 1 s, two
/// heartbeats, and slack for a loaded machine.
const OWNED: Duration = Duration::from_secs(10);

async fn scene() -> Scene {
    let mut scene = Scene::new().await;
    scene.setup.partitions = Some(PARTITIONS);
    scene.redis = scene.setup.redis().await;
    scene
}

/// Starts a worker, and waits until it is a member of the group.
async fn worker(scene: &Scene) -> WorkerProcess {
    let worker = WorkerProcess::start(&scene.setup);
    // The name of a member contains its process.
    let process = format!("-{}-", worker.pid());
    let joined = || async {
        let members = ["HKEYS", "{jobs}:members:workers"];
        let members: Vec<String> = scene.server.query(&members).await;
        members
            .iter()
            .any(|member| member.contains(&process))
            .then_some(())
    };
    eventually(joined, 30 * SECOND).await;
    worker
}

/// Sends jobs in order. The key of a job is its number's remainder.
async fn send(scene: &Scene, jobs: std::ops::Range<u64>) {
    let client = Client::new(scene.redis.clone());
    for first in jobs.clone().step_by(KEYS as usize) {
        let jobs = first..(first + KEYS).min(jobs.end);
        let sent = jobs.clone().map(|n| {
            let call = client.enqueue("work", Json(Job { n, ms: 2 }));
            call.partition_key(format!("key-{}", n % KEYS))
                .into_future()
        });
        for (n, sent) in jobs.zip(join_all(sent).await) {
            sent.expect("the server takes it");
            scene.ledger.write(What::Sent, n, 0);
        }
    }
}

/// Waits until all jobs are finished and settled.
async fn all_done(scene: &Scene, limit: Duration) -> Account {
    scene
        .until(limit, |account| account.lost().is_empty())
        .await;
    let settled = || async {
        for partition in 0..PARTITIONS {
            let stream = format!("jobs:{partition}");
            if crate::support::raw::pending(&scene.server, &stream, "workers").await > 0 {
                return None;
            }
        }
        Some(())
    };
    eventually(settled, limit).await;
    scene.ledger.read()
}

/// Asserts that no job was started before the one before it with its key was finished, by the lines
/// that count.
fn assert_in_order(account: &Account, counts: impl Fn(&Line) -> bool) {
    let mut finished = BTreeMap::<u64, Duration>::new();
    for line in account.all(What::Finished).filter(|line| counts(line)) {
        finished.entry(line.job).or_insert(line.at);
    }
    for line in account.all(What::Started).filter(|line| counts(line)) {
        let Some(before) = line.job.checked_sub(KEYS) else {
            continue;
        };
        let before = finished.get(&before);
        assert!(
            before.is_some_and(|before| *before <= line.at),
            "{line:?} was started before the job before it was finished, at {before:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_terminated_owners_keep_the_order_of_every_key() {
    let scene = scene().await;
    let mut workers = vec![
        worker(&scene).await,
        worker(&scene).await,
        worker(&scene).await,
    ];
    let rounds = scaled(4, 20);
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        let jobs = round * 2_000..(round + 1) * 2_000;
        send(&scene, jobs.clone()).await;
        let done = jobs.start as usize + 300;
        scene.finished(done, 60 * SECOND).await;
        let ended = workers.remove(0);
        let at = now();
        match round % 2 {
            0 => ended.signal(Signal::Kill),
            _ => ended.terminate().await,
        }
        workers.push(worker(&scene).await);
        let account = all_done(&scene, 60 * SECOND).await;
        let last = account.all(What::Finished).map(|line| line.at).max();
        slowest = slowest.max(last.unwrap_or(at).saturating_sub(at));
    }
    let account = scene.ledger.read();
    account.report("owners killed and terminated in turn", slowest, 6 * OWNED);
    assert_in_order(&account, |_| true);
    // Jobs that a killed owner had started and not settled run again.
    let most = scene.setup.max_in_flight * rounds as usize;
    assert!(account.repeated().len() <= most, "{:?}", account.repeated());
    for worker in workers {
        worker.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_stalls_past_its_lease_overlaps_only_with_what_it_had_in_hand() {
    let scene = scene().await;
    let workers = [worker(&scene).await, worker(&scene).await];
    send(&scene, 0..4_000).await;
    scene.finished(400, 60 * SECOND).await;
    let (stalled, stopped) = (workers[0].pid(), now());
    workers[0].signal(Signal::Stop);
    sleep(4 * SECOND).await;
    let account = scene.ledger.read();
    let by_others = account
        .all(What::Started)
        .filter(|line| line.pid != stalled);
    let taken_over = by_others
        .filter(|line| line.at > stopped)
        .map(|line| line.at)
        .max();
    assert!(taken_over.is_some(), "the other worker goes on");
    let continued = now();
    workers[0].signal(Signal::Cont);
    let account = all_done(&scene, 60 * SECOND).await;
    account.report("an owner frozen for four leases", Duration::ZERO, OWNED);
    // The frozen owner may finish the jobs that it had in hand when it wakes up.
    let is_late = |line: &&Line| line.pid == stalled && line.at > continued;
    let also_elsewhere = |line: &&Line| {
        let mut others = account.all(What::Started);
        others.any(|other| other.job == line.job && other.pid != stalled && other.at < line.at)
    };
    let overlapping = account
        .all(What::Finished)
        .filter(is_late)
        .filter(also_elsewhere);
    let overlapping: Vec<_> = overlapping.map(|line| line.job).collect();
    println!("overlapping runs: {}", overlapping.len());
    assert!(
        overlapping.len() <= scene.setup.max_in_flight,
        "{overlapping:?}"
    );
    assert_in_order(&account, |line| {
        !overlapping.contains(&line.job) || line.pid != stalled
    });
    for worker in workers {
        worker.terminate().await;
    }
}
