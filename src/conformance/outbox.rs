//! Checks of follow-ups, the messages that a handler sends through its outbox.

use std::time::Duration;

use super::{
    Factory,
    scene::{
        LEASE, QUIET, Scene, answer, call, done, id, message, must, outcome, redeliver_after, send,
        settle, spawn_request, stream_of,
    },
};
use crate::{
    error::{Error, RpcError},
    message::{IdempotencyKey, Message},
    outbox::Outbox,
    reply::Reply,
    transport::{Delivery, Interest, Streams},
};

/// Checks that the tasks and events in an outbox are sent when the delivery is acknowledged, not
/// before.
pub async fn follow_ups_are_sent_with_the_acknowledgement<F: Factory>(factory: &F) {
    if !factory.capabilities().outbox {
        return;
    }
    let scene = Scene::new(factory);
    let other = Scene::new(factory);
    let event = scene.name("event");
    let mut interest = Interest::stream();
    if factory.capabilities().events {
        interest.events.push(event.clone());
    }
    let mut worker = scene.worker_for(interest).await;
    let mut other_worker = other.worker().await;
    // The handler adds tasks for its own stream and for another stream, a delayed task, and an
    // event.
    scene.send_task("first").await;
    let delivery = worker.one().await;
    let outbox = outbox(&delivery);
    let second = outbox.enqueue("second", "2").header("x-tenant", "acme");
    add(second).await;
    let elsewhere = outbox
        .enqueue("third", "3")
        .stream(other.settings.stream.clone());
    add(elsewhere).await;
    if factory.capabilities().delayed_tasks {
        let delayed = outbox.enqueue("later", "4").delay(Duration::from_secs(1));
        add(delayed).await;
    }
    add(outbox.publish(event.clone(), "5")).await;
    worker
        .nothing_for(QUIET, "a follow-up came before its time")
        .await;
    other_worker
        .nothing_for(QUIET, "a follow-up came before its time")
        .await;
    done(delivery).await;

    // After the acknowledgement, each follow-up comes once.
    let elsewhere = other_worker.one().await;
    assert_eq!(message(&elsewhere).payload(), "3");
    assert_eq!(stream_of(&elsewhere), other.settings.stream);
    done(elsewhere).await;
    let expected_count = 1
        + usize::from(factory.capabilities().events)
        + usize::from(factory.capabilities().delayed_tasks);
    let mut payloads = Vec::new();
    for _ in 0..expected_count {
        let delivery = worker.one().await;
        let follow_up = message(&delivery);
        if follow_up.name() == "second" {
            assert_eq!(follow_up.headers()["x-tenant"], "acme");
            assert_eq!(stream_of(&delivery), scene.settings.stream);
        }
        payloads.push(follow_up.payload().clone());
        done(delivery).await;
    }
    payloads.sort();
    let mut expected = vec!["2"];
    expected.extend(factory.capabilities().delayed_tasks.then_some("4"));
    expected.extend(factory.capabilities().events.then_some("5"));
    assert_eq!(payloads, expected);
    worker.nothing_for(QUIET, "a follow-up came twice").await;
    other_worker
        .nothing_for(QUIET, "a follow-up came twice")
        .await;
    worker.close().await;
    other_worker.close().await;
}

/// Checks that the follow-ups of a failed attempt are not sent. An outbox that is extracted again
/// starts empty, and closes the earlier one.
pub async fn follow_ups_of_a_failed_attempt_are_not_sent<F: Factory>(factory: &F) {
    if !factory.capabilities().outbox {
        return;
    }
    let scene = Scene::new(factory);
    let mut worker = scene.worker().await;
    scene.send_task("first").await;
    let delivery = worker.one().await;
    add(outbox(&delivery).enqueue("failed", "")).await;
    settle(delivery, redeliver_after(Duration::ZERO)).await;

    let delivery = worker.one().await;
    assert_eq!(message(&delivery).payload(), "first");
    let first = outbox(&delivery);
    add(first.enqueue("replaced", "")).await;
    let second = outbox(&delivery);
    let late = first.enqueue("late", "").await;
    assert!(late.is_err_and(|error| error.is_closed()));
    add(second.enqueue("sent", "")).await;
    done(delivery).await;
    let late = second.enqueue("late", "").await;
    assert!(late.is_err_and(|error| error.is_closed()));

    let delivery = worker.one().await;
    assert_eq!(message(&delivery).name(), "sent");
    done(delivery).await;
    worker
        .nothing_for(QUIET, "a follow-up of a failed attempt came")
        .await;
    worker.close().await;
}

/// Checks that the follow-ups of a lost delivery are not sent, and that the follow-ups of the
/// claimed delivery are.
pub async fn follow_ups_of_a_lost_delivery_are_not_sent<F: Factory>(factory: &F) {
    if !factory.capabilities().outbox || !factory.capabilities().end_leases {
        return;
    }
    let scene = Scene::new(factory).with(|settings| settings.lease = LEASE);
    let mut one = scene.worker().await;
    let receipt = scene.send_task("first").await;
    let lost = one.one().await;
    add(outbox(&lost).enqueue("lost", "")).await;
    let ended = factory.end_leases(&scene.settings);
    must("ending the leases", ended).await;
    let claimed = one.one().await;
    assert_eq!(id(&claimed), &receipt);
    add(outbox(&claimed).enqueue("kept", "")).await;
    // A verdict on a lost delivery has no effect.
    done(lost).await;
    one.nothing_for(QUIET, "a follow-up of a lost delivery came")
        .await;
    done(claimed).await;
    let delivery = one.one().await;
    assert_eq!(message(&delivery).name(), "kept");
    done(delivery).await;
    one.nothing_for(QUIET, "a follow-up of a lost delivery came")
        .await;
    one.close().await;
}

