//! Checks of tasks whose payloads are newer than their workers.

use std::time::Duration;

use super::{
    Factory,
    scene::{QUIET, Scene, attempt, done, message, must, settle},
};
use crate::{
    message::PermitRequest,
    transport::{Delivery, Interest, SettleDelivery, Verdict},
};

/// The maximum time until a worker gets a task.
const MAX_DELIVERY_WAIT: Duration = Duration::from_secs(10);

/// Returns the interest of a worker that knows the payloads of `task` up to this version.
fn interest_up_to(version: u32) -> Interest {
    Interest {
        versions: vec![("task".into(), version)],
        ..Interest::stream()
    }
}

/// Settles a delivery as `serve` does if the payload has this version and the worker knows only
/// older versions.
async fn leave_to_newer<H: SettleDelivery>(delivery: Delivery<H>, version: u32) {
    let request = PermitRequest::of_newer(message(&delivery).parts(), version);
    settle(delivery, Verdict::Park(request)).await;
}

/// Checks that a task that is too new for all workers waits for a newer worker, without counting an
/// attempt.
pub async fn a_task_of_a_newer_version_waits_for_a_newer_worker<F: Factory>(factory: &F) {
    if !factory.capabilities().limits {
        return;
    }
    let scene = Scene::new(factory);
    let mut old = scene.worker().await;
    for payload in ["first", "second"] {
        scene.send_task(payload).await;
    }
    for delivery in old.exactly(2).await {
        leave_to_newer(delivery, 3).await;
    }
    let mut still_too_old = scene.worker_for(interest_up_to(2)).await;
    old.nothing_for(QUIET, "no worker knows the version").await;
    still_too_old
        .nothing_for(QUIET, "this worker does not know the version either")
        .await;
    if factory.capabilities().statistics {
        let handle = scene.handle().await;
        let stats = must("reading statistics", factory.stats(&handle)).await;
        let group = stats.group(&scene.settings.group);
        assert_eq!(group.expect("the group exists").parked, 2);
    }
    // These workers have asked for deliveries, so they could get the tasks if they stayed open.
    old.close().await;
    still_too_old.close().await;
    let mut newer = scene.worker_for(interest_up_to(3)).await;
    for payload in ["first", "second"] {
        let delivery = newer.within(MAX_DELIVERY_WAIT).await;
        let delivery = delivery.expect("the newer worker gets the tasks soon");
        assert_eq!(message(&delivery).payload(), payload);
        assert_eq!(attempt(&delivery), 1);
        done(delivery).await;
    }
    newer.close().await;
}

/// Checks that a task is soon delivered again if it reaches an older worker while a newer worker
/// serves the group.
pub async fn a_task_of_a_newer_version_passes_older_workers<F: Factory>(factory: &F) {
    if !factory.capabilities().limits {
        return;
    }
    let scene = Scene::new(factory);
    let mut old = scene.worker().await;
    let mut newer = scene.worker_for(interest_up_to(3)).await;
    scene.send_task("both").await;
    for _ in 0..3 {
        let delivery = old.within(MAX_DELIVERY_WAIT).await;
        leave_to_newer(delivery.expect("it is delivered again"), 3).await;
    }
    let delivery = newer
        .within(MAX_DELIVERY_WAIT)
        .await
        .expect("it is delivered again");
    assert_eq!(attempt(&delivery), 1);
    done(delivery).await;
    old.close().await;
    newer.close().await;
}
