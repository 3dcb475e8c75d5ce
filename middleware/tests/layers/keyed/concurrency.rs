//! Tests of concurrency limits by key.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use campanile::{Client, Name, Redis, Router, RpcCode, transport::Page};
use campanile_middleware::{ConcurrencyByKeyLayer, key};
use tokio::sync::Notify;

use super::{
    MILLI, SECOND, Transport, logs, on_both, settings,
    support::{RedisServer, worker::Worker},
    until,
};

on_both! {
    a_key_runs_at_most_as_many_messages_as_it_has_permits(settings());
    a_message_without_a_key_is_a_dead_letter_and_a_request_is_answered_invalid(settings());
    a_message_beyond_the_waiting_limit_is_redelivered_without_counting({
        let mut settings = settings();
        settings.max_deliveries = 1;
        settings
    });
}

/// For each key: how many messages run now, the most that ran at once, and how many have ended.
#[derive(Clone, Default)]
struct Gauges(Arc<Mutex<HashMap<Name, [usize; 3]>>>);

impl Gauges {
    /// An application whose handlers take a while.
    fn app(&self) -> Router {
        let gauges = self.clone();
        Router::new().fallback(async move |name: Name| {
            gauges.change(&name, |[now, most, _]| {
                *now += 1;
                *most = (*most).max(*now);
            });
            tokio::time::sleep(5 * MILLI).await;
            gauges.change(&name, |[now, _, ended]| {
                *now -= 1;
                *ended += 1;
            });
        })
    }

    fn change(&self, name: &Name, change: impl Fn(&mut [usize; 3])) {
        change(self.0.lock().unwrap().entry(name.clone()).or_default());
    }

    fn of(&self, name: &str) -> [usize; 3] {
        let gauges = self.0.lock().unwrap();
        gauges.get(name).copied().unwrap_or_default()
    }
}

async fn send(transport: &impl Transport, each: usize) {
    let client = Client::new(transport.clone());
    for n in 0..each {
        for name in ["a", "b"] {
            client
                .enqueue(name, n.to_string())
                .await
                .expect("the message is accepted");
        }
    }
}

async fn a_key_runs_at_most_as_many_messages_as_it_has_permits(transport: impl Transport) {
    send(&transport, 40).await;
    let gauges = Gauges::default();
    let layer = ConcurrencyByKeyLayer::new(3, key::name());
    let worker = Worker::start(transport.clone(), gauges.app().layer(layer.clone()));
    until(async || gauges.of("a")[2] == 40 && gauges.of("b")[2] == 40).await;
    worker.stop().await.expect("the worker stops");
    assert_eq!((gauges.of("a")[1], gauges.of("b")[1]), (3, 3));
    assert_eq!(layer.keys_in_use(), 0);
    assert_eq!(transport.counts().redelivered, 0);
}

async fn a_message_beyond_the_waiting_limit_is_redelivered_without_counting(
    transport: impl Transport,
) {
    send(&transport, 20).await;
    let gauges = Gauges::default();
    let layer = ConcurrencyByKeyLayer::new(1, key::name()).max_waiting_per_key(2);
    let worker = Worker::start(transport.clone(), gauges.app().layer(layer));
    until(async || gauges.of("a")[2] == 20 && gauges.of("b")[2] == 20).await;
    worker.stop().await.expect("the worker stops");
    let counts = transport.counts();
    assert!(counts.redelivered > 0);
    assert_eq!(counts.dead, 0);
    assert_eq!(gauges.of("a")[1], 1);
}

async fn a_message_without_a_key_is_a_dead_letter_and_a_request_is_answered_invalid(
    transport: impl Transport,
) {
    let layer = ConcurrencyByKeyLayer::new(1, key::header("x-tenant"));
    let app = Router::new().fallback(async || "reply").layer(layer);
    let worker = Worker::start(transport.clone(), app);
    let client = Client::new(transport.clone());
    client
        .enqueue("a", ())
        .await
        .expect("the message is accepted");
    until(async || transport.counts().dead == 1).await;
    let letters = transport.dead_letters().list(Page::first(1)).await;
    let letters = letters.expect("the dead letters are listed").letters;
    let reason = "given up by the worker as permanent: the message has no key";
    assert_eq!(letters[0].reason, reason);
    let error = client.request::<String>("a", ()).await.unwrap_err();
    assert_eq!(error.rpc().unwrap().code(), &RpcCode::Invalid);
    let request = client.request::<String>("a", ());
    let reply = request.header("x-tenant", "acme").await;
    assert_eq!(reply.expect("with a key"), "reply");
    worker.stop().await.expect("the worker stops");
}

/// Uses the default settings, under which the back-off doubles from one second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_backlog_of_one_key_comes_back_ever_more_slowly_and_does_not_delay_other_keys() {
    const BACKLOG: u64 = 4_000;
    logs::keep();
    let server = RedisServer::start().await;
    let redis = Redis::connect(&server.url())
        .await
        .expect("the server is reachable");
    let client = Client::new(redis.clone());
    for _ in 0..BACKLOG {
        let call = client.enqueue("limited.backlog", ());
        call.await.expect("the message is accepted");
    }
    let started = Arc::new(Notify::new());
    let other = started.clone();
    let app = Router::new()
        .task("limited.backlog", async || {
            std::future::pending::<()>().await;
        })
        .task("other", async move || other.notify_one())
        .layer(ConcurrencyByKeyLayer::new(1, key::name()).max_waiting_per_key(0));
    let worker = Worker::start(redis.clone(), app);
    // All messages but the one that runs have been redelivered once.
    until(async || redis.counts().redelivered >= BACKLOG - 1).await;
    // Each is delivered again after up to one second, then two, then four. So few are delivered in
    // the second part of these probes.
    let mut longest = Duration::ZERO;
    let mut probe = async || {
        let sent = Instant::now();
        client
            .enqueue("other", ())
            .await
            .expect("the message is accepted");
        let notified = tokio::time::timeout(20 * SECOND, started.notified());
        let _ = notified.await;
        longest = longest.max(sent.elapsed());
    };
    for _ in 0..6 {
        probe().await;
        tokio::time::sleep(SECOND / 2).await;
    }
    let (before, since) = (redis.counts().redelivered, Instant::now());
    for _ in 0..6 {
        probe().await;
        tokio::time::sleep(SECOND / 2).await;
    }
    let put_off = redis.counts().redelivered - before;
    let each_second = put_off as f64 / since.elapsed().as_secs_f64();
    let warnings = logs::warnings(&["limited.backlog"]).len();
    let seen = format!(
        "{each_second:.0} redeliveries a second, another key waited for {longest:?}, {warnings} \
         warnings"
    );
    println!("{seen}");
    assert!(longest < 2 * SECOND, "{seen}");
    assert!(each_second < BACKLOG as f64 / 2.0, "{seen}");
    assert!(warnings < 50, "{seen}");
    drop(worker);
}
