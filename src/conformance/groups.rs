//! Checks of the groups of a stream, and of the workers of a group.

use std::time::Duration;

use super::{
    Factory,
    scene::{QUIET, Scene, assert_same, attempt, done, id, message, redeliver_after, settle},
};
use crate::transport::{Start, UnknownNames, Verdict};

/// Checks that the first worker of the first group gets the messages that were sent before it
/// started.
pub async fn messages_sent_before_the_first_worker_are_delivered<F: Factory>(factory: &F) {
    let scene = Scene::new(factory);
    let receipt = scene.send_task("early").await;
    let mut worker = scene.worker().await;
    let delivery = worker.one().await;
    assert_eq!(id(&delivery), &receipt);
    done(delivery).await;
    worker.close().await;
}

/// Checks that each group gets every message.
pub async fn every_group_gets_every_message<F: Factory>(factory: &F) {
    if !factory.capabilities().groups {
        return;
    }
    let scene = Scene::new(factory);
    let mut receipts = Vec::new();
    let mut workers = Vec::new();
    for group in ["one", "two", "three"] {
        workers.push(scene.with_group(group, Start::Beginning).worker().await);
    }
    for number in 0..20 {
        receipts.push(scene.send_task(number.to_string()).await);
    }
    for mut worker in workers {
        let deliveries = worker.exactly(receipts.len()).await;
        assert_same(
            deliveries.iter().map(|delivery| id(delivery).clone()),
            receipts.clone(),
        );
        for delivery in deliveries {
            done(delivery).await;
        }
        worker
            .nothing_for(QUIET, "a group got a message twice")
            .await;
        worker.close().await;
    }
}

/// Checks that within a group each message is delivered to one worker.
pub async fn workers_of_a_group_share_its_messages<F: Factory>(factory: &F) {
    let scene = Scene::new(factory);
    let mut one = scene.worker().await;
    let mut other = scene.worker().await;
    let mut receipts = Vec::new();
    for number in 0..10 {
        receipts.push(scene.send_task(number.to_string()).await);
    }
    let mut deliveries = one.exactly(5).await;
    deliveries.extend(other.exactly(5).await);
    assert_same(
        deliveries.iter().map(|delivery| id(delivery).clone()),
        receipts,
    );
    for delivery in deliveries {
        done(delivery).await;
    }
    one.nothing_for(QUIET, "a message went to two workers")
        .await;
    other
        .nothing_for(QUIET, "a message went to two workers")
        .await;
    one.close().await;
    other.close().await;
}

/// Checks that a new group on a stream with another group must set its start, and that the error
/// names the setting.
pub async fn a_new_group_beside_another_must_choose_its_start<F: Factory>(factory: &F) {
    if !factory.capabilities().groups {
        return;
    }
    let scene = Scene::new(factory);
    let first = scene.worker().await;
    let error = scene.with_group("late", Start::Auto).refused_worker().await;
    assert!(error.is_config(), "{error:?}");
    assert!(error.to_string().contains("start"), "{error}");
    // A new group must set its start. A group that exists need not.
    scene
        .with_group("late", Start::End)
        .worker()
        .await
        .close()
        .await;
    scene
        .with_group("late", Start::Auto)
        .worker()
        .await
        .close()
        .await;
    first.close().await;
}

/// Checks that a group that starts at the beginning receives earlier messages, and that a group
/// that starts at the end does not.
pub async fn a_group_starts_at_its_start<F: Factory>(factory: &F) {
    if !factory.capabilities().groups {
        return;
    }
    let scene = Scene::new(factory);
    // This group handles no message, so all entries stay on the stream.
    let idle = scene.worker().await;
    let first = scene.send_task("1").await;
    let second = scene.send_task("2").await;
    let mut beginning = scene
        .with_group("beginning", Start::Beginning)
        .worker()
        .await;
    let mut after = scene
        .with_group("after", Start::After(first.to_string()))
        .worker()
        .await;
    let mut end = scene.with_group("end", Start::End).worker().await;
    let third = scene.send_task("3").await;
    for (worker, expected) in [
        (&mut beginning, &[&first, &second, &third][..]),
        (&mut after, &[&second, &third]),
        (&mut end, &[&third]),
    ] {
        for expected in expected {
            let delivery = worker.one().await;
            assert_eq!(id(&delivery), *expected);
            done(delivery).await;
        }
    }
    for worker in [idle, beginning, after, end] {
        worker.close().await;
    }
}

