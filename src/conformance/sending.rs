//! Checks of delays, times to live and idempotency keys.

use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};

use super::{
    Factory,
    scene::{QUIET, Scene, call, done, id, message, redeliver_after, send},
};
use crate::message::{Deadline, Due, IdempotencyKey, Message, Replicas};

/// Returns a task that is due at this time.
fn delayed_task(payload: &'static str, due: Due) -> Message {
    let mut message = Message::task("task", payload);
    message.parts_mut().due = Some(due);
    message
}

/// Returns a task with this idempotency key.
fn keyed_task(payload: &'static str, key: &str) -> Message {
    let mut message = Message::task("task", payload);
    message.parts_mut().idempotency_key = Some(key.into());
    message
}

/// Checks that a delayed task is delivered when it is due, with the id of its receipt. The first
/// worker may start after the task was sent.
pub async fn a_delayed_task_is_delivered_when_it_is_due<F: Factory>(factory: &F) {
    const DELAY: Duration = Duration::from_millis(1_500);
    if !factory.capabilities().delayed_tasks {
        return;
    }
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let start = Instant::now();
    let later = send(&handle, delayed_task("later", Due::After(DELAY))).await;
    let soon = send(&handle, delayed_task("soon", Due::After(DELAY / 5))).await;
    let mut worker = scene.worker().await;
    let now = scene.send_task("now").await;
    for (receipt, payload, wait) in [
        (now, "now", Duration::ZERO),
        (soon, "soon", DELAY / 5),
        (later, "later", DELAY),
    ] {
        let delivery = worker.one().await;
        assert_eq!(message(&delivery).payload(), payload);
        assert_eq!(
            id(&delivery),
            &receipt,
            "the id of {payload:?} is not that of its receipt"
        );
        // Both clocks count whole milliseconds, so the measured wait may be up to two milliseconds
        // too short.
        assert!(
            start.elapsed() + Duration::from_millis(5) >= wait,
            "{payload:?} came after {:?} instead of {wait:?}",
            start.elapsed()
        );
        done(delivery).await;
    }
    worker.nothing_for(QUIET, "a delayed task came twice").await;
    worker.close().await;
}

/// Checks that a task for a point in time waits until that time, and that a task for a past time is
/// delivered immediately.
pub async fn a_task_for_a_time_is_delivered_then_or_at_once_if_it_is_past<F: Factory>(factory: &F) {
    if !factory.capabilities().delayed_tasks {
        return;
    }
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let mut worker = scene.worker().await;
    for time in [
        SystemTime::UNIX_EPOCH,
        SystemTime::UNIX_EPOCH - Duration::from_secs(1),
        SystemTime::now() - Duration::from_secs(3600),
    ] {
        let receipt = send(&handle, delayed_task("past", Due::At(time))).await;
        let delivery = worker.one().await;
        assert_eq!(id(&delivery), &receipt);
        done(delivery).await;
    }
    let time = SystemTime::now() + Duration::from_secs(3600);
    send(&handle, delayed_task("in an hour", Due::At(time))).await;
    worker
        .nothing_for(QUIET, "the task came an hour early")
        .await;
    worker.close().await;
}

/// Checks that a delayed task keeps its id when it fails and is delivered again.
pub async fn a_delayed_task_keeps_its_id_through_redelivery<F: Factory>(factory: &F) {
    if !factory.capabilities().delayed_tasks {
        return;
    }
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let mut worker = scene.worker().await;
    let due = Due::After(Duration::from_millis(10));
    let receipt = send(&handle, delayed_task("again", due)).await;
    for _ in 0..3 {
        let delivery = worker.one().await;
        assert_eq!(id(&delivery), &receipt);
        super::scene::settle(delivery, redeliver_after(Duration::ZERO)).await;
    }
    done(worker.one().await).await;
    worker.close().await;
}

