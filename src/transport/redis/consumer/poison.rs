//! Poison candidates: messages that may have crashed several workers.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Returns `true` if an entry that was delivered this often may have crashed its workers.
pub(super) fn is_candidate(deliveries: u32) -> bool {
    deliveries > 2
}

/// A slot for one poison candidate: a worker runs one candidate at a time.
#[derive(Debug, Clone, Default)]
pub(super) struct PoisonSlot(Arc<AtomicBool>);

impl PoisonSlot {
    pub(super) fn is_taken(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Takes the slot as soon as a candidate is claimed. The [`guard`](Self::guard) of its delivery
    /// frees the slot.
    pub(super) fn take(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Takes the slot, and returns the guard that frees it.
    pub(super) fn guard(&self) -> PoisonGuard {
        self.take();
        PoisonGuard(self.clone())
    }
}

/// Frees the slot when it is dropped.
#[derive(Debug)]
pub(super) struct PoisonGuard(PoisonSlot);

impl Drop for PoisonGuard {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::SeqCst);
    }
}