/// Checks that failures, dead letters and redeliveries of one group do not affect another group.
pub async fn the_work_of_one_group_is_invisible_to_others<F: Factory>(factory: &F) {
    if !factory.capabilities().groups {
        return;
    }
    let scene = Scene::new(factory);
    let mut one = scene.with_group("one", Start::Beginning).worker().await;
    let mut other = scene.with_group("other", Start::Beginning).worker().await;
    for number in 0..3 {
        scene.send_task(number.to_string()).await;
    }
    let mut three = one.exactly(3).await;
    let (handled, dead, failed) = (three.remove(2), three.remove(1), three.remove(0));
    settle(failed, redeliver_after(Duration::ZERO)).await;
    let dead_letter = Verdict::DeadLetter {
        reason: "bad".into(),
        answer: None,
    };
    settle(dead, dead_letter).await;
    done(handled).await;
    let retried = one.one().await;
    assert_eq!(attempt(&retried), 2);
    done(retried).await;

    for delivery in other.exactly(3).await {
        assert_eq!(attempt(&delivery), 1, "another group's attempt was counted");
        done(delivery).await;
    }
    other
        .nothing_for(QUIET, "another group's redelivery came here")
        .await;
    one.close().await;
    other.close().await;
}

/// Checks that a new worker continues at the position of its group.
pub async fn a_group_continues_at_its_position<F: Factory>(factory: &F) {
    let scene = Scene::new(factory);
    let mut worker = scene.worker().await;
    scene.send_task("1").await;
    done(worker.one().await).await;
    worker.close().await;
    let second = scene.send_task("2").await;
    let mut worker = scene.worker().await;
    let delivery = worker.one().await;
    assert_eq!(id(&delivery), &second);
    done(delivery).await;
    worker
        .nothing_for(QUIET, "a handled message came back")
        .await;
    worker.close().await;
}

/// Checks that a worker on a stream with another group cannot be opened unless `unknown_names` is
/// set. Without the setting, the worker could treat messages for the other group as failed.
pub async fn beside_another_group_unknown_names_must_be_set<F: Factory>(factory: &F) {
    if !factory.capabilities().groups {
        return;
    }
    let scene = Scene::new(factory).with(|settings| settings.unknown_names = None);
    // A group that is alone on its stream need not set `unknown_names`.
    let first = scene.worker().await;
    let mut second = scene.with_group("second", Start::Beginning);
    let error = second.refused_worker().await;
    assert!(error.is_config(), "{error:?}");
    assert!(error.to_string().contains("unknown_names"), "{error}");
    for choice in [UnknownNames::Fail, UnknownNames::Ignore] {
        second.settings.unknown_names = Some(choice);
        second.worker().await.close().await;
    }
    first.close().await;
}

/// Checks that two streams are separate, even if their groups and the names of their messages are
/// the same.
pub async fn streams_are_isolated_from_each_other<F: Factory>(factory: &F) {
    let (ours, theirs) = (Scene::new(factory), Scene::new(factory));
    let mut our_worker = ours.worker().await;
    let mut their_worker = theirs.worker().await;
    let our_receipts = [ours.send_task("ours").await, ours.send_task("ours").await];
    let mut held = our_worker.exactly(2).await;
    assert_same(
        held.iter().map(|delivery| id(delivery).clone()),
        our_receipts,
    );
    their_worker
        .nothing_for(QUIET, "a message came from another stream")
        .await;
    theirs.send_task("theirs").await;
    let delivery = their_worker.one().await;
    assert_eq!(message(&delivery).payload(), "theirs");
    done(delivery).await;

    let dead_letter = Verdict::DeadLetter {
        reason: "bad".into(),
        answer: None,
    };
    settle(held.remove(0), dead_letter).await;
    settle(held.remove(0), redeliver_after(Duration::ZERO)).await;
    done(our_worker.one().await).await;
    our_worker.close().await;
    their_worker
        .nothing_for(QUIET, "a redelivery came from another stream")
        .await;
    let dead = theirs.list_dead_letters().await;
    assert!(dead.is_none_or(|dead| dead.is_empty()));
    their_worker.close().await;
}
