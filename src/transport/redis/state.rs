//! The connection state of a handle.

use std::{fmt, sync::Arc, time::Duration};

use super::Redis;
use crate::transport::ConnectionState;

/// The time between two checks of the state in [`Redis::state_changed`].
const CHECK_PERIOD: Duration = Duration::from_millis(50);

impl Redis {
    /// Returns the current state: the worst of the states of this handle, its clones, and the
    /// sources that were opened from them.
    ///
    /// The method sends no command. It reports the results of commands that are sent anyway. A
    /// worker sends a command at least every two seconds, so the state shows within a few seconds
    /// that a server is paused, stopped or cut off. The state also shows that a worker is blocked,
    /// which a `PING` does not show. A handle that only sends messages detects a lost connection
    /// with its next command.
    ///
    /// ```no_run
    /// # async fn probe(redis: campanile::Redis) -> u16 {
    /// if redis.state().is_ready() { 200 } else { 503 }
    /// # }
    /// ```
    pub fn state(&self) -> ConnectionState {
        self.shared
            .pipeline
            .state()
            .max(self.shared.sources.state())
    }

    /// Waits until the state is not `from`, and returns the new state. A state that lasts for less
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
            tokio::time::sleep(CHECK_PERIOD).await;
        }
    }

    /// Sets a hook that is called each time after lost subscriptions to events are restored. The
    /// argument of the hook is the length of the gap, the time without subscriptions. Events that
    /// were published during the gap are lost, so the application may have to load the data that
    /// these events announced. The hook must not block. The hook applies to sources that are opened
    /// from this handle later. A second hook replaces the first.
    ///
    /// On a cluster, a gap may affect only some [sharded events](crate::Router::event_sharded):
    /// those of slots that moved, or of a node that was lost.
    ///
    /// Each gap is also logged as a warning by `tracing`.
    #[must_use]
    pub fn on_event_gap(mut self, hook: impl Fn(Duration) + Send + Sync + 'static) -> Self {
        Arc::make_mut(&mut self.options).on_event_gap = EventGapHook(Some(Arc::new(hook)));
        self
    }
}

/// The hook of [`Redis::on_event_gap`], if there is one.
#[derive(Clone, Default)]
pub(super) struct EventGapHook(Option<Arc<dyn Fn(Duration) + Send + Sync>>);

impl EventGapHook {
    pub(super) fn call(&self, gap: Duration) {
        if let Some(hook) = &self.0 {
            hook(gap);
        }
    }
}

impl fmt::Debug for EventGapHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EventGapHook")
            .field(&self.0.is_some())
            .finish()
    }
}
