//! A server that does not respond, and a network that delivers nothing, for longer than every lease
//! and every deadline. A stall is not a crash, so no running delivery may be claimed.

use std::time::Duration;

use tokio::time::sleep;

use crate::{
    RECONNECT, SECOND,
    ledger::{Account, What, now},
    scaled,
    scene::Scene,
    support::{
        Signal,
        proxy::{Direction, Proxy},
    },
};

/// The length of a stall: longer than the lease of 1 s, and than the 5 s for which a connection may
/// be silent.
fn stall() -> Duration {
    scaled(7, 25) * SECOND
}

/// Lets two workers run jobs that outlast the fault, and asserts that it only delays them.
async fn outlasts(scene: &Scene, fault: &str, make: impl AsyncFnOnce(), end: impl AsyncFnOnce()) {
    let workers = scene.workers(2).await;
    let long = (stall() + 4 * SECOND).as_millis() as u64;
    scene.send_all("work", 0..12, long).await;
    scene.send_all("work", 12..16, 1).await;
    let running = |account: &Account| account.jobs(What::Started).len() == 16;
    scene.until(20 * SECOND, running).await;
    // A worker claims only after it was healthy for a whole lease.
    sleep(2 * SECOND).await;

    make().await;
    sleep(stall()).await;
    end().await;
    let ended = now();
    scene.send_all("work", 100..200, 1).await;
    let account = scene.all_done(60 * SECOND).await;
    let new = account.all(What::Finished).filter(|line| line.job >= 100);
    let recovered = new.map(|line| line.at).min().unwrap_or(ended) - ended;
    account.report(fault, recovered, RECONNECT);
    assert!(account.repeated().is_empty(), "{:?}", account.repeated());
    assert_eq!(account.all(What::Told).count(), 0, "no lease was lost");
    for worker in workers {
        worker.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_frozen_costs_time_and_nothing_else() {
    let scene = Scene::new().await;
    outlasts(
        &scene,
        "SIGSTOP of Redis",
        async || scene.server.signal(Signal::Stop),
        async || scene.server.signal(Signal::Cont),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_paused_costs_time_and_nothing_else() {
    let scene = Scene::new().await;
    let pause = stall().as_millis().to_string();
    let make = async || {
        let command = ["CLIENT", "PAUSE", &pause, "ALL"];
        scene.server.command(&command).await;
    };
    outlasts(&scene, "CLIENT PAUSE", make, async || {}).await;
}

async fn outlasts_silence(direction: Direction) {
    let mut scene = Scene::new().await;
    let proxy = Proxy::start(scene.server.port()).await;
    scene.setup.url = proxy.url();
    outlasts(
        &scene,
        &format!("silent network, {direction:?}"),
        async || proxy.silence(direction),
        async || proxy.heal(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_takes_no_commands_costs_time_and_nothing_else() {
    outlasts_silence(Direction::ToServer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_brings_no_answers_costs_time_and_nothing_else() {
    outlasts_silence(Direction::ToClient).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_dead_and_not_closed_are_replaced_within_the_lease() {
    let mut scene = Scene::new().await;
    scene.setup.lease = scaled(3, 10) * SECOND;
    let proxy = Proxy::start(scene.server.port()).await;
    let direct = scene.setup.url.clone();
    scene.setup.url = proxy.url();
    let cut_off = scene.workers(1).await;
    let long = (4 * scene.setup.lease).as_millis() as u64;
    scene.send_all("work", 0..12, long).await;
    let running = |account: &Account| account.jobs(What::Started).len() == 12;
    scene.until(20 * SECOND, running).await;
    // A worker that would claim any expired delivery.
    scene.setup.url = direct;
    let healthy = scene.workers(1).await;
    sleep(scene.setup.lease + SECOND).await;
    proxy.silence(Direction::ToServer);
    // The silence is long enough to affect every connection.
    sleep(SECOND / 5).await;
    proxy.heal();
    let account = scene.all_done(60 * SECOND).await;
    account.report(
        "connections dead and not closed, beside a rival",
        Duration::ZERO,
        Duration::ZERO,
    );
    assert!(account.repeated().is_empty(), "{:?}", account.repeated());
    drop((cut_off, healthy));
}
