#![doc = include_str!("docs/stack.md")]

use std::time::Duration;

use campanile::transport::Backoff;

/// The maximum time that one delivery, or one call, may take: a number of tries, a time limit for
/// each try, and the waits between them. See the [module](self).
///
/// Define the numbers of a stack once in this type, and pass them from here to the layers. The
/// `fits_…` methods check the numbers. In a `const` the check runs at compile time.
///
/// ```
/// use campanile::transport::Backoff;
/// use campanile_middleware::TimeBudget;
/// use std::time::Duration;
///
/// const BACKOFF: Backoff = Backoff::exponential(Duration::from_millis(100), Duration::from_secs(1));
/// const BUDGET: TimeBudget = TimeBudget::new(Duration::from_secs(5))
///     .with_tries(3, BACKOFF)
///     .fits_deadline(Duration::from_secs(30));
/// assert_eq!(BUDGET.max_duration(), Duration::from_millis(15_300));
/// ```
///
/// A budget that does not fit does not compile:
///
/// ```compile_fail,E0080
/// # use campanile::transport::Backoff;
/// # use campanile_middleware::TimeBudget;
/// # use std::time::Duration;
/// # const BACKOFF: Backoff = Backoff::exponential(Duration::from_millis(100), Duration::from_secs(1));
/// const BUDGET: TimeBudget = TimeBudget::new(Duration::from_secs(20))
///     .with_tries(3, BACKOFF)
///     .fits_deadline(Duration::from_secs(30));
/// # assert!(!BUDGET.max_duration().is_zero());
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimeBudget {
    timeout: Duration,
    tries: u32,
    /// `None` for a single try.
    backoff: Option<Backoff>,
}

/// Returns the sum of the first `waits` waits of a back-off, without jitter.
const fn sum_of_waits(backoff: Backoff, mut waits: u32) -> Duration {
    let (mut sum, mut wait) = (Duration::ZERO, backoff.base());
    while waits > 0 && is_less(wait, backoff.max()) {
        sum = sum.saturating_add(wait);
        wait = wait.saturating_mul(2);
        waits -= 1;
    }
    // All further waits are equal, so they are multiplied: a loop over up to `u32::MAX` waits would
    // take too long.
    sum.saturating_add(backoff.max().saturating_mul(waits))
}

// `Duration: PartialOrd` cannot be used in a `const` yet.
const fn is_less(one: Duration, other: Duration) -> bool {
    one.as_nanos() < other.as_nanos()
}

impl TimeBudget {
    /// Creates a budget of one try that takes at most `timeout`.
    ///
    /// # Panics
    /// If `timeout` is zero.
    #[track_caller]
    pub const fn new(timeout: Duration) -> Self {
        assert!(!timeout.is_zero(), "a try needs some time");
        Self {
            timeout,
            tries: 1,
            backoff: None,
        }
    }

    /// Sets the number of tries within one delivery or call, including the first, and the waits
    /// between them. One try unless set.
    ///
    /// # Panics
    /// If `tries` is zero.
    #[must_use]
    #[track_caller]
    pub const fn with_tries(mut self, tries: u32, backoff: Backoff) -> Self {
        assert!(tries > 0, "there must be at least one try");
        self.tries = tries;
        self.backoff = Some(backoff);
        self
    }

    /// Returns the time limit of one try, for [`TimeoutLayer`](crate::TimeoutLayer).
    pub const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Returns the number of tries within one delivery or call, including the first, for
    /// [`RetryPolicy`](crate::RetryPolicy).
    pub const fn tries(&self) -> u32 {
        self.tries
    }

    /// Returns the maximum time for all tries and the waits between them: every try takes its whole
    /// timeout, and jitter does not shorten the waits.
    ///
    /// The time starts when the outermost layer that uses this budget (timeout or retry) is called.
    /// It does not include waits in outer layers.
    pub const fn max_duration(&self) -> Duration {
        let work = self.timeout.saturating_mul(self.tries);
        match self.backoff {
            Some(backoff) => work.saturating_add(sum_of_waits(backoff, self.tries - 1)),
            None => work,
        }
    }

    /// Checks that the last try ends before a caller's deadline. A request's deadline is 30 s
    /// unless its client sets another.
    ///
    /// # Panics
    /// If [`max_duration`](Self::max_duration) is longer than the deadline.
    #[must_use = "the checked budget is returned"]
    #[track_caller]
    pub const fn fits_deadline(self, deadline: Duration) -> Self {
        assert!(
            !is_less(deadline, self.max_duration()),
            "tries × timeout + waits are longer than the deadline: no caller waits for the last try"
        );
        self
    }

