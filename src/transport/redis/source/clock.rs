//! Redis's clock, seen from here.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use redis::Value;
use tokio::time::Instant;

use super::entry::{array, integer};

/// Redis's time as a reading of it now and then, and the monotonic clock in between: the clocks of
/// two machines need not agree, and a step of ours does no harm.
#[derive(Debug)]
pub(super) struct Clock {
    start: Instant,
    /// Redis's time at `start`, in milliseconds.
    at_start: AtomicI64,
}

impl Clock {
    /// From an answer to `TIME` that has just come.
    pub(super) fn new(time: Value) -> Self {
        let clock = Self {
            start: Instant::now(),
            at_start: AtomicI64::new(0),
        };
        clock.set(time);
        clock
    }

    /// Follows an answer to `TIME` that has just come.
    pub(super) fn set(&self, time: Value) {
        let time: Vec<_> = array(time).iter().filter_map(integer).collect();
        if let [seconds, microseconds] = time[..] {
            let now = seconds * 1000 + microseconds / 1000;
            self.at_start.store(now - self.elapsed(), Ordering::Relaxed);
        }
    }

    /// How long ago Redis's clock showed this many milliseconds.
    pub(super) fn since(&self, milliseconds: u64) -> Duration {
        let now = self.at_start.load(Ordering::Relaxed) + self.elapsed();
        let then = i64::try_from(milliseconds).unwrap_or(i64::MAX);
        Duration::from_millis(u64::try_from(now.saturating_sub(then)).unwrap_or(0))
    }

    fn elapsed(&self) -> i64 {
        i64::try_from(self.start.elapsed().as_millis()).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_measured_on_the_servers_clock() {
        let time = |seconds: &str| {
            Value::Array(vec![
                Value::BulkString(seconds.into()),
                Value::BulkString("5000".into()),
            ])
        };
        let clock = Clock::new(time("100"));
        let age = clock.since(90_005);
        assert!(age >= Duration::from_secs(10) && age < Duration::from_secs(11));
        assert_eq!(clock.since(200_000), Duration::ZERO, "it is in the future");
        clock.set(time("200"));
        assert!(clock.since(90_005) >= Duration::from_secs(110));
        clock.set(Value::Nil);
        assert!(clock.since(90_005) >= Duration::from_secs(110), "no answer");
    }
}
