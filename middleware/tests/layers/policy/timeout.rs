//! Tests of timeouts.

use std::future::pending;

use campanile::{Attempt, Client, Deadline, Router, RpcCode};
use campanile_middleware::TimeoutLayer;
use tower::Layer;

use super::*;

on_both!(
    a_handler_that_takes_too_long_is_dropped_and_answered_deadline,
    a_handler_is_dropped_when_its_caller_has_given_up,
    a_task_that_takes_too_long_is_redelivered,
    a_call_ends_after_the_default,
);

const SHORT: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_secs(60);

/// Records its drop.
struct Dropped(Log<()>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.add(());
    }
}

async fn a_handler_that_takes_too_long_is_dropped_and_answered_deadline(transport: impl Transport) {
    let dropped = Log::new();
    let guard = dropped.clone();
    let app = Router::new()
        .rpc("never", async move || {
            let _guard = Dropped(guard);
            pending::<()>().await;
        })
        .layer(TimeoutLayer::new(SHORT));
    let worker = Worker::start(transport.clone(), app);
    let client = Client::new(transport);
    let error = client
        .request::<()>("never", "")
        .timeout(LONG)
        .await
        .unwrap_err();
    assert_eq!(error.rpc().unwrap().code(), &RpcCode::Deadline);
    // Only the running handler has made a guard.
    assert_eq!(dropped.len(), 1);
    worker.stop().await.unwrap();
}

async fn a_handler_is_dropped_when_its_caller_has_given_up(transport: impl Transport) {
    let (dropped, deadlines) = (Log::new(), Log::new());
    let (guard, seen) = (dropped.clone(), deadlines.clone());
    let app = Router::new()
        .rpc("never", async move |deadline: Deadline| {
            let _guard = Dropped(guard);
            seen.add(deadline.remaining());
            pending::<()>().await;
        })
        .rpc("up", async || {})
        .layer(TimeoutLayer::new(LONG));
    let worker = Worker::start(transport.clone(), app);
    let client = Client::new(transport);
    client.request::<()>("up", "").await.unwrap();
    let patience = 10 * SHORT;
    let error = client
        .request::<()>("never", "")
        .timeout(patience)
        .await
        .unwrap_err();
    assert!(error.is_timeout() || error.rpc().is_some_and(|e| e.code() == &RpcCode::Deadline));
    until(async || dropped.len() == 1).await;
    let deadlines = deadlines.all();
    assert!(
        deadlines.len() == 1 && deadlines[0] <= patience,
        "{deadlines:?}"
    );
    worker.stop().await.unwrap();
}

async fn a_task_that_takes_too_long_is_redelivered(transport: impl Transport) {
    let log = Log::new();
    let seen = log.clone();
    let app = Router::new()
        .task("a", async move |attempt: Attempt| {
            seen.add(attempt.0);
            if attempt.0 == 1 {
                pending::<()>().await;
            }
        })
        .layer(TimeoutLayer::new(SHORT));
    let worker = Worker::start(transport.clone(), app);
    Client::new(transport.clone())
        .enqueue("a", "")
        .await
        .unwrap();
    until(async || transport.counts().done == 1).await;
    assert_eq!(log.all(), [1, 2]);
    worker.stop().await.unwrap();
}

async fn a_call_ends_after_the_default(transport: impl Transport) {
    // No worker serves the stream.
    let client = Client::new(TimeoutLayer::new(SHORT).layer(transport));
    let error = client
        .request::<()>("a", "")
        .timeout(LONG)
        .await
        .unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    let receipt = client.enqueue("a", "").expires_after(LONG).await.unwrap();
    assert!(receipt.id().is_some());
}
