//! Computes the ticks of a schedule. Times are in milliseconds since 1970.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use croner::{Cron, errors::CronError};
use jiff::{Timestamp, Zoned, tz::TimeZone, tz::TimeZoneDatabase};

use super::{Missed, Schedule, Timing};
use crate::error::Error;

/// A tick that is older than this counts as missed.
const MISSED_AFTER: u64 = 60_000;
/// The longest period: a hundred years.
const LONGEST_PERIOD: u64 = 3_155_760_000_000;

/// Computes the ticks of a valid schedule.
#[derive(Debug, Clone)]
pub(crate) struct Ticks(TickSource);

#[derive(Debug, Clone)]
enum TickSource {
    Cron(Box<Cron>, TimeZone),
    Every(u64),
}

impl Ticks {
    /// Parses a schedule.
    ///
    /// # Errors
    /// If the cron line, the zone or the period is invalid.
    pub(crate) fn new(schedule: &Schedule) -> Result<Self, Error> {
        let source = match &schedule.timing {
            Timing::Cron { line, zone } => {
                TickSource::Cron(Box::new(parse_cron(line)?), find_zone(zone)?)
            }
            Timing::Every(0) => {
                let text = "the period of a schedule must be at least a millisecond";
                return Err(Error::invalid(text));
            }
            Timing::Every(period) if *period > LONGEST_PERIOD => {
                let text = "the period of a schedule must be at most a hundred years";
                return Err(Error::invalid(text));
            }
            Timing::Every(period) => TickSource::Every(*period),
        };
        Ok(Self(source))
    }

    /// Returns the first tick after this time. `None` if there is none.
    pub(crate) fn after(&self, time: u64) -> Option<u64> {
        match &self.0 {
            TickSource::Every(period) => (time / period + 1).checked_mul(*period),
            TickSource::Cron(cron, zone) => {
                let next = cron.find_next_occurrence(&zoned(time, zone)?, false);
                next.ok().and_then(|tick| to_milliseconds(&tick))
            }
        }
    }

    /// Returns the last tick at or before this time. `None` if there is none.
    fn at_or_before(&self, time: u64) -> Option<u64> {
        match &self.0 {
            TickSource::Every(period) => Some(time / period * period),
            TickSource::Cron(cron, zone) => {
                let last = cron.find_previous_occurrence(&zoned(time, zone)?, true);
                last.ok().and_then(|tick| to_milliseconds(&tick))
            }
        }
    }

    /// Returns the tick to send next. `last_tick` is the tick that was sent last, or the time at
    /// which the schedule began.
    ///
    /// With [`Missed::All`], the next tick is the first tick after `last_tick`. With the other
    /// rules, it is the latest tick that is due. If that tick was sent already, or is too late for
    /// [`Missed::Skip`], the next tick is the first tick in the future.
    pub(crate) fn next(&self, missed: Missed, last_tick: u64, now: u64) -> Option<u64> {
        let is_soon_enough =
            |due: &u64| missed == Missed::Once || now.saturating_sub(*due) <= MISSED_AFTER;
        match missed {
            Missed::All => self.after(last_tick),
            Missed::Once | Missed::Skip => self
                .at_or_before(now)
                .filter(|due| *due > last_tick && is_soon_enough(due))
                .or_else(|| self.after(last_tick.max(now))),
        }
    }
}

fn parse_cron(line: &str) -> Result<Cron, Error> {
    line.parse().map_err(|error: CronError| {
        let text = format!(
            "the cron line `{}` cannot be read; it has the fields minute, hour, day of the month, month \
             and day of the week",
            line.escape_debug()
        );
        Error::invalid(text).with_source(error)
    })
}

fn find_zone(name: &str) -> Result<TimeZone, Error> {
    // Uses the database in the program, because that of the operating system may be missing, or
    // differ between machines.
    TimeZoneDatabase::bundled().get(name).map_err(|error| {
        let text = format!(
            "there is no time zone `{}`; a name of the IANA database looks like `Europe/Berlin`",
            name.escape_debug()
        );
        Error::invalid(text).with_source(error)
    })
}

fn zoned(time: u64, zone: &TimeZone) -> Option<Zoned> {
    let time = Timestamp::from_millisecond(time.try_into().ok()?).ok()?;
    Some(time.to_zoned(zone.clone()))
}

fn to_milliseconds(tick: &Zoned) -> Option<u64> {
    tick.timestamp().as_millisecond().try_into().ok()
}

/// Returns the milliseconds since 1970. A time before 1970 counts as 1970.
pub(crate) fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    super::whole_milliseconds(since)
}

