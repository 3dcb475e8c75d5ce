//! The worker's hold on a delivery, and how it hears that it lost it.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio_util::sync::CancellationToken;

/// A worker's hold on one delivery, as its handler sees it.
///
/// A transport renews what its worker holds. When that fails for so long that another worker took
/// the delivery over, the lease is *lost*: whatever the handler still does is done twice, and a
/// failure of it will change nothing. A handler that wants to stop then waits for
/// [`token`](Lease::token).
#[derive(Clone, Default)]
pub struct Lease(Arc<Inner>);

#[derive(Default)]
struct Inner {
    lost: AtomicBool,
    // Made on demand: most handlers never ask, and a token costs an allocation.
    token: OnceLock<CancellationToken>,
}

impl Lease {
    /// A lease that is held. For transports.
    pub fn new() -> Self {
        Self::default()
    }

    /// Marks the lease as lost and cancels its token. For transports; there is no way back.
    pub fn lose(&self) {
        self.0.lost.store(true, Ordering::SeqCst);
        if let Some(token) = self.0.token.get() {
            token.cancel();
        }
    }

    /// Whether another worker has the delivery by now.
    pub fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::SeqCst)
    }

    /// A token that is cancelled when the lease is lost.
    pub fn token(&self) -> CancellationToken {
        let token = self.0.token.get_or_init(CancellationToken::new).clone();
        // `lose` may have run between its store and our `get_or_init`.
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
