//! Tests of retries in place and by redelivery.

use campanile::{
    Attempt, BoxError, Client, Error, Failure, Handler, Json, Redis, Router, RpcError,
    transport::Selection,
};
use campanile_middleware::{DurableRetryLayer, RetryPolicy};
use tokio::time::Instant;
use tower::{Layer, ServiceBuilder, retry::RetryLayer};

use super::*;

on_both!(
    a_failed_task_is_redelivered_after_its_back_off_and_is_a_dead_letter_in_the_end,
    a_permanent_error_is_a_dead_letter_at_once,
    the_number_of_attempts_is_that_of_the_task_or_else_of_the_worker,
    a_failure_is_not_overridden,
    retries_in_place_and_durable_retries_combine,
    a_request_is_redelivered_while_its_caller_waits,
);

const BACKOFF: Backoff =
    Backoff::exponential(Duration::from_millis(100), Duration::from_millis(200)).jitter(0.0);

fn durable(attempts: u32) -> DurableRetryLayer {
    DurableRetryLayer::new()
        .max_attempts(attempts)
        .backoff(BACKOFF)
}

fn in_place(tries: u32) -> RetryLayer<RetryPolicy> {
    let backoff = Backoff::exponential(Duration::from_millis(1), Duration::from_millis(1));
    RetryLayer::new(RetryPolicy::new(tries).backoff(backoff))
}

async fn a_failed_task_is_redelivered_after_its_back_off_and_is_a_dead_letter_in_the_end(
    transport: impl Transport,
) {
    let log = Log::new();
    let seen = log.clone();
    let app = Router::new().task("a", async move |Attempt(attempt): Attempt| {
        seen.add((attempt, Instant::now()));
        Err::<(), BoxError>("disk full".into())
    });
    let worker = Worker::start(transport.clone(), app.layer(durable(3)));
    Client::new(transport.clone())
        .enqueue("a", "x")
        .await
        .unwrap();
    let letter = dead(&transport).await;
    let chain = "the delivery failed for good: given up by DurableRetryLayer after attempt 3 of 3: disk full";
    assert_eq!((letter.attempts, &*letter.reason), (3, chain));
    assert_eq!(letter.message().unwrap().payload(), "x");
    let seen = log.all();
    assert_eq!(seen.iter().map(|s| s.0).collect::<Vec<_>>(), [1, 2, 3]);
    let waits: Vec<_> = seen.windows(2).map(|s| s[1].1 - s[0].1).collect();
    // The server counts in whole milliseconds.
    let least = [98, 198].map(Duration::from_millis);
    assert!(waits[0] >= least[0] && waits[1] >= least[1], "{waits:?}");
    worker.stop().await.unwrap();
}

async fn a_permanent_error_is_a_dead_letter_at_once(transport: impl Transport) {
    let app = Router::new()
        .task("a", async |Json(_): Json<u32>| {})
        .layer(durable(5));
    let worker = Worker::start(transport.clone(), app);
    Client::new(transport.clone())
        .enqueue("a", "no number")
        .await
        .unwrap();
    assert_eq!(dead(&transport).await.attempts, 1);
    worker.stop().await.unwrap();
}

async fn the_number_of_attempts_is_that_of_the_task_or_else_of_the_worker(
    transport: impl Transport,
) {
    let short = Backoff::exponential(Duration::from_millis(1), Duration::from_millis(5));
    let app = Router::new()
        .task("a", async || Err::<(), BoxError>("disk full".into()))
        .layer(DurableRetryLayer::new().backoff(short));
    let worker = Worker::start(transport.clone(), app);
    let client = Client::new(transport.clone());
    client.enqueue("a", "x").await.unwrap();
    let max = Settings::default().max_deliveries;
    let chain = |attempts| {
        format!(
            "the delivery failed for good: given up by DurableRetryLayer after attempt {attempts} of \
             {attempts}: disk full"
        )
    };
    let letter = dead(&transport).await;
    assert_eq!((letter.attempts, letter.reason), (max, chain(max)));
    transport
        .dead_letters()
        .purge(Selection::All)
        .await
        .unwrap();
    for attempts in [1, max + 2] {
        client
            .enqueue("a", "x")
            .max_attempts(attempts)
            .await
            .unwrap();
        let letter = dead(&transport).await;
        assert_eq!(
            (letter.attempts, letter.reason),
            (attempts, chain(attempts))
        );
        transport
            .dead_letters()
            .purge(Selection::All)
            .await
            .unwrap();
    }
    worker.stop().await.unwrap();
}

