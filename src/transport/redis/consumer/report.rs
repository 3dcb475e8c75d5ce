//! Counts and logs the outcomes of deliveries.

use std::sync::Arc;

use super::{deliver::origin, streams::ServedStream};
use crate::{
    message::EscapedText,
    transport::{
        Claims, Counters,
        redis::{
            entry::{Entry, StreamEntryId, WhichStream},
            keys::Keys,
        },
    },
};

/// The maximum size of a reason in a log line, in bytes.
const MAX_LOGGED: usize = 2048;

/// The counters of a consumer, and its log lines about deliveries.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) counters: Arc<Counters>,
    pub(super) max_dead_letters: usize,
}

impl Report {
    pub(super) fn new(counters: Arc<Counters>, max_dead_letters: usize) -> Self {
        Self {
            counters,
            max_dead_letters,
        }
    }

    /// Reports that the reply to a request could not be sent.
    pub(super) fn unanswerable(&self, id: StreamEntryId) {
        self.counters.unanswerable.increment();
        tracing::warn!(%id, "the answer to a request could not be sent: nobody waits for it, or not at an allowed address");
    }

    /// Reports that pending entries were deleted from the stream.
    pub(super) fn deleted(&self, entries: u64) {
        self.counters.deleted.add(entries);
        tracing::warn!(entries, "pending entries had been deleted from the stream");
    }

    /// Reports a message that became a dead letter because no worker has settled it. Other dead
    /// letters are logged by the worker whose handler failed, in the span of the message.
    pub(super) fn never_settled(
        &self,
        stream: &ServedStream,
        id: StreamEntryId,
        attempts: u32,
        reason: &str,
    ) {
        let Keys { stream, group, .. } = &stream.keys;
        let reason = EscapedText::new(reason).at_most(MAX_LOGGED);
        tracing::warn!(%id, %stream, %group, attempts, "a dead letter: {reason}");
    }

    /// Reports entries that were claimed, each with its former consumer.
    pub(super) fn claimed(
        &self,
        stream: &ServedStream,
        entries: &[Entry],
        former_consumers: &[String],
    ) {
        if entries.is_empty() {
            return;
        }
        self.counters.claimed.add(entries.len() as u64);
        let mut claims = Claims::default();
        for (entry, consumer) in entries.iter().zip(former_consumers) {
            claims.add(consumer, || match entry.which {
                WhichStream::Primary(_) => entry.id.to_string(),
                WhichStream::Retry(_) => {
                    let (text, ..) = origin(&entry.fields, entry.text.clone(), entry.id);
                    String::from_utf8_lossy(&text).into_owned()
                }
            });
        }
        claims.log(&stream.keys.stream, &stream.keys.group);
    }

    /// Reports the number of old dead letters that were removed for newer letters. Logs at most one
    /// line a second. A call with 0 logs the numbers that earlier calls did not log.
    pub(super) fn letters_dropped(&self, stream: &ServedStream, dropped: u64) {
        self.counters.dead_dropped.add(dropped);
        let Keys {
            stream: name,
            group,
            ..
        } = &stream.keys;
        stream
            .dropped
            .report(dropped, name, group, self.max_dead_letters);
    }

    /// Reports that a delivery was lost to another consumer. First counts the loss, then calls
    /// `notify`, which marks the lease as lost.
    pub(super) fn lost(&self, id: StreamEntryId, notify: impl FnOnce(), message: &str) {
        self.counters.lost_leases.increment();
        notify();
        tracing::warn!(%id, "{message}");
    }
}
