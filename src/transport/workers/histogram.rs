//! A histogram of durations, with buckets of a fixed relative width.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::json;

/// The number of buckets: four for each power of two microseconds, up to 2^41 µs (25 days). The
/// last bucket also counts longer durations.
pub(crate) const BUCKETS: usize = 160;

/// Counts durations in buckets. Its quantiles are exact within an eighth.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    counts: Box<[u32; BUCKETS]>,
    max: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: Box::new([0; BUCKETS]),
            max: Duration::ZERO,
        }
    }
}

impl Histogram {
    pub(crate) fn record(&mut self, time: Duration) {
        self.add(bucket_of(time), 1);
        self.max = self.max.max(time);
    }

    /// Adds to the count of a bucket. Ignores a bucket that does not exist.
    pub(crate) fn add(&mut self, bucket: usize, count: u32) {
        if let Some(known) = self.counts.get_mut(bucket) {
            *known = known.saturating_add(count);
        }
    }

    /// Adds the counts of another histogram.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (bucket, count) in other.buckets() {
            self.add(bucket, count);
        }
        self.max = self.max.max(other.max);
    }

    /// Returns the buckets that are not empty, with their counts.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (usize, u32)> {
        let counts = self.counts.iter().copied().enumerate();
        counts.filter(|(_, count)| *count > 0)
    }

    pub(crate) fn quantiles(&self) -> Quantiles {
        let count: u64 = self.counts.iter().map(|count| u64::from(*count)).sum();
        let highest = self.buckets().last().map(|(bucket, _)| bounds(bucket).1);
        // A histogram that was built from stored counts has no exact maximum, so the end of its
        // highest bucket takes the place of the maximum.
        let max = match self.max.is_zero() {
            true => highest.unwrap_or_default(),
            false => self.max,
        };
        let quantile = |percent: u64| {
            let rank = (count * percent).div_ceil(100);
            let mut below = 0;
            let bucket = self.buckets().find(|(_, count)| {
                below += u64::from(*count);
                below >= rank
            });
            let (low, high) = bucket.map_or_else(Default::default, |(index, _)| bounds(index));
            (low + (high - low) / 2).min(max)
        };
        Quantiles {
            count,
            p50: quantile(50),
            p95: quantile(95),
            p99: quantile(99),
            max,
        }
    }
}

/// Returns the bucket of a duration.
fn bucket_of(time: Duration) -> usize {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    if micros < 4 {
        return micros as usize;
    }
    let exponent = micros.ilog2();
    let quarter = (micros >> (exponent - 2)) & 3;
    let bucket = (exponent as usize - 1) * 4 + quarter as usize;
    bucket.min(BUCKETS - 1)
}

/// Returns the shortest and the longest duration of a bucket.
fn bounds(bucket: usize) -> (Duration, Duration) {
    let micros = match bucket {
        0..4 => (bucket as u64, bucket as u64),
        _ => {
            let shift = bucket / 4 - 1;
            let low = (4 + bucket as u64 % 4) << shift;
            (low, low + (1 << shift) - 1)
        }
    };
    let duration = Duration::from_micros;
    (duration(micros.0), duration(micros.1))
}

/// The distribution of durations. Serialized in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Quantiles {
    /// The number of durations. If it is zero, the other fields are zero, too.
    pub count: u64,
    /// The median. All quantiles are exact within an eighth.
    #[serde(with = "json::millis")]
    pub p50: Duration,
    /// The 95th percentile.
    #[serde(with = "json::millis")]
    pub p95: Duration,
    /// The 99th percentile.
    #[serde(with = "json::millis")]
    pub p99: Duration,
    /// The longest duration.
    #[serde(with = "json::millis")]
    pub max: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_lies_in_its_bucket() {
        let mut micros = 0;
        while micros < 1 << 40 {
            let time = Duration::from_micros(micros);
            let (low, high) = bounds(bucket_of(time));
            assert!(low <= time && time <= high, "{time:?}: {low:?} to {high:?}");
            micros += 1 + micros / 7;
        }
        assert_eq!(bucket_of(Duration::MAX), BUCKETS - 1);
        for bucket in 1..BUCKETS {
            let next = bounds(bucket - 1).1 + Duration::from_micros(1);
            assert_eq!(bounds(bucket).0, next);
        }
    }

    #[test]
    fn quantiles_are_exact_within_an_eighth() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantiles(), Quantiles::default());
        for milli in 1..=1000 {
            histogram.record(Duration::from_millis(milli));
        }
        let found = histogram.quantiles();
        assert_eq!((found.count, found.max), (1000, Duration::from_secs(1)));
        for (quantile, exact) in [(found.p50, 500), (found.p95, 950), (found.p99, 990)] {
            let found = quantile.as_millis() as i64;
            assert!((found - exact).abs() <= exact / 8, "{found} for {exact}");
        }
    }

    #[test]
    fn a_merged_histogram_has_the_counts_of_both() {
        let (mut one, mut other) = (Histogram::default(), Histogram::default());
        one.record(Duration::from_millis(1));
        other.record(Duration::from_millis(9));
        one.merge(&other);
        let found = one.quantiles();
        assert_eq!((found.count, found.max), (2, Duration::from_millis(9)));
    }
}
