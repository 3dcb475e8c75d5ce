//! Tracks the failures of one connection: chooses the delay before the next attempt, and logs the
//! outages.

use std::{collections::VecDeque, fmt, time::Duration};

use tokio::time::Instant;

use super::{BACKOFF, cause::Cause};
use crate::error::Error;

/// The minimum time between two equal log lines. Equal lines in between are counted, not logged.
const MIN_BETWEEN_LINES: Duration = Duration::from_secs(5);
/// The maximum number of distinct lines that are remembered.
const MAX_LINES: usize = 8;

/// The failures and outages of one connection, which its owner restores after each failure.
///
/// An outage logs one line when it begins, one for each cause of failed attempts, and one when it
/// is over.
#[derive(Debug, Default)]
pub(in crate::transport::redis) struct Outage {
    /// The number of failures since the last response.
    failures: u32,
    /// The current outage, or `None` while there is a connection.
    current_outage: Option<CurrentOutage>,
    /// The most recent distinct log lines, each with its limit.
    lines: VecDeque<(String, LogLimit)>,
}

/// An outage that is not over.
#[derive(Debug)]
struct CurrentOutage {
    began_at: Instant,
    address: String,
    /// The log line for the end of the outage, up to the length of the outage.
    end_line: String,
    /// Set if a line about the outage was logged.
    is_logged: bool,
}

impl Outage {
    /// Ends the outage and resets the delay, after the server has responded to a command. A new
    /// connection does not reset the delay: a server, or a proxy in front of it, may accept each
    /// connection and then close it.
    pub(in crate::transport::redis) fn record_success(&mut self) {
        self.failures = 0;
        self.record_connection();
    }

    /// Ends the outage, after a connection was made. Logs the length of the outage if a line about
    /// the outage was logged.
    pub(in crate::transport::redis) fn record_connection(&mut self) {
        let Some(outage) = self.current_outage.take().filter(|outage| outage.is_logged) else {
            return;
        };
        let (address, over) = (outage.address, outage.end_line);
        let length = Duration::from_millis(outage.began_at.elapsed().as_millis() as u64);
        tracing::info!(address, "{over} after {length:?}");
    }

    /// Records a lost connection. `what` is its name in the log line.
    pub(in crate::transport::redis) fn record_loss(
        &mut self,
        address: &str,
        what: &str,
        reason: &dyn fmt::Display,
    ) {
        let cause = Cause::of(reason.to_string());
        let line = format!("lost {what}: {}", cause.description);
        self.record_failure(address, line, &cause, || format!("{what} is back"));
    }

    /// Records a failed attempt. `what` is a verb phrase, which follows "cannot" in the log line.
    pub(in crate::transport::redis) fn record_failed_attempt(
        &mut self,
        address: &str,
        what: &str,
        error: &Error,
    ) {
        let cause = Cause::of(error.chain());
        let line = format!("cannot {what}: {}; trying again", cause.description);
        self.record_failure(address, line, &cause, || format!("could {what}"));
    }

    fn record_failure(
        &mut self,
        address: &str,
        line: String,
        cause: &Cause,
        end_line: impl FnOnce() -> String,
    ) {
        self.failures = self.failures.saturating_add(1);
        let withheld = self.admit(&line);
        let outage = self.current_outage.get_or_insert_with(|| CurrentOutage {
            began_at: Instant::now(),
            address: address.to_owned(),
            end_line: end_line(),
            is_logged: false,
        });
        if let Some(withheld) = withheld {
            outage.is_logged = true;
            let error = cause.error.as_deref();
            tracing::warn!(address, error, withheld, "{line}");
        }
    }

    /// Applies the limit of this line. See [`LogLimit::admit`].
    fn admit(&mut self, line: &str) -> Option<u64> {
        if let Some((_, limit)) = self.lines.iter_mut().find(|(known, _)| known == line) {
            return limit.admit();
        }
        if self.lines.len() == MAX_LINES {
            self.lines.pop_front();
        }
        let mut limit = LogLimit::default();
        let admitted = limit.admit();
        self.lines.push_back((line.to_owned(), limit));
        admitted
    }

