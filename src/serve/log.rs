//! The log lines of a worker: its start and end, and each failure once.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;
use tracing::Span;

use super::policy::Reason;
use crate::{
    error::Error,
    message::{EscapedText, Kind, Message, MessageId, Name},
    transport::{Discarded, Source, Undecodable, Verdict},
};

/// The maximum length of a reason, of the list of routes and of the list of streams in a log line,
/// in bytes.
const MAX_LOGGED: usize = 2048;

/// Counts the verdicts of a worker.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Successful deliveries.
    handled: AtomicU64,
    /// Failed attempts that are redelivered, dead letters, and error replies.
    failed: AtomicU64,
    /// Deliveries that are redelivered or parked, and did not count as an attempt.
    uncounted: AtomicU64,
    discarded: AtomicU64,
    released: AtomicU64,
}

impl Tally {
    pub(super) fn count(&self, verdict: &Verdict) {
        let counter = match verdict {
            Verdict::Done(Ok(_)) => &self.handled,
            Verdict::Redeliver { counted: false, .. } | Verdict::Park(_) => &self.uncounted,
            Verdict::Done(Err(_)) | Verdict::Redeliver { .. } | Verdict::DeadLetter { .. } => {
                &self.failed
            }
            Verdict::Discard { .. } => &self.discarded,
            Verdict::Release => &self.released,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Logs the start and the end of a worker, with the fields that identify it.
pub(super) struct WorkerLog {
    /// `None` if the worker handles only events.
    streams: Option<String>,
    group: String,
    consumer: Option<String>,
    started: Instant,
}

impl WorkerLog {
    /// Logs that the worker starts.
    pub(super) fn start(source: &impl Source, reads_streams: bool, routes: &[String]) -> Self {
        let (settings, consumer) = (source.settings(), source.consumer());
        let sources = (settings.served_registry(), settings.partitions());
        let streams = reads_streams.then(|| match sources {
            (Some(registry), _) => format!("those registered in {}", EscapedText::new(registry)),
            (_, Some(partitions)) => {
                let count = partitions.names.len();
                format!(
                    "{}, {count} partitions",
                    EscapedText::new(&partitions.stream)
                )
            }
            (None, None) => {
                let listed = settings.listed_streams();
                let names: Vec<&str> = listed.iter().map(|(name, _)| name.as_str()).collect();
                let names = names.join(", ");
                EscapedText::new(&names).at_most(MAX_LOGGED).to_string()
            }
        });
        let group = EscapedText::new(&settings.group).to_string();
        let names = routes.join(", ");
        let routes = EscapedText::new(&names).at_most(MAX_LOGGED);
        let max_in_flight = settings.max_in_flight;
        tracing::info!(
            streams, group, consumer, %routes, max_in_flight,
            "the worker has started"
        );
        Self {
            streams,
            group,
            consumer,
            started: Instant::now(),
        }
    }

    /// Logs the number of deliveries that a shutdown waits for, if there are any.
    pub(super) fn log_drain(&self, deliveries: usize, shutdown_timeout: Duration) {
        if deliveries > 0 {
            let (streams, group, consumer) = (&self.streams, &self.group, &self.consumer);
            let deadline = to_millis(shutdown_timeout);
            tracing::info!(
                streams,
                group,
                consumer,
                ?deadline,
                "draining {deliveries} deliveries"
            );
        }
    }

    /// Logs that the worker has ended.
    pub(super) fn log_end(&self, tally: &Tally, result: &Result<(), Error>) {
        let (streams, group, consumer) = (&self.streams, &self.group, &self.consumer);
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        tracing::info!(
            streams,
            group,
            consumer,
            handled = count(&tally.handled),
            failed = count(&tally.failed),
            uncounted = count(&tally.uncounted),
            discarded = count(&tally.discarded),
            released = count(&tally.released),
            ran_for = ?to_millis(self.started.elapsed()),
            error = result.as_ref().err().map(Error::chain),
            "the worker has ended"
        );
    }
}

/// Logs the failure of a message. Its fields are copied from the message before the message moves
/// into the service.
pub(super) struct MessageLog {
    pub(super) kind: Kind,
    pub(super) name: Name,
    pub(super) id: Option<MessageId>,
    pub(super) attempt: u32,
    pub(super) max_attempts: u32,
}

impl MessageLog {
    pub(super) fn new(message: &Message) -> Self {
        let parts = message.parts();
        Self {
            kind: parts.kind,
            name: parts.name.clone(),
            id: parts.id.clone(),
            attempt: parts.attempt.0,
            max_attempts: parts.max_attempts.unwrap_or(u32::MAX),
        }
    }

    /// Logs that a message expired before it was handled.
    pub(super) fn log_expired(&self, verdict: &Verdict) {
        let (kind, name, id) = (self.kind, EscapedText::new(&self.name), self.id.as_deref());
        let next = match verdict {
            Verdict::DeadLetter { .. } => "a dead letter",
            _ => "discarded",
        };
        tracing::warn!(%kind, %name, id, "expired before it was started; {next}");
    }

    /// Logs a failure and its consequence, in the message's span if a layer has set one.
    pub(super) fn log_failure(&self, reason: &Reason, verdict: &Verdict, span: Option<Span>) {
        let Some(consequence) = self.consequence(verdict) else {
            return;
        };
        let (kind, name) = (self.kind, EscapedText::new(&self.name));
        let (id, attempt) = (self.id.as_deref(), self.attempt);
        // The error of a handler may contain a sender's text, so it is escaped and shortened.
        let text = EscapedText::new(&reason.text).at_most(MAX_LOGGED);
        let is_debug = match verdict {
            Verdict::Discard { reason, .. } => *reason == Discarded::Ignored,
            // An expected failure that loses no message needs no attention from an operator.
            Verdict::Done(_) | Verdict::Redeliver { counted: false, .. } | Verdict::Park(_) => {
                reason.is_expected
            }
            _ => false,
        };
        let line = match verdict {
            Verdict::Discard { .. } => format!("{consequence}: {text}"),
            _ => format!("failed: {text}; {consequence}"),
        };
        let log = || match is_debug {
            true => tracing::debug!(%kind, %name, id, attempt, "{line}"),
            false => tracing::warn!(%kind, %name, id, attempt, "{line}"),
        };
        match span {
            Some(span) => span.in_scope(log),
            None => log(),
        }
    }

    /// Describes the consequence of a failure. `None` if the verdict is not about a failure.
    fn consequence(&self, verdict: &Verdict) -> Option<String> {
        let (attempt, max_attempts) = (self.attempt, self.max_attempts);
        Some(match verdict {
            Verdict::Done(Ok(_)) | Verdict::Release => return None,
            Verdict::Discard {
                reason: Discarded::Ignored,
                ..
            } => "left to the other groups".to_owned(),
            Verdict::Discard { .. } => "discarded".to_owned(),
            Verdict::Redeliver { .. } | Verdict::DeadLetter { .. } if self.kind == Kind::Event => {
                "an event is not delivered again".to_owned()
            }
            Verdict::Done(Err(answer)) => {
                format!("answered `{}`", EscapedText::new(answer.code().as_str()))
            }
            Verdict::Redeliver { after, counted, .. } => {
                let when = match after {
                    None => "after the back-off".to_owned(),
                    Some(after) if after.is_zero() => "at once".to_owned(),
                    Some(after) => format!("in {:?}", to_millis(*after)),
                };
                match counted {
                    true => {
                        let next = attempt.saturating_add(1);
                        format!("delivered again {when} (attempt {next} of {max_attempts})")
                    }
                    false => format!("delivered again {when} (this was not counted as an attempt)"),
                }
            }
            Verdict::Park(request) => match request.awaited_version() {
                Some(_) => "parked until there is a newer worker".to_owned(),
                None => "parked until it gets a permit".to_owned(),
            },
            Verdict::DeadLetter { .. } if attempt >= max_attempts => {
                format!("a dead letter after attempt {attempt} of {max_attempts}")
            }
            Verdict::DeadLetter { .. } => "a dead letter".to_owned(),
        })
    }
}

/// Logs an entry that could not be decoded.
pub(super) fn undecodable(entry: &Undecodable) {
    let reason = EscapedText::new(&entry.reason).at_most(MAX_LOGGED);
    let (id, stream) = (entry.id.as_deref(), entry.stream.as_deref());
    tracing::warn!(
        id,
        stream,
        "an entry cannot be read as a message: {reason}; a dead letter"
    );
}

/// Truncates to whole milliseconds, so that the `Debug` form is short. A time below one millisecond
/// is not changed.
fn to_millis(time: Duration) -> Duration {
    match u64::try_from(time.as_millis()) {
        Ok(millis) if millis > 0 => Duration::from_millis(millis),
        _ => time,
    }
}
