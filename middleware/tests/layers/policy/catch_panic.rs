//! Tests of handlers that panic.

use campanile::{Attempt, BoxError, Client, Router, RpcCode};
use campanile_middleware::{CatchPanicLayer, DurableRetryLayer, catch_panic::Panicked};
use tower::ServiceBuilder;

use super::*;

on_both!(
    a_request_is_answered_internal_and_a_task_is_redelivered,
    a_retry_around_the_layer_sees_the_panic,
);

async fn a_request_is_answered_internal_and_a_task_is_redelivered(transport: impl Transport) {
    let log = Log::new();
    let seen = log.clone();
    let stack = ServiceBuilder::new()
        .map_err(move |error: BoxError| {
            seen.add(
                error
                    .downcast_ref::<Panicked>()
                    .map(|p| p.text().to_owned()),
            );
            error
        })
        .layer(CatchPanicLayer::new());
    let app = Router::new()
        .rpc("a", async || -> String { panic!("a secret") })
        .task("b", async |attempt: Attempt| {
            assert!(attempt.is_retry(), "the first time")
        })
        .layer(stack);
    let worker = Worker::start(transport.clone(), app);
    let client = Client::new(transport.clone());
    let error = client.request::<String>("a", "").await.unwrap_err();
    let answer = error.rpc().expect("an answer");
    assert_eq!(answer.code(), &RpcCode::Internal);
    assert!(!answer.to_string().contains("secret"), "{answer}");
    client.enqueue("b", "").await.unwrap();
    // The answered request counts as done too.
    until(async || transport.counts().done == 2).await;
    let texts = ["a secret", "the first time"].map(|text| Some(text.to_owned()));
    assert_eq!(log.all(), texts);
    worker.stop().await.unwrap();
}

async fn a_retry_around_the_layer_sees_the_panic(transport: impl Transport) {
    let stack = ServiceBuilder::new()
        .layer(DurableRetryLayer::new().max_attempts(1))
        .layer(CatchPanicLayer::new());
    let app = Router::new()
        .task("a", async || panic!("a bug") as ())
        .layer(stack);
    let worker = Worker::start(transport.clone(), app);
    Client::new(transport.clone())
        .enqueue("a", "")
        .await
        .unwrap();
    let letter = dead(&transport).await;
    assert_eq!(letter.attempts, 1);
    assert!(
        letter.reason.ends_with("the handler panicked: a bug"),
        "{}",
        letter.reason
    );
    worker.stop().await.unwrap();
}
