//! Records what happens on the transport of a harness.

use std::{collections::BTreeMap, sync::Mutex};

use tokio::{
    sync::{Notify, futures::Notified},
    time::Instant,
};

use super::record::Record;
use crate::{
    message::Message,
    sync::lock,
    transport::memory::observer::{MessageEvent, ObservedMessage, Observer},
};

/// The observer of a harness: keeps the records, the running deliveries and the faults of
/// applications.
#[derive(Debug)]
pub(super) struct Journal {
    created_at: Instant,
    state: Mutex<JournalState>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct JournalState {
    /// Incremented with each change.
    version: u64,
    records: Vec<Record>,
    running: BTreeMap<u64, RunningMessage>,
    /// The number of deliveries so far.
    started: u64,
    /// The number of sources that were opened so far.
    opened: u64,
    /// The failures of applications.
    faults: Vec<String>,
}

/// A running delivery.
#[derive(Debug, Clone)]
pub(super) struct RunningMessage {
    pub(super) message: Option<Message>,
    pub(super) since: Instant,
}

/// The counts of a journal at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct JournalCounts {
    pub(super) version: u64,
    pub(super) running: usize,
    pub(super) started: u64,
    pub(super) opened: u64,
}

impl Journal {
    pub(super) fn new() -> Self {
        Self {
            created_at: Instant::now(),
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Waits for the next change after this call.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    pub(super) fn counts(&self) -> JournalCounts {
        let state = lock(&self.state);
        JournalCounts {
            version: state.version,
            running: state.running.len(),
            started: state.started,
            opened: state.opened,
        }
    }

    pub(super) fn records(&self) -> Vec<Record> {
        lock(&self.state).records.clone()
    }

    pub(super) fn running(&self) -> Vec<RunningMessage> {
        lock(&self.state).running.values().cloned().collect()
    }

    /// Records a failure of an application.
    pub(super) fn add_fault(&self, fault: String) {
        self.change(|state| state.faults.push(fault));
    }

    /// Returns the first failure.
    pub(super) fn fault(&self) -> Option<String> {
        lock(&self.state).faults.first().cloned()
    }

    fn change<T>(&self, apply: impl FnOnce(&mut JournalState) -> T) -> T {
        let mut state = lock(&self.state);
        state.version += 1;
        let result = apply(&mut state);
        drop(state);
        self.changed.notify_waiters();
        result
    }
}

impl Observer for Journal {
    fn happened(&self, observed: ObservedMessage, happened: MessageEvent) {
        let record = Record {
            at: self.created_at.elapsed(),
            happened,
            message: observed.message.ok(),
            stream: observed.stream,
            group: observed.group,
        };
        self.change(|state| state.records.push(record));
    }

    fn started(&self, observed: ObservedMessage) -> u64 {
        let running = RunningMessage {
            message: observed.message.ok(),
            since: Instant::now(),
        };
        self.change(|state| {
            state.started += 1;
            state.running.insert(state.started, running);
            state.started
        })
    }

    fn ended(&self, number: u64) {
        self.change(|state| state.running.remove(&number));
    }

    fn opened(&self) {
        self.change(|state| state.opened += 1);
    }

    fn closed(&self) {
        self.change(|_| ());
    }
}
