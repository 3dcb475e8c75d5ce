//! Measures for how long this consumer has renewed its leases without interruption.

use std::{sync::Mutex, time::Duration};

use tokio::time::Instant;

use crate::sync::lock;

/// The current *streak*: the successful renewals since the last renewal that failed or was late.
///
/// After Redis was paused, the leases of all consumers look expired. If the streak is at least a
/// lease long, Redis was not paused in that time, and the consumers whose leases have expired are
/// really dead.
#[derive(Debug, Default)]
pub(super) struct RenewalHealth(Mutex<Option<Streak>>);

#[derive(Debug, Clone, Copy)]
struct Streak {
    first_at: Instant,
    last_at: Instant,
    /// The reading of Redis's clock that came with the last renewal.
    reading: ClockReading,
}

/// A reading of Redis's clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClockReading {
    /// The time at which the command was sent.
    pub(super) sent_at: Instant,
    /// The time at which its response had arrived.
    pub(super) answered_at: Instant,
    /// The time on Redis's clock at some moment between `sent_at` and `answered_at`, in
    /// milliseconds.
    pub(super) on_server: i64,
}

impl RenewalHealth {
    /// Records a renewal that has just succeeded, with its reading of Redis's clock.
    ///
    /// A new streak begins if the last renewal is longer ago than `max_between`, or if Redis's
    /// clock has jumped forward. It has jumped if it has gained more than a `tick` on the monotonic
    /// clock of this process. After such a jump the leases of all consumers look expired until they
    /// are renewed. A jump back makes no lease look expired, so the streak continues.
    pub(super) fn renewed(&self, reading: ClockReading, max_between: Duration, tick: Duration) {
        let now = Instant::now();
        let mut streak = lock(&self.0);
        let continues = |before: &Streak| {
            let max_passed = reading.answered_at.duration_since(before.reading.sent_at) + tick;
            let passed = reading.on_server - before.reading.on_server;
            now.duration_since(before.last_at) <= max_between
                && passed <= max_passed.as_millis() as i64
        };
        let first_at = streak.filter(continues).map_or(now, |it| it.first_at);
        *streak = Some(Streak {
            first_at,
            last_at: now,
            reading,
        });
    }

    /// Ends the streak, after a failed renewal.
    pub(super) fn failed(&self) {
        *lock(&self.0) = None;
    }

    /// Returns the time on Redis's clock, in milliseconds, at which the streak ends unless there is
    /// another renewal. The time is in the past if the streak is over. `None` if the last renewal
    /// failed, or before the first one.
    pub(super) fn ends_at(&self, max_between: Duration) -> Option<i64> {
        let streak = *lock(&self.0);
        Some(streak?.reading.on_server + max_between.as_millis() as i64)
    }

    /// Returns the time since the first renewal of the streak. Zero before the first renewal, after
    /// a failed renewal, and if the last renewal is longer ago than `max_between`.
    pub(super) fn lasts(&self, max_between: Duration) -> Duration {
        let streak = lock(&self.0);
        match *streak {
            Some(streak) if streak.last_at.elapsed() <= max_between => streak.first_at.elapsed(),
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(on_server: i64) -> ClockReading {
        ClockReading {
            sent_at: Instant::now(),
            answered_at: Instant::now(),
            on_server,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_renewal_begins_a_new_streak() {
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
