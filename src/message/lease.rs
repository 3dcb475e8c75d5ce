//! A worker's lease on a delivery, and the report of its loss.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio_util::sync::CancellationToken;

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
}

impl Lease {
    /// Creates a lease that is held. For transports.
    pub fn new() -> Self {
        Self::default()
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
