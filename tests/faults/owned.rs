//! Workers that own partitions, and are killed, frozen, terminated and cut off: order by key holds
//! over all of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use campanile::{Client, Json};
use futures_util::future::join_all;
use tokio::{sync::watch, time::sleep};

use crate::{
    RECONNECT, SECOND,
    ledger::{Account, What, now},
    scaled,
    scene::Scene,
    support::{
        Signal,
        proxy::{Direction, Proxy},
        raw::eventually,
    },
    worker::{Job, Setup, WorkerProcess},
};

const PARTITIONS: usize = 8;
const KEYS: u64 = 40;

/// The longest time in which no job of a key finishes when its owner is lost: the owner's lease of
/// 1 s, two heartbeats, what the owner had in hand, and slack for a loaded machine.
const OWNED: Duration = Duration::from_secs(10);

async fn scene() -> Scene {
    let mut scene = Scene::new().await;
    scene.setup.partitions = Some(PARTITIONS);
    scene.redis = scene.setup.redis().await;
    scene
}

/// Starts a worker, and waits until it is a member of the group.
async fn worker(scene: &Scene) -> WorkerProcess {
    worker_at(scene, scene.setup.url.clone()).await
}

/// Like [`worker`], with the server at this URL.
async fn worker_at(scene: &Scene, url: String) -> WorkerProcess {
    let setup = Setup {
        url,
        ..scene.setup.clone()
    };
    let worker = WorkerProcess::start(&setup);
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
    send_as(scene, "work", jobs, |_| 2).await;
}

