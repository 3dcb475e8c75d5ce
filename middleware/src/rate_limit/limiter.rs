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
    period: Duration,
    counts: RateLimiter<Key, HashMapStateStore<Key>, TokioClock, NoOpMiddleware<Duration>>,
    state: Mutex<LimiterState>,
}

struct LimiterState {
    /// For each key, the time at which the last message that was put off is delivered again.
    last_return: HashMap<Key, Instant>,
    /// The number of keys at which unused keys are removed next.
    cleanup_at: usize,
}

/// Tells the time since the limiter was created, by tokio's clock, which tests can pause.
#[derive(Debug, Clone)]
struct TokioClock(Instant);

impl Clock for TokioClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

impl Limiter {
    /// Creates a limiter that admits one message per `period`, and up to `burst` messages at once.
    /// Neither may be zero.
    pub(super) fn new(period: Duration, burst: u32) -> Self {
        let quota = Quota::with_period(period).expect("not zero");
        let quota = quota.allow_burst(burst.try_into().expect("not zero"));
        Self {
            period,
            counts: RateLimiter::hashmap_with_clock(quota, TokioClock(Instant::now())),
            state: Mutex::new(LimiterState {
                last_return: HashMap::new(),
                cleanup_at: CLEANUP_THRESHOLD,
            }),
        }
    }

    /// Admits a message, or returns the time until the next one can be admitted.
    pub(super) fn check(&self, key: &Key) -> Result<(), Duration> {
        let checked = self.counts.check_key(key);
        self.clean();
        checked.map_err(|not_until| not_until.wait_time_from(self.counts.clock().now()))
    }

    /// Returns the error of a message over the rate, if the rate admits the next message after
    /// `wait`. Each message that is put off gets a different time of return: if all returned at
    /// once, all but one would be put off again.
    pub(super) fn refuse(&self, kind: Kind, key: &Key, wait: Duration) -> BoxError {
        if kind != Kind::Task {
            return RateLimited::error(kind, wait);
        }
        let now = Instant::now();
        let mut state = lock(&self.state);
        let behind = state.last_return.get(key).map(|last| *last + self.period);
        let back = behind.map_or(now + wait, |behind| behind.max(now + wait));
        state.last_return.insert(key.clone(), back);
        drop(state);
        RateLimited::error(kind, back - now)
    }

    /// Returns the time between two messages of a key.
    pub(super) fn period(&self) -> Duration {
        self.period
    }

    pub(super) fn keys(&self) -> usize {
        self.counts.len()
    }

    fn clean(&self) {
        let keys = self.counts.len();
        let mut state = lock(&self.state);
        if keys < state.cleanup_at {
            return;
        }
        let now = Instant::now();
        state.last_return.retain(|_, back| *back > now);
        self.counts.retain_recent();
        self.counts.shrink_to_fit();
        state.cleanup_at = (2 * self.counts.len()).max(CLEANUP_THRESHOLD);
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter")
            .field("period", &self.period)
            .field("keys", &self.keys())
            .finish_non_exhaustive()
    }
}