/// Checks that a delayed task can be cancelled once, and only before it is due.
pub async fn a_delayed_task_can_be_cancelled_until_it_is_due<F: Factory>(factory: &F) {
    const DELAY: Duration = Duration::from_millis(300);
    if !factory.capabilities().delayed_tasks {
        return;
    }
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let mut worker = scene.worker().await;
    let unwanted = send(&handle, delayed_task("unwanted", Due::After(DELAY))).await;
    let wanted = send(&handle, delayed_task("wanted", Due::After(DELAY))).await;
    assert!(scene.cancel(&handle, &unwanted).await);
    assert!(
        !scene.cancel(&handle, &unwanted).await,
        "it was cancelled before"
    );
    let delivery = worker.one().await;
    assert_eq!(id(&delivery), &wanted);
    assert!(!scene.cancel(&handle, &wanted).await, "it was due");
    done(delivery).await;
    let plain = scene.send_task("plain").await;
    assert!(!scene.cancel(&handle, &plain).await, "it was not delayed");
    done(worker.one().await).await;
    worker.nothing_for(2 * DELAY, "a cancelled task came").await;
    worker.close().await;
}

/// Checks that the worker gets the remaining time to live. The time to live of a delayed task
/// starts when the task is due.
pub async fn a_time_to_live_counts_from_when_the_task_is_due<F: Factory>(factory: &F) {
    const TIME_TO_LIVE: Duration = Duration::from_secs(60);
    const DELAY: Duration = Duration::from_millis(600);
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let mut worker = scene.worker().await;
    let mut delays = vec![Duration::ZERO];
    if factory.capabilities().delayed_tasks {
        delays.push(DELAY);
    }
    for delay in delays {
        let mut task = Message::task("task", "");
        task.parts_mut().deadline = Some(Deadline::after(delay + TIME_TO_LIVE));
        task.parts_mut().due = (!delay.is_zero()).then_some(Due::After(delay));
        send(&handle, task).await;
        let delivery = worker.one().await;
        let deadline = message(&delivery).parts().deadline;
        let remaining = deadline.expect("it has a time to live").remaining();
        assert!(
            remaining <= TIME_TO_LIVE,
            "{remaining:?} of {TIME_TO_LIVE:?} are left"
        );
        assert!(
            remaining >= TIME_TO_LIVE - 20 * DELAY,
            "only {remaining:?} of {TIME_TO_LIVE:?} are left"
        );
        done(delivery).await;
    }
    worker.close().await;
}

/// Checks that of the tasks with the same idempotency key, only the first is stored until the
/// window is over.
pub async fn an_idempotency_key_is_one_task_within_its_window<F: Factory>(factory: &F) {
    const WINDOW: Duration = Duration::from_secs(2);
    if !factory.capabilities().idempotent_tasks {
        return;
    }
    let scene = Scene::new(factory).with(|settings| settings.idempotency_window = WINDOW);
    let (handle, other_handle) = (scene.handle().await, scene.handle().await);
    let mut worker = scene.worker().await;
    let first = send(&handle, keyed_task("first", "order 7")).await;
    let other = send(&handle, keyed_task("other", "order 8")).await;
    assert_ne!(first, other);
    let repeated = send(&other_handle, keyed_task("again", "order 7")).await;
    assert_eq!(repeated, first, "the receipt is that of the first");
    for (receipt, payload, key) in [(&first, "first", "order 7"), (&other, "other", "order 8")] {
        let delivery = worker.one().await;
        assert_eq!(
            (id(&delivery), &message(&delivery).payload()[..]),
            (receipt, payload.as_bytes())
        );
        let parts = message(&delivery).parts();
        assert_eq!(parts.idempotency_key, Some(IdempotencyKey::from(key)));
        done(delivery).await;
    }
    assert_eq!(
        send(&handle, keyed_task("again", "order 7")).await,
        first,
        "a task that is done keeps its key"
    );
    worker.nothing_for(QUIET, "the task was sent twice").await;
    sleep(WINDOW).await;
    let new = send(&handle, keyed_task("new", "order 7")).await;
    assert_ne!(new, first, "the window is over");
    done(worker.one().await).await;

    let elsewhere = Scene::new(factory);
    let theirs = send(&elsewhere.handle().await, keyed_task("theirs", "order 8")).await;
    assert_ne!(theirs, other, "each stream has its own keys");
    worker.close().await;
}

/// Checks that only one of several concurrent tasks with the same key is stored, and that all
/// senders get its id.
pub async fn senders_of_one_key_at_the_same_time_send_one_task<F: Factory>(factory: &F) {
    if !factory.capabilities().idempotent_tasks {
        return;
    }
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let sends = (0..20).map(|_| send(&handle, keyed_task("once", "k")));
    let receipts = futures_util::future::join_all(sends).await;
    assert!(
        receipts.iter().all(|receipt| *receipt == receipts[0]),
        "{receipts:?}"
    );
    let mut worker = scene.worker().await;
    let delivery = worker.one().await;
    assert_eq!(id(&delivery), &receipts[0]);
    done(delivery).await;
    worker.nothing_for(QUIET, "the task was sent twice").await;
    worker.close().await;
}

