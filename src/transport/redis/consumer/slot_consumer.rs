//! Consumes the streams of one slot, over connections to its primary.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::timeout,
};

use super::{
    announcer::{Announcer, MonitorSlot},
    blocked::BlockedRead,
    canary::Canary,
    claim::Claimer,
    clock::ServerClock,
    deliver::Deliverer,
    due_timers::DueTimers,
    fetch::{Fetch, FetchParts, Recovery},
    follow_ups::FollowUpContext,
    forward::Forwarder,
    group::Membership,
    health::RenewalHealth,
    in_flight::InFlightTable,
    key_order::{KeyOrder, KeyOrderParts},
    last_read::LastRead,
    lease::LeaseRenewer,
    maintenance::{Maintenance, StepSchedule},
    member::Member,
    pause::PauseSignal,
    poison::PoisonSlot,
    prefetch::PrefetchWriter,
    registry::{RegistryChanges, RegistryReader},
    report::Report,
    served_names::{NameRecorder, ServedNames},
    settle::SettlePolicy,
    settle_queue::{MAX_ACKNOWLEDGING_BATCHES, MAX_REPLYING_BATCHES, carry_out},
    settler::Settler,
    state::ConsumerState,
    streams::{ServedStream, StreamSet},
    task_notes::TaskNotes,
    task_starter::TaskStarter,
    upkeep::{StopSignals, Upkeep},
    upkeep_connection::UpkeepPipeline,
    woken::SharedReads,
};
use crate::{
    error::Error,
    transport::{
        PartitionTerm, Settings, StreamSchedule,
        redis::{
            Redis, error,
            handle::SharedHandle,
            keys,
            options::Options,
            pipeline::{Pipeline, Resend},
            server::{LogLimit, Outage},
            source_state::{Heartbeat, SourceState},
        },
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
        let SlotContext {
            member,
            settings,
            options,
            shared,
            report,
            poison,
            names,
            stop_signals,
            monitor,
            pipelines,
            term,
        } = context;
        let (member, report, poison) = (member.clone(), report.clone(), poison.clone());
        let (writer, own_report) = (buffer.clone(), report.clone());
        let counters = shared.counters.clone();
        // Only a worker that serves a registry may start without streams, and no worker serves a
        // registry on a cluster.
        let connector = match streams.first() {
            Some(first) => shared.connector.for_key(&first.keys.primary),
            None => shared.connector.clone(),
        };
        // The pipeline for settlements, scans and recoveries.
        let reads = pipelines.and_then(|pipelines| pipelines.reads.as_ref());
        let pipeline = match (pipelines, streams.first()) {
            (Some(pipelines), Some(stream)) => {
                // With shared reads, the source has already checked each node.
                if reads.is_none() {
                    connector.checked().await?;
                }
                pipelines.settling.for_key(&stream.keys.primary)
            }
            _ => {
                let first = connector.checked().await?;
                Pipeline::spawn(connector.clone(), Some(first), counters.clone())
            }
        };
        let woken = reads.map(|reads| reads.reader(&streams, settings.lease));
        if let Some(woken) = &woken {
            buffer.put_and_expect(Vec::new(), woken.expected());
        }
        let time = pipeline.command(redis::cmd("TIME"), Resend::Never).await?;
        let clock = Arc::new(ServerClock::new(time)?);
        let in_flight = Arc::<InFlightTable>::default();
        let group = Arc::new(Membership {
            member: member.clone(),
            pipeline: pipeline.clone(),
            start: settings.start.clone(),
            has_unknown_names_policy: settings.unknown_names.is_some(),
            names: names.cloned(),
        });
        let blocked = Arc::new(BlockedRead::new(pipeline.clone(), member.interval()));
        let state = Arc::new(ConsumerState {
            member: member.clone(),
            pipeline: pipeline.clone(),
            health: Arc::default(),
            reading: Arc::new(Heartbeat::default()),
            closed: stop_signals.closed.clone(),
        });
        let pauses = Arc::new(PauseSignal::new(blocked.clone()));
        let address = connector.address();

        // Joins the group on all streams before their entries are read.
        group.join_streams(&streams).await?;
        let policy = settings.streams.as_ref().map(|set| set.policy);
        let schedule = StreamSchedule::new(policy.unwrap_or_default());
        let streams = Arc::new(StreamSet::new(streams));
        let registered = settings.served_registry();
        let registered = registered.map(|registry| (registry, Arc::<RegistryChanges>::default()));
        let registry = registered.as_ref().map(|(registry, changes)| {
            let blocked = blocked.clone();
            let key = keys::registry(&options.namespace, registry);
            RegistryReader::new(key, streams.clone(), changes.clone(), blocked)
        });
        let changes = registered.map(|(_, changes)| changes);

        // The upkeep renews the leases, and maintains the streams and the group.
        let health: Arc<RenewalHealth> = state.health.clone();
        let due_timers = Arc::new(DueTimers::default());
        let renewer = LeaseRenewer {
            member: member.clone(),
            streams: streams.clone(),
            in_flight: in_flight.clone(),
            health: health.clone(),
            report: report.clone(),
        };
        let maintenance = Maintenance {
            member: member.clone(),
            streams: streams.clone(),
            health: health.clone(),
            report: report.clone(),
            clock: clock.clone(),
            due_timers: due_timers.clone(),
            buffer: buffer.buffer().clone(),
            trim_beside_foreign: options.trim_beside_foreign,
            foreign_lease: options.foreign_lease,
            pauses: pauses.clone(),
            schedule: StepSchedule::default(),
            announcer: Announcer::new(monitor.clone(), shared.connector.topology_name()),
        };
        let upkeep = Upkeep {
            member: member.clone(),
            connector: connector.clone(),
            pipeline: pipelines
                .map(|pipelines| pipelines.upkeep.clone())
                .unwrap_or_default(),
            counters,
            renewer,
            maintenance,
            due_timers: due_timers.clone(),
            registry,
            names: names.cloned().map(NameRecorder::new),
            canary: Canary::start(options.stall_limit, stop_signals.closed.clone()),
            warnings: LogLimit::default(),
            outage: Outage::default(),
            stop_signals: stop_signals.clone(),
        };
        upkeep.start()?;

        // Follow-ups are sent over the connections of this source, so that the source keeps none of
        // the handle's connections open.
        let sending = match pipelines {
            _ if !shared.connector.is_cluster() => pipeline.clone(),
            Some(pipelines) => pipelines.settling.clone(),
            None => Pipeline::spawn(shared.connector.clone(), None, shared.counters.clone()),
        };
        let sender = Redis {
            settings: settings.clone(),
            options: options.clone(),
            shared: Arc::new(SharedHandle::new(
                shared.connector.clone(),
                sending,
                shared.counters.clone(),
            )),
            rpc: Arc::default(),
        };
        let forwards = Arc::<Notify>::default();
        if shared.connector.is_cluster() {
            let forwarder = Forwarder {
                redis: sender.clone(),
                streams: streams.clone(),
                interval: settings.lease,
                warnings: LogLimit::default(),
                closed: stop_signals.closed.clone(),
            };
            tokio::spawn(forwarder.run(forwards.clone()));
        }
        let follow_ups = Arc::new(FollowUpContext {
            redis: sender,
            forwards,
        });

        // Two tasks carry out the settlements.
        let (queue, settlements) = mpsc::unbounded_channel();
        let (replies, with_replies) = mpsc::unbounded_channel();
        let settler = Arc::new(Settler::new(
            member.clone(),
            pipeline.clone(),
            in_flight.clone(),
            report.clone(),
            due_timers,
            follow_ups.clone(),
            stop_signals.closed.clone(),
        ));
        tokio::spawn(carry_out(
            settler.clone(),
            settlements,
            MAX_ACKNOWLEDGING_BATCHES,
        ));
        tokio::spawn(carry_out(
            settler.clone(),
            with_replies,
            MAX_REPLYING_BATCHES,
        ));
        let last_read = Arc::<LastRead>::default();
        let policy = SettlePolicy {
            max_deliveries: settings.max_deliveries,
            backoff: settings.backoff,
            allowed_reply_prefixes: options.allowed_channels(),
            report: report.clone(),
            queue,
            replies,
            follow_ups,
            last_read: last_read.clone(),
        };
        // The fetch and its parts.
        let order = term.map(|term| {
            KeyOrder::new(KeyOrderParts {
                term,
                member: member.clone(),
                pipeline: pipeline.clone(),
                report: report.clone(),
                buffer: buffer.clone(),
                max_held: settings.max_in_flight,
            })
        });
        let deliverer = Deliverer {
            streams: streams.clone(),
            in_flight: in_flight.clone(),
            clock: clock.clone(),
            poison: poison.clone(),
            settle_policy: Arc::new(policy),
            notes: TaskNotes {
                member: member.clone(),
                pipeline: pipeline.clone(),
            },
            report: report.clone(),
            order: order.clone(),
        };
        let claimer = Claimer {
            member: member.clone(),
            pipeline: pipeline.clone(),
            in_flight: in_flight.clone(),
            health,
            poison,
            report: report.clone(),
            foreign_lease: options.foreign_lease,
            max_deliveries: settings.max_deliveries,
            max_dead_letters: settings.max_dead_letters,
            allowed_reply_prefixes: options.allowed_channels(),
        };
        let starter = TaskStarter {
            member: member.clone(),
            pipeline: pipeline.clone(),
        };
        let recovery = Recovery::new(
            member.clone(),
            streams.clone(),
            pipeline.clone(),
            in_flight.clone(),
            report.clone(),
        );
        let fetch = Fetch::new(FetchParts {
            member,
            streams: streams.clone(),
            schedule,
            changes,
            connector,
            group: group.clone(),
            buffer,
            deliverer,
            starter,
            claimer,
            recovery,
            settler,
            last_read,
            report,
            namespace: options.namespace.clone(),
            clock,
            pipeline,
            reading: state.reading.clone(),
            blocked: blocked.clone(),
            woken,
            max_in_flight: settings.max_in_flight,
            order: order.clone(),
            pauses,
            in_flight: in_flight.clone(),
            group_limit: settings.max_in_flight_of_group,
            closed: stop_signals.closed.clone(),
        });
        let weak_state: std::sync::Weak<dyn SourceState> = Arc::<ConsumerState>::downgrade(&state);
        shared.sources.add(weak_state);
        Ok(Self {
            lease: settings.lease,
            address,
            streams,
            in_flight,
            group,
            blocked,
            order,
            writer,
            report: own_report,
            _state: state,
            fetch: Some(tokio::spawn(fetch.run())),
            stop_signals,
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
