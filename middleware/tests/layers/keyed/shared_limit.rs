//! Tests of the limits that all workers of a group share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use campanile::{Attempt, Client, Name, Redis, Router};
use campanile_middleware::{SharedLimitLayer, key};
use tokio::sync::Notify;

use super::{
    MILLI, SECOND, Transport, on_both, settings,
    support::{RedisServer, worker::Worker},
    until,
};

on_both! {
    all_workers_together_keep_to_the_permits_of_each_key({
        let mut settings = settings();
        settings.max_in_flight = 8;
        settings
    });
    no_period_has_more_starts_than_the_rate(settings());
    a_message_without_a_stream_or_a_key_is_handled_as_chosen(settings());
}

/// For each key: how many messages run now, the most that ran at once, and how many have ended.
type Gauges = Arc<Mutex<HashMap<Name, [usize; 3]>>>;

fn app(gauges: &Gauges) -> Router {
    let gauges = gauges.clone();
    Router::new().fallback(async move |name: Name, attempt: Attempt| {
        assert_eq!(attempt.0, 1);
        {
            let mut gauges = gauges.lock().unwrap();
            let [now, most, _] = gauges.entry(name.clone()).or_default();
            *now += 1;
            *most = (*most).max(*now);
        }
        tokio::time::sleep(5 * MILLI).await;
        let mut gauges = gauges.lock().unwrap();
        let [now, _, ended] = gauges.entry(name).or_default();
        *now -= 1;
        *ended += 1;
    })
}

async fn all_workers_together_keep_to_the_permits_of_each_key(transport: impl Transport) {
    let client = Client::new(transport.clone());
    for n in 0..40 {
        for name in ["a", "b"] {
            let call = client.enqueue(name, n.to_string());
            call.await.expect("the message is accepted");
        }
    }
    let gauges = Gauges::default();
    let workers: Vec<_> = (0..3)
        .map(|_| {
            // Each worker has a separate limit with the same name.
            let layer = SharedLimitLayer::concurrency(transport.limit("test"), 3, key::name());
            Worker::start(transport.clone(), app(&gauges).layer(layer))
        })
        .collect();
    let of = |name: &str| {
        gauges
            .lock()
            .unwrap()
            .get(name)
            .copied()
            .unwrap_or_default()
    };
    until(async || of("a")[2] == 40 && of("b")[2] == 40).await;
    for worker in workers {
        worker.stop().await.expect("the worker stops");
    }
    assert_eq!((of("a")[1], of("b")[1]), (3, 3));
    let counts = transport.counts();
    assert_eq!((counts.redelivered, counts.dead, counts.done), (0, 0, 80));
    assert!((1..=80).contains(&counts.parked), "{}", counts.parked);
}

async fn no_period_has_more_starts_than_the_rate(transport: impl Transport) {
    const PER: Duration = Duration::from_millis(200);
    let client = Client::new(transport.clone());
    for n in 0..24 {
        let call = client.enqueue("a", n.to_string());
        call.await.expect("the message is accepted");
    }
    let starts = Arc::new(Mutex::new(Vec::new()));
    let workers: Vec<_> = (0..2)
        .map(|_| {
            let starts = starts.clone();
            let app =
                Router::new().fallback(async move || starts.lock().unwrap().push(Instant::now()));
            let layer = SharedLimitLayer::rate(transport.limit("test"), 6, PER, key::all());
            Worker::start(transport.clone(), app.layer(layer))
        })
        .collect();
    until(async || starts.lock().unwrap().len() == 24).await;
    for worker in workers {
        worker.stop().await.expect("the worker stops");
    }
    let mut starts = starts.lock().unwrap().clone();
    starts.sort();
    // The handlers run a moment after their times, so a period may look shorter.
    let shortest = starts.windows(7).map(|window| window[6] - window[0]).min();
    assert!(shortest >= Some(PER - 50 * MILLI), "{shortest:?}");
    let redelivered = transport.counts().redelivered;
    assert!((18..=30).contains(&redelivered), "{redelivered}");
}

