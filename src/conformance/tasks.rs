//! Checks of unique tasks, of their recorded status, and of their cancellation.

use std::{fmt::Debug, time::Duration};

use tokio::time::timeout;

use super::{
    Factory,
    scene::{
        LEASE, QUIET, Scene, WorkerOf, attempt, call, done, id, message, must, redeliver_after,
        send, settle,
    },
};
use crate::{
    message::{Message, MessageId, OnConflict, Unique, UniqueKey},
    outbox::Outbox,
    transport::{Discarded, Page, Selection, TaskState, TaskStatus, Tasks, Verdict},
};

/// The time for which the records of tasks are kept.
pub(super) const RETENTION: Duration = Duration::from_secs(60);

/// Returns a task whose status is recorded.
pub(super) fn tracked_task(payload: &'static str) -> Message {
    let mut task = Message::task("task", payload);
    task.parts_mut().tracked = Some(RETENTION);
    task
}

/// Returns a task with this unique key.
pub(super) fn unique_task(key: &str, on_conflict: OnConflict) -> Message {
    let mut task = Message::task("task", key.to_owned());
    let mut unique = Unique::new(key);
    unique.on_conflict = on_conflict;
    task.parts_mut().unique = Some(unique);
    task
}

/// Returns a sender's handle for a scene, and the tasks of its group.
pub(super) async fn connect<F: Factory>(factory: &F, scene: &Scene<'_, F>) -> (F::Handle, Tasks) {
    let handle = scene.handle().await;
    let tasks = factory.tasks(&handle);
    (
        handle,
        tasks.expect("the factory declares `tasks` and gives none"),
    )
}

/// Returns the recorded status of a task.
pub(super) async fn status(tasks: &Tasks, id: &MessageId) -> TaskStatus {
    let status = must("looking up a task", tasks.status(id)).await;
    status.expect("the status is recorded")
}

/// Does the same as `assert_eq!`, for two values of one type. So the type of one can be inferred
/// from the other.
#[track_caller]
pub(super) fn assert_equal<T: PartialEq + Debug>(found: T, expected: T) {
    assert_eq!(found, expected);
}

/// Checks that the recorded status of a task changes with each step, from its acceptance to its
/// end.
pub async fn the_status_of_a_task_follows_it<F: Factory>(factory: &F) {
    if !factory.capabilities().tasks {
        return;
    }
    let scene = Scene::new(factory);
    let (handle, tasks) = connect(factory, &scene).await;
    let mut worker = scene.worker().await;
    let receipt = send(&handle, tracked_task("first")).await;
    let waiting = status(&tasks, &receipt).await;
    assert_eq!((&*waiting.name, waiting.attempt.0), ("task", 0));
    assert_eq!((waiting.started_at, waiting.ended_at), (None, None));

    let delivery = worker.one().await;
    assert_eq!(id(&delivery), &receipt);
    let running = status(&tasks, &receipt).await;
    assert_eq!((running.state, running.attempt.0), (TaskState::Running, 1));
    assert!(running.started_at >= Some(running.accepted_at));
    settle(delivery, redeliver_after(Duration::from_millis(500))).await;
    let delayed = status(&tasks, &receipt).await;
    assert_eq!(delayed.state, TaskState::Delayed);
    assert_eq!(delayed.reason, "it failed in a check");

    let delivery = worker.one().await;
    assert_eq!((id(&delivery), attempt(&delivery)), (&receipt, 2));
    assert_eq!(status(&tasks, &receipt).await.attempt.0, 2);
    settle(delivery, Verdict::Release).await;
    let delivery = worker.one().await;
    assert_eq!(attempt(&delivery), 2, "a release is no attempt");
    done(delivery).await;
    let ended = status(&tasks, &receipt).await;
    assert_eq!((ended.state, ended.attempt.0), (TaskState::Done, 2));
    assert!(ended.ended_at >= ended.started_at && ended.started_at.is_some());

    let discarded = send(&handle, tracked_task("second")).await;
    let verdict = Verdict::Discard {
        reason: Discarded::Requested,
        answer: None,
    };
    settle(worker.one().await, verdict).await;
    assert_eq!(status(&tasks, &discarded).await.state, TaskState::Discarded);

    let plain = send(&handle, Message::task("task", "")).await;
    let found = must("looking up a task", tasks.status(&plain)).await;
    assert_equal(found, None);
    done(worker.one().await).await;
    worker.close().await;
}

