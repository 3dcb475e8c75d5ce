//! Measures for how long this consumer has renewed its leases without interruption.

use std::{sync::Mutex, time::Duration};

use tokio::time::Instant;

use crate::sync::lock;

/// The current streak of successful renewals.
///
/// After Redis was paused, every consumer looks silent. A consumer that has renewed its own leases
/// for a whole lease knows that Redis was not paused meanwhile, and that a silent consumer has
/// really not renewed.
#[derive(Debug, Default)]
pub(super) struct RenewalHealth(Mutex<Option<Streak>>);

/// Consecutive renewals, none of them late.
#[derive(Debug, Clone, Copy)]
struct Streak {
    first: Instant,
    last: Instant,
    /// The reading of Redis's clock that came with the last renewal.
    reading: ClockReading,
}

/// A reading of Redis's clock, taken between `asked` and `answered`.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClockReading {
    pub(super) asked: Instant,
    pub(super) answered: Instant,
    /// Redis's time, in milliseconds.
    pub(super) on_server: i64,
}

impl RenewalHealth {
    /// Records a renewal that has just succeeded, with its reading of Redis's clock.
    ///
    /// The streak restarts if the last renewal is longer ago than `max_between`. It also restarts
    /// if Redis's clock stepped forward, that is, gained more than a `tick` on the monotonic clock:
    /// all entries then look idle for the length of the step, until their consumers renew them.
    /// After a step back no entry looks idle, so the streak continues.
    pub(super) fn renewed(&self, reading: ClockReading, max_between: Duration, tick: Duration) {
        let now = Instant::now();
        let mut streak = lock(&self.0);
        let continues = |before: &Streak| {
            let max_passed = reading.answered.duration_since(before.reading.asked) + tick;
            let passed = reading.on_server - before.reading.on_server;
            now.duration_since(before.last) <= max_between
                && passed <= max_passed.as_millis() as i64
        };
        let first = streak.filter(continues).map_or(now, |streak| streak.first);
        *streak = Some(Streak {
            first,
            last: now,
            reading,
        });
    }

    /// Ends the streak, after a failed renewal.
    pub(super) fn failed(&self) {
        *lock(&self.0) = None;
    }

    /// Returns the time on Redis's clock, in milliseconds, at which the streak ends without another
    /// renewal. `None` without a streak.
    pub(super) fn until(&self, max_between: Duration) -> Option<i64> {
        let streak = *lock(&self.0);
        Some(streak?.reading.on_server + max_between.as_millis() as i64)
    }

    /// Returns the length of the streak. Zero if the last renewal is longer ago than `max_between`.
    pub(super) fn lasts(&self, max_between: Duration) -> Duration {
        let streak = lock(&self.0);
        match *streak {
            Some(streak) if streak.last.elapsed() <= max_between => streak.first.elapsed(),
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(on_server: i64) -> ClockReading {
        ClockReading {
            asked: Instant::now(),
            answered: Instant::now(),
            on_server,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_renewal_starts_the_streak_again() {
        let (health, second) = (RenewalHealth::default(), Duration::from_secs(1));
        let renew = |on_server| health.renewed(reading(on_server), second, second / 10);
        renew(0);
        tokio::time::advance(second).await;
        renew(1000);
        assert_eq!(health.lasts(second), second);
        tokio::time::advance(14 * second).await;
        renew(15_000);
        assert_eq!(health.lasts(second), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn health_begins_anew_when_the_servers_clock_steps_forward_and_not_when_it_steps_back() {
        let (health, second) = (RenewalHealth::default(), Duration::from_secs(1));
        let renew = |on_server| health.renewed(reading(on_server), second, second / 10);
        renew(0);
        for (on_server, lasts) in [(1_000, 1), (2_100, 2), (3_300, 0), (4_300, 1), (-60_000, 2)] {
            tokio::time::advance(second).await;
            renew(on_server);
            assert_eq!(health.lasts(second), lasts * second, "at {on_server}");
        }
    }
}
