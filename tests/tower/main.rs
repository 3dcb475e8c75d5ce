//! tower's own middleware, unchanged and on both sides: around what is served, by a worker of the
//! memory transport, and around what is called, the sending half of that transport.
//!
//! Where a layer has an error of its own, the test asserts what becomes of the delivery or of the
//! call. `docs/layers.md` names these tests.
#![cfg(feature = "redis")]

mod choosing;
mod limits;
mod real;
mod shaping;
#[path = "../support/mod.rs"]
mod support;
mod time;

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use campanile::{
    Attempt, BoxError, Client, Error, IntoService, Message, Reply, RpcCode, State,
    transport::{
        Counts, Page,
        memory::{Backlog, Memory},
    },
};
use support::worker::Worker;
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);

/// What handlers did.
#[derive(Clone, Default)]
struct Work(Arc<Mutex<Log>>);

#[derive(Default)]
struct Log {
    running: usize,
    most: usize,
    calls: Vec<(Instant, Attempt)>,
}

impl Work {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap()
    }

    /// One call, for so long or until it is dropped.
    async fn run(&self, attempt: Attempt, time: Duration) {
        struct Running<'a>(&'a Work);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                self.0.log().running -= 1;
            }
        }
        {
            let mut log = self.log();
            log.running += 1;
            log.most = log.most.max(log.running);
            log.calls.push((Instant::now(), attempt));
        }
        let _running = Running(self);
        if !time.is_zero() {
            sleep(time).await;
        }
    }

    /// The most that ran at once.
    fn most(&self) -> usize {
        self.log().most
    }

    fn calls(&self) -> usize {
        self.log().calls.len()
    }

    /// The attempt at which each call was made.
    fn attempts(&self) -> Vec<u32> {
        self.log().calls.iter().map(|call| call.1.0).collect()
    }

    /// Asserts that of so many calls in a row the last came no sooner than this after the first.
    fn assert_rate(&self, calls: usize, per: Duration) {
        let log = self.log();
        for calls in log.calls.windows(calls + 1) {
            let apart = calls[calls.len() - 1].0 - calls[0].0;
            assert!(apart >= per, "{apart:?}");
        }
    }
}

async fn quick(State(work): State<Work>, attempt: Attempt) {
    work.run(attempt, Duration::ZERO).await;
}

async fn slow(State(work): State<Work>, attempt: Attempt) {
    work.run(attempt, SECOND).await;
}

async fn hangs(State(work): State<Work>, attempt: Attempt) {
    work.run(attempt, 3600 * SECOND).await;
}

/// A worker on a broker of its own.
struct Scene {
    memory: Memory,
    worker: Worker,
}

/// Serves this app.
fn serving(app: impl IntoService + Send + 'static) -> Scene {
    let memory = Memory::new();
    let worker = Worker::start(memory.clone(), app);
    Scene { memory, worker }
}

impl Scene {
    async fn enqueue(&self, names: impl IntoIterator<Item = &str>) {
        let client = Client::new(self.memory.clone());
        for name in names {
            client.enqueue(name, ()).await.unwrap();
        }
    }

    /// The answer to a request of this name, made without any layer.
    async fn ask(&self, name: &str) -> Result<String, Error> {
        let client = Client::new(self.memory.clone());
        client.request(name, ()).await
    }

    /// Waits until every message has ended, stops the worker, and says what happened.
    async fn settled(self) -> Counts {
        ended(&self.memory).await;
        self.worker.stop().await.unwrap();
        self.memory.counts()
    }
}

/// Waits until every message on this broker's stream has ended.
async fn ended(memory: &Memory) {
    while memory.backlog() != Backlog::default() {
        sleep(SECOND).await;
    }
}

/// Why its messages died.
async fn deaths(memory: &Memory) -> Vec<String> {
    let page = memory.dead_letters().list(Page::first(100)).await.unwrap();
    page.letters.into_iter().map(|it| it.reason).collect()
}

/// The code that a request was answered with.
fn code(answer: Result<String, Error>) -> RpcCode {
    let error = answer.expect_err("an error");
    error.rpc().expect("an answer").code().clone()
}
