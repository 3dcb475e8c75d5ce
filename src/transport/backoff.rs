//! The wait before another attempt.

use std::time::Duration;

/// An exponential back-off: a wait that doubles with each attempt, with jitter.
///
/// ```
/// use campanile::transport::Backoff;
/// use std::time::Duration;
///
/// let backoff = Backoff::exponential(Duration::from_secs(1), Duration::from_secs(60)).jitter(0.0);
/// assert_eq!(backoff.after(1), Duration::from_secs(1));
/// assert_eq!(backoff.after(4), Duration::from_secs(8));
/// assert_eq!(backoff.after(9), Duration::from_secs(60));
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    jitter: f64,
}

impl Backoff {
    /// Creates a back-off that waits `base` after the first attempt, and twice as long after each
    /// further attempt, up to `max`. The jitter is 0.5.
    ///
    /// # Panics
    /// If `base` is zero, or `max` is shorter than `base`.
    #[track_caller]
    pub const fn exponential(base: Duration, max: Duration) -> Self {
        assert!(!base.is_zero(), "a back-off must begin above zero");
        assert!(
            max.as_nanos() >= base.as_nanos(),
            "the longest wait of a back-off must not be shorter than its first"
        );
        Self {
            base,
            max,
            jitter: 0.5,
        }
    }

    /// Sets the maximum part of a wait that is randomly subtracted: with 0.0 nothing, with 1.0 up
    /// to the whole wait. The jitter spreads the retries of messages that failed together over
    /// time. 0.5 unless set.
    ///
    /// # Panics
    /// If `part` is not between 0.0 and 1.0.
    #[must_use]
    #[track_caller]
    pub const fn jitter(mut self, part: f64) -> Self {
        assert!(
            part >= 0.0 && part <= 1.0,
            "the jitter of a back-off must be between 0.0 and 1.0"
        );
        self.jitter = part;
        self
    }

    /// Returns the wait after the first attempt.
    pub const fn base(self) -> Duration {
        self.base
    }

    /// Returns the longest wait.
    pub const fn max(self) -> Duration {
        self.max
    }

    /// Returns the wait after this attempt, counted from 1. Each call subtracts another random
    /// part.
    pub fn after(self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        let full = self.base.saturating_mul(1 << doublings).min(self.max);
        full.saturating_sub(full.mul_f64(self.jitter * fastrand::f64()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_wait_doubles_and_is_bounded_at_any_attempt() {
        let backoff = Backoff::exponential(SECOND, 300 * SECOND).jitter(0.0);
        let waits = [0, 1, 2, 9, 10, 33, u32::MAX].map(|attempt| backoff.after(attempt).as_secs());
        assert_eq!(waits, [1, 1, 2, 256, 300, 300, 300]);
    }

    #[test]
    fn jitter_subtracts_up_to_its_part_at_random() {
        let backoff = Backoff::exponential(SECOND, SECOND).jitter(0.2);
        let waits: Vec<_> = (0..100).map(|_| backoff.after(1)).collect();
        let in_range = |wait: &Duration| *wait >= SECOND * 4 / 5 && *wait <= SECOND;
        assert!(waits.iter().all(in_range), "{waits:?}");
        assert!(waits.iter().any(|wait| *wait != waits[0]));
    }

    #[test]
    #[should_panic = "a back-off must begin above zero"]
    fn a_first_wait_of_zero_is_refused() {
        let _ = Backoff::exponential(Duration::ZERO, SECOND);
    }

    #[test]
    #[should_panic = "the longest wait of a back-off must not be shorter than its first"]
    fn a_longest_wait_below_the_first_is_refused() {
        let _ = Backoff::exponential(2 * SECOND, SECOND);
    }

    #[test]
    fn a_jitter_outside_of_zero_to_one_is_refused() {
        let backoff = Backoff::exponential(SECOND, SECOND);
        for part in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            std::panic::catch_unwind(|| backoff.jitter(part)).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn a_wait_is_between_half_of_the_doubled_wait_and_the_longest(
            base: Duration,
            more: Duration,
            attempt: u32,
        ) {
            prop_assume!(!base.is_zero());
            let max = base.saturating_add(more);
            let wait = Backoff::exponential(base, max).after(attempt);
            prop_assert!(wait <= max);
            // The jitter is a product of floating-point numbers, so the wait may be rounded to
            // slightly less than half.
            prop_assert!(wait.as_secs_f64() >= base.as_secs_f64() / 2.0 * 0.999_999);
        }
    }
}
