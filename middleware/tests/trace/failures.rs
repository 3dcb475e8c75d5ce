//! Tests that a failure is logged once, in plain words, in the span of its handler.

use std::time::Duration;

use campanile::{BoxError, Client, Failure, Redis, Router, transport::Broker};
use campanile_middleware::TraceLayer;

use crate::{
    logs::Logs,
    on_both, redis,
    support::{RedisServer, raw::eventually, worker::Worker},
};

const SECOND: Duration = Duration::from_secs(1);

on_both!(
    a_failure_is_logged_once_in_the_span_of_its_handler,
    a_dead_letter_is_logged_once_in_the_span_of_its_handler,
);

/// Sends a task whose handler fails. Returns all warnings with the reason of the failure.
async fn warned<E: Into<BoxError>>(
    broker: impl Broker,
    name: &'static str,
    reason: &str,
    error: impl Fn() -> E + Clone + Send + Sync + 'static,
) -> Vec<String> {
    let logs = Logs::start();
    let app: Router = Router::new()
        .task(name, async move || Err::<(), BoxError>(error().into()))
        .layer(TraceLayer::new());
    let client = Client::new(broker.clone());
    let worker = Worker::start(broker, app);
    client
        .enqueue(name, "")
        .await
        .expect("the message is accepted");
    let lines = || {
        let text = logs.text();
        let warnings = text
            .lines()
            .filter(|line| line.contains(" WARN ") && line.contains(reason));
        warnings.map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    eventually(
        || async { (!lines().is_empty()).then_some(()) },
        20 * SECOND,
    )
    .await;
    tokio::time::sleep(SECOND / 2).await;
    let lines = lines();
    worker.stop().await.expect("the worker stops");
    lines
}

#[track_caller]
fn assert_once_in_its_span(lines: &[String], name: &str) {
    let [line] = lines else {
        panic!("not one line: {lines:#?}");
    };
    assert!(line.contains(name), "{line}");
    assert!(
        line.contains("message{otel.name=process "),
        "it is outside of the span: {line}"
    );
    for dump in ["Redeliver {", "DeadLetter {", "Discard {", "Some("] {
        assert!(!line.contains(dump), "{dump:?} in {line}");
    }
}

async fn a_failure_is_logged_once_in_the_span_of_its_handler(
    broker: impl Broker,
    name: &'static str,
) {
    // The wait is so long that the message is not redelivered during the test.
    let failure = || Failure::redeliver_after(60 * SECOND).because("the disk is full");
    let lines = warned(broker, name, "the disk is full", failure).await;
    assert_once_in_its_span(&lines, name);
}

async fn a_dead_letter_is_logged_once_in_the_span_of_its_handler(
    broker: impl Broker,
    name: &'static str,
) {
    let failure = || Failure::dead_letter().because("no such field");
    let lines = warned(broker, name, "no such field", failure).await;
    assert_once_in_its_span(&lines, name);
}

#[tokio::test]
async fn a_message_whose_deliveries_are_used_up_is_logged_once_in_the_span_of_its_handler() {
    let server = RedisServer::start().await;
    let broker: Redis = redis(&server).await.max_deliveries(1);
    let failure = || "the disk is full";
    let lines = warned(broker, "used.up", "the disk is full", failure).await;
    assert_once_in_its_span(&lines, "used.up");
}
