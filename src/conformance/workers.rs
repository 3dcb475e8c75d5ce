//! Checks of several workers: sharing, leaving, crashing and claiming.

use std::{collections::HashSet, time::Duration};

use tokio::time::sleep;

use super::{
    Factory,
    scene::{
        LEASE, QUIET, Scene, assert_same, attempt, done, id, in_time, message, must, send, settle,
    },
};
use crate::{message::Message, transport::Verdict};

/// Checks that messages arrive in the order in which they were sent, if a worker settles each
/// delivery before it fetches the next.
pub async fn one_in_flight_keeps_the_order<F: Factory>(factory: &F) {
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let mut worker = scene.worker().await;
    for number in 0..100 {
        send(&handle, Message::task("task", number.to_string())).await;
    }
    for number in 0..100 {
        let delivery = worker.one().await;
        assert_eq!(message(&delivery).payload(), &number.to_string());
        done(delivery).await;
    }
    worker.close().await;
}

/// Checks that a worker fetches at most the requested number of deliveries. Other workers can fetch
/// the other messages immediately.
pub async fn a_worker_fetches_only_what_it_asked_for<F: Factory>(factory: &F) {
    let scene = Scene::new(factory);
    let mut one = scene.worker().await;
    let mut other = scene.worker().await;
    for number in 0..10 {
        scene.send_task(number.to_string()).await;
    }
    let mut held = one.exactly(2).await;
    held.extend(other.exactly(8).await);
    let ids: HashSet<_> = held.iter().map(|delivery| id(delivery).clone()).collect();
    assert_eq!(ids.len(), 10, "a message was delivered twice");
    for delivery in held {
        done(delivery).await;
    }
    one.close().await;
    other.close().await;
}

/// Checks that no message is lost or repeated if futures of `next` are dropped at any moment.
pub async fn next_can_be_dropped_without_loss<F: Factory>(factory: &F) {
    const MESSAGES: usize = 200;
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let mut worker = scene.worker().await;
    let sender = tokio::spawn(async move {
        let mut receipts = Vec::new();
        for number in 0..MESSAGES {
            receipts.push(send(&handle, Message::task("task", number.to_string())).await);
            if number % 3 == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        }
        receipts
    });
    let mut got = Vec::new();
    let mut tries = 0_u64;
    while got.len() < MESSAGES && tries < 20_000 {
        tries += 1;
        let wait = Duration::from_micros(tries % 8 * 300);
        if let Some(delivery) = worker.within(wait).await {
            got.push(id(&delivery).clone());
            done(delivery).await;
        }
    }
    let receipts = sender.await.expect("sending does not panic");
    assert_same(got, receipts);
    worker.nothing_for(QUIET, "a message came twice").await;
    worker.close().await;
}

/// Checks that a worker that is stopped releases its prefetched deliveries at once. Deliveries that
/// `next` has returned can still be settled.
pub async fn a_worker_that_stops_leaves_the_rest_to_others_at_once<F: Factory>(factory: &F) {
    let scene = Scene::new(factory);
    let mut one = scene.worker().await;
    let mut receipts = Vec::new();
    for number in 0..10 {
        receipts.push(scene.send_task(number.to_string()).await);
    }
    let held = one.exactly(2).await;
    // A dropped call of `next` may have fetched deliveries. `stop` releases these, too.
    let late = one.within(Duration::from_micros(1)).await;
    one.stop().await;
    one.stop().await;
    let held: Vec<_> = held.into_iter().chain(late).collect();

    let mut other = scene.worker().await;
    let released = other.exactly(receipts.len() - held.len()).await;
    for delivery in &released {
        assert_eq!(
            attempt(delivery),
            1,
            "a delivery that was not started was counted"
        );
    }
    let all = held.iter().chain(&released);
    assert_same(all.map(|delivery| id(delivery).clone()), receipts);
    for delivery in held.into_iter().chain(released) {
        done(delivery).await;
    }
    one.close().await;
    other
        .nothing_for(QUIET, "a settled message came back")
        .await;
    other.close().await;
}

/// Checks that a waiting worker can be closed quickly, and fetches nothing afterwards.
pub async fn a_worker_that_waits_can_be_closed<F: Factory>(factory: &F) {
    let scene = Scene::new(factory);
    let mut one = scene.worker().await;
    one.nothing_for(QUIET, "an empty stream gave a delivery")
        .await;
    one.close().await;
    let receipt = scene.send_task("for the next").await;
    let mut other = scene.worker().await;
    let delivery = other.one().await;
    assert_eq!((id(&delivery), attempt(&delivery)), (&receipt, 1));
    done(delivery).await;
    other.stop().await;
    other.close().await;
}