/// Checks that the status of a dead task has the reason of the dead letter, and changes with a
/// replay.
pub async fn the_status_of_a_dead_task_follows_its_replay<F: Factory>(factory: &F) {
    if !factory.capabilities().tasks || !factory.capabilities().dead_letters {
        return;
    }
    let scene = Scene::new(factory);
    let (handle, tasks) = connect(factory, &scene).await;
    let mut worker = scene.worker().await;
    let mut task = unique_task("k", OnConflict::Keep);
    task.parts_mut().tracked = Some(RETENTION);
    let receipt = send(&handle, task).await;
    let verdict = Verdict::DeadLetter {
        reason: "it cannot be read".into(),
        answer: None,
    };
    settle(worker.one().await, verdict).await;
    let dead = status(&tasks, &receipt).await;
    assert_eq!(
        (dead.state, &*dead.reason),
        (TaskState::Dead, "it cannot be read")
    );
    let key = UniqueKey::from("k");
    assert_equal(
        must("looking for the holder", tasks.holder(&key)).await,
        None,
    );

    let dead_letters = scene.dead_letters().await.expect("checked above");
    let letters = must("listing", dead_letters.list(Page::first(1))).await;
    let letter = letters.letters[0].id.clone();
    let replayed = dead_letters.replay(Selection::ids([letter]));
    must("replaying", replayed).await;
    assert_eq!(status(&tasks, &receipt).await.state, TaskState::Waiting);
    let holder = must("looking for the holder", tasks.holder(&key)).await;
    assert_equal(holder.as_ref(), Some(&receipt));
    let delivery = worker.one().await;
    assert_eq!(id(&delivery), &receipt);
    done(delivery).await;
    assert_eq!(status(&tasks, &receipt).await.state, TaskState::Done);
    worker.close().await;
}

/// Checks that a unique key is held until its task has ended: while the task is delayed, runs, or
/// waits for its next attempt.
pub async fn a_unique_key_is_held_until_its_task_has_ended<F: Factory>(factory: &F) {
    if !factory.capabilities().tasks {
        return;
    }
    let scene = Scene::new(factory);
    let (handle, tasks) = connect(factory, &scene).await;
    let mut worker = scene.worker().await;
    let mut delayed = unique_task("k", OnConflict::Keep);
    delayed.parts_mut().due = Some(crate::Due::After(Duration::from_millis(500)));
    let first = send(&handle, delayed).await;
    let assert_held = async || {
        let kept = must("sending", call(&handle, unique_task("k", OnConflict::Keep))).await;
        assert!(kept.is_duplicate());
        assert_equal(kept.receipt(), Some(&first));
        let refused = call(&handle, unique_task("k", OnConflict::Refuse)).await;
        let refused = refused.expect_err("another task holds the key");
        assert!(refused.is_duplicate(), "{refused}");
        assert_equal(refused.stored_id(), Some(&first));
        let key = UniqueKey::from("k");
        let holder = tasks.holder(&key);
        assert_equal(
            must("looking for the holder", holder).await.as_ref(),
            Some(&first),
        );
    };
    assert_held().await;
    let delivery = worker.one().await;
    assert_eq!(id(&delivery), &first);
    assert_held().await;
    settle(delivery, redeliver_after(Duration::from_millis(300))).await;
    assert_held().await;
    let delivery = worker.one().await;
    assert_eq!(attempt(&delivery), 2);
    assert_held().await;
    done(delivery).await;

    let next = must(
        "sending",
        call(&handle, unique_task("k", OnConflict::Refuse)),
    )
    .await;
    assert!(!next.is_duplicate());
    assert_ne!(next.receipt(), Some(&first));
    let other = must(
        "sending",
        call(&handle, unique_task("other", OnConflict::Keep)),
    )
    .await;
    assert!(!other.is_duplicate());
    for _ in 0..2 {
        done(worker.one().await).await;
    }
    worker.nothing_for(QUIET, "a duplicate came").await;
    worker.close().await;
}

