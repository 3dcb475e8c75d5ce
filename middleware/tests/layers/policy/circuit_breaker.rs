//! Tests of circuits around a worker and around a client.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use campanile::{Attempt, BoxError, Client, Error, Message, Router, RpcCode, error::find};
use campanile_middleware::{
    CircuitBreakerLayer, DurableRetryLayer,
    circuit_breaker::{CircuitOpen, CircuitState},
};
use tower::{Layer, service_fn};

use super::*;

on_both!(
    an_open_circuit_stops_fetching_and_burns_no_attempts,
    messages_fetched_before_the_circuit_opens_wait_and_burn_no_attempts,
    an_open_circuit_of_a_client_means_unavailable_and_is_no_attempt,
);

const TASKS: usize = 30;

/// A worker with a circuit and a backlog. The handler fails until `well` is set.
struct Scene<T> {
    transport: T,
    breaker: CircuitBreakerLayer,
    well: Arc<AtomicBool>,
    /// For each call, the value of `well` and the attempt.
    log: Log<(bool, u32)>,
    worker: Worker,
}

impl<T: Transport> Scene<T> {
    async fn new(transport: T, max_in_flight: usize, open_for: Duration) -> Self {
        let mut settings = Settings::default();
        settings.max_in_flight = max_in_flight;
        settings.max_deliveries = 1_000;
        settings.backoff = Backoff::exponential(Duration::from_millis(1), Duration::from_millis(1));
        let transport = transport.set(settings);
        let client = Client::new(transport.clone());
        for sent in client.enqueue_all("a", [""; TASKS]).await {
            sent.unwrap();
        }
        let breaker = CircuitBreakerLayer::new()
            .min_calls(4)
            .open_for(open_for)
            .probes(1);
        let (well, log) = (Arc::new(AtomicBool::new(false)), Log::new());
        let (is_well, seen) = (well.clone(), log.clone());
        let app = Router::new()
            .task("a", async move |attempt: Attempt| {
                let well = is_well.load(Ordering::SeqCst);
                seen.add((well, attempt.0));
                well.then_some(())
                    .ok_or_else(|| BoxError::from("the database is down"))
            })
            .layer(breaker.clone());
        let worker = Worker::start(transport.clone(), app);
        Self {
            transport,
            breaker,
            well,
            log,
            worker,
        }
    }

    /// Sets `well`, and waits until all tasks are done. Returns the number of failed calls.
    async fn recover(self) -> usize {
        self.well.store(true, Ordering::SeqCst);
        until(async || self.transport.counts().done == TASKS as u64).await;
        assert_eq!(self.breaker.state(), CircuitState::Closed);
        let (good, failed): (Vec<_>, Vec<_>) =
            self.log.all().into_iter().partition(|(well, _)| *well);
        assert_eq!(good.len(), TASKS);
        // Each failed call has used up one attempt. Nothing else has used up attempts.
        let used: u32 = good.iter().map(|(_, attempt)| attempt - 1).sum();
        assert_eq!(used as usize, failed.len());
        assert_eq!(self.transport.dead_letters().count().await.unwrap(), 0);
        self.worker.stop().await.unwrap();
        failed.len()
    }
}

async fn an_open_circuit_stops_fetching_and_burns_no_attempts(transport: impl Transport) {
    let scene = Scene::new(transport, 1, Duration::from_millis(250)).await;
    // Four calls open the circuit. Then one probe at a time opens it again. In between nothing is
    // fetched.
    for calls in 4..7 {
        until(async || scene.log.len() == calls && scene.breaker.state() == CircuitState::Open)
            .await;
        tokio::time::sleep(Duration::from_millis(80)).await;
        let delivered = scene.transport.counts().delivered;
        // On a loaded machine the next probe may have run already.
        if scene.log.len() == calls && scene.breaker.state() == CircuitState::Open {
            assert_eq!(
                delivered, calls as u64,
                "fetched while the circuit was open"
            );
        }
    }
    let failed = scene.recover().await;
    assert!(failed < 20, "{failed} calls while the database was down");
}

async fn messages_fetched_before_the_circuit_opens_wait_and_burn_no_attempts(
    transport: impl Transport,
) {
    let scene = Scene::new(transport, 8, Duration::from_millis(30)).await;
    until(async || scene.log.len() >= 12).await;
    let fetched = scene.transport.counts().delivered as usize;
    assert!(fetched <= scene.log.len() + 8, "{fetched}");
    scene.recover().await;
}

async fn an_open_circuit_of_a_client_means_unavailable_and_is_no_attempt(
    transport: impl Transport,
) {
    // The called service fails once, and the circuit is open from then on.
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let down = service_fn(move |_: Message| {
        counted.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Err(Error::disconnected("down")))
    });
    let breaker = CircuitBreakerLayer::new()
        .min_calls(1)
        .open_for(Duration::from_secs(3600))
        .fail_fast();
    let down = Client::new(breaker.layer(down));
    down.request::<()>("x", "").await.unwrap_err();
    let error = down.request::<()>("x", "").await.unwrap_err();
    let open = find::<CircuitOpen>(&error).expect("the error names the open circuit");
    assert!(open.retry_after() > Duration::from_secs(3000));

    let log = Log::new();
    let (seen, of_rpc) = (log.clone(), down.clone());
    let app = Router::new()
        .task("a", async move |attempt: Attempt| {
            seen.add(attempt.0);
            down.request::<()>("x", "").await
        })
        .rpc("b", async move || of_rpc.request::<()>("x", "").await)
        .layer(DurableRetryLayer::new().max_attempts(2));
    let worker = Worker::start(transport.clone(), app);
    let client = Client::new(transport.clone());
    let error = client.request::<()>("b", "").await.unwrap_err();
    assert_eq!(error.rpc().unwrap().code(), &RpcCode::Unavailable);
    client.enqueue("a", "").await.unwrap();
    until(async || log.len() >= 4).await;
    assert!(
        log.all().iter().all(|attempt| *attempt == 1),
        "{:?}",
        log.all()
    );
    assert_eq!(transport.dead_letters().count().await.unwrap(), 0);
    assert_eq!(
        calls.load(Ordering::SeqCst),
        1,
        "the open circuit lets no call pass"
    );
    worker.stop().await.unwrap();
}