/// Checks that the deliveries of a crashed worker are claimed once its lease has ended, and count
/// as attempts.
pub async fn the_deliveries_of_a_crashed_worker_are_claimed<F: Factory>(factory: &F) {
    if !factory.capabilities().claim {
        return;
    }
    let scene = Scene::new(factory).with(|settings| settings.lease = LEASE);
    let mut vanishing = scene.worker().await;
    let mut other = scene.worker().await;
    let receipt = scene.send_task("orphan").await;
    let held = vanishing.one().await;
    assert_eq!(id(&held), &receipt);
    drop(held);
    vanishing.vanish();
    other
        .nothing_for(LEASE / 4, "the delivery was claimed before its lease ended")
        .await;
    let delivery = other.one().await;
    assert_eq!((id(&delivery), attempt(&delivery)), (&receipt, 2));
    done(delivery).await;
    other
        .nothing_for(LEASE, "the delivery was claimed twice")
        .await;
    other.close().await;
}

/// Checks that a delivery that was dropped before it was settled is delivered again once its lease
/// has ended.
pub async fn a_dropped_delivery_is_delivered_again_after_its_lease<F: Factory>(factory: &F) {
    if !factory.capabilities().claim {
        return;
    }
    let scene = Scene::new(factory).with(|settings| settings.lease = LEASE);
    let mut worker = scene.worker().await;
    let receipt = scene.send_task("dropped").await;
    drop(worker.one().await);
    let delivery = worker.one().await;
    assert_eq!((id(&delivery), attempt(&delivery)), (&receipt, 2));
    done(delivery).await;
    worker.close().await;
}

/// Checks that a message whose workers always crash is not delivered forever.
pub async fn a_message_that_kills_its_workers_becomes_a_dead_letter<F: Factory>(factory: &F) {
    if !factory.capabilities().claim {
        return;
    }
    let scene = Scene::new(factory).with(|settings| {
        settings.lease = LEASE;
        settings.max_deliveries = 2;
    });
    let receipt = scene.send_task("poison").await;
    for expected in 1..=2 {
        let mut worker = scene.worker().await;
        let delivery = worker.one().await;
        assert_eq!(attempt(&delivery), expected);
        drop(delivery);
        worker.vanish();
    }
    let mut worker = scene.worker().await;
    worker
        .nothing_for(LEASE * 5, "the message was delivered a third time")
        .await;
    if let Some(dead) = scene.list_dead_letters().await {
        assert_eq!(dead.len(), 1);
        assert_eq!((&dead[0].message_id, dead[0].attempts), (&receipt, 2));
    }
    worker.close().await;
}

/// Checks that a live worker keeps its deliveries for longer than their lease.
pub async fn a_live_worker_keeps_its_deliveries<F: Factory>(factory: &F) {
    if !factory.capabilities().claim {
        return;
    }
    let scene = Scene::new(factory).with(|settings| settings.lease = LEASE);
    let mut slow = scene.worker().await;
    let mut other = scene.worker().await;
    scene.send_task("slow").await;
    let delivery = slow.one().await;
    other
        .nothing_for(LEASE * 4, "the delivery was claimed from a live worker")
        .await;
    let lease = message(&delivery).parts().lease.as_ref();
    assert!(lease.is_none_or(|lease| !lease.is_lost()));
    done(delivery).await;
    other
        .nothing_for(LEASE * 2, "a settled message came back")
        .await;
    slow.close().await;
    other.close().await;
}

/// Checks that a worker sees that a lease was lost, and that its late verdict has no effect.
pub async fn a_lost_lease_is_reported_and_a_late_verdict_changes_nothing<F: Factory>(factory: &F) {
    let can = factory.capabilities();
    if !can.claim || !can.end_leases {
        return;
    }
    let scene = Scene::new(factory).with(|settings| settings.lease = LEASE);
    let mut stalled = scene.worker().await;
    let mut other = scene.worker().await;
    let receipt = scene.send_task("contested").await;
    let held = stalled.one().await;
    let lease = message(&held).parts().lease.clone();
    let token = lease.expect("a delivery has a lease").token();
    assert!(!token.is_cancelled(), "the lease was lost from the start");
    must("ending the leases", factory.end_leases(&scene.settings)).await;
    let taken = other.one().await;
    assert_eq!((id(&taken), attempt(&taken)), (&receipt, 2));
    in_time("noticing the loss of the lease", token.cancelled()).await;

    let late = Verdict::DeadLetter {
        reason: "too late".into(),
        answer: None,
    };
    settle(held, late).await;
    assert!(
        scene
            .list_dead_letters()
            .await
            .is_none_or(|dead| dead.is_empty()),
        "the late verdict was carried out"
    );
    done(taken).await;
    other
        .nothing_for(LEASE, "a handled message came back")
        .await;
    stalled.close().await;
    other.close().await;
}
