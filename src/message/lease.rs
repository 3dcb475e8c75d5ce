//! A worker's lease on a delivery, and the report of its loss.

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio_util::sync::CancellationToken;

use super::{FollowUp, FollowUps};
use crate::sync::lock;

/// A worker's lease on one delivery, for its handler.
///
/// The transport renews the leases of its worker. If renewals fail for so long that another worker
/// claims the delivery, the lease is *lost*: the other worker handles the message again, and a
/// failure of this handler has no effect. A handler that should stop early can wait until its
/// [`token`](Lease::token) is cancelled.
#[derive(Clone, Default)]
pub struct Lease(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// Set when the lease is lost, and never cleared.
    lost: AtomicBool,
    // Created on demand, because a token costs an allocation and most handlers do not use it.
    token: OnceLock<CancellationToken>,
    /// The delivery's outbox. `None` if the transport carries out no follow-ups.
    outbox: Option<OutboxSlot>,
}

/// The place of the outbox that the handler extracts.
#[derive(Default)]
struct OutboxSlot {
    /// Set once an outbox was extracted, so that other deliveries need no lock.
    used: AtomicBool,
    current: Mutex<Arc<FollowUps>>,
}

impl Lease {
    /// Creates a lease that is held. For transports.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a lease that is held, of a delivery with an [outbox](crate::Outbox). For transports
    /// that carry out [follow-ups](Self::take_follow_ups).
    pub fn with_outbox() -> Self {
        Self(Arc::new(Inner {
            outbox: Some(OutboxSlot::default()),
            ..Inner::default()
        }))
    }

    /// Closes the delivery's outbox and returns its follow-ups. For transports, which carry them
    /// out in the same step as the verdict [`Done`](crate::transport::Verdict::Done).
    pub fn take_follow_ups(&self) -> Vec<FollowUp> {
        match &self.0.outbox {
            Some(slot) if slot.used.load(Ordering::Acquire) => lock(&slot.current).close(),
            _ => Vec::new(),
        }
    }

    /// Starts an empty outbox, in place of an earlier one, which is closed. `None` if the transport
    /// carries out no follow-ups.
    pub(crate) fn start_outbox(&self) -> Option<Arc<FollowUps>> {
        let slot = self.0.outbox.as_ref()?;
        let new = Arc::<FollowUps>::default();
        let earlier = std::mem::replace(&mut *lock(&slot.current), new.clone());
        earlier.close();
        slot.used.store(true, Ordering::Release);
        Some(new)
    }

    /// Marks the lease as lost and cancels its token. This cannot be undone. For transports.
    pub fn lose(&self) {
        self.0.lost.store(true, Ordering::SeqCst);
        if let Some(token) = self.0.token.get() {
            token.cancel();
        }
    }

    /// Returns whether another worker has claimed the delivery.
    pub fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::SeqCst)
    }

    /// Returns a token that is cancelled when the lease is lost. If it is lost already, the token
    /// is cancelled from the start.
    pub fn token(&self) -> CancellationToken {
        let token = self.0.token.get_or_init(CancellationToken::new).clone();
        // `lose` may have run before `get_or_init`, and found no token to cancel.
        if self.is_lost() {
            token.cancel();
        }
        token
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("lost", &self.is_lost())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_lease_cancels_tokens_taken_before_and_after() {
        let lease = Lease::new();
        let before = lease.token();
        assert!(!before.is_cancelled());
        lease.clone().lose();
        assert!(before.is_cancelled());
        assert!(lease.token().is_cancelled());
        assert!(lease.is_lost());
    }
}
