//! Tests of the order of the messages of a key.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use campanile::{Attempt, BoxError, Client, Failure, Name, Router};
use campanile_middleware::{OrderedByKeyLayer, key, key::ByName};

use super::{MILLI, SECOND, Transport, on_both, settings, support::worker::Worker, until};

on_both! {
    the_order_is_that_of_the_stream(settings());
    the_order_is_kept_over_failures_of_every_kind({
        let mut settings = settings();
        settings.max_in_flight = 24;
        settings
    });
    other_keys_go_on_while_a_message_backs_off({
        let mut settings = settings();
        settings.max_in_flight = 2;
        settings
    });
}

fn layer() -> OrderedByKeyLayer<ByName> {
    let settings = settings();
    OrderedByKeyLayer::new(key::name()).backoff(settings.backoff)
}

/// Records the messages of each key, and violations of their order.
#[derive(Clone, Default)]
struct OrderLog(Arc<Mutex<OrderLogState>>);

#[derive(Default)]
struct OrderLogState {
    keys: HashMap<Name, KeyState>,
    violations: Vec<String>,
}

#[derive(Default, Clone, Copy)]
struct KeyState {
    /// True while a handler runs with a message of this key.
    running: bool,
    /// The number of settled messages, which is the number of the message that must run next.
    ended: u32,
}

impl OrderLog {
    /// Records that a handler starts with the message of this number.
    fn begin(&self, name: &Name, number: u32) {
        let state = &mut *self.0.lock().unwrap();
        let key = state.keys.entry(name.clone()).or_default();
        if key.running || number != key.ended {
            let (running, ended) = (key.running, key.ended);
            let fault = format!("{name} {number} begins; running: {running}, ended: {ended}");
            state.violations.push(fault);
        }
        key.running = true;
    }

    /// Records that the handler has ended. `settled` is false if the message is delivered again.
    fn end(&self, name: &Name, settled: bool) {
        let state = &mut *self.0.lock().unwrap();
        let key = state.keys.entry(name.clone()).or_default();
        key.running = false;
        key.ended += u32::from(settled);
    }

    fn ended(&self, name: &str) -> u32 {
        let state = self.0.lock().unwrap();
        state.keys.get(name).map_or(0, |key| key.ended)
    }

    fn assert_ordered(&self) {
        let violations = &self.0.lock().unwrap().violations;
        assert!(violations.is_empty(), "{violations:#?}");
    }
}

/// Sends `each` messages to each of these keys, in turn.
async fn send(transport: &impl Transport, keys: &[&str], each: u32) {
    let client = Client::new(transport.clone());
    for n in 0..each {
        for name in keys {
            client
                .enqueue(*name, n.to_string())
                .await
                .expect("the message is accepted");
        }
    }
}

const KEYS: [&str; 5] = ["a", "b", "c", "d", "e"];

async fn the_order_is_that_of_the_stream(transport: impl Transport) {
    const EACH: u32 = 100;
    send(&transport, &KEYS, EACH).await;
    let log = OrderLog::default();
    let noted = log.clone();
    let app = Router::new()
        .fallback(async move |name: Name, number: String| {
            noted.begin(&name, number.parse().unwrap());
            tokio::task::yield_now().await;
            noted.end(&name, true);
        })
        .layer(layer());
    let worker = Worker::start(transport.clone(), app);
    until(async || KEYS.iter().all(|key| log.ended(key) == EACH)).await;
    worker.stop().await.expect("the worker stops");
    log.assert_ordered();
    let counts = transport.counts();
    assert_eq!((counts.done, counts.redelivered), (500, 0));
}

async fn the_order_is_kept_over_failures_of_every_kind(transport: impl Transport) {
    const EACH: u32 = 12;
    send(&transport, &KEYS, EACH).await;
    let log = OrderLog::default();
    let noted = log.clone();
    let handler = async move |name: Name, attempt: Attempt, number: String| {
        let number: u32 = number.parse().unwrap();
        noted.begin(&name, number);
        tokio::task::yield_now().await;
        // The failures hit other numbers for each key.
        let kind = number + u32::from(name.as_bytes()[0]);
        if attempt.is_retry() {
            let again = kind % 12 == 1 && attempt.0 < 4;
            noted.end(&name, !again);
            return if again {
                Err("once more".into())
            } else {
                Ok(())
            };
        }
        noted.end(&name, !matches!(kind % 12, 1..=5));
        let failure: BoxError = match kind % 12 {
            1 => "with the back-off of the source".into(),
            2 => Failure::redeliver_after(Duration::ZERO).into(),
            3 => Failure::redeliver_after(30 * MILLI).into(),
            4 => Failure::redeliver_after(400 * MILLI).into(),
            5 => panic!("on purpose"),
            6 => Failure::dead_letter().into(),
            7 => Failure::discard().into(),
            _ => return Ok(()),
        };
        Err(failure)
    };
    let app = Router::new().fallback(handler).layer(layer());
    let worker = Worker::start(transport.clone(), app);
    until(async || KEYS.iter().all(|key| log.ended(key) == EACH)).await;
    worker.stop().await.expect("the worker stops");
    log.assert_ordered();
    let counts = transport.counts();
    assert_eq!(
        counts.dead + counts.discarded + counts.done,
        5 * u64::from(EACH)
    );
    assert_eq!((counts.dead, counts.discarded), (5, 5));
}

async fn other_keys_go_on_while_a_message_backs_off(transport: impl Transport) {
    send(&transport, &["a"], 6).await;
    send(&transport, &["b"], 6).await;
    let log = OrderLog::default();
    let noted = log.clone();
    let began = Instant::now();
    let b_ended = Arc::new(Mutex::new(None));
    let ended_at = b_ended.clone();
    let app = Router::new()
        .fallback(async move |name: Name, attempt: Attempt, number: String| {
            noted.begin(&name, number.parse().unwrap());
            let fails = name == "a" && number == "0" && !attempt.is_retry();
            noted.end(&name, !fails);
            if name == "b" && number == "5" {
                *ended_at.lock().unwrap() = Some(Instant::now());
            }
            match fails {
                true => Err(Failure::redeliver_after(2 * SECOND)),
                false => Ok(()),
            }
        })
        .layer(layer());
    let worker = Worker::start(transport.clone(), app);
    until(async || log.ended("a") == 6 && log.ended("b") == 6).await;
    let all_ended = Instant::now();
    worker.stop().await.expect("the worker stops");
    log.assert_ordered();
    let b_ended = b_ended.lock().unwrap().expect("key b has ended");
    assert!(all_ended - began >= 2 * SECOND);
    assert!(all_ended - b_ended >= SECOND, "{:?}", all_ended - b_ended);
}
