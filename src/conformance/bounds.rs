//! Checks of the bounds on the number and the age of the messages that wait on a stream.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{
    Factory,
    outbox::{add, outbox},
    partitions::{keyed_task, partitioned_scene},
    scene::{Scene, WorkerOf, call, done, outcome, redeliver_after, send, settle, spawn_request},
};
use crate::{
    error::Error,
    message::{Due, Message},
    reply::Reply,
    transport::{Start, WhenFull},
};

/// The maximum number of waiting messages in most checks. A single sender is refused after exactly
/// this number of messages.
const BOUND: usize = 8;
/// The maximum time until a sender notices that there is room.
const MAX_NOTICE_TIME: Duration = Duration::from_secs(3);

fn bounded_scene<F: Factory>(factory: &F) -> Scene<'_, F> {
    Scene::new(factory).with(|settings| settings.max_waiting = Some(BOUND))
}

/// Sends tasks until one is refused, and returns the number of tasks that were accepted.
async fn fill<F: Factory>(handle: &F::Handle) -> usize {
    for n in 0..10 * BOUND {
        match call(handle, Message::task("task", n.to_string())).await {
            Ok(_) => {}
            Err(error) => {
                assert_full(&error);
                return n;
            }
        }
    }
    panic!("the stream is not full after {} tasks", 10 * BOUND);
}

#[track_caller]
fn assert_full(error: &Error) {
    assert!(error.is_overloaded(), "{}", error.chain());
    let wait = error.retry_after().expect("a full stream says when");
    assert!((1..=300).contains(&wait.as_secs()), "{wait:?}");
}

