//! Tests of rate limits by key.

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use campanile::{Attempt, Client, Router, RpcCode, error::find};
use campanile_middleware::{RateLimitByKeyLayer, key, rate_limit::RateLimited};
use tower::Layer;

use super::{MILLI, SECOND, Transport, on_both, settings, support::worker::Worker, until};

on_both! {
    a_message_over_the_rate_is_redelivered_without_counting({
        let mut settings = settings();
        settings.max_deliveries = 1;
        settings
    });
    a_request_over_the_rate_is_answered_unavailable(settings());
    around_a_transport_the_sender_gets_the_error(settings());
}

async fn a_message_over_the_rate_is_redelivered_without_counting(transport: impl Transport) {
    let client = Client::new(transport.clone());
    for _ in 0..12 {
        client
            .enqueue("a", ())
            .await
            .expect("the message is accepted");
    }
    let ran = Arc::new(Mutex::new(Vec::new()));
    let noted = ran.clone();
    let app = Router::new()
        .task("a", async move |attempt: Attempt| {
            noted.lock().unwrap().push((Instant::now(), attempt));
        })
        // Four at once, and then one every fifth of a second.
        .layer(RateLimitByKeyLayer::new(5, 1000 * MILLI, key::name()).burst(4));
    let started = Instant::now();
    let worker = Worker::start(transport.clone(), app);
    until(async || ran.lock().unwrap().len() == 12).await;
    worker.stop().await.expect("the worker stops");
    let mut ran = ran.lock().unwrap().clone();
    ran.sort();
    for (n, (at, attempt)) in ran.into_iter().enumerate() {
        assert_eq!(attempt, Attempt(1));
        let earliest = 200 * MILLI * (n as u32).saturating_sub(3);
        assert!(at - started >= earliest, "{n}: {:?}", at - started);
    }
    let counts = transport.counts();
    assert_eq!((counts.done, counts.dead), (12, 0));
    // The eight messages return at different times. A message that returns slightly early is
    // redelivered once more.
    assert!((8..24).contains(&counts.redelivered), "{counts:?}");
}

async fn a_request_over_the_rate_is_answered_unavailable(transport: impl Transport) {
    let app = Router::new()
        .rpc("a", async || "reply")
        .layer(RateLimitByKeyLayer::new(1, 3600 * SECOND, key::name()));
    let worker = Worker::start(transport.clone(), app);
    let client = Client::new(transport);
    let first: String = client.request("a", ()).await.expect("within the rate");
    assert_eq!(first, "reply");
    let error = client.request::<String>("a", ()).await.unwrap_err();
    assert_eq!(error.rpc().unwrap().code(), &RpcCode::Unavailable);
    worker.stop().await.expect("the worker stops");
}

async fn around_a_transport_the_sender_gets_the_error(transport: impl Transport) {
    let layer = RateLimitByKeyLayer::new(2, 3600 * SECOND, key::name());
    let client = Client::new(layer.layer(transport));
    for _ in 0..2 {
        client.enqueue("a", ()).await.expect("within the rate");
    }
    let error = client.enqueue("a", ()).await.unwrap_err();
    let limited = find::<RateLimited>(&error).expect("it was refused by the rate limit");
    assert!(limited.retry_after() > 1000 * SECOND);
    client.enqueue("b", ()).await.expect("another key");
    // A request over the rate looks to its sender as if a worker had answered it.
    let error = client.request::<String>("a", ()).await.unwrap_err();
    assert_eq!(error.rpc().unwrap().code(), &RpcCode::Unavailable);
}
