//! How long to wait before another try.

use std::time::Duration;

/// A wait that doubles with each attempt, with jitter.
///
/// ```
/// use campanile_middleware::Backoff;
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
    /// A wait of `base` after the first attempt, doubling up to `max`. Half of it is by chance.
    ///
    /// # Panics
    /// When `base` is zero, or `max` is less than `base`.
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

    /// Which part of each wait is by chance, so that what failed together does not come back
    /// together: of 0.0, none; of 1.0, all of it. 0.5 unless set. A wait is never longer for it.
    ///
    /// # Panics
    /// When it is not between 0.0 and 1.0.
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

    /// The wait after this attempt, counted from 1.
    pub fn after(self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        let full = self.base.saturating_mul(1 << doublings).min(self.max);
        full.saturating_sub(full.mul_f64(self.jitter * fastrand::f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mocks::mistake;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn it_doubles_and_is_bounded_at_any_attempt() {
        let backoff = Backoff::exponential(SECOND, 300 * SECOND).jitter(0.0);
        let waits = [0, 1, 2, 9, 10, 33, u32::MAX].map(|attempt| backoff.after(attempt).as_secs());
        assert_eq!(waits, [1, 1, 2, 256, 300, 300, 300]);
        let endless = Backoff::exponential(Duration::MAX, Duration::MAX);
        assert!(endless.after(u32::MAX) >= Duration::MAX / 2);
    }

    #[test]
    fn jitter_takes_away_up_to_its_part_and_not_always_the_same() {
        let backoff = Backoff::exponential(SECOND, SECOND).jitter(0.2);
        let waits: Vec<_> = (0..100).map(|_| backoff.after(1)).collect();
        assert!(
            waits
                .iter()
                .all(|wait| *wait >= SECOND * 4 / 5 && *wait <= SECOND)
        );
        assert!(waits.iter().any(|wait| *wait != waits[0]));
    }

    #[test]
    fn numbers_that_cannot_work_are_refused_where_they_stand() {
        let text = mistake(|| Backoff::exponential(Duration::ZERO, SECOND));
        assert_eq!(text, "a back-off must begin above zero");
        let text = mistake(|| Backoff::exponential(2 * SECOND, SECOND));
        assert_eq!(
            text,
            "the longest wait of a back-off must not be shorter than its first"
        );
        let backoff = Backoff::exponential(SECOND, SECOND);
        for part in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let text = mistake(|| backoff.jitter(part));
            assert_eq!(text, "the jitter of a back-off must be between 0.0 and 1.0");
        }
    }
}
