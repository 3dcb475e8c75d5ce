use std::time::Duration;

use campanile::{
    Deadline, Failure, Kind, Message, NotFound, Reply, RpcError,
    error::{FailureVerdict, find},
};
use tokio::time::{Instant, advance};
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task::Spawn as Call};
use tower::Layer;
use tower_test::mock::{self, SendResponse, Spawn};

use super::*;
use crate::{
    key::Header,
    keyed_mocks::{
        self, Handle, Inner, by_header, call, message, no_request, only_request, reached, task,
    },
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

type Ordered = OrderedByKey<Inner, Header>;

fn layer() -> OrderedByKeyLayer<Header> {
    OrderedByKeyLayer::new(by_header())
}

fn service(layer: &OrderedByKeyLayer<Header>) -> (Spawn<Ordered>, Handle) {
    let (inner, handle) = mock::pair();
    (Spawn::new(layer.layer(inner)), handle)
}

fn succeed(answer: SendResponse<Reply>, call: &mut Call<OrderedByKeyFuture<Inner>>) {
    answer.send_response(Reply::default());
    assert_ready_ok!(call.poll());
}

/// Fails the call. Returns how its error settles the delivery.
fn fail(
    answer: SendResponse<Reply>,
    call: &mut Call<OrderedByKeyFuture<Inner>>,
    error: impl Into<campanile::BoxError>,
) -> Option<FailureVerdict> {
    answer.send_error(error);
    let error = assert_ready!(call.poll()).unwrap_err();
    FailureVerdict::of(Kind::Task, &*error)
}

/// Polls a call whose message must be put off. Returns the time for which it is put off.
fn put_off(call: &mut Call<OrderedByKeyFuture<Inner>>) -> Duration {
    let error = assert_ready!(call.poll()).unwrap_err();
    assert!(find::<PutOff>(&*error).is_some(), "{error:?}");
    match FailureVerdict::of(Kind::Task, &*error) {
        Some(FailureVerdict::Redeliver {
            after: Some(after),
            counted: false,
        }) => after,
        other => panic!("{other:?}"),
    }
}

/// Calls the service with a message that must be put off at once. Returns the time for which it is
/// put off.
fn put_off_at_once(service: &mut Spawn<Ordered>, message: Message) -> Duration {
    assert_ready_ok!(service.poll_ready());
    put_off(&mut tokio_test::task::spawn(service.call(message)))
}

fn in_a_minute() -> Failure {
    Failure::redeliver_after(MINUTE)
}

#[tokio::test]
async fn the_messages_of_a_key_run_one_after_the_other_and_keys_in_parallel() {
    let layer = layer();
    let (mut service, mut handle) = service(&layer);
    let mut first = call(&mut service, task("k", "1"));
    let mut second = call(&mut service, task("k", "2"));
    let mut third = call(&mut service, task("k", "3"));
    let answer = only_request(&mut handle, "1");
    let mut other = call(&mut service, task("l", "4"));
    succeed(only_request(&mut handle, "4"), &mut other);

    succeed(answer, &mut first);
    assert!(second.is_woken() && !third.is_woken());
    assert_pending!(second.poll());
    assert_pending!(third.poll());
    succeed(only_request(&mut handle, "2"), &mut second);
    assert_pending!(third.poll());
    succeed(only_request(&mut handle, "3"), &mut third);
    assert_eq!(layer.keys_in_use(), 0);
}

#[tokio::test]
async fn messages_run_in_the_order_in_which_the_service_became_ready_for_them() {
    let (mut one, mut handle) = service(&layer());
    let mut two = Spawn::new(one.get_ref().clone());
    let mut three = Spawn::new(one.get_ref().clone());
    let mut given_up = Spawn::new(one.get_ref().clone());
    for service in [&mut one, &mut given_up, &mut two, &mut three] {
        assert_ready_ok!(service.poll_ready());
    }
    // The services are called in another order than they became ready, as by several threads.
    let mut third = call(&mut three, task("k", "3"));
    let mut second = call(&mut two, task("k", "2"));
    no_request(&mut handle);
    let mut first = call(&mut one, task("k", "1"));
    let answer = only_request(&mut handle, "1");
    succeed(answer, &mut first);
    assert_pending!(second.poll());
    assert_pending!(third.poll());
    no_request(&mut handle);
    drop(given_up);
    assert!(second.is_woken() && third.is_woken());
    assert_pending!(third.poll());
    assert_pending!(second.poll());
    succeed(only_request(&mut handle, "2"), &mut second);
    assert_pending!(third.poll());
    succeed(only_request(&mut handle, "3"), &mut third);
}

#[tokio::test(start_paused = true)]
async fn later_messages_are_put_off_while_an_earlier_one_waits_for_its_redelivery() {
    let layer = layer();
    let (mut service, mut handle) = service(&layer);
    let mut first = call(&mut service, task("k", "1"));
    let mut second = call(&mut service, task("k", "2"));
    fail(only_request(&mut handle, "1"), &mut first, in_a_minute());
    assert!(second.is_woken());
    let after_two = put_off(&mut second);
    let after_three = put_off_at_once(&mut service, task("k", "3"));
    assert!(
        after_two > MINUTE && after_two < MINUTE + SECOND,
        "{after_two:?}"
    );
    assert!(after_three > after_two && after_three < MINUTE + 2 * SECOND);
    // Messages with other keys run.
    let mut other = call(&mut service, task("l", "4"));
    succeed(only_request(&mut handle, "4"), &mut other);

    advance(MINUTE).await;
    let mut first = call(&mut service, task("k", "1"));
    let answer = only_request(&mut handle, "1");
    // The messages that were put off are delivered again in any order.
    let mut third = call(&mut service, task("k", "3"));
    let mut second = call(&mut service, task("k", "2"));
    let mut fourth = call(&mut service, task("k", "4"));
    succeed(answer, &mut first);
    assert!(second.is_woken());
    for (id, call) in [("2", &mut second), ("3", &mut third), ("4", &mut fourth)] {
        assert_pending!(call.poll());
        succeed(only_request(&mut handle, id), call);
    }
    assert_eq!(layer.keys_in_use(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_message_before_its_turn_waits_in_its_delivery_and_is_then_put_off() {
    let (mut service, mut handle) = service(&layer());
    let mut first = call(&mut service, task("k", "1"));
    let soon = Failure::redeliver_after(Duration::from_millis(100));
    fail(only_request(&mut handle, "1"), &mut first, soon);
    let mut second = call(&mut service, task("k", "2"));
    advance(Duration::from_millis(340)).await;
    assert_pending!(second.poll());
    advance(Duration::from_millis(10)).await;
    assert!(second.is_woken());
    // The wait grows with the time for which the earlier message is overdue.
    assert_eq!(put_off(&mut second), Duration::from_millis(250));
    advance(3 * SECOND).await;
    let wait = put_off_at_once(&mut service, task("k", "2"));
    assert_eq!(wait, Duration::from_millis(3_250));
    no_request(&mut handle);

    let mut first = call(&mut service, task("k", "1"));
    let mut second = call(&mut service, task("k", "2"));
    succeed(only_request(&mut handle, "1"), &mut first);
    assert_pending!(second.poll());
    succeed(only_request(&mut handle, "2"), &mut second);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_fails_again_keeps_its_turn_again() {
    let (mut service, mut handle) = service(&layer());
    let mut first = call(&mut service, task("k", "1"));
    fail(only_request(&mut handle, "1"), &mut first, in_a_minute());
    put_off_at_once(&mut service, task("k", "2"));
    advance(MINUTE).await;
    let mut first = call(&mut service, task("k", "1"));
    let mut second = call(&mut service, task("k", "2"));
    fail(only_request(&mut handle, "1"), &mut first, in_a_minute());
    assert!(put_off(&mut second) > MINUTE);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_does_not_return_loses_its_turn_after_the_timeout() {
    let layer = layer().redelivery_timeout(10 * SECOND);
    let (mut service, mut handle) = service(&layer);
    let mut first = call(&mut service, task("k", "1"));
    fail(only_request(&mut handle, "1"), &mut first, in_a_minute());
    put_off_at_once(&mut service, task("k", "2"));
    advance(MINUTE + 9 * SECOND).await;
    put_off_at_once(&mut service, task("k", "2"));
    advance(SECOND).await;
    let mut second = call(&mut service, task("k", "2"));
    succeed(only_request(&mut handle, "2"), &mut second);
    assert_eq!(layer.keys_in_use(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_message_loses_its_turn_at_its_deadline() {
    let (mut service, mut handle) = service(&layer());
    let mut expiring = task("k", "1");
    expiring.parts_mut().deadline = Some(Deadline(Instant::now() + 5 * SECOND));
    let mut first = call(&mut service, expiring);
    fail(only_request(&mut handle, "1"), &mut first, in_a_minute());
    put_off_at_once(&mut service, task("k", "2"));
    advance(5 * SECOND).await;
    let mut second = call(&mut service, task("k", "2"));
    succeed(only_request(&mut handle, "2"), &mut second);
}

#[tokio::test(start_paused = true)]
async fn the_layer_sets_the_wait_of_a_redelivery_that_has_none() {
    let backoff = Backoff::exponential(4 * SECOND, MINUTE);
    let layer = layer().backoff(backoff);
    let (mut service, mut handle) = service(&layer);
    for (attempt, least, most) in [(1, 2, 4), (2, 4, 8)] {
        let mut again = task("k", "1");
        again.parts_mut().attempt.0 = attempt;
        let mut first = call(&mut service, again);
        match fail(only_request(&mut handle, "1"), &mut first, "disk full") {
            Some(FailureVerdict::Redeliver {
                after: Some(after),
                counted: true,
            }) => assert!(
                after >= least * SECOND && after <= most * SECOND,
                "{after:?}"
            ),
            other => panic!("{other:?}"),
        }
        let wait = put_off_at_once(&mut service, task("k", "2"));
        assert!(wait > least * SECOND && wait < (most + 2) * SECOND);
    }
    // A failure of the last attempt is a dead letter, so the message is not delivered again.
    let mut last = task("k", "1");
    last.parts_mut().attempt.0 = 3;
    last.parts_mut().max_attempts = Some(3);
    let mut first = call(&mut service, last);
    let settled = fail(only_request(&mut handle, "1"), &mut first, "disk full");
    assert!(matches!(
        settled,
        Some(FailureVerdict::Redeliver { after: None, .. })
    ));
    let mut second = call(&mut service, task("k", "2"));
    succeed(only_request(&mut handle, "2"), &mut second);
}

#[tokio::test]
async fn the_next_message_runs_after_one_that_is_not_redelivered() {
    let (mut service, mut handle) = service(&layer());
    let unknown = || NotFound::new(Kind::Task, "a".into());
    let ends: [(Kind, campanile::BoxError); 5] = [
        (Kind::Task, Failure::dead_letter().into()),
        (Kind::Task, Failure::discard().into()),
        (Kind::Task, unknown().into()),
        (Kind::Rpc, RpcError::unavailable("not now").into()),
        (Kind::Event, "lost".into()),
    ];
    for (n, (kind, error)) in ends.into_iter().enumerate() {
        let id = format!("end {n}");
        let mut first = call(&mut service, message(kind, "k", &id));
        fail(only_request(&mut handle, &id), &mut first, error);
        let mut next = call(&mut service, task("k", "next"));
        succeed(only_request(&mut handle, "next"), &mut next);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_redelivered_keeps_its_turn() {
    let (mut service, mut handle) = service(&layer());
    let mut first = call(&mut service, message(Kind::Rpc, "k", "1"));
    fail(only_request(&mut handle, "1"), &mut first, in_a_minute());
    put_off_at_once(&mut service, message(Kind::Rpc, "k", "2"));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_cannot_be_redelivered_does_not_wait_for_deferred_ones() {
    let (mut service, mut handle) = service(&layer());
    let mut first = call(&mut service, task("k", "1"));
    let mut event = call(&mut service, message(Kind::Event, "k", "event"));
    let without_id = Message::from_parts(
        {
            let mut parts = task("k", "").into_parts().0;
            parts.id = None;
            parts
        },
        "in place".into(),
    );
    let mut without_id = call(&mut service, without_id);
    fail(only_request(&mut handle, "1"), &mut first, in_a_minute());
    assert_pending!(without_id.poll());
    assert_pending!(event.poll());
    succeed(only_request(&mut handle, "event"), &mut event);
    assert_pending!(without_id.poll());
    succeed(only_request(&mut handle, "in place"), &mut without_id);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_future_wakes_the_next_message_and_a_task_keeps_its_turn() {
    let layer = layer().backoff(Backoff::exponential(MINUTE, MINUTE));
    // A request is answered, and not delivered again.
    let (mut service, mut handle) = service(&layer);
    let dropped = call(&mut service, message(Kind::Rpc, "k", "1"));
    let waiting = call(&mut service, message(Kind::Rpc, "k", "2"));
    let mut next = call(&mut service, task("k", "3"));
    let _kept = only_request(&mut handle, "1");
    drop(waiting);
    drop(dropped);
    assert!(next.is_woken());
    assert_pending!(next.poll());
    let answer = only_request(&mut handle, "3");
    succeed(answer, &mut next);
    // A task is delivered again.
    let dropped = call(&mut service, task("k", "4"));
    let _kept = only_request(&mut handle, "4");
    let mut next = call(&mut service, task("k", "5"));
    drop(dropped);
    assert!(put_off(&mut next) >= MINUTE / 2);
    let mut again = call(&mut service, task("k", "4"));
    succeed(only_request(&mut handle, "4"), &mut again);
}

#[tokio::test(start_paused = true)]
async fn the_number_of_kept_turns_is_bounded() {
    let layer = layer().max_put_off(2);
    let (mut service, mut handle) = service(&layer);
    let mut first = call(&mut service, task("k", "1"));
    fail(only_request(&mut handle, "1"), &mut first, in_a_minute());
    for id in ["2", "3"] {
        put_off_at_once(&mut service, task("k", id));
    }
    advance(MINUTE).await;
    // The third message was not allowed to keep its turn, so it runs after the fourth.
    let mut fourth = call(&mut service, task("k", "4"));
    let mut third = call(&mut service, task("k", "3"));
    for id in ["1", "2"] {
        let mut next = call(&mut service, task("k", id));
        succeed(only_request(&mut handle, id), &mut next);
    }
    assert_pending!(third.poll());
    assert_pending!(fourth.poll());
    succeed(only_request(&mut handle, "4"), &mut fourth);
    assert_pending!(third.poll());
    succeed(only_request(&mut handle, "3"), &mut third);
}

#[tokio::test(start_paused = true)]
async fn keys_whose_messages_never_return_are_removed() {
    let layer = layer();
    let (mut service, mut handle) = service(&layer);
    for n in 0..1_500 {
        let (key, id) = (format!("k{n}"), n.to_string());
        let mut call = call(&mut service, task(&key, &id));
        fail(only_request(&mut handle, &id), &mut call, in_a_minute());
        // A task that never yields uses up tokio's cooperative budget.
        tokio::task::yield_now().await;
    }
    assert_eq!(layer.keys_in_use(), 1_500);
    advance(3 * MINUTE).await;
    let mut one = call(&mut service, task("k", "1"));
    fail(only_request(&mut handle, "1"), &mut one, in_a_minute());
    assert_eq!(layer.keys_in_use(), 1);
}

#[tokio::test]
async fn all_services_of_a_layer_share_one_order() {
    let layer = layer();
    let (mut one, mut first) = service(&layer);
    let (mut two, mut second) = service(&layer.clone());
    let mut runs = call(&mut one, task("k", "1"));
    let mut waits = call(&mut two, task("k", "2"));
    no_request(&mut second);
    succeed(only_request(&mut first, "1"), &mut runs);
    assert_pending!(waits.poll());
    assert_eq!(reached(&mut second).len(), 1);
}

#[tokio::test]
async fn readiness_reservations_and_missing_keys_are_handled_as_in_every_layer() {
    keyed_mocks::readiness_and_its_error_pass(&layer());
    keyed_mocks::a_clone_has_no_reservation(&layer());
    keyed_mocks::a_waiting_message_holds_no_reservation(&layer());
    keyed_mocks::a_message_without_a_key_is_rejected_or_passes(
        &layer(),
        &layer().missing_key(MissingKey::Pass),
    );
}