/// Sends a task as soon as there is room for it.
async fn send_soon<F: Factory>(handle: &F::Handle) {
    let end = Instant::now() + MAX_NOTICE_TIME;
    while let Err(error) = call(handle, Message::task("task", "")).await {
        assert_full(&error);
        assert!(Instant::now() < end, "the stream stays full");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn handle_tasks<F: Factory>(worker: &mut WorkerOf<F>, count: usize) {
    for delivery in worker.exactly(count).await {
        done(delivery).await;
    }
}

/// Checks that a full stream refuses tasks and requests, and accepts them again once workers have
/// taken messages.
pub async fn a_full_stream_refuses_senders_until_workers_take_messages<F: Factory>(factory: &F) {
    if !factory.capabilities().bounds {
        return;
    }
    let scene = bounded_scene(factory);
    let mut worker = scene.worker().await;
    let handle = scene.handle().await;
    assert_eq!(fill::<F>(&handle).await, BOUND);
    assert_full(&call(&handle, Message::rpc("ask", "")).await.unwrap_err());
    if factory.capabilities().idempotent_tasks {
        let mut task = Message::task("task", "");
        task.parts_mut().idempotency_key = Some("7".into());
        assert_full(&call(&handle, task).await.unwrap_err());
    }

    handle_tasks::<F>(&mut worker, BOUND).await;
    send_soon::<F>(&handle).await;
    let reply = spawn_request(&handle, Message::rpc("ask", ""));
    for _ in 0..2 {
        done(worker.one().await).await;
    }
    outcome(reply).await.expect("there is room for the request");
    worker.close().await;
}

/// Checks that a full stream accepts the messages that it can no longer refuse: follow-ups,
/// redeliveries and delayed tasks.
pub async fn a_full_stream_takes_follow_ups_redeliveries_and_delayed_tasks<F: Factory>(
    factory: &F,
) {
    if !factory.capabilities().bounds {
        return;
    }
    let scene = bounded_scene(factory);
    let mut worker = scene.worker().await;
    let handle = scene.handle().await;
    fill::<F>(&handle).await;
    let delivery = worker.one().await;
    send_soon::<F>(&handle).await;
    let mut expected = BOUND;
    if factory.capabilities().outbox {
        add(outbox(&delivery).enqueue("more", "")).await;
        expected += 1;
    }
    done(delivery).await;
    let delivery = worker.one().await;
    settle(delivery, redeliver_after(Duration::ZERO)).await;
    if factory.capabilities().delayed_tasks {
        let mut later = Message::task("later", "");
        later.parts_mut().due = Some(Due::After(Duration::from_millis(50)));
        send(&handle, later).await;
        expected += 1;
    }
    if factory.capabilities().events {
        let event = Message::event(scene.name("event"), "");
        let published = call(&handle, event).await;
        published.expect("no stream keeps an event");
    }
    handle_tasks::<F>(&mut worker, expected).await;
    worker.close().await;
}

/// Checks that a sender with [`WhenFull::Wait`] sends as soon as there is room, and is refused if
/// there is no room in time.
pub async fn a_sender_waits_for_room_until_its_time_is_over<F: Factory>(factory: &F) {
    if !factory.capabilities().bounds {
        return;
    }
    let short = Duration::from_millis(300);
    let scene = bounded_scene(factory);
    let mut worker = scene.worker().await;
    fill::<F>(&scene.handle().await).await;
    let scene = scene.with(|settings| settings.when_full = WhenFull::Wait(short));
    let start = Instant::now();
    let refused = call(&scene.handle().await, Message::task("task", "")).await;
    assert_full(&refused.unwrap_err());
    assert!(start.elapsed() >= short, "{:?}", start.elapsed());

    let mut late = Message::rpc("ask", "");
    late.parts_mut().deadline = Some(crate::Deadline::after(short));
    let long = Duration::from_secs(15);
    let scene = scene.with(|settings| settings.when_full = WhenFull::Wait(long));
    let handle = scene.handle().await;
    let error = call(&handle, late).await.unwrap_err();
    assert!(error.is_overloaded() || error.is_timeout(), "{error}");

    let waiting: Vec<_> = (0..3)
        .map(|_| spawn_request(&handle, Message::task("task", "")))
        .collect();
    sleep(Duration::from_millis(200)).await;
    let is_sent = waiting.iter().any(|sent| sent.is_finished());
    assert!(!is_sent, "nothing was taken yet");
    handle_tasks::<F>(&mut worker, BOUND).await;
    for sent in waiting {
        outcome(sent).await.expect("there is room again");
    }
    handle_tasks::<F>(&mut worker, 3).await;
    worker.close().await;
}

/// Checks that a group without live workers does not cause refusals.
pub async fn a_group_without_workers_does_not_stop_senders<F: Factory>(factory: &F) {
    if !factory.capabilities().bounds {
        return;
    }
    let scene = bounded_scene(factory);
    scene.worker().await.close().await;
    let handle = scene.handle().await;
    for _ in 0..3 * BOUND {
        send(&handle, Message::task("task", "")).await;
    }
    if factory.capabilities().groups {
        // The worker of this group handles all messages in time, so the group does not stop
        // senders.
        let mut served = scene.with_group("served", Start::End).worker().await;
        for _ in 0..3 * BOUND {
            send_soon::<F>(&handle).await;
            done(served.one().await).await;
        }
        served.close().await;
    }
    let worker = scene.worker().await;
    let end = Instant::now() + MAX_NOTICE_TIME;
    loop {
        match call(&handle, Message::task("task", "")).await {
            Err(error) => break assert_full(&error),
            Ok(_) => assert!(Instant::now() < end, "the worker does not count"),
        }
        sleep(Duration::from_millis(20)).await;
    }
    worker.close().await;
}

/// Checks that senders are refused while a message has waited for too long, even if few messages
/// wait.
pub async fn a_message_that_waits_for_too_long_stops_senders<F: Factory>(factory: &F) {
    if !factory.capabilities().bounds {
        return;
    }
    let age = Duration::from_millis(500);
    let scene = Scene::new(factory).with(|settings| settings.max_waiting_age = Some(age));
    let mut worker = scene.worker().await;
    let handle = scene.handle().await;
    send(&handle, Message::task("task", "")).await;
    send(&handle, Message::task("task", "")).await;
    sleep(2 * age + Duration::from_millis(100)).await;
    let error = call(&handle, Message::task("task", "")).await.unwrap_err();
    assert_full(&error);
    handle_tasks::<F>(&mut worker, 2).await;
    send_soon::<F>(&handle).await;
    // The waiting time of a redelivery starts when the redelivery is due.
    let delivery = worker.one().await;
    sleep(2 * age).await;
    settle(delivery, redeliver_after(Duration::ZERO)).await;
    send(&handle, Message::task("task", "")).await;
    worker.close().await;
}

/// Checks that the bound applies to each partition separately.
pub async fn each_partition_has_its_own_bound<F: Factory>(factory: &F) {
    let capabilities = factory.capabilities();
    if !capabilities.bounds || !capabilities.partitions {
        return;
    }
    let (scene, _) = partitioned_scene(factory, 4);
    let scene = scene.with(|settings| settings.max_waiting = Some(BOUND));
    let worker = scene.worker().await;
    let handle = scene.handle().await;
    for n in 0..BOUND {
        send(&handle, keyed_task("a", n)).await;
    }
    assert_full(&call(&handle, keyed_task("a", "")).await.unwrap_err());
    // Messages without a key go to the four partitions in turn. One partition is full, so six of
    // eight messages are accepted.
    let mut sent = 0;
    for _ in 0..8 {
        sent += usize::from(call(&handle, Message::task("task", "")).await.is_ok());
    }
    assert_eq!(sent, 6);
    worker.close().await;
}

/// Checks that a sender with an invalid bound gets an error that names the setting.
pub async fn an_invalid_bound_is_refused<F: Factory>(factory: &F) {
    if !factory.capabilities().bounds {
        return;
    }
    for scene in [
        Scene::new(factory).with(|settings| settings.max_waiting = Some(0)),
        Scene::new(factory).with(|settings| settings.max_waiting_age = Some(Duration::ZERO)),
    ] {
        let handle = scene.handle().await;
        let sent: Result<Reply, _> = call(&handle, Message::task("task", "")).await;
        let error = sent.unwrap_err();
        assert!(error.is_config(), "{error}");
        assert!(error.to_string().contains("max_waiting"), "{error}");
    }
}
