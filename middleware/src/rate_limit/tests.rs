use std::time::Duration;

use campanile::{
    Kind, Reply, RpcCode,
    error::{FailureVerdict, find},
};
use tokio::time::advance;
use tokio_test::{assert_pending, assert_ready, assert_ready_ok};
use tower::Layer;
use tower_test::mock::{self, Spawn};

use super::*;
use crate::{
    key::Header,
    keyed_mocks::{
        self, Handle, Inner, by_header, call, message, no_request, only_request, reached, task,
    },
    panics::panic_text,
};

const SECOND: Duration = Duration::from_secs(1);

/// Returns a layer that admits two messages in ten seconds. After a burst of two, it admits one
/// every five seconds.
fn layer() -> RateLimitByKeyLayer<Header> {
    RateLimitByKeyLayer::new(2, 10 * SECOND, by_header())
}

fn service(layer: &RateLimitByKeyLayer<Header>) -> (Spawn<RateLimitByKey<Inner, Header>>, Handle) {
    let (inner, handle) = mock::pair();
    (Spawn::new(layer.layer(inner)), handle)
}

/// Calls the service with a message that must fail immediately, and returns the error.
fn refused(service: &mut Spawn<RateLimitByKey<Inner, Header>>, message: Message) -> BoxError {
    assert_ready_ok!(service.poll_ready());
    let mut call = tokio_test::task::spawn(service.call(message));
    assert_ready!(call.poll()).unwrap_err()
}

/// Returns [`RateLimited::retry_after`]. Asserts that the redelivery has this delay and the slack.
fn retry_after(error: &BoxError) -> Duration {
    let limited = find::<RateLimited>(&**error).expect("it was refused by the rate limit");
    match FailureVerdict::of(Kind::Task, &**error) {
        Some(FailureVerdict::Redeliver {
            after: Some(after),
            counted: false,
        }) => assert_eq!(after, limited.retry_after() + SLACK),
        other => panic!("{other:?}"),
    }
    limited.retry_after()
}

#[tokio::test(start_paused = true)]
async fn a_message_over_the_rate_of_its_key_returns_when_the_rate_admits_it() {
    let (mut service, mut handle) = service(&layer());
    let _burst = ["1", "2"].map(|id| call(&mut service, task("k", id)));
    assert_eq!(reached(&mut handle).len(), 2);
    let error = refused(&mut service, task("k", "3"));
    assert_eq!(retry_after(&error), 5 * SECOND);
    let _other = call(&mut service, task("l", "4"));
    let _answer = only_request(&mut handle, "4");

    advance(5 * SECOND - Duration::from_millis(1)).await;
    refused(&mut service, task("k", "3"));
    advance(Duration::from_millis(1)).await;
    let _retried = call(&mut service, task("k", "3"));
    let _answer = only_request(&mut handle, "3");
}

/// Returns the maximum number of messages that the layer starts in any window of one second.
async fn most_in_a_second(layer: RateLimitByKeyLayer<Header>) -> Option<usize> {
    let window = SECOND;
    let (mut service, mut handle) = service(&layer);
    let mut started = Vec::new();
    for n in 0..200 {
        assert_ready_ok!(service.poll_ready());
        let mut call = tokio_test::task::spawn(service.call(task("k", &n.to_string())));
        let _ = call.poll();
        let now = tokio::time::Instant::now();
        started.extend(reached(&mut handle).iter().map(|_| now));
        advance(Duration::from_millis(25)).await;
    }
    let in_window =
        |first| move |at: &&tokio::time::Instant| **at >= first && **at < first + window;
    let counts = started
        .iter()
        .map(|first| started.iter().filter(in_window(*first)).count());
    counts.max()
}

#[tokio::test(start_paused = true)]
async fn a_window_admits_at_most_the_burst_plus_the_rate() {
    let layer = || RateLimitByKeyLayer::new(10, SECOND, by_header());
    assert_eq!(most_in_a_second(layer()).await, Some(19));
    assert_eq!(most_in_a_second(layer().burst(4)).await, Some(13));
    assert_eq!(most_in_a_second(layer().burst(1)).await, Some(10));
}