/// Checks that a task replaces a delayed task with the same unique key, but not a running one.
pub async fn a_unique_task_replaces_one_that_is_not_due<F: Factory>(factory: &F) {
    if !factory.capabilities().tasks {
        return;
    }
    let scene = Scene::new(factory);
    let (handle, tasks) = connect(factory, &scene).await;
    let debounced = |payload: &'static str| {
        let mut task = unique_task("k", OnConflict::Replace);
        *task.payload_mut() = payload.into();
        task.parts_mut().tracked = Some(RETENTION);
        task.parts_mut().due = Some(crate::Due::After(Duration::from_millis(600)));
        task
    };
    let replaced = send(&handle, debounced("first")).await;
    let last = must("sending", call(&handle, debounced("second"))).await;
    assert!(!last.is_duplicate());
    let old = status(&tasks, &replaced).await;
    assert_eq!(old.state, TaskState::Cancelled);
    let mut worker = scene.worker().await;
    let delivery = worker.one().await;
    assert_eq!(message(&delivery).payload(), "second");
    let kept = must("sending", call(&handle, debounced("third"))).await;
    assert!(kept.is_duplicate(), "a running task is not replaced");
    done(delivery).await;
    worker
        .nothing_for(Duration::from_secs(1), "a replaced task came")
        .await;
    worker.close().await;
}

/// Checks that only one task is stored if many senders send tasks with the same key at once.
pub async fn senders_of_one_unique_key_at_the_same_time_send_one_task<F: Factory>(factory: &F) {
    if !factory.capabilities().tasks {
        return;
    }
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let calls = (0..50).map(|_| call(&handle, unique_task("k", OnConflict::Keep)));
    let replies = futures_util::future::join_all(calls).await;
    let stored = replies.into_iter().filter(|reply| match reply {
        Ok(reply) => !reply.is_duplicate(),
        Err(error) => panic!("a call failed: {}", error.chain()),
    });
    assert_eq!(stored.count(), 1);
    let mut worker = scene.worker().await;
    done(worker.one().await).await;
    worker.nothing_for(QUIET, "a duplicate came").await;
    worker.close().await;
}

/// Checks that a task can be cancelled while it is delayed, waits, or waits for its next attempt.
pub async fn a_task_that_is_not_running_is_cancelled_and_does_not_run<F: Factory>(factory: &F) {
    if !factory.capabilities().tasks {
        return;
    }
    let scene = Scene::new(factory);
    let (handle, tasks) = connect(factory, &scene).await;
    let cancel = async |id: &MessageId| {
        assert!(must("cancelling", tasks.cancel(id, "not needed")).await);
        assert!(!must("cancelling", tasks.cancel(id, "again")).await);
        let cancelled = status(&tasks, id).await;
        assert_eq!(cancelled.state, TaskState::Cancelled);
        assert_eq!(cancelled.reason, "not needed");
    };
    let mut delayed = tracked_task("delayed");
    delayed.parts_mut().due = Some(crate::Due::After(Duration::from_millis(300)));
    cancel(&send(&handle, delayed).await).await;
    let waiting = send(&handle, tracked_task("waiting")).await;
    cancel(&waiting).await;

    let mut worker = scene.worker().await;
    worker.nothing_for(2 * QUIET, "a cancelled task came").await;
    for delay in [Duration::ZERO, Duration::from_millis(300)] {
        let failed = send(&handle, tracked_task("failed")).await;
        let delivery = worker.one().await;
        worker.stop().await;
        settle(delivery, redeliver_after(delay)).await;
        worker.close().await;
        cancel(&failed).await;
        worker = scene.worker().await;
        worker.nothing_for(2 * QUIET, "a cancelled task came").await;
    }
    let unknown = MessageId::from("c0ffee00-0000-4000-8000-000000000000");
    assert!(!must("cancelling", tasks.cancel(&unknown, "")).await);
    let finished = send(&handle, tracked_task("done")).await;
    done(worker.one().await).await;
    assert!(!must("cancelling", tasks.cancel(&finished, "too late")).await);
    assert_eq!(status(&tasks, &finished).await.state, TaskState::Done);
    worker.close().await;
}

