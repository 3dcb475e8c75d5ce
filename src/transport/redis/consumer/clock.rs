//! Estimates the time on Redis's clock.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    error::Error,
    transport::redis::response::{Value, integers, unexpected},
};

/// An estimate of Redis's time: the last reading plus the monotonic time since then. It does not
/// depend on this machine's wall clock.
#[derive(Debug)]
pub(super) struct ServerClock {
    start: Instant,
    /// Redis's time at `start`, in milliseconds.
    at_start: AtomicI64,
    /// The time of the last reading, in milliseconds since `start`.
    read_at: AtomicI64,
}

impl ServerClock {
    /// Makes a clock from a response to `TIME` that was just received.
    pub(super) fn new(time: Value) -> Result<Self, Error> {
        let clock = Self {
            start: Instant::now(),
            at_start: AtomicI64::new(0),
            read_at: AtomicI64::new(0),
        };
        clock.set(time)?;
        Ok(clock)
    }

    /// Sets the clock from a response to `TIME` that was just received. On an error the clock does
    /// not change.
    pub(super) fn set(&self, time: Value) -> Result<(), Error> {
        let [seconds, microseconds] = integers(time)?;
        let milliseconds = seconds
            .checked_mul(1000)
            .and_then(|time| time.checked_add(microseconds / 1000))
            .filter(|time| *time >= 0)
            .ok_or_else(|| unexpected("a time", "another number"))?;
        self.set_to(milliseconds);
        Ok(())
    }

    /// Sets the clock from a reading that was just received, in milliseconds.
    pub(super) fn set_to(&self, milliseconds: i64) {
        let elapsed = self.elapsed();
        self.at_start
            .store(milliseconds - elapsed, Ordering::Relaxed);
        self.read_at.store(elapsed, Ordering::Relaxed);
    }

    /// Returns the time since the last reading.
    pub(super) fn age_of_reading(&self) -> Duration {
        let elapsed = self.elapsed() - self.read_at.load(Ordering::Relaxed);
        Duration::from_millis(elapsed.unsigned_abs())
    }

    /// Returns the time since Redis's clock showed `milliseconds`. Zero if that time is in the
    /// future.
    pub(super) fn since(&self, milliseconds: u64) -> Duration {
        let at_start = self.at_start.load(Ordering::Relaxed);
        let now = at_start.saturating_add(self.elapsed());
        let then = i64::try_from(milliseconds).unwrap_or(i64::MAX);
        Duration::from_millis(u64::try_from(now.saturating_sub(then)).unwrap_or(0))
    }

    fn elapsed(&self) -> i64 {
        i64::try_from(self.start.elapsed().as_millis()).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_age_is_measured_on_the_servers_clock() {
        let time = |seconds: &str| {
            Value::Array(vec![
                Value::Text(seconds.to_owned().into()),
                Value::Text("5000".into()),
            ])
        };
        let clock = ServerClock::new(time("100")).unwrap();
        let age = clock.since(90_005);
        assert!(age >= Duration::from_secs(10) && age < Duration::from_secs(11));
        assert_eq!(clock.since(200_000), Duration::ZERO, "it is in the future");
        clock.set(time("200")).unwrap();
        assert!(clock.since(90_005) >= Duration::from_secs(110));
        assert!(clock.set(Value::Nil).is_err());
        assert!(clock.since(90_005) >= Duration::from_secs(110), "no answer");
        assert!(clock.set(time("9223372036854775807")).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reading_grows_old_until_the_next() {
        let time = Value::Array(vec![Value::Int(100), Value::Int(0)]);
        let clock = ServerClock::new(time).unwrap();
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(clock.age_of_reading(), Duration::from_secs(9));
        clock.set_to(60_000);
        assert_eq!(clock.age_of_reading(), Duration::ZERO);
        assert_eq!(clock.since(50_000), Duration::from_secs(10));
    }

    proptest! {
        #[test]
        fn any_two_numbers_are_a_time_or_an_error(seconds: i64, microseconds: i64, then: u64) {
            let time = Value::Array(vec![Value::Int(seconds), Value::Int(microseconds)]);
            if let Ok(clock) = ServerClock::new(time) {
                clock.since(then);
            }
        }
    }
}