    /// Returns the delay before the next attempt, with jitter.
    pub(in crate::transport::redis) fn delay(&self) -> Duration {
        BACKOFF.after(self.failures.max(1))
    }
}

/// Limits a log line to one every few seconds.
#[derive(Debug, Default)]
pub(in crate::transport::redis) struct LogLimit {
    last_logged_at: Option<Instant>,
    /// The number of lines that were withheld since then.
    withheld: u64,
}

impl LogLimit {
    /// If the line may be logged now, returns the number of lines that were withheld before it.
    /// Otherwise counts this line as withheld, and returns `None`.
    pub(in crate::transport::redis) fn admit(&mut self) -> Option<u64> {
        let now = Instant::now();
        if self
            .last_logged_at
            .is_some_and(|last| now - last < MIN_BETWEEN_LINES)
        {
            self.withheld += 1;
            return None;
        }
        self.last_logged_at = Some(now);
        Some(std::mem::take(&mut self.withheld))
    }
}

#[cfg(test)]
#[path = "../../../../tests/support/logs.rs"]
mod logs;

#[cfg(test)]
mod tests {
    use super::{logs::Logs, *};

    #[tokio::test(start_paused = true)]
    async fn attempts_wait_longer_until_the_server_answers() {
        let mut outage = Outage::default();
        for _ in 0..20 {
            outage.record_loss("here", "a connection", &"closed");
        }
        assert!(outage.delay() >= BACKOFF.max() / 2);
        outage.record_success();
        assert!(outage.delay() <= BACKOFF.base());
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_logged_when_it_begins_for_each_cause_and_when_it_is_over() {
        let logs = Logs::start();
        let mut outage = Outage::default();
        outage.record_connection();
        outage.record_loss("here", "a connection", &"unexpected end of file");
        let causes = ["Connection refused", "LOADING", "Connection refused"];
        for cause in causes.into_iter().cycle().take(12) {
            tokio::time::advance(Duration::from_millis(100)).await;
            outage.record_failed_attempt("here", "connect", &Error::disconnected(cause));
        }
        outage.record_connection();
        outage.record_success();
        let expected = [
            ("WARN", "lost a connection: it was closed"),
            ("WARN", "cannot connect: nothing listens there"),
            ("WARN", "cannot connect: Redis is loading its data"),
            ("INFO", "a connection is back after 1.2s"),
        ];
        let text = logs.text();
        assert_eq!(text.lines().count(), expected.len(), "{text}");
        for (line, (level, words)) in text.lines().zip(expected) {
            assert!(line.contains(level) && line.contains(words), "{line}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn equal_outages_in_a_row_are_collapsed_and_their_number_is_logged() {
        let logs = Logs::start();
        let mut outage = Outage::default();
        for _ in 0..60 {
            outage.record_loss("here", "a connection", &"Broken pipe");
            tokio::time::advance(Duration::from_millis(100)).await;
            outage.record_connection();
        }
        assert_eq!(logs.lines(&["lost"]).len(), 2, "{}", logs.text());
        assert_eq!(logs.lines(&["lost", "withheld=49"]).len(), 1);
        assert_eq!(logs.lines(&["is back"]).len(), 2, "{}", logs.text());
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_admits_one_line_in_some_seconds_and_counts_the_others() {
        let mut limit = LogLimit::default();
        assert_eq!(limit.admit(), Some(0));
        assert_eq!(limit.admit(), None);
        assert_eq!(limit.admit(), None);
        tokio::time::advance(MIN_BETWEEN_LINES).await;
        assert_eq!(limit.admit(), Some(2));
        assert_eq!(limit.admit(), None);
    }
}
