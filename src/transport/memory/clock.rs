//! The clock of a broker, and the ids of entries.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

/// The time of day in a broker. It starts with the time of the system's clock when the broker is
/// created, and advances with tokio's clock, which a test can pause.
#[derive(Debug)]
pub(super) struct BrokerClock {
    started: Instant,
    /// The time from 1970 to `started`.
    anchor: Duration,
}

impl BrokerClock {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            // A system clock before 1970 counts as 1970.
            anchor: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
        }
    }

    /// Returns the milliseconds since 1970.
    pub(super) fn milliseconds(&self) -> u64 {
        let now = self.anchor + self.started.elapsed();
        now.as_millis().try_into().unwrap_or(u64::MAX)
    }

    pub(super) fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.milliseconds())
    }
}

/// Returns the instant after `wait`, or a century from now if that instant overflows.
pub(super) fn instant_after(wait: Duration) -> Instant {
    crate::Deadline::after(wait).0
}

/// The id of an entry, `<milliseconds>-<sequence>` as on Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct EntryId {
    pub(super) milliseconds: u64,
    sequence: u64,
}

impl EntryId {
    /// Returns the id of the next entry, which is added at `now`, in milliseconds since 1970. The
    /// id is greater than this one, even if the clock has not advanced.
    pub(super) fn following(self, now: u64) -> Self {
        if now > self.milliseconds {
            Self {
                milliseconds: now,
                sequence: 0,
            }
        } else {
            Self {
                sequence: self.sequence + 1,
                ..self
            }
        }
    }

    pub(super) fn time(self) -> Option<SystemTime> {
        UNIX_EPOCH.checked_add(Duration::from_millis(self.milliseconds))
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.milliseconds, self.sequence)
    }
}

impl FromStr for EntryId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (milliseconds, sequence) = text.split_once('-').unwrap_or((text, "0"));
        Ok(Self {
            milliseconds: milliseconds.parse()?,
            sequence: sequence.parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_grow_if_the_clock_stands_still_or_goes_back() {
        let first = EntryId::default().following(5);
        assert_eq!(first.to_string(), "5-0");
        assert_eq!(first.following(5).to_string(), "5-1");
        assert_eq!(first.following(3).to_string(), "5-1");
        assert_eq!(first.following(6).to_string(), "6-0");
        assert_eq!("5-0".parse(), Ok(first));
        assert_eq!("5".parse(), Ok(first));
        assert!("5-x".parse::<EntryId>().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_clock_follows_tokios_clock() {
        let clock = BrokerClock::new();
        let before = clock.milliseconds();
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(clock.milliseconds() - before, 3_600_000);
    }
}
