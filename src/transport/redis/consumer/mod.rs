//! The serving half: a consumer of the group, and a subscriber to events.
//!
//! A [`RedisSource`] reads the streams and the group's retry streams over a separate connection,
//! and fetches only as much as `next` asks for. A thread renews the leases of fetched deliveries
//! until they are settled. The leases of a dead worker expire, and another worker claims its
//! deliveries.
//!
//! `open` makes and wires the parts:
//!
//! ```text
//! fetch ──entries──► deliver ──deliveries──► prefetch ──► Source::next ──► serve
//!   ▲                   │ adds                                                │ verdict
//!   │ claim          in_flight ◄──renews── lease                              ▼
//!   │                   ▲ marks, releases                                   settle
//!   └── group           └────────────── settler ◄──────settlements────────────┘
//! ```
//!
//! # Cancel safety
//! A separate task reads. It never cancels a read, since the read may already have made entries
//! pending for this consumer. Deliveries that arrive after a call of `next` was dropped are kept
//! for the next call, or released.
//!
//! # Delivery guarantee
//! A settlement is one atomic step on the server. It takes effect only if the entry is still
//! pending for this consumer, so a late or repeated verdict changes nothing. Only a plain success
//! takes effect in any case: the verdict *done* without follow-ups, outside of owned partitions,
//! for a message without a status record. The first worker that finishes acknowledges the entry and
//! replies, even if the entry is pending for another worker now.

mod announcer;
mod assignment;
mod blocked;
mod canary;
mod claim;
mod clock;
#[cfg(any(test, fuzzing))]
pub(super) mod decoders;
mod deliver;
mod due_timers;
mod event_sink;
mod events;
mod exchange;
mod fetch;
mod follow_ups;
mod forward;
mod group;
mod health;
mod heartbeat;
mod in_flight;
mod key_order;
mod last_read;
mod lease;
mod maintenance;
mod member;
mod open;
mod ownership;
mod pause;
mod poison;
mod prefetch;
mod registry;
mod replies;
mod reply_to;
mod report;
mod served_names;
mod settle;
mod settle_queue;
mod settlement;
mod settler;
mod shard_node;
mod sharded;
mod slot_consumer;
mod slot_parts;
mod slots;
mod state;
mod streams;
mod task_notes;
mod task_starter;
mod tick;
mod upkeep;
mod upkeep_connection;
mod woken;

use std::{
    fmt,
    sync::{Arc, OnceLock, Weak},
};

use futures_util::future::join_all;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use self::settle::RedisSettler;
use self::{
    announcer::MonitorSlot, member::Member, ownership::Ownership, prefetch::PrefetchBuffer,
    report::Report, slot_consumer::SlotConsumer, state::SubscriptionState,
};
use super::rpc::Hub;
use crate::{
    error::Error,
    transport::{Delivery, Settings, Source, WorkerMonitor},
};

/// The source of [`Redis`](super::Redis): the deliveries of one consumer.
pub struct RedisSource {
    member: Arc<Member>,
    settings: Settings,
    report: Arc<Report>,
    buffer: Arc<PrefetchBuffer>,
    /// The consumers, one for each slot with streams. There is one on a single server, and none if
    /// the source receives only events or owns partitions.
    slots: Vec<SlotConsumer>,
    /// The partitions that this worker owns. `None` if the workers of its group own no partitions.
    ownership: Option<Ownership>,
    /// The state of the subscriptions; `None` without events. Owned here, since the handle that
    /// reports the state has only a weak reference.
    subscriptions: Option<Arc<SubscriptionState>>,
    /// The RPC client of the handle that opened this source. The reference is weak, so that the
    /// client ends with the last clone of the handle.
    rpc: Weak<OnceLock<Arc<Hub>>>,
    closed: CancellationToken,
    /// Passes the monitor of the worker to the upkeep of each consumer.
    monitor: MonitorSlot,
}

impl Source for RedisSource {
    type Settle = RedisSettler;

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn consumer(&self) -> Option<String> {
        Some(self.member.consumer.clone())
    }

    fn requests_waiting(&self) -> usize {
        let hub = self.rpc.upgrade();
        hub.and_then(|hub| Some(hub.get()?.pending_requests()))
            .unwrap_or(0)
    }

    fn monitor(&mut self, monitor: Arc<WorkerMonitor>) {
        // `serve` calls this once.
        let _ = self.monitor.set(monitor);
    }

    async fn next(&mut self, max: usize) -> Result<Vec<Delivery<RedisSettler>>, Error> {
        let deliveries = self.buffer.take(max).await;
        let from_stream = deliveries
            .iter()
            .filter(|delivery| delivery.settle.is_from_stream());
        let delivered = &self.report.counters.delivered;
        delivered.add(from_stream.count() as u64);
        Ok(deliveries)
    }

    async fn stop(&mut self) {
        self.buffer.stop();
        join_all(self.slots.iter_mut().map(SlotConsumer::stop)).await;
        if let Some(ownership) = &self.ownership {
            ownership.stop().await;
        }
        let (deliveries, events) = self.buffer.take_rest();
        self.report.counters.events_dropped.add(events as u64);
        // If the releases fail, the leases expire.
        let _ = timeout(self.settings.lease, fetch::release(deliveries)).await;
    }

    async fn close(mut self) -> Result<(), Error> {
        self.stop().await;
        if let Some(ownership) = &self.ownership {
            return ownership.close().await;
        }
        let closed = join_all(self.slots.iter().map(SlotConsumer::close));
        closed.await.into_iter().collect()
    }
}

impl Drop for RedisSource {
    /// Stops the tasks of the source. Deliveries that were not handed out stay pending until their
    /// leases expire.
    fn drop(&mut self) {
        self.buffer.stop();
        self.closed.cancel();
        drop(self.buffer.take_rest());
    }
}

impl fmt::Debug for RedisSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let streams: Vec<_> = self.slots.iter().map(SlotConsumer::streams).collect();
        let streams = streams.iter().flat_map(|it| it.iter());
        let streams: Vec<_> = streams.map(|it| &it.keys.stream).collect();
        f.debug_struct("RedisSource")
            .field("streams", &streams)
            .field("owns_partitions", &self.ownership.is_some())
            .field("group", &self.member.group)
            .field("consumer", &self.member.consumer)
            .finish_non_exhaustive()
    }
}
