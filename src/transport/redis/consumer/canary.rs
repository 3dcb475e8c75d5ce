//! Detects that the application's runtime no longer runs tasks.
//!
//! The upkeep runs on a separate thread, and would renew leases for ever while the application
//! hangs. The *canary* is a task on the application's runtime. If the canary was not polled for
//! longer than its limit, the upkeep stops renewing leases.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::sync::lock;

/// A task on the application's runtime that records the time at which it was last polled.
#[derive(Debug)]
pub(super) struct Canary {
    polled_at: Mutex<Instant>,
    limit: Duration,
}

impl Canary {
    /// Starts the task on the caller's runtime. It ends when `closed` is cancelled.
    pub(super) fn start(limit: Duration, closed: CancellationToken) -> Arc<Self> {
        let canary = Arc::new(Self {
            polled_at: Mutex::new(Instant::now()),
            limit,
        });
        let noted = canary.clone();
        tokio::spawn(closed.run_until_cancelled_owned(async move {
            loop {
                sleep(limit / 4).await;
                *lock(&noted.polled_at) = Instant::now();
            }
        }));
        canary
    }

    /// Returns the time since the task was last polled, if it exceeds the limit.
    pub(super) fn stalled_for(&self) -> Option<Duration> {
        let since = lock(&self.polled_at).elapsed();
        (since > self.limit).then_some(since)
    }
}