async fn a_message_without_a_stream_or_a_key_is_handled_as_chosen(transport: impl Transport) {
    let layer = SharedLimitLayer::concurrency(transport.limit("test"), 1, key::header("x-tenant"));
    let handled = Arc::new(Notify::new());
    let notify = handled.clone();
    let app = Router::new()
        .event("news", async move || notify.notify_one())
        .task("a", async || {})
        .layer(layer);
    let worker = Worker::start(transport.clone(), app);
    let client = Client::new(transport.clone());
    until(async || {
        client
            .publish("news", ())
            .await
            .expect("the event is published");
        tokio::time::timeout(20 * MILLI, handled.notified())
            .await
            .is_ok()
    })
    .await;
    client.enqueue("a", ()).await.expect("the task is accepted");
    until(async || transport.counts().dead == 1).await;
    worker.stop().await.expect("the worker stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_backlog_of_one_key_delays_no_other_key_and_keeps_its_permits_busy() {
    const BACKLOG: u64 = 1_500;
    const PERMITS: u64 = 10;
    let server = RedisServer::start().await;
    let redis = Redis::connect(&server.url())
        .await
        .expect("the server is reachable");
    let client = Client::new(redis.clone());
    for n in 0..BACKLOG {
        let call = client.enqueue("limited", n.to_string());
        call.await.expect("the message is accepted");
    }
    let started = Arc::new(Notify::new());
    let other = started.clone();
    let app = Router::new()
        .task("limited", async || tokio::time::sleep(100 * MILLI).await)
        .task("other", async move || other.notify_one());
    let limit = redis.limit("tenants").expect("the name is valid");
    let layer = SharedLimitLayer::concurrency(limit, PERMITS as usize, key::name());
    let worker = Worker::start(redis.clone(), app.layer(layer));
    until(async || redis.counts().parked >= BACKLOG - 64).await;
    let (before, since) = (redis.counts(), Instant::now());
    let mut longest = Duration::ZERO;
    for _ in 0..20 {
        let sent = Instant::now();
        client
            .enqueue("other", ())
            .await
            .expect("the message is accepted");
        let notified = tokio::time::timeout(20 * SECOND, started.notified()).await;
        notified.expect("the other task runs");
        longest = longest.max(sent.elapsed());
        tokio::time::sleep(50 * MILLI).await;
    }
    let counts = redis.counts();
    let rate = (counts.done - before.done - 20) as f64 / since.elapsed().as_secs_f64();
    let seen = format!(
        "{rate:.0} limited tasks a second, another key waited for at most {longest:?}, {} parked",
        counts.parked
    );
    println!("{seen}");
    assert!(longest < SECOND && rate > 50.0, "{seen}");
    assert!(counts.parked < BACKLOG && counts.redelivered == 0, "{seen}");
    drop(worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_permits_of_a_worker_that_has_died_go_to_the_next_messages() {
    let server = RedisServer::start().await;
    let redis = Redis::connect(&server.url())
        .await
        .expect("the server is reachable");
    let redis = redis.lease(SECOND);
    let client = Client::new(redis.clone());
    for n in 0..3 {
        let call = client.enqueue("a", n.to_string());
        call.await.expect("the message is accepted");
    }
    let limit = redis.limit("test").expect("the name is valid");
    // The dead worker: its runtime has ended, so nobody renews or returns its permit.
    let url = server.url();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
        runtime.block_on(async {
            let redis = Redis::connect(&url).await.expect("the server is reachable");
            let limit = redis
                .lease(SECOND)
                .limit("test")
                .expect("the name is valid");
            let mut parts = campanile::Parts::new(campanile::Kind::Task, "a");
            parts.stream = Some(campanile::transport::Settings::default().stream);
            parts.id = Some("1-1".into());
            let permit = limit
                .acquire(&parts, "all", 1)
                .await
                .expect("the server answers");
            std::mem::forget(permit.expect("it is free"));
        });
        runtime.shutdown_background();
    })
    .join()
    .expect("the permit is taken");
    let started = Instant::now();
    let layer = SharedLimitLayer::concurrency(limit, 1, key::all());
    let worker = Worker::start(
        redis.clone(),
        Router::new().task("a", async || {}).layer(layer),
    );
    until(async || redis.counts().done == 3).await;
    assert!(redis.counts().parked > 0);
    assert!(started.elapsed() < 10 * SECOND);
    worker.stop().await.expect("the worker stops");
}
