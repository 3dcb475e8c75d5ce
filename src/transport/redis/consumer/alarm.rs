//! The time at which the next delayed message is due.

use std::{sync::Mutex, time::Duration};

use tokio::{sync::Notify, time::Instant};

use crate::sync::lock;

/// An alarm that is set to the earliest of the times that it is given.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    at: Mutex<Option<Instant>>,
    changed: Notify,
}

impl Alarm {
    /// Rings after this time, or earlier if it was set to that before.
    pub(super) fn set(&self, after: Duration) {
        // A time that cannot be represented is never waited for.
        let Some(at) = Instant::now().checked_add(after) else {
            return;
        };
        let mut earliest = lock(&self.at);
        if earliest.is_none_or(|earliest| at < earliest) {
            *earliest = Some(at);
            drop(earliest);
            self.changed.notify_one();
        }
    }

    /// Waits until it rings, and clears it.
    pub(super) async fn ring(&self) {
        loop {
            let at = *lock(&self.at);
            match at {
                None => self.changed.notified().await,
                Some(at) => tokio::select! {
                    biased;
                    () = tokio::time::sleep_until(at) => {
                        *lock(&self.at) = None;
                        return;
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
    async fn an_alarm_rings_for_the_first_that_is_due_and_not_for_what_never_is() {
        let alarm = Alarm::default();
        alarm.set(Duration::MAX);
        assert_eq!(*lock(&alarm.at), None);
        alarm.set(Duration::from_secs(3600));
        alarm.set(Duration::ZERO);
        alarm.set(Duration::from_secs(60));
        alarm.ring().await;
        assert_eq!(*lock(&alarm.at), None);
    }
}
