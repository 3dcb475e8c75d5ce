//! The states of the sources that were opened from a handle.

use std::{
    sync::{
        Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{sync::lock, transport::ConnectionState};

/// A source whose state is a part of its handle's state.
pub(super) trait SourceState: Send + Sync {
    /// Returns the current state; `None` if the source is closed.
    fn state(&self) -> Option<ConnectionState>;
}

/// The sources that were opened from a handle.
#[derive(Default)]
pub(super) struct SourceStates(Mutex<Vec<Weak<dyn SourceState>>>);

impl SourceStates {
    pub(super) fn add(&self, source: Weak<dyn SourceState>) {
        let mut sources = lock(&self.0);
        sources.retain(|source| source.strong_count() > 0);
        sources.push(source);
    }

    /// Returns the worst state of the open sources. If no source is open, this is `Connected`.
    pub(super) fn state(&self) -> ConnectionState {
        let sources = lock(&self.0);
        let states = sources
            .iter()
            .filter_map(|source| source.upgrade()?.state());
        states.max().unwrap_or(ConnectionState::Connected)
    }
}

/// Shows whether a loop is alive. The loop waits for work, and then exchanges commands with the
/// server.
#[derive(Debug, Default)]
pub(super) struct Heartbeat {
    /// The start of the current exchange; `None` while the loop waits for work.
    exchange_began_at: Mutex<Option<Instant>>,
    /// Set if the last exchange failed.
    is_failing: AtomicBool,
}

impl Heartbeat {
    /// Records the start of an exchange.
    pub(super) fn begin(&self) {
        *lock(&self.exchange_began_at) = Some(Instant::now());
    }

    /// Records the end of an exchange, and whether it succeeded.
    pub(super) fn end(&self, succeeded: bool) {
        *lock(&self.exchange_began_at) = None;
        self.is_failing.store(!succeeded, Ordering::Relaxed);
    }

    /// Returns `true` if the last exchange failed.
    pub(super) fn is_failing(&self) -> bool {
        self.is_failing.load(Ordering::Relaxed)
    }

    /// Returns `true` if the current exchange has lasted for longer than `patience`.
    pub(super) fn is_late(&self, patience: Duration) -> bool {
        let began_at = *lock(&self.exchange_began_at);
        began_at.is_some_and(|began_at| began_at.elapsed() > patience)
    }
}