/// Like [`send`], with this name and a duration for each job, in milliseconds.
async fn send_as(scene: &Scene, name: &str, jobs: std::ops::Range<u64>, ms: impl Fn(u64) -> u64) {
    let client = Client::new(scene.redis.clone());
    for first in jobs.clone().step_by(KEYS as usize) {
        let jobs = first..(first + KEYS).min(jobs.end);
        let sent = jobs.clone().map(|n| {
            let call = client.enqueue(name.to_owned(), Json(Job { n, ms: ms(n) }));
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_terminated_owners_keep_the_order_of_every_key() {
    let scene = scene().await;
    let mut workers = vec![
        worker(&scene).await,
        worker(&scene).await,
        worker(&scene).await,
    ];
    let rounds = scaled(4, 20);
    let mut slowest = [Duration::ZERO; 2];
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
        let paused = account.longest_pause_of_a_key(KEYS, |job| jobs.contains(&job), at..now());
        let slowest = &mut slowest[round as usize % 2];
        *slowest = paused.max(*slowest);
    }
    let account = scene.ledger.read();
    let [killed, terminated] = slowest;
    println!("longest pause of a key: killed {killed:.2?}, terminated {terminated:.2?}");
    let slowest = killed.max(terminated);
    account.report("owners killed and terminated in turn", slowest, OWNED);
    assert_eq!(account.lost(), Default::default());
    account.assert_in_order(KEYS, |_| true);
    // Jobs that a killed owner had started and not settled run again.
    let most = scene.setup.max_in_flight * rounds.div_ceil(2) as usize;
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
    let in_hand = scene.ledger.read().in_hand(stalled);
    sleep(4 * SECOND).await;
    // The other worker has taken over and finishes all.
    scene
        .until(60 * SECOND, |account| account.lost().is_empty())
        .await;
    workers[0].signal(Signal::Cont);
    let account = all_done(&scene, 60 * SECOND).await;
    let paused = account.longest_pause_of_a_key(KEYS, |_| true, stopped..now());
    account.report("an owner frozen for four leases", paused, OWNED);
    assert_eq!(account.lost(), Default::default());
    for worker in workers {
        worker.terminate().await;
    }
    // The frozen owner may finish the jobs that it had in hand when it wakes up.
    let account = scene.ledger.read();
    let overlapping = account.overlapping(stalled);
    let lost_leases = scene.setup.lost_leases(stalled);
    println!(
        "overlapping runs: {}, lost leases: {lost_leases}",
        overlapping.len()
    );
    assert!(
        overlapping.is_subset(&in_hand),
        "{overlapping:?} of {in_hand:?}"
    );
    assert!(in_hand.len() <= scene.setup.max_in_flight, "{in_hand:?}");
    assert!(
        overlapping.len() <= lost_leases,
        "each overlap is a lost lease"
    );
    account.assert_in_order(KEYS, |line| {
        !overlapping.contains(&line.job) || line.pid != stalled
    });
}

/// A way to cut a worker off from the server.
#[derive(Debug, Clone, Copy)]
enum Cut {
    /// The server receives no commands of the worker. The connections stay open.
    CommandsLost,
    /// The server runs the worker's commands, and the worker receives no responses.
    ResponsesLost,
    /// The worker's connections are closed, and it can open no others.
    Closed,
}

/// The number of keys that have a long job when their owner is cut off.
const LONG_KEYS: u64 = KEYS / 2;
/// The duration of the long jobs.
const LONG: Duration = Duration::from_secs(6);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_whose_commands_are_lost_past_its_lease_changes_nothing_afterwards() {
    owner_is_cut_off(Cut::CommandsLost, "an owner whose commands are lost").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_whose_responses_are_lost_past_its_lease_changes_nothing_afterwards() {
    owner_is_cut_off(Cut::ResponsesLost, "an owner whose responses are lost").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_whose_connections_are_closed_past_its_lease_changes_nothing_afterwards() {
    owner_is_cut_off(Cut::Closed, "an owner whose connections are closed").await;
}

/// Cuts one of three owners off for more than four leases, under load, and lets it come back.
async fn owner_is_cut_off(cut: Cut, fault: &str) {
    let scene = scene().await;
    let proxy = Proxy::start(scene.server.port()).await;
    let workers = [
        worker_at(&scene, proxy.url()).await,
        worker(&scene).await,
        worker(&scene).await,
    ];
    let former = workers[0].pid();
    // The load goes on until the owner is back. In one round some keys have a long job, and they get
    // no further jobs until the end: these would wait, and hold up their partitions.
    let (phase, mut phases) = watch::channel(Phase::Before);
    let load = async {
        for round in 0.. {
            let phase = *phases.borrow_and_update();
            let first = match phase {
                Phase::CutOff => LONG_KEYS,
                Phase::Before | Phase::Long | Phase::Back => 0,
            };
            let ms = |n| match phase == Phase::Long && n % KEYS < LONG_KEYS {
                true => LONG.as_millis() as u64,
                false => 20,
            };
            send_as(&scene, "once", round * KEYS + first..(round + 1) * KEYS, ms).await;
            match phase {
                Phase::Before | Phase::CutOff => sleep(SECOND / 10).await,
                Phase::Long => phases.changed().await.expect("it goes on"),
                Phase::Back => return,
            }
        }
    };
    let disturb = async {
        scene.finished(400, 60 * SECOND).await;
        // Jobs that are still in hand after this time are long.
        phase.send_replace(Phase::Long);
        let until = now() + 60 * SECOND;
        let mut in_hand = BTreeSet::new();
        while in_hand.is_empty() {
            let before = scene.ledger.read().in_hand(former);
            sleep(SECOND / 2).await;
            in_hand = &before & &scene.ledger.read().in_hand(former);
            assert!(now() < until, "the owner has no long job");
        }
        let at = now();
        match cut {
            Cut::CommandsLost => proxy.silence(Direction::ToServer),
            Cut::ResponsesLost => proxy.silence(Direction::ToClient),
            Cut::Closed => proxy.cut_off(Ipv4Addr::LOCALHOST),
        }
        phase.send_replace(Phase::CutOff);
        sleep(SECOND * 9 / 2).await;
        let healed = now();
        proxy.heal();
        // The owner settles what it has, and has a share of the partitions again.
        let is_back = |account: &Account| {
            let mut started = account.all(What::Started);
            started.any(|line| line.pid == former && line.at > healed)
        };
        scene.until(60 * SECOND, is_back).await;
        phase.send_replace(Phase::Back);
        (at, healed, in_hand)
    };
    let ((), (at, healed, in_hand)) = tokio::join!(load, disturb);
    all_done(&scene, 60 * SECOND).await;
    for worker in workers {
        worker.terminate().await;
    }
    let account = scene.ledger.read();
    let paused = |times| account.longest_pause_of_a_key(KEYS, |job| job % KEYS >= LONG_KEYS, times);
    account.report(fault, paused(at..healed), OWNED);
    // A returning owner may still wait for the answers of a connection that has gone silent.
    let at_return = paused(healed..now());
    assert!(at_return <= RECONNECT, "{at_return:?}");
    assert_eq!(account.lost(), Default::default());

    let overlapping = account.overlapping(former);
    let lost_leases = scene.setup.lost_leases(former);
    let back = account
        .all(What::Started)
        .find(|line| line.pid == former && line.at > healed);
    let back = back.expect("it was waited for").at - healed;
    println!(
        "overlapping runs: {}, in hand: {}, lost leases: {lost_leases}, back after {back:.2?}, \
         pause at the return: {at_return:.2?}",
        overlapping.len(),
        in_hand.len(),
    );
    assert!(
        !overlapping.is_empty(),
        "the long jobs go on without their leases"
    );
    assert!(
        overlapping.len() <= scene.setup.max_in_flight,
        "{overlapping:?}"
    );
    assert!(
        overlapping.len() <= lost_leases,
        "each overlap is a lost lease"
    );
    // The owner gives up before the others count it as dead.
    let first = |what, is_former: bool, job| {
        let mut lines = account.all(what);
        let line = lines.find(|line| line.job == job && (line.pid == former) == is_former);
        line.map(|line| line.at)
    };
    for job in &overlapping {
        let told = first(What::Told, true, *job).expect("the former owner is told");
        let elsewhere = first(What::Started, false, *job).expect("it overlaps");
        assert!(told <= elsewhere + NOTED, "{job}: {told:?}, {elsewhere:?}");
    }
    account.assert_in_order(KEYS, |line| {
        !overlapping.contains(&line.job) || line.pid != former
    });
    // The follow-ups are stored with the verdicts that take effect: one for each job, in order.
    let mut effects = BTreeMap::<u64, Vec<u64>>::new();
    for job in scene.follow_ups().await {
        effects.entry(job % KEYS).or_default().push(job);
    }
    let mut sent = BTreeMap::<u64, Vec<u64>>::new();
    for job in account.jobs(What::Sent) {
        sent.entry(job % KEYS).or_default().push(job);
    }
    assert_eq!(effects, sent);
}

/// The longest time from the loss of a lease to the line that the handler then writes. The operating
/// system may run other processes in between.
const NOTED: Duration = Duration::from_millis(250);

/// The phases of the load on an owner that is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Before,
    Long,
    CutOff,
    Back,
}
