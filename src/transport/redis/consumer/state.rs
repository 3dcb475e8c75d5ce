//! The connection state of a consumer.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio_util::sync::CancellationToken;

use super::{health::RenewalHealth, member::Member};
use crate::transport::{
    ConnectionState,
    redis::{
        pipeline::Pipeline,
        source_state::{Heartbeat, SourceState},
    },
};

/// Derives the state of the consumer of one slot from its connections, its reads and its renewals.
pub(super) struct ConsumerState {
    pub(super) member: Arc<Member>,
    pub(super) pipeline: Pipeline,
    pub(super) health: Arc<RenewalHealth>,
    /// The heartbeat of the fetch.
    pub(super) reading: Arc<Heartbeat>,
    pub(super) closed: CancellationToken,
}

impl SourceState for ConsumerState {
    fn state(&self) -> Option<ConnectionState> {
        if self.closed.is_cancelled() {
            return None;
        }
        let pipeline = self.pipeline.state();
        if pipeline > ConnectionState::Lagging {
            return Some(pipeline);
        }
        if self.reading.is_failing() {
            return Some(ConnectionState::Reconnecting);
        }
        let max_between = self.member.max_between_renewals();
        let renews = !self.health.lasts(max_between).is_zero();
        // A read may block for `max_block` before the fetch's next heartbeat.
        let late = self.reading.is_late(max_between + self.member.max_block());
        Some(match renews && !late {
            true => ConnectionState::Connected,
            false => ConnectionState::Lagging,
        })
    }
}

/// The state of a source's subscriptions to events.
pub(super) struct SubscriptionState {
    /// The number of subscriptions that are lost.
    lost: AtomicUsize,
    closed: CancellationToken,
}

impl SubscriptionState {
    pub(super) fn new(closed: CancellationToken) -> Self {
        let lost = AtomicUsize::new(0);
        Self { lost, closed }
    }

    pub(super) fn add_lost(&self, count: usize) {
        self.lost.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn remove_lost(&self, count: usize) {
        self.lost.fetch_sub(count, Ordering::Relaxed);
    }
}

impl SourceState for SubscriptionState {
    fn state(&self) -> Option<ConnectionState> {
        (!self.closed.is_cancelled()).then(|| match self.lost.load(Ordering::Relaxed) > 0 {
            true => ConnectionState::Reconnecting,
            false => ConnectionState::Connected,
        })
    }
}