#[tokio::test(start_paused = true)]
async fn messages_that_are_put_off_return_at_different_times() {
    let (mut service, mut handle) = service(&layer());
    let _burst = ["1", "2"].map(|id| call(&mut service, task("k", id)));
    drop(reached(&mut handle));
    let waits: Vec<_> = (3..7)
        .map(|id| retry_after(&refused(&mut service, task("k", &id.to_string()))))
        .collect();
    assert_eq!(waits, [5, 10, 15, 20].map(Duration::from_secs));
    for id in 3..7 {
        advance(5 * SECOND).await;
        let id = id.to_string();
        let _retried = call(&mut service, task("k", &id));
        let _answer = only_request(&mut handle, &id);
    }
    // All messages that were put off have been admitted, so the next one is put off for only five
    // seconds.
    assert_eq!(
        retry_after(&refused(&mut service, task("k", "8"))),
        5 * SECOND
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_over_the_rate_is_answered_at_once() {
    let (mut service, _handle) = service(&layer().burst(1));
    let _first = call(&mut service, message(Kind::Rpc, "k", "1"));
    let error = refused(&mut service, message(Kind::Rpc, "k", "2"));
    assert_eq!(FailureVerdict::of(Kind::Rpc, &*error), None);
    let reply = find::<campanile::RpcError>(&*error).unwrap();
    assert_eq!(reply.code(), &RpcCode::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn waiting_messages_start_in_order_and_one_per_period() {
    let layer = layer().burst(1).max_wait(12 * SECOND);
    let (mut service, mut handle) = service(&layer);
    let _first = call(&mut service, task("k", "1"));
    let _answer = only_request(&mut handle, "1");
    let mut second = call(&mut service, task("k", "2"));
    let mut third = call(&mut service, task("k", "3"));
    let mut fourth = call(&mut service, task("k", "4"));
    no_request(&mut handle);
    advance(5 * SECOND).await;
    assert!(second.is_woken() && !third.is_woken());
    assert_pending!(second.poll());
    let response = only_request(&mut handle, "2");
    response.send_response(Reply::default());
    assert_ready_ok!(second.poll());
    assert!(third.is_woken());
    assert_pending!(third.poll());
    no_request(&mut handle);
    advance(5 * SECOND).await;
    assert_pending!(third.poll());
    let _answer = only_request(&mut handle, "3");
    // The fourth message could start after fifteen seconds, but may wait for only twelve.
    let error = assert_ready!(fourth.poll()).unwrap_err();
    assert_eq!(retry_after(&error), 5 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_waits_for_others_too_long_is_put_off() {
    let layer = layer().burst(1).max_wait(5 * SECOND);
    let (mut service, mut handle) = service(&layer);
    let _first = call(&mut service, task("k", "1"));
    let _answer = only_request(&mut handle, "1");
    let _second = call(&mut service, task("k", "2"));
    let mut third = call(&mut service, task("k", "3"));
    advance(5 * SECOND).await;
    assert!(third.is_woken());
    let error = assert_ready!(third.poll()).unwrap_err();
    assert_eq!(retry_after(&error), 5 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_future_that_is_dropped_while_it_waits_does_not_count() {
    let layer = layer().burst(1).max_wait(6 * SECOND);
    let (mut service, mut handle) = service(&layer);
    let _first = call(&mut service, task("k", "1"));
    let _answer = only_request(&mut handle, "1");
    let second = call(&mut service, task("k", "2"));
    let mut third = call(&mut service, task("k", "3"));
    drop(second);
    assert!(third.is_woken());
    assert_pending!(third.poll());
    advance(5 * SECOND).await;
    assert_pending!(third.poll());
    let _answer = only_request(&mut handle, "3");
}

#[tokio::test(start_paused = true)]
async fn unused_keys_are_removed() {
    let layer = layer();
    let (mut service, _handle) = service(&layer);
    for n in 0..999 {
        drop(call(&mut service, task(&format!("k{n}"), "1")));
    }
    assert_eq!(layer.keys_in_use(), 999);
    advance(11 * SECOND).await;
    drop(call(&mut service, task("one more", "1")));
    assert_eq!(layer.keys_in_use(), 1);
}

#[tokio::test(start_paused = true)]
async fn all_services_of_a_layer_share_its_rate() {
    let layer = layer().burst(1);
    let (mut one, _first) = service(&layer);
    let (mut two, _second) = service(&layer.clone());
    let _call = call(&mut one, task("k", "1"));
    refused(&mut two, task("k", "2"));
}

#[tokio::test(start_paused = true)]
async fn readiness_reservations_and_missing_keys_are_handled_as_in_every_layer() {
    keyed_mocks::readiness_and_its_error_pass(&layer());
    keyed_mocks::a_clone_has_no_reservation(&layer());
    keyed_mocks::a_waiting_message_holds_no_reservation(&layer().burst(1).max_wait(SECOND * 60));
    keyed_mocks::a_message_without_a_key_is_rejected_or_passes(
        &layer(),
        &layer().missing_key(MissingKey::Pass),
    );
}

#[test]
fn invalid_numbers_panic_at_the_callers_location() {
    panic_text(|| layer_with_rate(0, SECOND));
    panic_text(|| layer_with_rate(1, Duration::ZERO));
    panic_text(|| layer_with_rate(2, Duration::from_nanos(1)));
    panic_text(|| layer_with_rate(1, Duration::MAX));
    panic_text(|| layer().burst(0));
}

#[track_caller]
fn layer_with_rate(messages: u32, per: Duration) -> RateLimitByKeyLayer<Header> {
    RateLimitByKeyLayer::new(messages, per, by_header())
}
