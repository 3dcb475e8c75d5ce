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

/// Derives the connection state of a consumer from its pipeline, its reads and its lease renewals.
pub(super) struct ConsumerState {
    pub(super) member: Arc<Member>,
    pub(super) pipeline: Pipeline,
    pub(super) health: Arc<RenewalHealth>,
    /// The heartbeat of the loop that reads entries.
    pub(super) read_heartbeat: Arc<Heartbeat>,
    pub(super) closed: CancellationToken,
}

impl SourceState for ConsumerState {
    fn state(&self) -> Option<ConnectionState> {
        if self.closed.is_cancelled() {
            return None;
        }
        // States are ordered from good to bad.
        let pipeline_state = self.pipeline.state();
        if pipeline_state > ConnectionState::Lagging {
            return Some(pipeline_state);
        }
        if self.read_heartbeat.is_failing() {
            return Some(ConnectionState::Reconnecting);
        }
        let max_between = self.member.max_between_renewals();
        let is_renewing = !self.health.lasts(max_between).is_zero();
        // A read may block for `max_block` before the next heartbeat.
        let is_late = self
            .read_heartbeat
            .is_late(max_between + self.member.max_block());
        Some(match is_renewing && !is_late {
            true => ConnectionState::Connected,
            false => ConnectionState::Lagging,
        })
    }
}

/// The state of a source's subscriptions to events.
pub(super) struct SubscriptionState {
    /// The number of subscriptions that are lost.
    lost_count: AtomicUsize,
    closed: CancellationToken,
}

impl SubscriptionState {
    pub(super) fn new(closed: CancellationToken) -> Self {
        Self {
            lost_count: AtomicUsize::new(0),
            closed,
        }
    }

    pub(super) fn add_lost(&self, count: usize) {
        self.lost_count.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn remove_lost(&self, count: usize) {
        self.lost_count.fetch_sub(count, Ordering::Relaxed);
    }
}

impl SourceState for SubscriptionState {
    fn state(&self) -> Option<ConnectionState> {
        (!self.closed.is_cancelled()).then(|| match self.lost_count.load(Ordering::Relaxed) > 0 {
            true => ConnectionState::Reconnecting,
            false => ConnectionState::Connected,
        })
    }
}
