//! The successive failures of one supervised connection: they determine the delay of the next
//! attempt, and which failures are logged.

use std::{fmt, time::Duration};

use tokio::time::Instant;

use super::BACKOFF;
use crate::error::Error;

/// The shortest time between two log lines about the same kind of failure.
const WARNING: Duration = Duration::from_secs(5);

/// The failures of one supervised connection since the last response.
#[derive(Debug, Default)]
pub(in crate::transport::redis) struct Outage {
    failures: u32,
    losses: Limit,
    refusals: Limit,
}

impl Outage {
    /// Resets the delay: the server has responded to a command. A connection alone is not enough,
    /// since a server, or a proxy before it, may accept and close.
    pub(in crate::transport::redis) fn answered(&mut self) {
        self.failures = 0;
    }

    /// Reports a lost connection, which the log calls `what`.
    pub(in crate::transport::redis) fn lost(
        &mut self,
        address: &str,
        what: &str,
        reason: &dyn fmt::Display,
    ) {
        self.failures = self.failures.saturating_add(1);
        if let Some(withheld) = self.losses.admit() {
            tracing::warn!(address, %reason, withheld, "lost {what}");
        }
    }

    /// Reports a failed attempt to connect. The log says "cannot" and `what`.
    pub(in crate::transport::redis) fn refused(
        &mut self,
        address: &str,
        what: &str,
        error: &Error,
    ) {
        self.failures = self.failures.saturating_add(1);
        if let Some(withheld) = self.refusals.admit() {
            let error = error.chain();
            tracing::warn!(address, error, withheld, "cannot {what}; trying again");
        }
    }

    /// The delay before the next attempt, with jitter.
    pub(in crate::transport::redis) fn wait(&self) -> Duration {
        BACKOFF.after(self.failures.max(1))
    }
}

/// Admits a log line, then none for a few seconds.
#[derive(Debug, Default)]
pub(in crate::transport::redis) struct Limit {
    last: Option<Instant>,
    withheld: u64,
}

impl Limit {
    /// Admits a line and returns the number of lines that were withheld before; `None` withholds
    /// it.
    pub(in crate::transport::redis) fn admit(&mut self) -> Option<u64> {
        let now = Instant::now();
        if self.last.is_some_and(|last| now - last < WARNING) {
            self.withheld += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.withheld))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn attempts_wait_longer_until_the_server_answers() {
        let mut outage = Outage::default();
        for _ in 0..20 {
            outage.lost("here", "a connection", &"closed");
        }
        assert!(outage.wait() >= BACKOFF.max() / 2);
        outage.answered();
        assert!(outage.wait() <= BACKOFF.base());
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_admits_one_line_in_some_seconds_and_counts_the_others() {
        let mut limit = Limit::default();
        assert_eq!(limit.admit(), Some(0));
        assert_eq!(limit.admit(), None);
        assert_eq!(limit.admit(), None);
        tokio::time::advance(WARNING).await;
        assert_eq!(limit.admit(), Some(2));
        assert_eq!(limit.admit(), None);
    }
}
