//! Poison candidates: messages that may have ended several workers.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Whether an entry with this count of deliveries may be what ended the workers that had it.
pub(super) fn is_candidate(deliveries: u32) -> bool {
    deliveries > 2
}

/// The place of the one poison candidate that a worker runs at a time.
#[derive(Debug, Clone, Default)]
pub(super) struct PoisonSlot(Arc<AtomicBool>);

impl PoisonSlot {
    pub(super) fn is_taken(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Takes the place for a candidate that was claimed; it is free again when the guard of that
    /// delivery is dropped.
    pub(super) fn take(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub(super) fn guard(&self) -> PoisonGuard {
        self.take();
        PoisonGuard(self.clone())
    }
}

/// Frees the place when it is dropped.
#[derive(Debug)]
pub(super) struct PoisonGuard(PoisonSlot);

impl Drop for PoisonGuard {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::SeqCst);
    }
}
