//! Schedules: the times at which tasks are sent again and again.
//!
//! A [`Schedule`] has the times, called *ticks*. A [`ScheduledTask`] has a schedule and the task to
//! send. A transport's [`Schedules`](crate::transport::Schedules) store scheduled tasks, and send
//! each task once for each tick, however many processes run the schedules.
//!
//! ```
//! use std::time::{Duration, SystemTime};
//! use campanile::schedule::{Missed, Schedule, ScheduledTask};
//!
//! let nightly = Schedule::cron("0 3 * * *").in_zone("Europe/Berlin").missed(Missed::Skip);
//! let report = ScheduledTask::new("nightly report", nightly, "reports.make", "all")
//!     .version(2)
//!     .skip_while_running();
//!
//! let often = Schedule::every(Duration::from_secs(30)).jitter(Duration::from_secs(5));
//! let ticks = often.next_ticks(SystemTime::UNIX_EPOCH, 2)?;
//! assert_eq!(ticks[1], SystemTime::UNIX_EPOCH + Duration::from_secs(60));
//! # Ok::<(), campanile::Error>(())
//! ```
//!
//! # Cron lines
//! A line has the fields minute, hour, day of the month, month and day of the week, as in `man 5
//! crontab`. An optional field before these has the seconds, and an optional field after these has
//! the years. Names (`MON`, `JAN`), nicknames (`@hourly`), `L` (the last day), `#` (the nth weekday
//! of the month) and `W` (the nearest weekday) are allowed. If a line has both a day of the month
//! and a day of the week, it is due on days that match either of the two. With `+` before the day
//! of the week, it is due only on days that match both.
//!
//! # Daylight saving
//! A cron line is in a time zone, which is UTC unless set. The data of all time zones is in the
//! program, so that every process has the same data. When a zone changes its clocks:
//!
//! | the line | an hour is skipped | an hour comes twice |
//! |---|---|---|
//! | has a fixed minute and hour (`30 2 * * *`) | a tick in that hour is at the first instant after it | one tick, in the first of the two hours |
//! | has `*` or a step in its second, minute or hour (`*/20 * * * *`) | no tick in that hour | ticks in both hours |
//!
//! [`Schedule::every`] counts real time and knows no zone.

mod task;
mod ticks;

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use http::HeaderName;
use serde::{Deserialize, Serialize};

pub use self::task::ScheduledTask;
pub(crate) use self::ticks::{Ticks, from_milliseconds, milliseconds};
use crate::error::Error;

/// The name of the header that each scheduled task has. Its value is the time of the tick, such as
/// `2026-03-29T01:00:00Z`. A task of [`run_now`](crate::transport::Schedules::run_now) does not
/// have this header.
pub const TICK: HeaderName = HeaderName::from_static("schedule-tick");

/// The times at which a task is sent, called *ticks*. See the [module](self).
///
/// A mistake, such as a zone that does not exist, is reported when the schedule is used, or by
/// [`check`](Self::check).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    timing: Timing,
    missed: Missed,
    /// In milliseconds.
    jitter: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Timing {
    Cron {
        line: String,
        zone: String,
    },
    /// In milliseconds.
    Every(u64),
}

/// The rule for missed ticks. Ticks are missed while no process runs the schedules, or none can
/// reach the server.
///
/// A tick counts as missed once the next tick is due, or once the tick is more than a minute late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Missed {
    /// Missed ticks send nothing.
    Skip,
    /// Any number of missed ticks send one task together.
    #[default]
    Once,
    /// Each missed tick sends a task.
    All,
}

impl Missed {
    /// Returns the name of the rule, in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Once => "once",
            Self::All => "all",
        }
    }
}

impl Schedule {
    /// Creates a schedule from a [cron line](self#cron-lines), in UTC.
    pub fn cron(line: impl Into<String>) -> Self {
        Self::new(Timing::Cron {
            line: line.into(),
            zone: "UTC".into(),
        })
    }

    /// Creates a schedule with one tick in each period. Periods are counted from 1970, so all
    /// processes agree on the ticks: a schedule of 15 minutes has ticks at each full quarter of an
    /// hour, in UTC. Parts of a millisecond are cut off.
    pub fn every(period: Duration) -> Self {
        Self::new(Timing::Every(whole_milliseconds(period)))
    }

    fn new(timing: Timing) -> Self {
        Self {
            timing,
            missed: Missed::default(),
            jitter: 0,
        }
    }

    /// Sets the time zone of a cron line, by its name in the IANA database, such as
    /// `Europe/Berlin`.
    #[must_use]
    pub fn in_zone(mut self, name: impl Into<String>) -> Self {
        if let Timing::Cron { zone, .. } = &mut self.timing {
            *zone = name.into();
        }
        self
    }

    /// Delays the task of each tick by up to this time, so that schedules with the same ticks do
    /// not start together. The delay is computed from the name of the schedule and the tick, so it
    /// is the same in every process. No delay unless set. Parts of a millisecond are cut off.
    #[must_use]
    pub fn jitter(mut self, longest: Duration) -> Self {
        self.jitter = whole_milliseconds(longest);
        self
    }

    /// Sets the rule for missed ticks. [`Missed::Once`] unless set.
    #[must_use]
    pub fn missed(mut self, missed: Missed) -> Self {
        self.missed = missed;
        self
    }

    /// Returns the rule for missed ticks.
    pub fn missed_rule(&self) -> Missed {
        self.missed
    }

    /// Checks the cron line, the time zone and the period.
    ///
    /// # Errors
    /// An [invalid](Error::is_invalid) error that says what to change. A cron line that is never
    /// due again is an error, too.
    pub fn check(&self) -> Result<(), Error> {
        let ticks = Ticks::new(self)?;
        match (&self.timing, ticks.after(milliseconds(SystemTime::now()))) {
            (Timing::Cron { line, .. }, None) => Err(Error::invalid(format!(
                "the cron line `{}` is never due: no such day or time comes again",
                line.escape_debug()
            ))),
            _ => Ok(()),
        }
    }

    /// Returns the first `count` ticks after this time, without jitter. Returns fewer if the cron
    /// line has no more ticks, for example because its years are over.
    ///
    /// # Errors
    /// As [`check`](Self::check), except that a cron line without further ticks is no error.
    pub fn next_ticks(&self, after: SystemTime, count: usize) -> Result<Vec<SystemTime>, Error> {
        let ticks = Ticks::new(self)?;
        let first = ticks.after(milliseconds(after));
        let next = std::iter::successors(first, |tick| ticks.after(*tick));
        Ok(next.take(count).map(from_milliseconds).collect())
    }

    /// Returns the delay that the jitter adds to a tick of the schedule with this name.
    pub(crate) fn jitter_of_tick(&self, name: &str, tick: u64) -> Duration {
        static HASH: crc::Crc<u64> = crc::Crc::<u64>::new(&crc::CRC_64_XZ);
        let mut digest = HASH.digest();
        digest.update(name.as_bytes());
        digest.update(&tick.to_le_bytes());
        Duration::from_millis(digest.finalize() % self.jitter.saturating_add(1))
    }

    /// Returns `true` if both schedules have the same ticks.
    pub(crate) fn has_ticks_of(&self, other: &Self) -> bool {
        self.timing == other.timing
    }
}

/// Shows the cron line and its zone, or the period.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.timing {
            Timing::Cron { line, zone } => write!(f, "{line} ({zone})"),
            Timing::Every(period) => write!(f, "every {:?}", Duration::from_millis(*period)),
        }
    }
}

fn whole_milliseconds(time: Duration) -> u64 {
    time.as_millis().try_into().unwrap_or(u64::MAX)
}
