//! The limits on the number and the age of the messages that wait on a stream. Senders enforce
//! these limits.

use std::time::Duration;

use tokio::time::Instant;

use super::Settings;
use crate::{
    error::Error,
    message::{Kind, Name, Parts},
};

/// The rule for a message whose stream has reached the sender's bound.
///
/// ```
/// use std::time::Duration;
/// use campanile::transport::{WhenFull, memory::Memory};
///
/// let orders = Memory::new().max_waiting(10_000);
/// let orders = orders.when_full(WhenFull::Wait(Duration::from_secs(1)));
/// # let _ = orders;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WhenFull {
    /// The call fails immediately, as [overloaded](Error::is_overloaded).
    #[default]
    Fail,
    /// The call waits for room, for at most this time and not longer than the deadline of a
    /// request. Then it fails as [overloaded](Error::is_overloaded). Calls that wait get room in no
    /// particular order.
    Wait(Duration),
}

/// A bound on the messages that wait on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bound {
    /// The maximum number of messages that may wait for a group.
    pub(crate) max: u64,
    /// The maximum age of a waiting message.
    pub(crate) max_age: Option<Duration>,
    pub(crate) when_full: WhenFull,
}

/// The messages that wait for a group with live workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) group: Name,
    pub(crate) messages: u64,
    /// The age of the oldest waiting message. Zero if none waits, or if the caller did not need the
    /// age.
    pub(crate) oldest: Duration,
    /// The number of entries of the stream that the group has ever read. `None` if it is unknown.
    pub(crate) entries_read: Option<u64>,
}

impl Settings {
    /// Returns the bound that applies to a message. `None` for events, because no stream keeps
    /// them. `None` also for tasks that are not due, because they start to wait for workers long
    /// after the call.
    ///
    /// # Errors
    /// If the bound is invalid.
    pub(crate) fn bound(&self, parts: &Parts) -> Result<Option<Bound>, Error> {
        if self.max_waiting.is_none() && self.max_waiting_age.is_none() {
            return Ok(None);
        }
        let is_later = parts.due.is_some_and(|due| !due.wait().is_zero());
        if parts.kind == Kind::Event || is_later {
            return Ok(None);
        }
        if self.max_waiting == Some(0) {
            return Err(Error::config("`max_waiting` must be at least 1"));
        }
        if self.max_waiting_age.is_some_and(|age| age.is_zero()) {
            return Err(Error::config("`max_waiting_age` must be longer than zero"));
        }
        Ok(Some(Bound {
            max: self.max_waiting.map_or(u64::MAX, |max| max as u64),
            max_age: self.max_waiting_age,
            when_full: self.when_full,
        }))
    }
}

impl Bound {
    /// Returns the number of messages that may still be sent.
    pub(crate) fn room(&self, waiting: &Waiting) -> u64 {
        match self.is_too_old(waiting) {
            true => 0,
            false => self.max.saturating_sub(waiting.messages),
        }
    }

    /// Returns the end of the wait for room. `None` if the call does not wait.
    pub(crate) fn wait_until(&self, parts: &Parts) -> Option<Instant> {
        let WhenFull::Wait(max_wait) = self.when_full else {
            return None;
        };
        let end = crate::Deadline::after(max_wait).0;
        let deadline = parts.deadline.filter(|_| parts.kind == Kind::Rpc);
        Some(deadline.map_or(end, |deadline| deadline.0.min(end)))
    }

    /// Returns the error of a message for which there is no room on the stream.
    pub(crate) fn refusal(&self, stream: &Name, waiting: &Waiting, rate: &DrainRate) -> Error {
        let Waiting {
            group, messages, ..
        } = waiting;
        let text = if self.is_too_old(waiting) {
            let (age, max) = (waiting.oldest, self.max_age.unwrap_or_default());
            format!(
                "the stream `{stream}` is full: a message has waited for {age:.1?} for the group \
                 `{group}`, and its sender allows {max:?}; nothing was stored"
            )
        } else {
            let max = self.max;
            format!(
                "the stream `{stream}` is full: {messages} messages wait for the group `{group}`, and \
                 its sender allows {max}; nothing was stored"
            )
        };
        Error::overloaded(text, rate.time_for(self.excess(waiting)))
    }

    fn is_too_old(&self, waiting: &Waiting) -> bool {
        self.max_age.is_some_and(|max| waiting.oldest > max)
    }

    /// Returns the number of messages that workers must take before a refused sender should try
    /// again, at least 1. After that, the number and the age of the waiting messages are at most
    /// nine tenths of their limits.
    fn excess(&self, waiting: &Waiting) -> f64 {
        /// The part of each limit below which refused senders should try again.
        const RETRY_BELOW: f64 = 0.9;
        let messages = waiting.messages as f64;
        let too_many = messages - RETRY_BELOW * self.max as f64;
        // Assumes that the waiting messages arrived at an even rate, so their ages are spread
        // evenly.
        let too_old = self.max_age.map_or(0.0, |max| {
            let oldest = waiting.oldest.as_secs_f64();
            messages * (1.0 - RETRY_BELOW * max.as_secs_f64() / oldest.max(f64::MIN_POSITIVE))
        });
        too_many.max(too_old).max(1.0)
    }
}

/// Measures how many messages the workers of a group take in a second.
#[derive(Debug, Default)]
pub(crate) struct DrainRate {
    /// The last measurement and its time.
    last_measurement: Option<(Instant, Waiting)>,
    per_second: Option<f64>,
}

