//! tower's own middleware over Redis, in real time.

use std::time::Duration;

use campanile::{Attempt, Client, Redis, Router, State};
use futures_util::future::join_all;
use tower::{ServiceBuilder, buffer::BufferLayer, limit::RateLimitLayer};

use crate::{
    SECOND,
    support::{RedisServer, raw, work::Work, worker::Worker},
};

async fn handle(server: &RedisServer) -> Redis {
    let redis = Redis::connect(&server.url()).await.unwrap();
    redis.backoff(campanile::transport::Backoff::exponential(
        SECOND / 20,
        SECOND / 10,
    ))
}

#[tokio::test]
async fn a_stack_on_each_side_carries_requests_over_redis() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let work = Work::default();
    let quick = async |State(work): State<Work>, attempt: Attempt| {
        work.run(attempt, Duration::ZERO).await;
    };
    let app = Router::new()
        .rpc("quick", quick)
        .layer(
            ServiceBuilder::new()
                .buffer(8)
                .rate_limit(1_000, SECOND)
                .concurrency_limit(4)
                .timeout(10 * SECOND),
        )
        .with_state(work.clone());
    let worker = Worker::start(redis.clone(), app);
    let stack = ServiceBuilder::new()
        .timeout(20 * SECOND)
        .concurrency_limit(16)
        .layer(BufferLayer::new(8))
        .layer(RateLimitLayer::new(1_000, SECOND));
    let client = Client::new(stack.service(redis));
    let calls = (0..100).map(|_| client.request::<()>("quick", ()).into_future());
    for answer in join_all(calls).await {
        answer.unwrap();
    }
    worker.stop().await.unwrap();
    assert_eq!(work.calls(), 100);
}

#[tokio::test]
async fn shed_load_is_no_attempt_and_a_time_out_is_one() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let work = Work::default();
    let shed = async |State(work): State<Work>, attempt: Attempt| {
        work.run(attempt, SECOND / 5).await;
    };
    // This handler takes too long on its first attempt.
    let late = async |State(work): State<Work>, attempt: Attempt| {
        let time = if attempt.is_retry() {
            Duration::ZERO
        } else {
            3600 * SECOND
        };
        work.run(attempt, time).await;
    };
    let (shed_work, late_work) = (Work::default(), work.clone());
    let shedding = Router::new()
        .task("shed", shed)
        .layer(ServiceBuilder::new().load_shed().concurrency_limit(1));
    let timed = Router::new()
        .task("late", late)
        .layer(ServiceBuilder::new().timeout(SECOND / 5));
    let app = Router::new()
        .task_service("shed", shedding.with_state(shed_work.clone()))
        .task_service("late", timed.with_state(late_work));
    let worker = Worker::start(redis.clone(), app);
    let client = Client::new(redis.clone());
    for name in ["shed", "shed", "shed", "late"] {
        client.enqueue(name, ()).await.unwrap();
    }
    let done = || async { (redis.counts().done == 4).then_some(()) };
    raw::eventually(done, 30 * SECOND).await;
    worker.stop().await.unwrap();
    assert_eq!(shed_work.attempts(), [1; 3]);
    assert!(redis.counts().redelivered >= 3, "{:?}", redis.counts());
    assert_eq!(work.attempts(), [1, 2]);
}