async fn a_failure_is_not_overridden(transport: impl Transport) {
    let log = Log::new();
    let seen = log.clone();
    let app = Router::new()
        .task("again", async move |attempt: Attempt| {
            seen.add(attempt.0);
            match attempt.0 {
                1 | 2 => Err(Failure::redeliver_after(Duration::ZERO)),
                _ => Ok(()),
            }
        })
        .task("drop", async || Err::<(), _>(Failure::discard()))
        .layer(ServiceBuilder::new().layer(durable(1)).layer(in_place(9)));
    let worker = Worker::start(transport.clone(), app);
    let client = Client::new(transport.clone());
    client.enqueue("again", "").await.unwrap();
    client.enqueue("drop", "").await.unwrap();
    until(async || transport.counts().discarded == 1 && transport.counts().done == 1).await;
    assert_eq!(
        log.all(),
        [1, 2, 3],
        "the task is neither tried in place nor a dead letter after one attempt"
    );
    worker.stop().await.unwrap();
}

async fn retries_in_place_and_durable_retries_combine(transport: impl Transport) {
    let log = Log::new();
    let seen = log.clone();
    let fails = async move |attempt: Attempt| {
        seen.add(attempt.0);
        Err::<(), BoxError>("disk full".into())
    };
    let app = Router::new()
        .task("a", fails.layer(in_place(2)))
        .layer(durable(3));
    let worker = Worker::start(transport.clone(), app);
    Client::new(transport.clone())
        .enqueue("a", "")
        .await
        .unwrap();
    assert_eq!(dead(&transport).await.attempts, 3);
    assert_eq!(log.all(), [1, 1, 2, 2, 3, 3]);
    worker.stop().await.unwrap();
}

async fn a_request_is_redelivered_while_its_caller_waits(transport: impl Transport) {
    let app = Router::new()
        .rpc("moody", async |attempt: Attempt| match attempt.0 {
            1 => Err(RpcError::unavailable("not now")),
            attempt => Ok(attempt.to_string()),
        })
        .rpc("never", async || {
            Err::<(), _>(RpcError::unavailable("not now"))
        })
        .layer(durable(3).requests());
    let worker = Worker::start(transport.clone(), app);
    let client = Client::new(transport.clone());
    let answer: String = client.request("moody", "").await.unwrap();
    assert_eq!(answer, "2");
    let error = client.request::<()>("never", "").await.unwrap_err();
    assert_eq!(error.rpc(), Some(&RpcError::unavailable("not now")));
    assert_eq!(transport.dead_letters().count().await.unwrap(), 0);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_message_that_could_not_be_sent_is_retried_in_place() {
    let server = RedisServer::start().await;
    let redis = connect(&server).await;
    let backoff = Backoff::exponential(Duration::from_millis(50), Duration::from_millis(100));
    let policy = RetryPolicy::new(400).backoff(backoff);
    let client = Client::new(RetryLayer::new(policy).layer(redis.clone()));
    let bare = Client::new(redis);
    client.enqueue("a", "").await.unwrap();
    server.signal(Signal::Kill);
    // Until the client notices the lost connection, a message may fail with an unknown outcome.
    until(async || {
        bare.enqueue("a", "")
            .await
            .is_err_and(|e: Error| e.is_disconnected())
    })
    .await;
    let (sent, ()) = tokio::join!(client.enqueue("a", "").into_future(), server.restart());
    sent.unwrap();
}

#[allow(unused)]
fn policies_fit_every_stack(redis: Redis) {
    // The policy takes the error types of a transport, and of layers around a transport.
    Client::new(in_place(2).layer(redis.clone()));
    Client::new(
        ServiceBuilder::new()
            .layer(in_place(2))
            .layer(durable(2))
            .service(redis),
    );
}
