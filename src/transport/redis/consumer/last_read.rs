//! Collects the settlements of the deliveries that the fetch read last. The fetch waits for them
//! briefly, and carries them out before its next read, over the same connection.

use std::{
    future::poll_fn,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::settlement::Settlement;
use crate::sync::{LazyTimer, lock};

/// The longest time for which the fetch waits before its next read.
const MAX_WAIT: Duration = Duration::from_millis(1);
/// If the settlements took longer than this, the fetch does not wait before the next reads, so that
/// a slow handler does not delay other messages.
const MAX_HANDLING: Duration = Duration::from_micros(200);

/// The settlements for which the fetch waits.
#[derive(Default)]
pub(super) struct LastRead {
    /// Set while the fetch waits. Checked first, because it is cheaper than the lock of
    /// `gathering`.
    is_open: AtomicBool,
    gathering: Mutex<Option<Gathering>>,
    /// Notified when all settlements have come.
    complete: Notify,
}

/// The progress of one wait.
struct Gathering {
    /// The settlements that have come and that the fetch can carry out over its connection.
    settlements: Vec<Settlement>,
    /// The number of settlements that have not come yet.
    missing: usize,
}

impl LastRead {
    /// Takes the settlement if the fetch waits for it and can carry it out over its connection. If
    /// not, returns the settlement, and the fetch no longer waits for it.
    pub(super) fn offer(&self, settlement: Settlement) -> Option<Settlement> {
        if !self.is_open.load(Ordering::SeqCst) {
            return Some(settlement);
        }
        let mut gathering = lock(&self.gathering);
        let Some(gathering) = gathering.as_mut() else {
            return Some(settlement);
        };
        gathering.missing = gathering.missing.saturating_sub(1);
        if gathering.missing == 0 {
            self.complete.notify_one();
        }
        if !settlement.fits_read_connection() {
            return Some(settlement);
        }
        gathering.settlements.push(settlement);
        None
    }

    /// Starts to collect the settlements of this many deliveries.
    pub(super) fn open(&self, deliveries: usize) {
        *lock(&self.gathering) = Some(Gathering {
            settlements: Vec::with_capacity(deliveries),
            missing: deliveries,
        });
        self.is_open.store(true, Ordering::SeqCst);
    }

    /// Waits for the settlements, at most [`MAX_WAIT`]. Returns those that were taken, and `true`
    /// if all settlements came within [`MAX_HANDLING`].
    pub(super) async fn gather(&self, timer: &mut LazyTimer) -> (Vec<Settlement>, bool) {
        let began = Instant::now();
        let all = tokio::select! {
            biased;
            () = self.complete.notified() => true,
            () = poll_fn(|cx| timer.poll_until(cx, began + MAX_WAIT)) => false,
        };
        let in_time = began.elapsed() <= MAX_HANDLING;
        self.is_open.store(false, Ordering::SeqCst);
        let gathering = lock(&self.gathering).take();
        let settlements = gathering.map_or_else(Vec::new, |gathering| gathering.settlements);
        (settlements, all && in_time)
    }
}