/// Checks that only one of several delayed tasks with the same key is stored, and that cancelling
/// it frees the key.
pub async fn a_cancelled_task_frees_its_idempotency_key<F: Factory>(factory: &F) {
    let can = factory.capabilities();
    if !can.idempotent_tasks || !can.delayed_tasks {
        return;
    }
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let mut worker = scene.worker().await;
    let later = || {
        let mut task = keyed_task("later", "k");
        task.parts_mut().due = Some(Due::After(Duration::from_secs(3600)));
        task
    };
    let first = send(&handle, later()).await;
    assert_eq!(send(&handle, later()).await, first);
    assert!(scene.cancel(&handle, &first).await);
    assert!(!scene.cancel(&handle, &first).await);
    let now = send(&handle, keyed_task("now", "k")).await;
    assert_ne!(now, first);
    let delivery = worker.one().await;
    assert_eq!(id(&delivery), &now);
    done(delivery).await;
    worker.close().await;
}

/// Checks that an invalid message is refused before it is sent.
pub async fn an_invalid_message_is_refused<F: Factory>(factory: &F) {
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let with_due_and_key = |mut message: Message, due: Option<Due>, key: Option<&str>| {
        message.parts_mut().due = due;
        message.parts_mut().idempotency_key = key.map(IdempotencyKey::from);
        message
    };
    let in_a_second = Some(Due::After(Duration::from_secs(1)));
    let task = || Message::task("task", "");
    let long = "k".repeat(1025);
    let mut too_short = with_due_and_key(task(), in_a_second, None);
    too_short.parts_mut().deadline = Some(Deadline::after(Duration::from_millis(500)));
    let replicated = |mut message: Message, count, within| {
        message.parts_mut().replicas = Some(Replicas { count, within });
        message
    };
    let sharded = |mut message: Message| {
        message.parts_mut().sharded = true;
        message
    };
    let brief = Duration::from_millis(1);
    let limited = |mut message: Message, attempts, timeout| {
        message.parts_mut().max_attempts = attempts;
        message.parts_mut().attempt_timeout = timeout;
        message
    };
    // Messages with an option that their kind does not have, or with an invalid value.
    let mut invalid = vec![
        limited(Message::rpc("a", ""), Some(1), None),
        limited(Message::rpc("a", ""), None, Some(brief)),
        limited(task(), Some(0), None),
        limited(task(), None, Some(Duration::ZERO)),
        replicated(Message::event("a", ""), 1, brief),
        replicated(Message::rpc("a", ""), 1, brief),
        replicated(task(), 0, brief),
        replicated(task(), 1, Duration::ZERO),
        replicated(task(), 1, Duration::MAX),
        with_due_and_key(Message::event("a", ""), in_a_second, None),
        with_due_and_key(Message::rpc("a", ""), in_a_second, None),
        with_due_and_key(Message::event("a", ""), None, Some("k")),
        with_due_and_key(Message::rpc("a", ""), None, Some("k")),
        sharded(Message::rpc("a", "")),
        sharded(task()),
        with_due_and_key(task(), Some(Due::After(Duration::MAX)), None),
        with_due_and_key(task(), None, Some("")),
        with_due_and_key(task(), None, Some(&long)),
        too_short,
    ];
    if !factory.capabilities().replicas {
        invalid.push(replicated(task(), 1, brief));
    }
    for message in invalid {
        let shown = format!("{message:?}");
        match call(&handle, message).await {
            Err(error) => assert!(error.is_invalid(), "{shown}: {}", error.chain()),
            Ok(_) => panic!("it should have been refused: {shown}"),
        }
    }
    // A message whose deadline has passed is refused, too, as a timeout.
    let mut late = task();
    late.parts_mut().deadline = Some(Deadline::after(Duration::ZERO));
    let error = call(&handle, late).await.expect_err("its time is over");
    assert!(error.is_timeout(), "{}", error.chain());
    let mut worker = scene.worker().await;
    worker
        .nothing_for(QUIET, "a refused message was sent")
        .await;
    worker.close().await;
}
