//! Limits the rate of messages by key, on tokio's clock.

use std::{collections::HashMap, fmt, sync::Mutex, time::Duration};

use campanile::{BoxError, Kind};
use governor::{
    Quota, RateLimiter, clock::Clock, middleware::NoOpMiddleware, state::keyed::HashMapStateStore,
};
use tokio::time::Instant;

use super::RateLimited;
use crate::{key::Key, sync::lock};

/// The minimum number of keys at which unused keys are removed.
const CLEANUP_THRESHOLD: usize = 1_000;

/// Limits the messages of each key to the same rate.
pub(super) struct Limiter {
    /// The time between two messages of a key after a burst.
    interval: Duration,
    counts: RateLimiter<Key, HashMapStateStore<Key>, TokioClock, NoOpMiddleware<Duration>>,
    state: Mutex<LimiterState>,
}

struct LimiterState {
    /// For each key, the time at which the last of the tasks that were put off is delivered again.
    last_return: HashMap<Key, Instant>,
    /// The number of keys at which unused keys are next removed.
    cleanup_at: usize,
}

/// A clock that starts when the limiter is created, and advances with tokio's clock, which tests
/// can pause.
#[derive(Debug, Clone)]
struct TokioClock(Instant);

impl Clock for TokioClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

impl Limiter {
    /// Creates a limiter that admits one message per `interval`, and up to `burst` messages at
    /// once. Neither may be zero.
    pub(super) fn new(interval: Duration, burst: u32) -> Self {
        let quota = Quota::with_period(interval).expect("not zero");
        let quota = quota.allow_burst(burst.try_into().expect("not zero"));
        Self {
            interval,
            counts: RateLimiter::hashmap_with_clock(quota, TokioClock(Instant::now())),
            state: Mutex::new(LimiterState {
                last_return: HashMap::new(),
                cleanup_at: CLEANUP_THRESHOLD,
            }),
        }
    }

    /// Admits a message, or returns the time until the next message of the key can be admitted.
    pub(super) fn try_admit(&self, key: &Key) -> Result<(), Duration> {
        let checked = self.counts.check_key(key);
        self.clean();
        checked.map_err(|not_until| not_until.wait_time_from(self.counts.clock().now()))
    }

    /// Returns the error of a message over the rate. `wait` is the time until the rate admits the
    /// next message.
    ///
    /// If all tasks that were put off returned at the same time, all but one would be put off
    /// again. So each task returns at least one interval after the task that was put off before it.
    pub(super) fn refuse(&self, kind: Kind, key: &Key, wait: Duration) -> BoxError {
        if kind != Kind::Task {
            return RateLimited::error(kind, wait);
        }
        let now = Instant::now();
        let mut state = lock(&self.state);
        let earliest = state.last_return.get(key).map(|last| *last + self.interval);
        let return_at = earliest.map_or(now + wait, |earliest| earliest.max(now + wait));
        state.last_return.insert(key.clone(), return_at);
        drop(state);
        RateLimited::error(kind, return_at - now)
    }

    /// Returns the time between two messages of a key after a burst.
    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    pub(super) fn keys(&self) -> usize {
        self.counts.len()
    }

    /// Removes unused keys if there are many keys.
    fn clean(&self) {
        let keys = self.counts.len();
        let mut state = lock(&self.state);
        if keys < state.cleanup_at {
            return;
        }
        let now = Instant::now();
        state.last_return.retain(|_, return_at| *return_at > now);
        self.counts.retain_recent();
        self.counts.shrink_to_fit();
        state.cleanup_at = (2 * self.counts.len()).max(CLEANUP_THRESHOLD);
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter")
            .field("interval", &self.interval)
            .field("keys", &self.keys())
            .finish_non_exhaustive()
    }
}
