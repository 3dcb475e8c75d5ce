//! Cancelled tasks, ended pauses, purges and replays.

use std::{sync::Arc, time::Duration};

use super::{
    super::log::{Log, LogEntry},
    Group, QueuedMessage,
};
use crate::{
    message::{MessageId, Name, parking_key_of_paused},
    transport::codec,
};

impl Group {
    /// Cancels a task that is running, is parked, or waits for a redelivery. Returns `false` if the
    /// task is in none of these states.
    pub(in super::super) fn cancel(&mut self, id: &MessageId, reason: &str) -> bool {
        let is_it = |entry: &LogEntry| entry.message_id() == *id;
        if self.limits.remove_parked(|queued| is_it(&queued.entry)) {
            return true;
        }
        let mut ready = self.ready.iter();
        let index = ready.position(|(_, queued)| is_it(&queued.entry));
        if let Some((_, queued)) = index.and_then(|index| self.ready.remove(index)) {
            self.end_reservation(&queued);
            self.end_in_order(&queued);
            return true;
        }
        let mut delayed = self.delayed.iter();
        let key = delayed.find_map(|(key, queued)| is_it(&queued.entry).then_some(*key));
        if let Some(queued) = key.and_then(|key| self.delayed.remove(&key)) {
            self.end_in_order(&queued);
            return true;
        }
        let mut pending = self.pending.iter();
        let running = pending.find(|(_, pending)| is_it(&pending.entry));
        let running = running.map(|(serial, _)| *serial);
        if let Some(pending) = running.and_then(|serial| self.remove_pending(serial)) {
            self.end_reservation(&pending);
            pending.lease.cancel(reason);
            return true;
        }
        false
    }

    /// Delivers the messages that were parked because this name was paused.
    pub(in super::super) fn resume(&mut self, name: &Name) {
        let parked = self.limits.take_parked(&parking_key_of_paused(name));
        self.deliver_now(parked);
    }

    /// Removes and returns all messages that wait.
    pub(in super::super) fn take_waiting(&mut self, log: &Log) -> Vec<Arc<LogEntry>> {
        let mut waiting: Vec<_> = self.ready.drain(..).map(|(_, queued)| queued).collect();
        waiting.extend(std::mem::take(&mut self.delayed).into_values());
        waiting.extend(self.limits.take_all_parked());
        // A released permit goes to a parked message, so the permits are released only after all
        // messages were removed.
        for queued in &waiting {
            self.end_reservation(queued);
            self.end_in_order(queued);
        }
        let mut entries: Vec<_> = waiting.into_iter().map(|queued| queued.entry).collect();
        while let Some((entry, _)) = self.read(log) {
            entries.push(entry);
        }
        self.given_up
            .extend(entries.iter().map(|entry| entry.message_id()));
        entries
    }

    /// Delivers the message of a dead letter again, as its first attempt.
    pub(in super::super) fn replay(&mut self, entry: Arc<LogEntry>) {
        // A replayed task loses its time to live, so that it does not expire immediately. A request
        // keeps its time to live, because its caller does not wait longer.
        let is_task = entry.field("type").is_some_and(|kind| kind == "task");
        let fields = entry.fields.iter();
        let fields = fields.filter(|(field, _)| !is_task || field != codec::TIME_TO_LIVE);
        let entry = Arc::new(LogEntry {
            id: entry.id,
            fields: fields.cloned().collect(),
        });
        self.deliver_again(QueuedMessage::first(entry), Duration::ZERO);
    }
}