/// Checks that a running task learns soon that it was cancelled, and why. The verdict of a
/// cancelled task has no effect, and its key is free.
pub async fn a_running_task_learns_that_it_is_cancelled<F: Factory>(factory: &F) {
    if !factory.capabilities().tasks {
        return;
    }
    // No short lease is needed, because the worker looks for cancellations every second.
    let scene = Scene::new(factory);
    let (handle, tasks) = connect(factory, &scene).await;
    let mut worker = scene.worker().await;
    let running = send(&handle, unique_task("k", OnConflict::Keep)).await;
    let delivery = worker.one().await;
    let lease = message(&delivery).parts().lease.clone();
    let lease = lease.expect("a transport with recorded tasks has leases");
    assert!(must("cancelling", tasks.cancel(&running, "changed my mind")).await);
    let learnt = timeout(Duration::from_secs(5), lease.token().cancelled()).await;
    learnt.expect("the worker learns that the task is cancelled");
    assert_eq!(lease.cancelled(), Some("changed my mind"));
    done(delivery).await;
    let next = must(
        "sending",
        call(&handle, unique_task("k", OnConflict::Refuse)),
    )
    .await;
    let delivery = worker.one().await;
    assert_equal(Some(id(&delivery)), next.receipt());
    done(delivery).await;
    worker.nothing_for(QUIET, "a cancelled task came").await;
    worker.close().await;
}

/// Checks that a task that is given up because its workers died frees its key.
pub async fn a_task_that_kills_its_workers_frees_its_key<F: Factory>(factory: &F) {
    let capabilities = factory.capabilities();
    if !capabilities.tasks || !capabilities.claim {
        return;
    }
    let scene = Scene::new(factory).with(|settings| {
        settings.lease = LEASE;
        settings.max_deliveries = 1;
    });
    let (handle, tasks) = connect(factory, &scene).await;
    let mut task = unique_task("k", OnConflict::Keep);
    task.parts_mut().tracked = Some(RETENTION);
    let poison = send(&handle, task).await;
    let mut worker = scene.worker().await;
    let delivery = worker.one().await;
    worker.vanish();
    drop(delivery);
    let mut worker: WorkerOf<F> = scene.worker().await;
    worker
        .nothing_for(4 * LEASE, "a task with one delivery came twice")
        .await;
    assert_eq!(status(&tasks, &poison).await.state, TaskState::Dead);
    let next = must(
        "sending",
        call(&handle, unique_task("k", OnConflict::Refuse)),
    )
    .await;
    assert!(!next.is_duplicate());
    done(worker.one().await).await;
    worker.close().await;
}

/// Checks that a follow-up can be unique, and that a tracked task with follow-ups is recorded as
/// done.
pub async fn a_follow_up_can_be_unique<F: Factory>(factory: &F) {
    let capabilities = factory.capabilities();
    if !capabilities.tasks || !capabilities.outbox {
        return;
    }
    let scene = Scene::new(factory);
    let (handle, tasks) = connect(factory, &scene).await;
    let mut worker = scene.worker().await;
    send(&handle, tracked_task("first")).await;
    send(&handle, tracked_task("first")).await;
    for delivery in worker.exactly(2).await {
        let first = id(&delivery).clone();
        let outbox = Outbox::of_delivery(message(&delivery).parts()).expect("it has an outbox");
        must(
            "adding a task",
            call(&outbox, unique_task("k", OnConflict::Keep)),
        )
        .await;
        done(delivery).await;
        assert_eq!(status(&tasks, &first).await.state, TaskState::Done);
    }
    let delivery = worker.one().await;
    assert_eq!(message(&delivery).payload(), "k");
    let holder = must(
        "looking for the holder",
        tasks.holder(&UniqueKey::from("k")),
    )
    .await;
    assert_equal(holder.as_ref(), Some(id(&delivery)));
    done(delivery).await;
    worker.nothing_for(QUIET, "a duplicate came").await;
    worker.close().await;
}
