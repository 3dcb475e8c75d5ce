//! The application that `main` runs: HTTP handlers and workers over one state.

mod web;
mod work;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use campanile::{Client, Redis, Router};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

/// The state that the handlers of both sides share.
#[derive(Debug, Clone)]
pub struct App {
    redis: Redis,
    client: Client<Redis>,
    request_count: Arc<AtomicU64>,
    handled_orders: Arc<AtomicU64>,
    /// Cancelled when the process begins to shut down.
    pub stopping: CancellationToken,
}

impl App {
    /// The state of a process that has just started.
    pub fn new(redis: Redis) -> Self {
        Self {
            client: Client::new(redis.clone()).request_timeout(Duration::from_secs(10)),
            redis,
            request_count: Arc::default(),
            handled_orders: Arc::default(),
            stopping: CancellationToken::new(),
        }
    }

    /// The number of HTTP requests that have begun.
    pub fn requests(&self) -> u64 {
        self.request_count.load(Ordering::SeqCst)
    }
}

/// The HTTP side and the queue side of the application, over one state.
pub fn app(state: App) -> (axum::Router, Router) {
    (web::app(state.clone()), work::app().with_state(state))
}

#[derive(Serialize, Deserialize)]
struct Order {
    id: u64,
    title: String,
}

#[derive(Serialize, Deserialize)]
struct User {
    id: u64,
    name: String,
}

/// The code in `docs/http.md` is tested here, since it needs axum and tower-http.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/http.md")]
struct Guide;
