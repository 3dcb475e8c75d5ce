//! Tests of a stack of layers under injected faults.

use std::collections::HashMap;

use campanile::{Client, Router};
use campanile_middleware::{
    CatchPanicLayer, ChaosLayer, DurableRetryLayer, RetryPolicy, TimeoutLayer,
};
use tower::{ServiceBuilder, retry::RetryLayer};

use super::*;

on_both!(every_task_is_done_at_least_once_behind_a_stack_of_policies);

async fn every_task_is_done_at_least_once_behind_a_stack_of_policies(transport: impl Transport) {
    const TASKS: usize = 100;
    let short = Backoff::exponential(Duration::from_millis(1), Duration::from_millis(20));
    let stack = ServiceBuilder::new()
        .layer(DurableRetryLayer::new().backoff(short))
        .layer(RetryLayer::new(RetryPolicy::new(2).backoff(short)))
        .layer(TimeoutLayer::new(Duration::from_secs(10)))
        .layer(CatchPanicLayer::new())
        .layer(
            ChaosLayer::new(7)
                .delay(0.2, Duration::ZERO, Duration::from_millis(5))
                .panic(0.1)
                .fail(0.3)
                .duplicate(0.2),
        );
    let log = Log::new();
    let seen = log.clone();
    let app = Router::new()
        .task("a", async move |payload: String| seen.add(payload))
        .layer(stack);
    let worker = Worker::start(transport.clone(), app);
    let payloads = (0..TASKS).map(|n| n.to_string());
    for sent in Client::new(transport.clone())
        .enqueue_all("a", payloads)
        .await
    {
        sent.unwrap();
    }
    until(async || transport.counts().done == TASKS as u64).await;
    let mut done = HashMap::new();
    for payload in log.all() {
        *done.entry(payload).or_insert(0) += 1;
    }
    assert_eq!(done.len(), TASKS);
    assert!(
        done.values().any(|times| *times > 1),
        "something is done twice"
    );
    assert!(transport.counts().redelivered > 0, "something has failed");
    assert_eq!(transport.dead_letters().count().await.unwrap(), 0);
    worker.stop().await.unwrap();
}
