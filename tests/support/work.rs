//! Handlers whose calls are recorded.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use campanile::Attempt;
use tokio::time::{Instant, sleep};

/// A log of the calls of handlers.
#[derive(Clone, Default)]
pub(crate) struct Work(Arc<Mutex<Log>>);

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

    /// Records one call, which lasts this long or until it is dropped.
    pub(crate) async fn run(&self, attempt: Attempt, time: Duration) {
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

    /// The maximum number of concurrent calls.
    pub(crate) fn most(&self) -> usize {
        self.log().most
    }

    pub(crate) fn calls(&self) -> usize {
        self.log().calls.len()
    }

    /// The attempt of each call.
    pub(crate) fn attempts(&self) -> Vec<u32> {
        self.log().calls.iter().map(|call| call.1.0).collect()
    }

    /// Asserts that each call comes at least `per` after the call that is `calls` before it.
    pub(crate) fn assert_rate(&self, calls: usize, per: Duration) {
        let log = self.log();
        for calls in log.calls.windows(calls + 1) {
            let apart = calls[calls.len() - 1].0 - calls[0].0;
            assert!(apart >= per, "{apart:?}");
        }
    }
}