/// Returns the time that is this number of milliseconds after 1970. A time that a [`SystemTime`]
/// cannot represent counts as 1970.
pub(crate) fn from_milliseconds(time: u64) -> SystemTime {
    let time = UNIX_EPOCH.checked_add(Duration::from_millis(time));
    time.unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> u64 {
        let time: Timestamp = text.parse().expect("a time");
        time.as_millisecond().try_into().expect("after 1970")
    }

    /// The ticks after a time, in UTC.
    fn ticks_after(schedule: &Schedule, after: &str, count: usize) -> Vec<String> {
        let ticks = Ticks::new(schedule).expect("a valid schedule");
        let next = std::iter::successors(ticks.after(at(after)), |tick| ticks.after(*tick));
        let shown = |tick| {
            Timestamp::from_millisecond(tick as i64)
                .unwrap()
                .to_string()
        };
        next.take(count).map(shown).collect()
    }

    #[test]
    fn a_fixed_time_in_a_skipped_hour_is_at_the_first_instant_after_it() {
        // 02:00 CET became 03:00 CEST at 01:00 UTC.
        let berlin = Schedule::cron("30 2 * * *").in_zone("Europe/Berlin");
        let expected = [
            "2026-03-28T01:30:00Z",
            "2026-03-29T01:00:00Z",
            "2026-03-30T00:30:00Z",
        ];
        assert_eq!(ticks_after(&berlin, "2026-03-27T12:00:00Z", 3), expected);
        // 02:00 EST became 03:00 EDT at 07:00 UTC.
        let york = Schedule::cron("15 2 * * *").in_zone("America/New_York");
        let expected = [
            "2026-03-07T07:15:00Z",
            "2026-03-08T07:00:00Z",
            "2026-03-09T06:15:00Z",
        ];
        assert_eq!(ticks_after(&york, "2026-03-06T12:00:00Z", 3), expected);
    }

    #[test]
    fn a_fixed_time_in_a_doubled_hour_is_due_once() {
        // 03:00 CEST became 02:00 CET at 01:00 UTC.
        let berlin = Schedule::cron("30 2 * * *").in_zone("Europe/Berlin");
        let expected = [
            "2026-10-24T00:30:00Z",
            "2026-10-25T00:30:00Z",
            "2026-10-26T01:30:00Z",
        ];
        assert_eq!(ticks_after(&berlin, "2026-10-23T12:00:00Z", 3), expected);
        // 02:00 EDT became 01:00 EST at 06:00 UTC.
        let york = Schedule::cron("30 1 * * *").in_zone("America/New_York");
        let expected = [
            "2026-10-31T05:30:00Z",
            "2026-11-01T05:30:00Z",
            "2026-11-02T06:30:00Z",
        ];
        assert_eq!(ticks_after(&york, "2026-10-30T12:00:00Z", 3), expected);
    }

    #[test]
    fn each_real_hour_has_its_ticks_if_the_hour_is_a_star() {
        let berlin = Schedule::cron("30 * * * *").in_zone("Europe/Berlin");
        let expected = [
            "2026-03-29T00:30:00Z",
            "2026-03-29T01:30:00Z",
            "2026-03-29T02:30:00Z",
        ];
        assert_eq!(ticks_after(&berlin, "2026-03-29T00:00:00Z", 3), expected);
        let expected = [
            "2026-10-24T23:30:00Z",
            "2026-10-25T00:30:00Z",
            "2026-10-25T01:30:00Z",
            "2026-10-25T02:30:00Z",
        ];
        assert_eq!(ticks_after(&berlin, "2026-10-24T23:00:00Z", 4), expected);
        let york = Schedule::cron("*/30 * * * *").in_zone("America/New_York");
        let expected = [
            "2026-11-01T05:00:00Z",
            "2026-11-01T05:30:00Z",
            "2026-11-01T06:00:00Z",
            "2026-11-01T06:30:00Z",
            "2026-11-01T07:00:00Z",
        ];
        assert_eq!(ticks_after(&york, "2026-11-01T04:59:00Z", 5), expected);
        let expected = [
            "2026-03-08T06:30:00Z",
            "2026-03-08T07:00:00Z",
            "2026-03-08T07:30:00Z",
        ];
        assert_eq!(ticks_after(&york, "2026-03-08T06:29:59Z", 3), expected);
    }

    #[test]
    fn the_last_tick_until_a_time_is_one_of_the_ticks() {
        let lines = [
            "30 2 * * *",
            "0 0 * * *",
            "*/20 * * * *",
            "5 1-3 * * SUN",
            "0 12 L * *",
        ];
        for line in lines {
            for zone in [
                "UTC",
                "Europe/Berlin",
                "America/New_York",
                "Australia/Lord_Howe",
            ] {
                let ticks = Ticks::new(&Schedule::cron(line).in_zone(zone)).expect("valid");
                for from in [
                    "2026-03-07T00:00:00Z",
                    "2026-03-28T00:00:00Z",
                    "2026-04-04T00:00:00Z",
                    "2026-10-03T00:00:00Z",
                    "2026-10-24T00:00:00Z",
                    "2026-10-31T00:00:00Z",
                ] {
                    let (mut tick, end) =
                        (ticks.after(at(from)).unwrap(), at(from) + 4 * 86_400_000);
                    while tick < end {
                        let next = ticks.after(tick).unwrap();
                        assert!(next > tick, "{line} {zone}");
                        for time in [tick, tick + 1, (tick + next) / 2, next - 1] {
                            assert_eq!(
                                ticks.at_or_before(time),
                                Some(tick),
                                "{line} {zone} {time}"
                            );
                        }
                        tick = next;
                    }
                }
            }
        }
    }

    #[test]
    fn missed_ticks_are_skipped_sent_once_or_all_sent() {
        let ticks = Ticks::new(&Schedule::every(Duration::from_secs(600))).expect("valid");
        let minute = 60_000;
        // Ticks are at 10, 20, 30, … minutes.
        let next = |missed, last: u64, now: u64| ticks.next(missed, last * minute, now * minute);
        for missed in [Missed::Skip, Missed::Once, Missed::All] {
            assert_eq!(next(missed, 10, 15), Some(20 * minute), "not due yet");
            assert_eq!(next(missed, 10, 20), Some(20 * minute), "due");
            assert_eq!(
                next(missed, 10, 21),
                Some(20 * minute),
                "a minute late is in time"
            );
            assert_eq!(
                next(missed, 30, 15),
                Some(40 * minute),
                "the clock went back"
            );
        }
        assert_eq!(next(Missed::Skip, 10, 55), Some(60 * minute));
        assert_eq!(next(Missed::Skip, 10, 50), Some(50 * minute));
        assert_eq!(next(Missed::Once, 10, 55), Some(50 * minute));
        assert_eq!(next(Missed::All, 10, 55), Some(20 * minute));
        assert_eq!(next(Missed::Once, 50, 55), Some(60 * minute));
    }

    #[test]
    fn periods_are_counted_from_1970() {
        let quarter = Schedule::every(Duration::from_secs(900));
        let expected = ["2026-03-29T01:15:00Z", "2026-03-29T01:30:00Z"];
        assert_eq!(ticks_after(&quarter, "2026-03-29T01:00:00Z", 2), expected);
        let ticks = Ticks::new(&Schedule::every(Duration::from_millis(1))).expect("valid");
        assert_eq!((ticks.after(5), ticks.at_or_before(5)), (Some(6), Some(5)));
    }

    #[test]
    fn a_mistake_is_an_error_that_names_it() {
        let day = Duration::from_secs(86_400);
        for (schedule, text) in [
            (Schedule::cron("0 0 30 2 *"), "`0 0 30 2 *` is never due"),
            (Schedule::cron("0 0 1 1 * 2020"), "`0 0 1 1 * 2020` "),
            (Schedule::cron("61 * * * *"), "`61 * * * *` cannot be read"),
            (Schedule::cron(""), "`` cannot be read"),
            (Schedule::cron("often\n"), "`often\\n` cannot be read"),
            (
                Schedule::cron("0 3 * * *").in_zone("Europe/Berln"),
                "no time zone `Europe/Berln`",
            ),
            (Schedule::cron("0 3 * * *").in_zone(""), "no time zone ``"),
            (Schedule::every(Duration::ZERO), "at least a millisecond"),
            (
                Schedule::every(Duration::from_nanos(1)),
                "at least a millisecond",
            ),
            (Schedule::every(40_000 * day), "at most a hundred years"),
            (Schedule::every(Duration::MAX), "at most a hundred years"),
        ] {
            let error = schedule.check().expect_err(text);
            assert!(
                error.is_invalid() && error.to_string().contains(text),
                "{error}"
            );
        }
    }

    #[test]
    fn the_jitter_of_a_tick_is_the_same_in_every_process() {
        let schedule = Schedule::every(Duration::from_secs(1)).jitter(Duration::from_millis(500));
        let delays: Vec<_> = (0..1_000)
            .map(|tick| schedule.jitter_of_tick("a", tick * 1_000))
            .collect();
        assert!(
            delays
                .iter()
                .all(|delay| *delay <= Duration::from_millis(500))
        );
        let mean = delays.iter().sum::<Duration>() / 1_000;
        assert!((200..300).contains(&mean.as_millis()), "{mean:?}");
        assert_eq!(delays[7], schedule.jitter_of_tick("a", 7_000));
        assert_ne!(delays[7], schedule.jitter_of_tick("b", 7_000));
        let fixed = Duration::from_millis(466);
        assert_eq!(
            schedule.jitter_of_tick("nightly", 1_790_000_000_000),
            fixed,
            "it must never change"
        );
        assert_eq!(
            Schedule::cron("* * * * *").jitter_of_tick("a", 5),
            Duration::ZERO
        );
    }
}
