//! What counts, on tokio's clock.

use std::{collections::HashMap, fmt, sync::Mutex, time::Duration};

use campanile::{BoxError, Kind};
use governor::{
    Quota, RateLimiter, clock::Clock, middleware::NoOpMiddleware, state::keyed::HashMapStateStore,
};
use tokio::time::Instant;

use super::RateLimited;
use crate::{key::Key, sync::lock};

/// How many keys are kept before unused ones are searched for.
const CLEANED_FROM: usize = 1_000;

/// The rate of each key.
pub(super) struct Limiter {
    period: Duration,
    counts: RateLimiter<Key, HashMapStateStore<Key>, Tokio, NoOpMiddleware<Duration>>,
    state: Mutex<State>,
}

struct State {
    /// When the last message of each key that was put off comes back.
    put_off: HashMap<Key, Instant>,
    /// How many keys there are when unused ones are searched for.
    clean_at: usize,
}

/// The time since the limiter was made: stopped and moved on by tests, like all of tokio's.
#[derive(Debug, Clone)]
struct Tokio(Instant);

impl Clock for Tokio {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

impl Limiter {
    /// One for each `period`, and `burst` at once. Neither is zero.
    pub(super) fn new(period: Duration, burst: u32) -> Self {
        let quota = Quota::with_period(period).expect("not zero");
        let quota = quota.allow_burst(burst.try_into().expect("not zero"));
        Self {
            period,
            counts: RateLimiter::hashmap_with_clock(quota, Tokio(Instant::now())),
            state: Mutex::new(State {
                put_off: HashMap::new(),
                clean_at: CLEANED_FROM,
            }),
        }
    }

    /// Lets a message in, or says for how long none will be.
    pub(super) fn check(&self, key: &Key) -> Result<(), Duration> {
        let checked = self.counts.check_key(key);
        self.clean();
        checked.map_err(|not_until| not_until.wait_time_from(self.counts.clock().now()))
    }

    /// The error of a message that is over the rate, which lets one in after `wait`. Each that is
    /// put off has a time of its own: if all came back for the same one, all but one would be put
    /// off again.
    pub(super) fn refuse(&self, kind: Kind, key: &Key, wait: Duration) -> BoxError {
        if kind != Kind::Task {
            return RateLimited::error(kind, wait);
        }
        let now = Instant::now();
        let mut state = lock(&self.state);
        let behind = state.put_off.get(key).map(|last| *last + self.period);
        let back = behind.map_or(now + wait, |behind| behind.max(now + wait));
        state.put_off.insert(key.clone(), back);
        drop(state);
        RateLimited::error(kind, back - now)
    }

    /// For how long the next one of a key may have to wait.
    pub(super) fn period(&self) -> Duration {
        self.period
    }

    pub(super) fn keys(&self) -> usize {
        self.counts.len()
    }

    fn clean(&self) {
        let keys = self.counts.len();
        let mut state = lock(&self.state);
        if keys < state.clean_at {
            return;
        }
        let now = Instant::now();
        state.put_off.retain(|_, back| *back > now);
        self.counts.retain_recent();
        self.counts.shrink_to_fit();
        state.clean_at = (2 * self.counts.len()).max(CLEANED_FROM);
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
