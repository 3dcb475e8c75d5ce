//! Consumes the streams of one slot, over connections to its primary.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::{task::JoinHandle, time::timeout};

use super::{
    announcer::MonitorSlot,
    blocked::BlockedRead,
    group::Membership,
    in_flight::InFlightTable,
    key_order::KeyOrder,
    member::Member,
    poison::PoisonSlot,
    prefetch::PrefetchWriter,
    report::Report,
    served_names::ServedNames,
    slot_parts::SlotParts,
    state::ConsumerState,
    streams::{ServedStream, StreamSet},
    upkeep::StopSignals,
    upkeep_connection::UpkeepPipeline,
    woken::SharedReads,
};
use crate::{
    error::Error,
    transport::{
        PartitionTerm, Settings,
        redis::{error, handle::SharedHandle, options::Options, pipeline::Pipeline},
    },
};

/// The consumer of the streams of one slot. On a single server it consumes all streams.
pub(super) struct SlotConsumer {
    lease: Duration,
    address: String,
    streams: Arc<StreamSet>,
    in_flight: Arc<InFlightTable>,
    group: Arc<Membership>,
    blocked: Arc<BlockedRead>,
    /// Keeps the state alive: the handle that reports the state has only a weak reference.
    _state: Arc<ConsumerState>,
    /// The order of the deliveries, if the worker owns this partition.
    order: Option<Arc<KeyOrder>>,
    writer: PrefetchWriter,
    report: Arc<Report>,
    /// The task that fetches; `None` once it was stopped.
    fetch: Option<JoinHandle<()>>,
    stop_signals: StopSignals,
}

/// The parts that all slots of a source share.
pub(super) struct SlotContext<'a> {
    pub(super) member: &'a Arc<Member>,
    pub(super) settings: &'a Settings,
    pub(super) options: &'a Arc<Options>,
    pub(super) shared: &'a SharedHandle,
    pub(super) report: &'a Arc<Report>,
    pub(super) poison: &'a PoisonSlot,
    /// `None` if the worker may serve any name.
    pub(super) names: Option<&'a Arc<ServedNames>>,
    pub(super) stop_signals: StopSignals,
    pub(super) monitor: &'a MonitorSlot,
    /// The connections that the slots or partitions of the source share. `None` if there is only
    /// one slot.
    pub(super) pipelines: Option<&'a SharedPipelines>,
    /// The term in which the worker owns the partition that it serves here. `None` if the stream is
    /// not an owned partition.
    pub(super) term: Option<PartitionTerm>,
}

/// Connections for all slots of a cluster, or for all partitions that a worker owns: one to each
/// primary in use.
#[derive(Clone)]
pub(super) struct SharedPipelines {
    /// For settlements, scans and recoveries.
    pub(super) settling: Pipeline,
    /// For the upkeep. Made on the runtime of the upkeep's thread.
    pub(super) upkeep: UpkeepPipeline,
    /// For the reads. `None` if each slot or partition has a separate read connection.
    pub(super) reads: Option<SharedReads>,
}

impl SharedPipelines {
    pub(super) fn new(shared: &SharedHandle, reads: Option<SharedReads>) -> Self {
        let counters = shared.counters.clone();
        Self {
            settling: Pipeline::spawn(shared.connector.clone(), None, counters),
            upkeep: UpkeepPipeline::default(),
            reads,
        }
    }
}

impl SlotConsumer {
    /// Connects, joins the group and starts to consume these streams. Fails if the server is not
    /// ready.
    pub(super) async fn open(
        context: SlotContext<'_>,
        streams: Vec<Arc<ServedStream>>,
        buffer: PrefetchWriter,
    ) -> Result<Self, Error> {
        let mut parts = SlotParts::connect(context, streams, buffer).await?;
        // Joins the group on all streams before their entries are read.
        parts.group.join_streams(&parts.streams.all()).await?;
        let changes = parts.start_upkeep()?;
        let follow_ups = parts.start_follow_ups();
        let (settler, policy) = parts.start_settling(follow_ups);
        let fetch = parts.fetch(changes, settler, policy);
        parts.add_to_handle();
        Ok(Self {
            fetch: Some(tokio::spawn(fetch.run())),
            lease: parts.context.settings.lease,
            report: parts.context.report.clone(),
            stop_signals: parts.context.stop_signals,
            address: parts.connector.address(),
            streams: parts.streams,
            in_flight: parts.in_flight,
            group: parts.group,
            blocked: parts.blocked,
            order: parts.order,
            writer: parts.buffer,
            _state: parts.state,
        })
    }

    /// Ends a blocked read, and waits until the fetch has ended. The caller must stop the buffer
    /// first.
    pub(super) async fn stop(&mut self) {
        if let Some(mut fetch) = self.fetch.take() {
            tokio::select! {
                biased;
                _ = &mut fetch => {}
                never = self.blocked.end() => match never {},
            }
        }
    }

    /// Stops only the fetch of this consumer, and waits until it has ended.
    pub(super) async fn stop_fetching(&mut self) {
        self.writer.stop();
        self.stop().await;
    }

    /// Starts no further deliveries of an owned partition, and waits until the running ones have
    /// ended. Does nothing for other streams.
    pub(super) async fn drain(&self) {
        if let Some(order) = &self.order {
            order.drain().await;
        }
    }

    /// Starts no further deliveries of an owned partition, and drops those that have not started.
    /// Does nothing for other streams.
    pub(super) fn end_order(&self) {
        if let Some(order) = &self.order {
            order.end();
        }
    }

    /// Returns `true` if the order of an owned partition is broken. The partition then needs
    /// another term.
    pub(super) fn is_order_broken(&self) -> bool {
        self.order.as_ref().is_some_and(|order| order.is_broken())
    }

    /// Ends the consumer without waiting. Its running deliveries lose their leases.
    pub(super) fn abandon(&self) {
        self.writer.stop();
        self.end_order();
        self.stop_signals.closed.cancel();
        for (key, lease) in self.in_flight.lose_all() {
            let message = "a delivery was lost with its partition";
            self.report.lost(key.1, || lease.lose(), message);
        }
    }

    /// Waits until each delivery with a verdict is settled, stops the upkeep, and leaves the group.
    pub(super) async fn close(&self) -> Result<(), Error> {
        // Waits no longer than a lease, since all leases have expired by then.
        let settled = timeout(self.lease, self.in_flight.all_settled()).await;
        if settled.is_err() {
            return Err(error::unanswered(&self.address));
        }
        self.stop_signals.leaving.cancel();
        let _ = timeout(self.lease, self.stop_signals.ended.cancelled()).await;
        let streams = self.streams.all();
        let left = join_all(streams.iter().map(|stream| self.group.leave(stream)));
        left.await.into_iter().collect()
    }

    pub(super) fn streams(&self) -> Arc<[Arc<ServedStream>]> {
        self.streams.all()
    }
}