/// Checks that a request with follow-ups is answered. Its follow-ups are sent if the request
/// succeeds, and dropped if the reply is an error.
pub async fn a_request_sends_its_follow_ups_if_it_succeeds<F: Factory>(factory: &F) {
    if !factory.capabilities().outbox || !factory.capabilities().reliable_rpc {
        return;
    }
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let mut worker = scene.worker().await;
    let waiting = spawn_request(&handle, Message::rpc("sum", "1"));
    let delivery = worker.one().await;
    add(outbox(&delivery).enqueue("sent", "")).await;
    answer(delivery, Ok(Reply::new("2"))).await;
    let reply = must("the request", outcome(waiting)).await;
    assert_eq!(reply.payload, "2");
    let delivery = worker.one().await;
    assert_eq!(message(&delivery).name(), "sent");
    done(delivery).await;

    let waiting = spawn_request(&handle, Message::rpc("sum", "x"));
    let delivery = worker.one().await;
    add(outbox(&delivery).enqueue("failed", "")).await;
    answer(delivery, Err(RpcError::invalid("no number"))).await;
    assert!(outcome(waiting).await.is_err());
    worker
        .nothing_for(QUIET, "a failed request sent its follow-ups")
        .await;
    worker.close().await;
}

/// Checks that of the follow-ups and tasks with one idempotency key, only the first is stored.
pub async fn a_follow_up_with_a_key_is_sent_once<F: Factory>(factory: &F) {
    let capabilities = factory.capabilities();
    if !capabilities.outbox || !capabilities.idempotent_tasks {
        return;
    }
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let mut worker = scene.worker().await;
    scene.send_task("first").await;
    scene.send_task("first").await;
    for _ in 0..2 {
        let delivery = worker.one().await;
        let follow_up = outbox(&delivery).enqueue("second", "").idempotency_key("k");
        add(follow_up).await;
        done(delivery).await;
    }
    let delivery = worker.one().await;
    assert_eq!(message(&delivery).name(), "second");
    let mut same = Message::task("second", "");
    same.parts_mut().idempotency_key = Some(IdempotencyKey::from("k"));
    assert_eq!(&send(&handle, same).await, id(&delivery));
    done(delivery).await;
    worker
        .nothing_for(QUIET, "a follow-up with a key came twice")
        .await;
    worker.close().await;
}

/// Checks that a follow-up on a partitioned stream goes to the partition of its key.
pub async fn a_follow_up_goes_to_the_partition_of_its_key<F: Factory>(factory: &F) {
    if !factory.capabilities().outbox || !factory.capabilities().partitions {
        return;
    }
    let scene = Scene::new(factory).with(|settings| {
        settings.streams = Some(Streams::partitioned(settings.stream.clone(), 4));
    });
    let handle = scene.handle().await;
    let mut worker = scene.worker().await;
    for key in ["a", "b", "c", "d", "e"] {
        let keyed_task = |name: &str| {
            let mut message = Message::task(name, "");
            message.parts_mut().partition_key = Some(key.into());
            message
        };
        must("sending", call(&handle, keyed_task("first"))).await;
        let delivery = worker.one().await;
        let outbox = outbox(&delivery);
        add(outbox.enqueue("second", "").partition_key(key)).await;
        let partition = stream_of(&delivery);
        done(delivery).await;
        let delivery = worker.one().await;
        assert_eq!(message(&delivery).name(), "second");
        assert_eq!(stream_of(&delivery), partition);
        done(delivery).await;
    }
    worker.close().await;
}

/// Checks that an invalid follow-up is refused when it is added.
pub async fn an_invalid_follow_up_is_refused<F: Factory>(factory: &F) {
    if !factory.capabilities().outbox {
        return;
    }
    let scene = Scene::new(factory);
    let mut worker = scene.worker().await;
    scene.send_task("first").await;
    let delivery = worker.one().await;
    let outbox = outbox(&delivery);
    let assert_refused = async |message: Message| {
        let error = call(&outbox, message).await.expect_err("it is invalid");
        assert!(error.is_invalid(), "{error}");
    };
    assert_refused(Message::rpc("sum", "")).await;
    assert_refused(Message::task("", "")).await;
    let mut sharded = Message::event("event", "");
    sharded.parts_mut().sharded = true;
    assert_refused(sharded).await;
    assert_refused(Message::task("large", vec![0; 17 << 20])).await;
    for _ in 0..1_000 {
        add(call(&outbox, Message::task("many", ""))).await;
    }
    assert_refused(Message::task("many", "")).await;
    for key in ["", &"k".repeat(1_025)] {
        assert!(outbox.set(key, "").is_err_and(|error| error.is_invalid()));
    }
    settle(delivery, redeliver_after(Duration::ZERO)).await;
    done(worker.one().await).await;
    worker
        .nothing_for(QUIET, "a follow-up of a failed attempt came")
        .await;
    worker.close().await;
}

/// Adds a follow-up to its outbox, and panics if the outbox refuses it.
pub(super) async fn add<T>(follow_up: impl IntoFuture<Output = Result<T, Error>>) {
    let added = follow_up.into_future().await;
    added.unwrap_or_else(|error| panic!("a follow-up was refused: {}", error.chain()));
}

/// Extracts the outbox of a delivery.
pub(super) fn outbox<H>(delivery: &Delivery<H>) -> Outbox {
    let outbox = Outbox::of_delivery(message(delivery).parts());
    outbox.expect("the factory declares `outbox`, and a delivery has none")
}
