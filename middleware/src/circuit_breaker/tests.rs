//! Tests of a circuit in paused time.

use std::task::Poll;

use campanile::{BoxError, Message, Rejection, Reply, RpcError, error::find};
use tokio::time::advance;
use tower_test::mock::Spawn;

use super::*;
use crate::{
    mocks::{Answers, Inner, around, call, readiness_passes, reservations_are_released},
    panics::panic_text,
};

const SECOND: Duration = Duration::from_secs(1);

/// Returns a layer whose circuit opens for 5 s if at least 4 calls ended within 10 s and at least
/// half of them failed. The circuit closes after 2 successful probes.
fn layer() -> CircuitBreakerLayer {
    CircuitBreakerLayer::new()
        .min_calls(4)
        .window(10 * SECOND)
        .open_for(5 * SECOND)
        .probes(2)
}

type Breaker = Spawn<CircuitBreaker<Inner>>;

fn message() -> Message {
    Message::task("a", "")
}

/// Makes one call with this outcome.
async fn ends(service: &mut Breaker, handle: &mut Answers, outcome: Result<(), BoxError>) {
    let answer = call(service, message());
    let (_, respond) = handle.next_request().await.unwrap();
    match outcome {
        Ok(()) => respond.send_response(Reply::default()),
        Err(error) => respond.send_error(error),
    }
    let _ = answer.await;
}

async fn fails(service: &mut Breaker, handle: &mut Answers, times: u32) {
    for _ in 0..times {
        ends(service, handle, Err("down".into())).await;
    }
}

async fn succeeds(service: &mut Breaker, handle: &mut Answers, times: u32) {
    for _ in 0..times {
        ends(service, handle, Ok(())).await;
    }
}

fn is_ready(service: &mut Breaker) -> bool {
    match service.poll_ready() {
        Poll::Ready(Ok(())) => true,
        Poll::Ready(Err(error)) => panic!("{error}"),
        Poll::Pending => false,
    }
}

