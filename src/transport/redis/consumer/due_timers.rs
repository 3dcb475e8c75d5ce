//! Timers for the next due message of each stream.

use std::{sync::Mutex, time::Duration};

use foldhash::HashMap;
use tokio::{sync::Notify, time::Instant};

use crate::sync::lock;

/// A timer for each stream, by the stream's index. If `set` is called several times, the timer
/// expires at the earliest of the times.
#[derive(Debug, Default)]
pub(super) struct DueTimers {
    expiries: Mutex<HashMap<u32, Instant>>,
    changed: Notify,
}

impl DueTimers {
    /// Sets the timer of a stream to expire `after` this time, unless it expires earlier already.
    pub(super) fn set(&self, stream: u32, after: Duration) {
        // If the sum overflows, no timer is set.
        let Some(at) = Instant::now().checked_add(after) else {
            return;
        };
        let mut timers = lock(&self.expiries);
        if timers.get(&stream).is_none_or(|earliest| at < *earliest) {
            timers.insert(stream, at);
            drop(timers);
            self.changed.notify_one();
        }
    }

    /// Waits until a timer has expired. Clears all expired timers, and returns their streams in the
    /// order of the indexes.
    pub(super) async fn expired(&self) -> Vec<u32> {
        loop {
            let earliest = lock(&self.expiries).values().min().copied();
            match earliest {
                None => self.changed.notified().await,
                Some(at) => tokio::select! {
                    biased;
                    () = tokio::time::sleep_until(at) => {
                        let now = Instant::now();
                        let mut timers = lock(&self.expiries);
                        let due = timers.iter().filter(|(_, at)| **at <= now);
                        let mut due: Vec<_> = due.map(|(stream, _)| *stream).collect();
                        due.sort_unstable();
                        timers.retain(|_, at| *at > now);
                        return due;
                    }
                    () = self.changed.notified() => {}
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_timer_expires_when_its_earliest_time_is_due() {
        let timers = DueTimers::default();
        timers.set(0, Duration::MAX);
        assert!(lock(&timers.expiries).is_empty());
        timers.set(0, Duration::from_secs(3600));
        timers.set(0, Duration::ZERO);
        timers.set(0, Duration::from_secs(60));
        timers.set(1, Duration::from_secs(60));
        assert_eq!(timers.expired().await, [0]);
        assert_eq!(lock(&timers.expiries).keys().collect::<Vec<_>>(), [&1]);
    }
}
