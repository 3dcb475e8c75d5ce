//! The connection state of a consumer.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
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

pub(super) struct ConsumerState {
    pub(super) member: Arc<Member>,
    pub(super) pipeline: Pipeline,
    pub(super) health: Arc<RenewalHealth>,
    /// Set if tasks and requests are read, so that leases are renewed.
    pub(super) reads: bool,
    /// The heartbeat of the fetch.
    pub(super) reading: Arc<Heartbeat>,
    /// Set while the subscriptions to events are lost.
    pub(super) subscription_lost: AtomicBool,
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
        if self.subscription_lost.load(Ordering::Relaxed) || self.reading.is_failing() {
            return Some(ConnectionState::Reconnecting);
        }
        let max_between = self.member.max_between_renewals();
        let renews = !self.reads || !self.health.lasts(max_between).is_zero();
        // A read may block for this long before the fetch's next heartbeat.
        let late = self.reading.is_late(max_between + self.member.max_block());
        Some(match renews && !late {
            true => ConnectionState::Connected,
            false => ConnectionState::Lagging,
        })
    }
}
