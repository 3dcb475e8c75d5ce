#![doc = include_str!("docs/stack.md")]

use std::time::Duration;

/// The longest that one delivery, or one call, may take: so many tries, each with a time limit, and
/// the waits between them. See the [module](self).
///
/// It is where the numbers of a stack are said, once: layers are made from it, and its checks are
/// made where it is. In a `const` they are made by the compiler.
///
/// ```
/// use campanile_middleware::TimeBudget;
/// use std::time::Duration;
///
/// const BUDGET: TimeBudget = TimeBudget::new(Duration::from_secs(5))
///     .tries(3, Duration::from_millis(100), Duration::from_secs(1))
///     .fits_deadline(Duration::from_secs(30));
/// assert_eq!(BUDGET.longest(), Duration::from_millis(15_300));
/// ```
///
/// Numbers that cannot work do not compile:
///
/// ```compile_fail,E0080
/// # use campanile_middleware::TimeBudget;
/// # use std::time::Duration;
/// const BUDGET: TimeBudget = TimeBudget::new(Duration::from_secs(20))
///     .tries(3, Duration::from_millis(100), Duration::from_secs(1))
///     .fits_deadline(Duration::from_secs(30));
/// # assert!(!BUDGET.longest().is_zero());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeBudget {
    timeout: Duration,
    tries: u32,
    waits: Waits,
}

/// Waits that double from `first` to `most`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Waits {
    first: Duration,
    most: Duration,
}

impl Waits {
    /// All of so many waits together, none of them shortened by jitter.
    const fn sum(self, mut waits: u32) -> Duration {
        let (mut sum, mut wait) = (Duration::ZERO, self.first);
        while waits > 0 && is_less(wait, self.most) && !wait.is_zero() {
            sum = sum.saturating_add(wait);
            wait = wait.saturating_mul(2);
            waits -= 1;
        }
        // From here on they are all the same.
        let rest = if wait.is_zero() { wait } else { self.most };
        sum.saturating_add(rest.saturating_mul(waits))
    }
}

// `Duration`'s own comparison cannot be used in a `const` yet.
const fn is_less(one: Duration, other: Duration) -> bool {
    one.as_nanos() < other.as_nanos()
}

impl TimeBudget {
    /// One try, of at most so long.
    ///
    /// # Panics
    /// When it is zero.
    #[track_caller]
    pub const fn new(timeout: Duration) -> Self {
        assert!(!timeout.is_zero(), "a try needs some time");
        let waits = Waits {
            first: Duration::ZERO,
            most: Duration::ZERO,
        };
        Self {
            timeout,
            tries: 1,
            waits,
        }
    }

    /// So many tries in place, the first one included, with waits between them that double from
    /// `first` to `most`.
    ///
    /// # Panics
    /// When there are none, or when `most` is less than `first`.
    #[must_use]
    #[track_caller]
    pub const fn tries(mut self, tries: u32, first: Duration, most: Duration) -> Self {
        assert!(tries > 0, "there must be at least one try");
        assert!(
            !is_less(most, first),
            "the longest wait must not be shorter than the first"
        );
        self.tries = tries;
        self.waits = Waits { first, most };
        self
    }

    /// How long one try may take: for the layer that ends it.
    pub const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// How often it is tried in place: for the policy that decides that.
    pub const fn max_tries(&self) -> u32 {
        self.tries
    }

    /// How long all of it may take: every try to its limit, every wait without jitter.
    ///
    /// It counts from when the outermost of these layers is called. What a message waits before that,
    /// for a limit that stands outside of them, comes on top.
    pub const fn longest(&self) -> Duration {
        let work = self.timeout.saturating_mul(self.tries);
        work.saturating_add(self.waits.sum(self.tries - 1))
    }

    /// Checks that the last try ends before a caller's deadline. One that begins after it is made
    /// for nobody. A request's deadline is 30 s unless its client sets another.
    ///
    /// # Panics
    /// When it does not.
    #[must_use = "it returns the budget, to be kept"]
    #[track_caller]
    pub const fn fits_deadline(self, deadline: Duration) -> Self {
        assert!(
            !is_less(deadline, self.longest()),
            "tries × timeout + waits are longer than the deadline: the last try is made for nobody"
        );
        self
    }

