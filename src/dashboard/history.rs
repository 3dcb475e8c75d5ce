//! The last hour of a group, of a stream, or of all streams, by the minute.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use maud::{Markup, html};
use serde_json::{Value, json};

use super::{
    chart,
    layout::{duration, number, timestamp},
};
use crate::transport::Minute;

/// The number of minutes in an hour.
const MINUTES: usize = 60;

/// The last hour, the oldest minute first.
#[derive(Debug, Clone, Default)]
pub(super) struct Hour {
    /// The last minute of the hour, as the number of minutes since 1970.
    last_minute: u64,
    minutes: Vec<MinuteTotals>,
}

/// The counts of a minute.
#[derive(Debug, Clone, Copy, Default)]
struct MinuteTotals {
    done: u32,
    failed: u32,
    dead: u32,
    /// The 95th percentile of the time of a delivery, in milliseconds. In a sum of groups, the
    /// highest percentile among them.
    p95_ms: u32,
}

impl Hour {
    pub(super) fn of(minutes: &[Minute]) -> Self {
        let saturated = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let counts = minutes.iter().map(|minute| MinuteTotals {
            done: saturated(minute.done),
            failed: saturated(minute.failed),
            dead: saturated(minute.dead),
            p95_ms: saturated(u64::try_from(minute.latency.p95.as_millis()).unwrap_or(u64::MAX)),
        });
        let last = minutes
            .last()
            .and_then(|last| last.start.duration_since(UNIX_EPOCH).ok());
        Self {
            last_minute: last.map_or(0, |last| last.as_secs() / 60),
            minutes: counts.collect(),
        }
    }

    /// Returns `true` if no message was handled, failed or became a dead letter.
    pub(super) fn is_quiet(&self) -> bool {
        self.minutes
            .iter()
            .all(|it| it.done + it.failed + it.dead == 0)
    }

    /// Adds the hour of another group. The sum ends with the last minute of the later
    /// hour.
    pub(super) fn add(&mut self, other: &Self) {
        if other.minutes.is_empty() {
            return;
        }
        self.shift_to(other.last_minute.max(self.last_minute));
        // Adds the minutes from the last to the first. Minutes before the first minute of the sum
        // are left out.
        for (back, counts) in other.minutes.iter().rev().enumerate() {
            let from_end = (self.last_minute - other.last_minute) as usize + back;
            let Some(index) = self.minutes.len().checked_sub(from_end + 1) else {
                break;
            };
            let sum = &mut self.minutes[index];
            sum.done = sum.done.saturating_add(counts.done);
            sum.failed = sum.failed.saturating_add(counts.failed);
            sum.dead = sum.dead.saturating_add(counts.dead);
            sum.p95_ms = sum.p95_ms.max(counts.p95_ms);
        }
    }

    /// Moves the hour forward, so that it ends with `last_minute`.
    fn shift_to(&mut self, last_minute: u64) {
        let by = usize::try_from(last_minute - self.last_minute)
            .unwrap_or(usize::MAX)
            .min(MINUTES);
        self.minutes.drain(..by.min(self.minutes.len()));
        self.minutes.resize(MINUTES, MinuteTotals::default());
        self.last_minute = last_minute;
    }

    /// Shows the charts of the hour.
    pub(super) fn charts(&self) -> Markup {
        let values = |count_of: fn(&MinuteTotals) -> u32| -> Vec<f64> {
            self.minutes
                .iter()
                .map(|counts| count_of(counts).into())
                .collect()
        };
        let sum = |count_of: fn(&MinuteTotals) -> u32| -> u64 {
            self.minutes
                .iter()
                .map(|counts| u64::from(count_of(counts)))
                .sum()
        };
        let (done, failed, dead) = (sum(|it| it.done), sum(|it| it.failed), sum(|it| it.dead));
        let slowest = self
            .minutes
            .iter()
            .map(|it| it.p95_ms)
            .max()
            .unwrap_or_default();
        let slowest = duration(Duration::from_millis(slowest.into()));
        let charts = [
            ("handled", "good", number(done), values(|it| it.done)),
            ("failed", "waits", number(failed), values(|it| it.failed)),
            ("dead", "dead", number(dead), values(|it| it.dead)),
            ("slowest 95 %", "runs", slowest, values(|it| it.p95_ms)),
        ];
        html! {
            section.charts aria-label="The last hour" {
                @for (name, class, total, values) in charts {
                    figure {
                        figcaption { (name) " " strong { (total) } }
                        @let label = format!("{name} in each minute of the last hour, {total} in all");
                        (chart::bars(&label, class, &values))
                    }
                }
            }
        }
    }

    /// Returns the minutes as JSON.
    pub(super) fn document(&self) -> Value {
        let first = (self.last_minute + 1).saturating_sub(self.minutes.len() as u64);
        let minutes = self.minutes.iter().zip(first..).map(|(counts, minute)| {
            let start = SystemTime::UNIX_EPOCH + Duration::from_secs(minute * 60);
            json!({
                "start": timestamp(start),
                "done": counts.done,
                "failed": counts.failed,
                "dead": counts.dead,
                "latency_p95_ms": counts.p95_ms,
            })
        });
        minutes.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hour(last_minute: u64, done: &[u32]) -> Hour {
        let minutes = done.iter().map(|done| MinuteTotals {
            done: *done,
            ..MinuteTotals::default()
        });
        Hour {
            last_minute,
            minutes: minutes.collect(),
        }
    }

    #[test]
    fn hours_are_added_minute_by_minute() {
        let mut sum = Hour::default();
        sum.add(&hour(100, &[1, 2, 3]));
        sum.add(&hour(102, &[10, 20, 30]));
        sum.add(&hour(30, &[7]));
        let done: Vec<_> = sum.minutes.iter().map(|it| it.done).collect();
        assert_eq!((done.len(), sum.last_minute), (60, 102));
        assert_eq!(done[55..], [1, 2, 13, 20, 30]);
        assert!(done[..55].iter().all(|done| *done == 0));
        assert!(hour(3, &[0]).is_quiet() && !sum.is_quiet());
    }
}
