//! Checks of pauses, and of the purge of waiting messages.

use std::time::Duration;

use super::{
    Factory,
    scene::{
        QUIET, Scene, WorkerOf, attempt, call, done, id, message, must, redeliver_after, settle,
    },
};
use crate::{
    message::Message,
    transport::{Control, PauseTarget, TaskState},
};

/// Returns a sender's handle for a scene, and the [`Control`] of its stream.
async fn connect<F: Factory>(factory: &F, scene: &Scene<'_, F>) -> (F::Handle, Control) {
    let handle = scene.handle().await;
    let control = factory.control(&handle);
    let control = control.expect("the factory declares `control` and gives none");
    (handle, control)
}

/// Waits until the workers follow a pause. They need about a second.
async fn until_followed<F: Factory>(worker: &mut WorkerOf<F>) {
    worker
        .nothing_for(Duration::from_millis(1500), "nothing is sent")
        .await;
}

/// Checks that a paused stream and a paused group deliver nothing until they are resumed, and that
/// running deliveries can still be settled.
pub async fn a_paused_stream_delivers_nothing_until_it_is_resumed<F: Factory>(factory: &F) {
    if !factory.capabilities().control {
        return;
    }
    for target in [PauseTarget::Stream, PauseTarget::Group] {
        let scene = Scene::new(factory);
        let (_handle, control) = connect(factory, &scene).await;
        let mut worker = scene.worker().await;
        scene.send_task("runs").await;
        let runs = worker.one().await;
        assert!(must("pausing", control.pause(target.clone(), "first")).await);
        assert!(!must("pausing again", control.pause(target.clone(), "a deploy")).await);
        let pauses = must("listing pauses", control.pauses()).await;
        assert_eq!(pauses.len(), 1);
        assert_eq!(
            (&pauses[0].target, &*pauses[0].reason),
            (&target, "a deploy")
        );
        until_followed::<F>(&mut worker).await;
        let first = scene.send_task("first").await;
        settle(runs, redeliver_after(Duration::ZERO)).await;
        worker.nothing_for(QUIET, "the stream is paused").await;

        assert!(must("resuming", control.resume(target.clone())).await);
        assert!(!must("resuming again", control.resume(target)).await);
        let mut deliveries = worker.exactly(2).await;
        deliveries.sort_by_key(attempt);
        assert_eq!((id(&deliveries[0]), attempt(&deliveries[0])), (&first, 1));
        assert_eq!(attempt(&deliveries[1]), 2);
        for delivery in deliveries {
            done(delivery).await;
        }
        worker.close().await;
    }
}

/// Checks that messages with a paused name wait and keep their order, while other messages are
/// delivered.
pub async fn messages_with_a_paused_name_wait_in_their_order<F: Factory>(factory: &F) {
    if !factory.capabilities().control {
        return;
    }
    let scene = Scene::new(factory);
    let (handle, control) = connect(factory, &scene).await;
    let target = || PauseTarget::Name("paused".into());
    must("pausing", control.pause(target(), "")).await;
    let mut worker = scene.worker().await;
    until_followed::<F>(&mut worker).await;
    for payload in ["1", "2", "3"] {
        let sent = call(&handle, Message::task("paused", payload)).await;
        sent.expect("the task is accepted");
    }
    scene.send_task("goes on").await;
    let delivery = worker.one().await;
    assert_eq!(message(&delivery).payload(), "goes on");
    done(delivery).await;
    worker.nothing_for(QUIET, "the name is paused").await;
    assert!(must("resuming", control.resume(target())).await);
    for payload in ["1", "2", "3"] {
        let delivery = worker.one().await;
        assert_eq!(message(&delivery).payload(), payload);
        assert_eq!(attempt(&delivery), 1);
        done(delivery).await;
    }
    worker.close().await;
}

/// Checks that a worker that opens during a pause gets no message.
pub async fn a_worker_that_starts_during_a_pause_follows_it<F: Factory>(factory: &F) {
    if !factory.capabilities().control {
        return;
    }
    let scene = Scene::new(factory);
    let (_handle, control) = connect(factory, &scene).await;
    scene.worker().await.close().await;
    scene.send_task("waits").await;
    must("pausing", control.pause(PauseTarget::Group, "")).await;
    for _ in 0..3 {
        let mut worker = scene.worker().await;
        worker.nothing_for(QUIET, "the group is paused").await;
        worker.close().await;
    }
    must("resuming", control.resume(PauseTarget::Group)).await;
    let mut worker = scene.worker().await;
    done(worker.one().await).await;
    worker.close().await;
}

