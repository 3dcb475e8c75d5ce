//! Tests of tower's middleware on both sides: around an application that a worker of the memory
//! transport serves, and around the sending half of that transport.
//!
//! If a layer adds an error, the test asserts the outcome of the delivery or of the call.
//! `docs/layers.md` names these tests.

mod choosing;
mod limits;
mod shaping;
mod time;

use std::{sync::Arc, time::Duration};

use campanile::{
    Attempt, BoxError, Client, Error, Message, MessageService, Reply, RpcCode, Servable, State,
    transport::{Counts, Page, memory::Memory},
};
use tokio::time::{Instant, sleep};

use crate::support::{work::Work, worker::Worker};

const SECOND: Duration = Duration::from_secs(1);

async fn quick(State(work): State<Work>, attempt: Attempt) {
    work.run(attempt, Duration::ZERO).await;
}

async fn slow(State(work): State<Work>, attempt: Attempt) {
    work.run(attempt, SECOND).await;
}

async fn hangs(State(work): State<Work>, attempt: Attempt) {
    work.run(attempt, 3600 * SECOND).await;
}

/// A worker and its broker.
struct Scene {
    memory: Memory,
    worker: Worker,
}

/// Serves this app.
fn serving(app: impl Servable) -> Scene {
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

    /// The reply to a request of this name, which is sent without any layer.
    async fn ask(&self, name: &str) -> Result<String, Error> {
        let client = Client::new(self.memory.clone());
        client.request(name, ()).await
    }

    /// Waits until every message has ended, stops the worker, and returns the outcome.
    async fn settled(self) -> Counts {
        ended(&self.memory).await;
        self.worker.stop().await.unwrap();
        self.memory.counts()
    }
}

/// Waits until every message on this broker's stream has ended.
async fn ended(memory: &Memory) {
    while !memory.backlog().await.unwrap().is_empty() {
        sleep(SECOND).await;
    }
}

/// The reasons of the dead letters.
async fn deaths(memory: &Memory) -> Vec<String> {
    let page = memory.dead_letters().list(Page::first(100)).await.unwrap();
    page.letters.into_iter().map(|it| it.reason).collect()
}

/// The code of a request's error reply.
fn code(answer: Result<String, Error>) -> RpcCode {
    let error = answer.expect_err("an error");
    error.rpc().expect("an answer").code().clone()
}
