//! The time that a shutdown takes after the end of the last handler. Many deliveries are in flight,
//! all handlers end at the moment of the shutdown, and no delivery is acknowledged yet.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use campanile::Router;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    NAME, STREAM,
    figures::median,
    probe::Probe,
    raw_stream::{Reader, preload},
    setup::Setup,
    worker::connect,
};

/// Medians, in milliseconds from the end of the last handler.
#[derive(Serialize)]
pub(crate) struct Shutdown {
    /// The number of deliveries in flight at the shutdown.
    held: usize,
    raw_ms: f64,
    ours_ms: f64,
}

pub(crate) async fn run(probe: &Probe, setup: &Setup, held: usize, rounds: usize) -> Shutdown {
    let setup = Setup {
        max_in_flight: held,
        ..*setup
    };
    let (mut raw, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        raw.push(raw_round(probe, &setup).await.as_secs_f64() * 1e3);
        ours.push(our_round(probe, &setup).await.as_secs_f64() * 1e3);
    }
    let median_of = |values: Vec<f64>| median(values.into_iter()).expect("a round");
    let (raw_ms, ours_ms) = (median_of(raw), median_of(ours));
    println!("shutdown with {held} held: from the end of the last handler, in ms");
    println!("raw  {raw_ms:>8.1}   XACKs of 256, one after the other");
    println!("ours {ours_ms:>8.1}   all settled, the consumer removed, connections closed");
    println!("\nratio shutdown {:.2}", raw_ms / ours_ms);
    Shutdown {
        held,
        raw_ms,
        ours_ms,
    }
}

async fn our_round(probe: &Probe, setup: &Setup) -> Duration {
    let held = setup.max_in_flight;
    probe.clear(setup).await;
    preload(probe, setup, held).await;
    let redis = connect(probe.address())
        .await
        .stream(STREAM)
        .max_in_flight(held);
    let running = Arc::new(AtomicUsize::new(0));
    let gate = CancellationToken::new();
    let handler = {
        let (running, gate) = (running.clone(), gate.clone());
        async move || {
            running.fetch_add(1, Ordering::Relaxed);
            gate.cancelled().await;
        }
    };
    let stop = CancellationToken::new();
    let served = tokio::spawn(
        campanile::serve(redis, Router::<()>::new().task(NAME, handler))
            .with_graceful_shutdown(stop.clone().cancelled_owned())
            .into_future(),
    );
    while running.load(Ordering::Relaxed) < held {
        assert!(!served.is_finished(), "the worker ended early");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let started = Instant::now();
    stop.cancel();
    gate.cancel();
    let ended = served.await.expect("the worker does not panic");
    let elapsed = started.elapsed();
    ended.expect("the worker ends well");
    assert!(probe.is_drained(setup).await, "something is still pending");
    elapsed
}

async fn raw_round(probe: &Probe, setup: &Setup) -> Duration {
    probe.clear(setup).await;
    preload(probe, setup, setup.max_in_flight).await;
    let mut reader = Reader::connect(probe.address(), setup).await;
    let mut held = Vec::new();
    while held.len() < setup.max_in_flight {
        held.extend(reader.read().await);
    }
    let started = Instant::now();
    for entries in held.chunks(256) {
        reader.acknowledge(entries, redis::pipe()).await;
    }
    let elapsed = started.elapsed();
    assert!(probe.is_drained(setup).await, "something is still pending");
    elapsed
}
