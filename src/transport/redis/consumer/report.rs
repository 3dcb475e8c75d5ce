//! Counts and logs what becomes of deliveries.

use std::sync::Arc;

use super::streams::ServedStream;
use crate::{
    message::Shown,
    transport::{
        Counters,
        redis::{entry::EntryId, keys::Keys},
    },
};

/// The most bytes of a reason in one log line.
const MAX_LOGGED: usize = 2048;

/// The counters of a consumer, and the log lines that belong to them.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) counters: Arc<Counters>,
    max_dead_letters: usize,
}

impl Report {
    pub(super) fn new(counters: Arc<Counters>, max_dead_letters: usize) -> Self {
        Self {
            counters,
            max_dead_letters,
        }
    }

    /// The reply to a request could not be sent.
    pub(super) fn unanswerable(&self, id: EntryId) {
        self.counters.unanswerable.increment();
        tracing::warn!(%id, "the answer to a request could not be sent: nobody waits for it, or not at an allowed address");
    }

    /// Pending entries had been deleted from the stream.
    pub(super) fn deleted(&self, entries: u64) {
        self.counters.deleted.add(entries);
        tracing::warn!(entries, "pending entries had been deleted from the stream");
    }

    /// A message became a dead letter.
    pub(super) fn buried(&self, id: EntryId, attempts: u32, reason: &str) {
        self.counters.dead.increment();
        let reason = Shown::new(reason).at_most(MAX_LOGGED);
        tracing::warn!(%id, attempts, %reason, "a message became a dead letter");
    }

    /// Dead letters made room for newer ones. They are reported together, at most once a second.
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

    /// A delivery was lost to another consumer while it was running. `told` tells its handler, after
    /// the loss is counted.
    pub(super) fn lost(&self, id: EntryId, told: impl FnOnce(), message: &str) {
        self.counters.lost_leases.increment();
        told();
        tracing::warn!(%id, "{message}");
    }
}
