//! Whether a handle works right now, as its loops show.

use std::{
    fmt,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::Redis;
use crate::{sync::lock, transport::ConnectionState};

/// How often [`Redis::state_changed`] looks.
const LOOK: Duration = Duration::from_millis(50);

impl Redis {
    /// How this handle, its clones, and the sources that were opened from them are doing right now.
    ///
    /// It asks nobody: it says what the loops have shown that run anyway. A worker renews its leases
    /// at least once a second, so a server that is stopped, gone or cut off shows within a few
    /// seconds, and so does a loop that does not come round though a `PING` would be answered. A
    /// handle that only sends shows a loss with its next command.
    ///
    /// ```no_run
    /// # async fn probe(redis: campanile::Redis) -> u16 {
    /// if redis.state().is_ready() { 200 } else { 503 }
    /// # }
    /// ```
    pub fn state(&self) -> ConnectionState {
        self.shared.pipeline.state().max(self.shared.hearts.state())
    }

    /// Waits until the state is another than `from`, and returns it. A state that lasts for less
    /// than a tenth of a second may be missed.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn state_changed(&self, from: ConnectionState) -> ConnectionState {
        loop {
            let state = self.state();
            if state != from {
                return state;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Calls `hook` each time when subscriptions to events were lost and are there again, with how
    /// long they were not: events that were published meanwhile are lost, so this is the time to
    /// ask for what they would have told. It must not block. It counts for the sources that are
    /// opened from this handle afterwards; the last one that was set is called.
    ///
    /// Each gap is also a warning on `tracing`.
    #[must_use]
    pub fn on_event_gap(mut self, hook: impl Fn(Duration) + Send + Sync + 'static) -> Self {
        Arc::make_mut(&mut self.options).on_event_gap = OnGap(Some(Arc::new(hook)));
        self
    }
}

/// What is told about gaps in events.
#[derive(Clone, Default)]
pub(super) struct OnGap(Option<Arc<dyn Fn(Duration) + Send + Sync>>);

impl OnGap {
    pub(super) fn call(&self, gap: Duration) {
        if let Some(hook) = &self.0 {
            hook(gap);
        }
    }
}

impl fmt::Debug for OnGap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OnGap").field(&self.0.is_some()).finish()
    }
}

/// A source, as far as its state goes.
pub(super) trait Heart: Send + Sync {
    /// `None` when it is closed.
    fn state(&self) -> Option<ConnectionState>;
}

/// The sources that were opened from a handle.
#[derive(Default)]
pub(super) struct Hearts(Mutex<Vec<Weak<dyn Heart>>>);

impl Hearts {
    pub(super) fn add(&self, heart: Weak<dyn Heart>) {
        let mut hearts = lock(&self.0);
        hearts.retain(|heart| heart.strong_count() > 0);
        hearts.push(heart);
    }

    /// The worst of them.
    fn state(&self) -> ConnectionState {
        let hearts = lock(&self.0);
        let states = hearts.iter().filter_map(|heart| heart.upgrade()?.state());
        states.max().unwrap_or(ConnectionState::Connected)
    }
}

/// The heartbeat of a loop that waits for work and then talks to the server.
#[derive(Debug, Default)]
pub(super) struct Beat {
    /// Since when it has been talking; `None` while it waits.
    since: Mutex<Option<Instant>>,
    /// Whether that failed the last time.
    failing: AtomicBool,
}

impl Beat {
    /// It begins to talk.
    pub(super) fn begin(&self) {
        *lock(&self.since) = Some(Instant::now());
    }

    /// It has come round.
    pub(super) fn end(&self, well: bool) {
        *lock(&self.since) = None;
        self.failing.store(!well, Ordering::Relaxed);
    }

    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    pub(super) fn is_late(&self, patience: Duration) -> bool {
        let since = *lock(&self.since);
        since.is_some_and(|since| since.elapsed() > patience)
    }
}
