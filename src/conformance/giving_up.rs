//! Checks of the limits on attempts, and of the idempotency keys of tasks that are given up.

use std::time::Duration;

use super::{
    Factory,
    scene::{LEASE, QUIET, Scene, attempt, call, done, id, must, redeliver_after, send, settle},
};
use crate::{
    message::Message,
    transport::{Discarded, Verdict},
};

/// Returns a task with this idempotency key.
fn keyed_task(key: &str) -> Message {
    let mut message = Message::task("task", "");
    message.parts_mut().idempotency_key = Some(key.into());
    message
}

fn dead_letter_verdict() -> Verdict {
    Verdict::DeadLetter {
        reason: "no JSON".into(),
        answer: None,
    }
}

fn discard_verdict(reason: Discarded) -> Verdict {
    Verdict::Discard {
        reason,
        answer: None,
    }
}

/// Checks that a task is given up after the number of attempts that its sender has set, even if the
/// worker's number is higher or lower. Each delivery has the limits that the sender has set.
pub async fn a_task_is_given_up_after_its_own_number_of_attempts<F: Factory>(factory: &F) {
    let scene = Scene::new(factory).with(|settings| settings.max_deliveries = 2);
    let handle = scene.handle().await;
    let mut worker = scene.worker().await;
    for attempts in [1, 4] {
        let mut task = Message::task("task", "");
        task.parts_mut().max_attempts = Some(attempts);
        task.parts_mut().attempt_timeout = Some(Duration::from_millis(1_500));
        let receipt = send(&handle, task).await;
        for number in 1..=attempts {
            let delivery = worker.one().await;
            assert_eq!((id(&delivery), attempt(&delivery)), (&receipt, number));
            let parts = delivery.content.as_ref().expect("it is a message").parts();
            assert_eq!(parts.max_attempts, Some(attempts));
            assert_eq!(parts.attempt_timeout, Some(Duration::from_millis(1_500)));
            settle(delivery, redeliver_after(Duration::ZERO)).await;
        }
        worker
            .nothing_for(QUIET, "the task was delivered once more")
            .await;
    }
    worker.close().await;
}

/// Checks that a task frees its idempotency key if it ends as a dead letter, expires or is
/// discarded. A task that is done or ignored keeps its key.
pub async fn a_key_is_free_once_its_task_was_given_up<F: Factory>(factory: &F) {
    if !factory.capabilities().idempotent_tasks {
        return;
    }
    let scene = Scene::new(factory).with(|settings| settings.max_deliveries = 2);
    let handle = scene.handle().await;
    let mut worker = scene.worker().await;
    let ends = [
        ("dead", dead_letter_verdict(), true),
        ("expired", discard_verdict(Discarded::Expired), true),
        ("discarded", discard_verdict(Discarded::Requested), true),
        ("used up", redeliver_after(Duration::ZERO), true),
        ("ignored", discard_verdict(Discarded::Ignored), false),
        ("done", Verdict::Done(Ok(Default::default())), false),
    ];
    for (key, end, is_freed) in ends {
        let first = send(&handle, keyed_task(key)).await;
        // A redelivery does not free the key.
        settle(worker.one().await, redeliver_after(Duration::ZERO)).await;
        let known = must("sending", call(&handle, keyed_task(key))).await;
        assert!(known.is_duplicate(), "{key}: the task has not ended");
        settle(worker.one().await, end).await;
        let next = must("sending", call(&handle, keyed_task(key))).await;
        assert_eq!(next.is_duplicate(), !is_freed, "{key}");
        if is_freed {
            let delivery = worker.one().await;
            assert_ne!(id(&delivery), &first);
            assert_eq!(next.receipt(), Some(id(&delivery)));
            done(delivery).await;
        }
    }
    worker
        .nothing_for(QUIET, "a task was delivered once more")
        .await;
    worker.close().await;
}

/// Checks that a task that is given up does not free its idempotency key if a later task holds the
/// key. The later task got the key because the window of the first task was over.
pub async fn a_task_that_is_given_up_frees_no_key_of_another<F: Factory>(factory: &F) {
    const WINDOW: Duration = Duration::from_millis(200);
    if !factory.capabilities().idempotent_tasks {
        return;
    }
    let scene = Scene::new(factory).with(|settings| settings.idempotency_window = WINDOW);
    let handle = scene.handle().await;
    let mut worker = scene.worker().await;
    send(&handle, keyed_task("k")).await;
    let first = worker.one().await;
    tokio::time::sleep(2 * WINDOW).await;
    let long = Scene::new(factory).with(|settings| {
        settings.clone_from(&scene.settings);
        settings.idempotency_window = Duration::from_secs(3600);
    });
    let handle = long.handle().await;
    let second = send(&handle, keyed_task("k")).await;
    assert_ne!(id(&first), &second, "the window is over");
    settle(first, dead_letter_verdict()).await;
    assert_eq!(send(&handle, keyed_task("k")).await, second);
    done(worker.one().await).await;
    worker.close().await;
}

/// Checks that a task whose worker dies at each delivery frees its idempotency key.
pub async fn a_task_that_kills_its_workers_frees_its_idempotency_key<F: Factory>(factory: &F) {
    let can = factory.capabilities();
    if !can.idempotent_tasks || !can.claim {
        return;
    }
    let scene = Scene::new(factory).with(|settings| {
        settings.lease = LEASE;
        settings.max_deliveries = 1;
    });
    let handle = scene.handle().await;
    let first = send(&handle, keyed_task("k")).await;
    let mut worker = scene.worker().await;
    let delivery = worker.one().await;
    worker.vanish();
    drop(delivery);
    let mut worker = scene.worker().await;
    worker
        .nothing_for(4 * LEASE, "a task with one delivery came twice")
        .await;
    let second = send(&handle, keyed_task("k")).await;
    assert_ne!(second, first);
    done(worker.one().await).await;
    worker.close().await;
}