impl DrainRate {
    /// The shortest time over which the rate is measured.
    const MIN_SPAN: Duration = Duration::from_millis(500);
    /// The longest time over which the rate is measured. Without this limit, a sender that rarely
    /// sends would use a rate that is hours old.
    const MAX_SPAN: Duration = Duration::from_secs(30);
    /// The minimum and the maximum time after which a sender may try again, in seconds.
    const RETRY_AFTER_RANGE: (f64, f64) = (1.0, 300.0);
    /// The time after which a sender may try again while the rate is unknown.
    const RETRY_AFTER_UNKNOWN: Duration = Duration::from_secs(5);

    /// Adds a measurement of the group that has the most waiting messages now.
    pub(crate) fn add_measurement(&mut self, now: Instant, waiting: &Waiting) {
        let Some((at, before)) = &self.last_measurement else {
            self.last_measurement = Some((now, waiting.clone()));
            return;
        };
        let elapsed = now.saturating_duration_since(*at);
        if elapsed < Self::MIN_SPAN {
            return;
        }
        let taken = match before.entries_read.zip(waiting.entries_read) {
            Some((read_before, read_now)) => read_now.saturating_sub(read_before),
            // If the number of entries read is unknown, the decrease of the waiting messages is a
            // lower bound.
            None => before.messages.saturating_sub(waiting.messages),
        };
        let is_current = elapsed <= Self::MAX_SPAN && before.group == waiting.group;
        let measured = is_current.then(|| taken as f64 / elapsed.as_secs_f64());
        self.per_second = match (self.per_second, measured) {
            (Some(average), Some(measured)) => Some((average + measured) / 2.0),
            (_, measured) => measured,
        };
        self.last_measurement = Some((now, waiting.clone()));
    }

    /// Returns the time in which workers take this many messages, at least 1 s and at most 5 min.
    /// Returns 5 s while the rate is unknown.
    fn time_for(&self, messages: f64) -> Duration {
        let Some(rate) = self.per_second else {
            return Self::RETRY_AFTER_UNKNOWN;
        };
        let (shortest, longest) = Self::RETRY_AFTER_RANGE;
        Duration::from_secs_f64((messages / rate).clamp(shortest, longest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(messages: u64, seconds: u64, read: Option<u64>) -> Waiting {
        Waiting {
            group: "workers".into(),
            messages,
            oldest: Duration::from_secs(seconds),
            entries_read: read,
        }
    }

    fn bound(max: u64, max_age: Option<u64>) -> Bound {
        Bound {
            max,
            max_age: max_age.map(Duration::from_secs),
            when_full: WhenFull::Fail,
        }
    }

    fn retry_after_secs(bound: &Bound, waiting: &Waiting, rate: &DrainRate) -> u64 {
        let error = bound.refusal(&"orders".into(), waiting, rate);
        error.retry_after().expect("it is full").as_secs()
    }

    #[test]
    fn there_is_room_until_too_many_wait_or_one_waits_for_too_long() {
        assert_eq!(bound(10, None).room(&waiting(0, 9999, None)), 10);
        assert_eq!(bound(10, None).room(&waiting(11, 0, None)), 0);
        assert_eq!(bound(10, Some(60)).room(&waiting(4, 60, None)), 6);
        assert_eq!(bound(10, Some(60)).room(&waiting(4, 61, None)), 0);
    }

    #[test]
    fn the_wait_follows_the_rate_at_which_workers_take_messages() {
        let (start, full) = (Instant::now(), bound(1000, None));
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut rate = DrainRate::default();
        rate.add_measurement(start, &waiting(1000, 0, Some(0)));
        assert_eq!(
            retry_after_secs(&full, &waiting(1000, 0, None), &rate),
            5,
            "unknown"
        );
        rate.add_measurement(after(10), &waiting(1000, 0, Some(100)));
        assert_eq!(retry_after_secs(&full, &waiting(1000, 0, None), &rate), 10);
        assert_eq!(retry_after_secs(&full, &waiting(2000, 0, None), &rate), 110);
        // At an even rate, 300 of the 400 messages are younger than 45 s, nine tenths of the limit.
        // So workers must take 100, which takes them 10 s.
        let old = bound(u64::MAX, Some(50));
        assert_eq!(retry_after_secs(&old, &waiting(400, 60, None), &rate), 10);
        rate.add_measurement(after(20), &waiting(1000, 0, Some(100_000)));
        assert_eq!(retry_after_secs(&full, &waiting(1000, 0, None), &rate), 1);
    }

    #[test]
    fn workers_that_take_nothing_make_senders_wait_for_five_minutes() {
        let start = Instant::now();
        let mut rate = DrainRate::default();
        rate.add_measurement(start, &waiting(10, 0, None));
        rate.add_measurement(start + Duration::from_secs(1), &waiting(10, 0, None));
        assert_eq!(
            retry_after_secs(&bound(10, None), &waiting(10, 0, None), &rate),
            300
        );
    }

    #[test]
    fn a_rate_of_another_time_or_of_another_group_does_not_count() {
        let start = Instant::now();
        let mut rate = DrainRate::default();
        rate.add_measurement(start, &waiting(10, 0, Some(0)));
        rate.add_measurement(start + Duration::from_secs(60), &waiting(10, 0, Some(600)));
        assert_eq!(rate.per_second, None);
        let mut other = waiting(10, 0, Some(9_000));
        other.group = "others".into();
        rate.add_measurement(start + Duration::from_secs(61), &other);
        assert_eq!(rate.per_second, None);
    }
}