    /// Checks that a request whose worker died as it took it can still be answered by another before
    /// the caller's deadline: after the lease (of 10 s, unless set) and the second within which a
    /// lease that has ended is noticed.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use = "it returns the budget, to be kept"]
    #[track_caller]
    pub const fn fits_take_over(self, lease: Duration, deadline: Duration) -> Self {
        let noticed = lease.saturating_add(Duration::from_secs(1));
        assert!(
            !is_less(deadline, noticed.saturating_add(self.longest())),
            "lease + tries × timeout + waits are longer than the deadline: when a worker dies, the \
             other one answers nobody"
        );
        self
    }

    /// Checks that what runs when a worker is told to end can do so before the
    /// [deadline of its shutdown](campanile::serve::Serve::shutdown_deadline), of 30 s unless set.
    /// What cannot is dropped, and done again by another worker.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use = "it returns the budget, to be kept"]
    #[track_caller]
    pub const fn fits_shutdown(self, deadline: Duration) -> Self {
        assert!(
            !is_less(deadline, self.longest()),
            "tries × timeout + waits are longer than the shutdown's deadline: handlers that would \
             have ended are dropped"
        );
        self
    }

    /// How long it may take until a task that always fails is a dead letter, where it is delivered
    /// so many times, with waits that double from `first` to `most`. The settings of a source say
    /// 10 times, from 1 s to 5 min.
    ///
    /// A window within which repetitions are known, such as that of an
    /// [idempotency key](campanile::transport::Settings::idempotency_window), has to be longer.
    pub const fn until_dead(&self, deliveries: u32, first: Duration, most: Duration) -> Duration {
        let work = self.longest().saturating_mul(deliveries);
        let waits = Waits { first, most };
        work.saturating_add(waits.sum(deliveries.saturating_sub(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_longest_is_every_try_to_its_limit_and_every_wait() {
        let budget = TimeBudget::new(5 * SECOND);
        assert_eq!(budget.longest(), 5 * SECOND);
        let longest = |tries| budget.tries(tries, SECOND, 4 * SECOND).longest().as_secs();
        let all = [1, 2, 3, 4, 5, 6].map(longest);
        assert_eq!(all, [5, 10 + 1, 15 + 3, 20 + 7, 25 + 11, 30 + 15]);
        let at_once = budget.tries(3, Duration::ZERO, SECOND);
        assert_eq!(at_once.longest(), 15 * SECOND);
    }

    #[test]
    fn it_neither_overflows_nor_takes_its_time() {
        let budget = TimeBudget::new(Duration::MAX).tries(u32::MAX, SECOND, Duration::MAX);
        assert_eq!(budget.longest(), Duration::MAX);
        let budget = TimeBudget::new(SECOND).tries(u32::MAX, SECOND, SECOND);
        assert_eq!(
            budget.longest(),
            SECOND * u32::MAX + SECOND * (u32::MAX - 1)
        );
    }

    #[test]
    fn what_fits_exactly_fits() {
        let budget = TimeBudget::new(10 * SECOND).tries(2, SECOND, SECOND);
        let _ = budget
            .fits_deadline(21 * SECOND)
            .fits_shutdown(21 * SECOND)
            .fits_take_over(10 * SECOND, 32 * SECOND);
    }

    #[test]
    fn a_source_as_it_is_set_up_gives_a_task_up_after_minutes() {
        let budget = TimeBudget::new(SECOND);
        let until_dead = |most| budget.until_dead(10, SECOND, most).as_secs();
        assert_eq!(until_dead(300 * SECOND), 10 + 511);
        assert_eq!(until_dead(2 * SECOND), 10 + 17);
        assert_eq!(budget.until_dead(0, SECOND, SECOND), Duration::ZERO);
    }
}