#[tokio::test(start_paused = true)]
async fn a_circuit_opens_at_the_failure_rate_once_the_minimum_of_calls_is_reached() {
    let layer = layer();
    let (mut service, mut handle) = around(&layer);
    fails(&mut service, &mut handle, 3).await;
    assert_eq!(layer.state(), CircuitState::Closed);
    // A success can be the call that reaches the minimum.
    succeeds(&mut service, &mut handle, 1).await;
    assert_eq!(layer.state(), CircuitState::Open);
    assert!(!is_ready(&mut service));

    let layer = self::layer();
    let (mut service, mut handle) = around(&layer);
    succeeds(&mut service, &mut handle, 5).await;
    fails(&mut service, &mut handle, 4).await;
    assert_eq!(
        layer.state(),
        CircuitState::Closed,
        "4 of 9 are less than half"
    );
    fails(&mut service, &mut handle, 1).await;
    assert_eq!(layer.state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn calls_are_forgotten_after_the_window() {
    let layer = layer();
    let (mut service, mut handle) = around(&layer);
    fails(&mut service, &mut handle, 3).await;
    advance(10 * SECOND).await;
    fails(&mut service, &mut handle, 3).await;
    assert_eq!(layer.state(), CircuitState::Closed);
    advance(9 * SECOND).await;
    fails(&mut service, &mut handle, 1).await;
    assert_eq!(layer.state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_wakes_its_callers_and_closes_after_its_probes() {
    let layer = layer();
    let (mut service, mut handle) = around(&layer);
    fails(&mut service, &mut handle, 4).await;
    assert!(!is_ready(&mut service));
    advance(4 * SECOND).await;
    assert!(!service.is_woken());
    assert!(!is_ready(&mut service));
    advance(SECOND + Duration::from_millis(1)).await;
    assert!(service.is_woken());
    succeeds(&mut service, &mut handle, 1).await;
    assert_eq!(layer.state(), CircuitState::HalfOpen);
    succeeds(&mut service, &mut handle, 1).await;
    assert_eq!(layer.state(), CircuitState::Closed);
    // The circuit counts from zero: earlier failures do not count again.
    fails(&mut service, &mut handle, 3).await;
    assert_eq!(layer.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn the_first_failed_probe_opens_the_circuit_again_for_the_whole_time() {
    let layer = layer();
    let (mut service, mut handle) = around(&layer);
    fails(&mut service, &mut handle, 4).await;
    advance(6 * SECOND).await;
    succeeds(&mut service, &mut handle, 1).await;
    fails(&mut service, &mut handle, 1).await;
    assert_eq!(layer.state(), CircuitState::Open);
    advance(4 * SECOND).await;
    assert!(!is_ready(&mut service));
    advance(2 * SECOND).await;
    succeeds(&mut service, &mut handle, 2).await;
    assert_eq!(layer.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_half_open_circuit_admits_only_its_probes() {
    let layer = layer();
    let (mut first, mut handle) = around(&layer);
    fails(&mut first, &mut handle, 4).await;
    advance(6 * SECOND).await;
    let (mut second, mut third) = (first.clone(), first.clone());
    assert!(is_ready(&mut first));
    assert!(is_ready(&mut second));
    assert!(!is_ready(&mut third));
    // Dropping a service or a call releases its probe.
    drop(first);
    assert!(third.is_woken());
    assert!(is_ready(&mut third));
    let mut fourth = second.clone();
    assert!(!is_ready(&mut fourth));
    let dropped = second.call(message());
    assert!(!is_ready(&mut fourth));
    drop(dropped);
    handle.next_request().await.unwrap();
    assert!(fourth.is_woken());
    assert!(is_ready(&mut fourth));
    // A waiting service is ready when the circuit closes.
    let mut waiting = third.clone();
    assert!(!is_ready(&mut waiting));
    for service in [&mut third, &mut fourth] {
        ends(service, &mut handle, Ok(())).await;
    }
    assert!(waiting.is_woken());
    assert!(is_ready(&mut waiting));
}

#[tokio::test(start_paused = true)]
async fn a_call_from_before_the_circuit_changed_does_not_count() {
    let layer = layer();
    let (mut service, mut handle) = around(&layer);
    let late = call(&mut service, message());
    let (_, respond) = handle.next_request().await.unwrap();
    fails(&mut service, &mut handle, 4).await;
    advance(6 * SECOND).await;
    succeeds(&mut service, &mut handle, 1).await;
    respond.send_error("down");
    late.await.unwrap_err();
    assert_eq!(layer.state(), CircuitState::HalfOpen);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_was_ready_is_not_ready_once_the_circuit_opens() {
    let layer = layer();
    let (mut service, mut handle) = around(&layer);
    let mut other = service.clone();
    assert!(is_ready(&mut other));
    fails(&mut service, &mut handle, 4).await;
    assert!(!is_ready(&mut other));
}

#[tokio::test(start_paused = true)]
async fn errors_that_say_nothing_about_the_service_do_not_count() {
    let layer = layer();
    let (mut service, mut handle) = around(&layer);
    fails(&mut service, &mut handle, 3).await;
    let errors: [BoxError; 3] = [
        Rejection::permanent("no JSON").into(),
        RpcError::not_found("user").into(),
        campanile::Failure::dead_letter().into(),
    ];
    for error in errors {
        ends(&mut service, &mut handle, Err(error)).await;
    }
    drop(call(&mut service, message()));
    handle.next_request().await.unwrap();
    assert_eq!(layer.state(), CircuitState::Closed);
    fails(&mut service, &mut handle, 1).await;
    assert_eq!(layer.state(), CircuitState::Open);
    // A probe with such an error neither closes nor opens the circuit. Another probe is admitted.
    advance(6 * SECOND).await;
    for _ in 0..5 {
        let error = Rejection::permanent("no JSON").into();
        ends(&mut service, &mut handle, Err(error)).await;
    }
    assert_eq!(layer.state(), CircuitState::HalfOpen);
    succeeds(&mut service, &mut handle, 2).await;
    assert_eq!(layer.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_custom_function_decides_which_errors_count() {
    let layer = layer().classify(|error| match error.to_string().as_str() {
        "mine" => Class::Lasting,
        _ => Class::Transient,
    });
    let (mut service, mut handle) = around(&layer);
    for _ in 0..9 {
        ends(&mut service, &mut handle, Err("mine".into())).await;
    }
    assert_eq!(layer.state(), CircuitState::Closed);
    for _ in 0..4 {
        let error = Rejection::permanent("yours").into();
        ends(&mut service, &mut handle, Err(error)).await;
    }
    assert_eq!(layer.state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn with_fail_fast_the_service_is_ready_and_its_calls_fail_as_overload() {
    let layer = layer().probes(1).fail_fast();
    let (mut service, mut handle) = around(&layer);
    fails(&mut service, &mut handle, 4).await;
    advance(SECOND).await;
    let refused = async |service: &mut Breaker| {
        let error = call(service, message()).await.unwrap_err();
        assert!(find::<Overloaded>(&*error).is_some());
        error.downcast_ref::<CircuitOpen>().unwrap().retry_after()
    };
    assert_eq!(refused(&mut service).await, 4 * SECOND);
    assert!(handle.poll_request().is_pending(), "nothing is called");
    advance(4 * SECOND).await;
    let mut other = service.clone();
    let probe = call(&mut service, message());
    assert_eq!(refused(&mut other).await, Duration::ZERO);
    handle
        .next_request()
        .await
        .unwrap()
        .1
        .send_response(Reply::default());
    probe.await.unwrap();
    succeeds(&mut other, &mut handle, 1).await;
    assert_eq!(layer.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn all_services_of_a_layer_and_of_its_clones_share_one_circuit() {
    let layer = layer();
    let (mut one, mut handle) = around(&layer);
    let (mut other, _handle) = around(&layer.clone());
    let (mut foreign, _handle) = around(&layer.clone().probes(1));
    fails(&mut one, &mut handle, 4).await;
    assert!(!is_ready(&mut other));
    assert!(is_ready(&mut foreign));
}

#[tokio::test(start_paused = true)]
async fn readiness_and_reservations_of_the_inner_service_pass() {
    readiness_passes(&layer());
    reservations_are_released(&layer());
    readiness_passes(&layer().fail_fast());
}

#[test]
fn invalid_numbers_panic_at_the_callers_location() {
    for part in [0.0, -1.0, 1.1, f64::NAN] {
        let text = panic_text(|| layer().failure_rate(part));
        assert_eq!(
            text,
            "the failure rate of a circuit must be above 0.0 and at most 1.0"
        );
    }
    let text = panic_text(|| layer().window(Duration::ZERO));
    assert_eq!(text, "the window of a circuit must be at least 10 ms");
    let text = panic_text(|| layer().min_calls(0));
    assert_eq!(text, "the minimum of calls of a circuit must be at least 1");
    let text = panic_text(|| layer().open_for(Duration::ZERO));
    assert_eq!(text, "a circuit must be open for some time");
    let text = panic_text(|| layer().probes(0));
    assert_eq!(text, "a circuit must have at least one probe");
}
