//! The history of a group, by the minute.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::{Quantiles, histogram::Histogram, json};
use crate::transport::Verdict;

/// The number of minutes of a history.
pub(crate) const MINUTES: u64 = 60;

/// The deliveries of a group on a stream in one minute, as the workers have counted them. After a
/// lost connection to the server, deliveries may be counted in a later minute, or twice.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Minute {
    /// The start of the minute, on the server's clock.
    #[serde(with = "json::time")]
    pub start: SystemTime,
    /// The number of deliveries that were handled with success.
    pub done: u64,
    /// The number of deliveries that failed: redeliveries that count as attempts, and requests that
    /// got an error.
    pub failed: u64,
    /// The number of deliveries that became dead letters.
    pub dead: u64,
    /// The number of messages that were discarded.
    pub discarded: u64,
    /// The times from the start of a delivery to its verdict.
    pub latency: Quantiles,
    /// The times from the acceptance of a message to its first attempt. Each is the difference
    /// between a time on the server's clock and a time on the worker's clock.
    pub waiting: Quantiles,
}

/// The counts of a minute, or of a part of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct MinuteCounts {
    pub(crate) done: u64,
    pub(crate) failed: u64,
    pub(crate) dead: u64,
    pub(crate) discarded: u64,
    pub(crate) latency: Histogram,
    pub(crate) waiting: Histogram,
}

/// The outcome of a delivery. Each outcome is counted separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Failed,
    Dead,
    Discarded,
}

impl Outcome {
    /// Returns the outcome of a delivery. `None` if the delivery does not count: it was released,
    /// parked, or redelivered without counting the attempt.
    pub(crate) fn of(verdict: &Verdict) -> Option<Self> {
        match verdict {
            Verdict::Done(Ok(_)) => Some(Self::Done),
            Verdict::Done(Err(_)) | Verdict::Redeliver { counted: true, .. } => Some(Self::Failed),
            Verdict::DeadLetter { .. } => Some(Self::Dead),
            Verdict::Discard { .. } => Some(Self::Discarded),
            Verdict::Redeliver { .. } | Verdict::Park(_) | Verdict::Release => None,
        }
    }
}

impl MinuteCounts {
    pub(crate) fn count(&mut self, outcome: Outcome, latency: Duration, waited: Option<Duration>) {
        *match outcome {
            Outcome::Done => &mut self.done,
            Outcome::Failed => &mut self.failed,
            Outcome::Dead => &mut self.dead,
            Outcome::Discarded => &mut self.discarded,
        } += 1;
        self.latency.record(latency);
        if let Some(waited) = waited {
            self.waiting.record(waited);
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.done += other.done;
        self.failed += other.failed;
        self.dead += other.dead;
        self.discarded += other.discarded;
        self.latency.merge(&other.latency);
        self.waiting.merge(&other.waiting);
    }

    /// Returns the counts above zero, each with the name of its field. The field of a histogram's
    /// bucket is the letter of the histogram and the number of the bucket, such as `l12`.
    #[cfg(feature = "redis")]
    pub(crate) fn fields(&self) -> Vec<(String, u64)> {
        let counts = [
            ("done", self.done),
            ("failed", self.failed),
            ("dead", self.dead),
            ("discarded", self.discarded),
        ];
        let counts = counts.into_iter().filter(|(_, count)| *count > 0);
        let mut fields: Vec<_> = counts
            .map(|(name, count)| (name.to_owned(), count))
            .collect();
        for (letter, histogram) in [('l', &self.latency), ('w', &self.waiting)] {
            let buckets = histogram.buckets();
            fields.extend(buckets.map(|(at, count)| (format!("{letter}{at}"), count.into())));
        }
        fields
    }

    /// Adds a count by the name of its field. Ignores an unknown field: a newer version or another
    /// program may have written it.
    #[cfg(feature = "redis")]
    pub(crate) fn add_field(&mut self, field: &[u8], count: &[u8]) {
        let text = |bytes| std::str::from_utf8(bytes).ok();
        let count = text(count).and_then(|count| count.parse::<u64>().ok());
        let (Some(field), Some(count)) = (text(field), count) else {
            return;
        };
        let counter = match field {
            "done" => &mut self.done,
            "failed" => &mut self.failed,
            "dead" => &mut self.dead,
            "discarded" => &mut self.discarded,
            _ => {
                let (letter, bucket) = field.split_at_checked(1).unwrap_or_default();
                let histogram = match letter {
                    "l" => &mut self.latency,
                    "w" => &mut self.waiting,
                    _ => return,
                };
                if let Ok(bucket) = bucket.parse() {
                    histogram.add(bucket, u32::try_from(count).unwrap_or(u32::MAX));
                }
                return;
            }
        };
        *counter = counter.saturating_add(count);
    }

    /// Returns the counts as a minute. `number` is the number of minutes from 1970 to its start.
    pub(crate) fn minute(&self, number: u64) -> Minute {
        let start = Duration::from_secs(number.saturating_mul(60));
        Minute {
            start: UNIX_EPOCH.checked_add(start).unwrap_or(UNIX_EPOCH),
            done: self.done,
            failed: self.failed,
            dead: self.dead,
            discarded: self.discarded,
            latency: self.latency.quantiles(),
            waiting: self.waiting.quantiles(),
        }
    }
}