    /// Checks that a second worker can answer a request before the caller's deadline if the first
    /// worker dies right after it received the request. This takes at most the sum of three
    /// durations: the lease (10 s unless set), 1 s until another worker notices that the lease has
    /// ended, and [`max_duration`](Self::max_duration).
    ///
    /// # Panics
    /// If this sum is longer than the deadline.
    #[must_use = "the checked budget is returned"]
    #[track_caller]
    pub const fn fits_claim(self, lease: Duration, deadline: Duration) -> Self {
        let claimed_after = lease.saturating_add(Duration::from_secs(1));
        assert!(
            !is_less(deadline, claimed_after.saturating_add(self.max_duration())),
            "lease + tries × timeout + waits are longer than the deadline: after a worker died, no \
             caller waits for the reply of the next one"
        );
        self
    }

    /// Checks that running handlers can finish before the [shutdown
    /// deadline](campanile::serve::Serve::shutdown_timeout) of their worker, 30 s unless set. A
    /// handler that has not finished by then is dropped, and another worker runs its message again.
    ///
    /// # Panics
    /// If [`max_duration`](Self::max_duration) is longer than the deadline.
    #[must_use = "the checked budget is returned"]
    #[track_caller]
    pub const fn fits_shutdown(self, deadline: Duration) -> Self {
        assert!(
            !is_less(deadline, self.max_duration()),
            "tries × timeout + waits are longer than the shutdown deadline: handlers that would \
             have finished are dropped"
        );
        self
    }

    /// Returns the maximum time until a task that always fails becomes a dead letter: `deliveries`
    /// times [`max_duration`](Self::max_duration), plus the waits between the deliveries. Unless
    /// set, a source allows 10 deliveries, with waits from 1 s to 5 min.
    ///
    /// A window in which duplicates are recognised must be longer than this time. An example is the
    /// [window of idempotency keys](campanile::transport::Settings::idempotency_window).
    pub const fn until_dead(&self, deliveries: u32, backoff: Backoff) -> Duration {
        let work = self.max_duration().saturating_mul(deliveries);
        work.saturating_add(sum_of_waits(backoff, deliveries.saturating_sub(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_maximum_duration_is_every_timeout_and_every_wait() {
        let budget = TimeBudget::new(5 * SECOND);
        assert_eq!(budget.max_duration(), 5 * SECOND);
        let backoff = Backoff::exponential(SECOND, 4 * SECOND);
        let seconds = |tries| budget.with_tries(tries, backoff).max_duration().as_secs();
        let all = [1, 2, 3, 4, 5, 6].map(seconds);
        assert_eq!(all, [5, 10 + 1, 15 + 3, 20 + 7, 25 + 11, 30 + 15]);
    }

    #[test]
    fn large_numbers_neither_overflow_nor_take_long() {
        let endless = Backoff::exponential(SECOND, Duration::MAX);
        let budget = TimeBudget::new(Duration::MAX).with_tries(u32::MAX, endless);
        assert_eq!(budget.max_duration(), Duration::MAX);
        let constant = Backoff::exponential(SECOND, SECOND);
        let budget = TimeBudget::new(SECOND).with_tries(u32::MAX, constant);
        assert_eq!(
            budget.max_duration(),
            SECOND * u32::MAX + SECOND * (u32::MAX - 1)
        );
    }

    #[test]
    fn a_budget_that_fits_exactly_is_accepted() {
        let backoff = Backoff::exponential(SECOND, SECOND);
        let budget = TimeBudget::new(10 * SECOND).with_tries(2, backoff);
        let _ = budget
            .fits_deadline(21 * SECOND)
            .fits_shutdown(21 * SECOND)
            .fits_claim(10 * SECOND, 32 * SECOND);
    }

    #[test]
    fn with_default_settings_a_failing_task_is_dead_after_minutes() {
        let budget = TimeBudget::new(SECOND);
        let backoff = |max| Backoff::exponential(SECOND, max);
        let until_dead = |max| budget.until_dead(10, backoff(max)).as_secs();
        assert_eq!(until_dead(300 * SECOND), 10 + 511);
        assert_eq!(until_dead(2 * SECOND), 10 + 17);
        assert_eq!(budget.until_dead(0, backoff(SECOND)), Duration::ZERO);
    }
}