/// Checks that a task that was cancelled while it waited stays cancelled after a pause and after a
/// purge.
pub async fn a_cancelled_task_stays_cancelled_over_a_pause_and_a_purge<F: Factory>(factory: &F) {
    let can = factory.capabilities();
    if !can.control || !can.tasks {
        return;
    }
    let scene = Scene::new(factory);
    let (handle, control) = connect(factory, &scene).await;
    let tasks = factory.tasks(&handle).expect("the factory has tasks");
    scene.worker().await.close().await;
    let send_and_cancel = async || {
        let mut tracked = Message::task("task", "cancelled");
        tracked.parts_mut().tracked = Some(Duration::from_secs(60));
        let reply = call(&handle, tracked).await.expect("the task is accepted");
        let receipt = reply.receipt().expect("a task has a receipt").clone();
        assert!(must("cancelling a task", tasks.cancel(&receipt, "no need")).await);
        receipt
    };
    let assert_cancelled = async |receipt| {
        let status = must("looking up a task", tasks.status(receipt)).await;
        let status = status.expect("the status is recorded");
        assert_eq!(
            (status.state, &*status.reason),
            (TaskState::Cancelled, "no need")
        );
    };
    let receipt = send_and_cancel().await;
    let name = || PauseTarget::Name("task".into());
    must("pausing", control.pause(name(), "")).await;
    let mut worker = scene.worker().await;
    worker.nothing_for(QUIET, "the task was cancelled").await;
    assert_cancelled(&receipt).await;
    must("resuming", control.resume(name())).await;
    worker.nothing_for(QUIET, "the task was cancelled").await;
    assert_cancelled(&receipt).await;
    worker.close().await;

    let receipt = send_and_cancel().await;
    assert_eq!(must("purging", control.purge_waiting()).await, 0);
    assert_cancelled(&receipt).await;
}

/// Checks that a purge removes the messages that wait for a group, and nothing else.
pub async fn a_purge_removes_what_waits<F: Factory>(factory: &F) {
    let can = factory.capabilities();
    if !can.control || !can.tasks {
        return;
    }
    let scene = Scene::new(factory);
    let (handle, control) = connect(factory, &scene).await;
    let tasks = factory.tasks(&handle).expect("the factory has tasks");
    let mut worker = scene.worker().await;
    for payload in ["runs", "later"] {
        scene.send_task(payload).await;
    }
    let mut deliveries = worker.exactly(2).await;
    settle(
        deliveries.remove(1),
        redeliver_after(Duration::from_secs(60)),
    )
    .await;
    worker.stop().await;
    let mut tracked = Message::task("task", "waits");
    tracked.parts_mut().tracked = Some(Duration::from_secs(60));
    let reply = call(&handle, tracked).await.expect("the task is accepted");
    for _ in 0..1_200 {
        scene.send_task("waits").await;
    }
    let purged = must("purging", control.purge_waiting()).await;
    // 1,200 waiting tasks, the tracked task, and the task with the delayed redelivery.
    assert_eq!(purged, 1_202);
    assert_eq!(must("purging again", control.purge_waiting()).await, 0);
    let receipt = reply.receipt().expect("a task has a receipt");
    let status = must("looking up a task", tasks.status(receipt)).await;
    let status = status.expect("the status is recorded");
    assert_eq!(
        (status.state, &*status.reason),
        (TaskState::Discarded, "purged")
    );
    done(deliveries.remove(0)).await;
    worker.close().await;

    let mut worker = scene.worker().await;
    worker.nothing_for(QUIET, "all is purged").await;
    scene.send_task("new").await;
    let delivery = worker.one().await;
    assert_eq!(message(&delivery).payload(), "new");
    done(delivery).await;
    if can.statistics {
        let stats = must("reading statistics", factory.stats(&handle)).await;
        let group = stats
            .group(&scene.settings.group)
            .expect("the group exists");
        assert_eq!((group.lag, group.pending, group.delayed), (Some(0), 0, 0));
    }
    worker.close().await;
}
