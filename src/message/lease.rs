//! A worker's lease on a delivery, and the report of its loss.

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::{FollowUp, FollowUps, RunningRecord, TaskRecord};
use crate::sync::lock;

/// A worker's lease on one delivery, for its handler.
///
/// The transport renews the leases of its worker. If renewals fail for so long that another worker
/// claims the delivery, the lease is *lost*: the other worker handles the message again, and a
/// failure of this handler has no effect. A handler that should stop early can wait until its
/// [`token`](Lease::token) is cancelled.
///
/// ```
/// use campanile::{BoxError, Lease, Router};
///
/// # async fn convert_next_frame() -> bool { false }
/// async fn convert(lease: Lease) -> Result<(), BoxError> {
///     while convert_next_frame().await {
///         if lease.is_lost() {
///             return Err("another worker has the film".into());
///         }
///     }
///     Ok(())
/// }
///
/// let app: Router = Router::new().task("films.convert", convert);
/// ```
#[derive(Clone, Default)]
pub struct Lease(Arc<LeaseInner>);

#[derive(Default)]
struct LeaseInner {
    /// Set when the lease is lost, and never cleared.
    lost: AtomicBool,
    // Created on demand, because a token costs an allocation and most handlers do not use it.
    token: OnceLock<CancellationToken>,
    /// The reason why the task was cancelled. Set before the lease is lost.
    cancel_reason: OnceLock<String>,
    /// The record of the task. Empty if the task has none.
    record: OnceLock<Arc<RunningRecord>>,
    /// Set once the handler has taken a token. Such a handler is not dropped if the task is
    /// cancelled.
    is_token_taken: AtomicBool,
    /// The delivery's outbox. `None` if the transport carries out no follow-ups.
    outbox: Option<OutboxSlot>,
}

/// Holds the outbox that the handler extracts.
#[derive(Default)]
struct OutboxSlot {
    /// Set once an outbox was extracted. Until then, `take_follow_ups` needs no lock.
    is_used: AtomicBool,
    current: Mutex<Arc<FollowUps>>,
}

impl Lease {
    /// Creates a lease. For transports.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a lease on a delivery with an [outbox](crate::Outbox). For transports that carry out
    /// [follow-ups](Self::take_follow_ups).
    pub fn with_outbox() -> Self {
        Self(Arc::new(LeaseInner {
            outbox: Some(OutboxSlot::default()),
            ..LeaseInner::default()
        }))
    }

    /// Closes the delivery's outbox and returns its follow-ups. For transports, which carry out the
    /// follow-ups in the same step as the verdict [`Done`](crate::transport::Verdict::Done).
    pub fn take_follow_ups(&self) -> Vec<FollowUp> {
        match &self.0.outbox {
            Some(slot) if slot.is_used.load(Ordering::Acquire) => lock(&slot.current).close(),
            _ => Vec::new(),
        }
    }

    /// Starts an empty outbox, and closes the earlier one. `None` if the transport carries out no
    /// follow-ups.
    pub(crate) fn start_outbox(&self) -> Option<Arc<FollowUps>> {
        let slot = self.0.outbox.as_ref()?;
        let new = Arc::<FollowUps>::default();
        let earlier = std::mem::replace(&mut *lock(&slot.current), new.clone());
        earlier.close();
        slot.is_used.store(true, Ordering::Release);
        Some(new)
    }

    /// Marks the lease as lost and cancels its token. This cannot be undone. For transports.
    pub fn lose(&self) {
        self.0.lost.store(true, Ordering::SeqCst);
        if let Some(token) = self.0.token.get() {
            token.cancel();
        }
    }

    /// Marks the task as cancelled for this reason, and the lease as lost. For transports.
    pub fn cancel(&self, reason: impl Into<String>) {
        let _ = self.0.cancel_reason.set(reason.into());
        self.lose();
    }

    /// Returns the reason why the task was [cancelled](crate::transport::Tasks::cancel). `None` if
    /// it was not cancelled.
    pub fn cancelled(&self) -> Option<&str> {
        self.0.cancel_reason.get().map(String::as_str)
    }

    /// Sets the record of the task, so that the task can be cancelled while it runs. For
    /// transports. A transport must call this method before it returns the delivery, because
    /// `serve` looks for a record only when it starts the delivery.
    pub fn set_record(&self, record: impl TaskRecord) {
        let _ = self.0.record.set(Arc::new(RunningRecord::new(record)));
    }

    /// Returns the record of the task. `None` if the task has none.
    pub(crate) fn record(&self) -> Option<&Arc<RunningRecord>> {
        self.0.record.get()
    }

    /// Stops recording the task's [progress](crate::Progress). Returns the last report if it is not
    /// written yet. For transports, which store this report in the same step as the end of the
    /// task.
    pub fn take_progress(&self) -> Option<Bytes> {
        self.record()?.close()
    }

    /// Returns a future that completes when the task is cancelled, so that `serve` drops the
    /// handler. The future never completes if the handler has taken a token. `None` if the task
    /// cannot be cancelled.
    pub(crate) fn drop_signal(&self) -> Option<impl Future<Output = ()> + use<>> {
        self.record()?;
        let (lease, token) = (self.clone(), self.get_or_create_token());
        Some(async move {
            token.cancelled().await;
            if lease.cancelled().is_none() || lease.0.is_token_taken.load(Ordering::Acquire) {
                std::future::pending::<()>().await;
            }
        })
    }

    /// Returns whether another worker has claimed the delivery, or the task was cancelled.
    pub fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::SeqCst)
    }

    /// Returns a token that is cancelled when the lease is lost. If the lease is lost already, the
    /// token is cancelled from the start.
    ///
    /// If the task is [cancelled](crate::transport::Tasks::cancel), a handler that has taken a
    /// token is not dropped, so it must end by itself.
    pub fn token(&self) -> CancellationToken {
        self.0.is_token_taken.store(true, Ordering::Release);
        self.get_or_create_token()
    }

    fn get_or_create_token(&self) -> CancellationToken {
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
