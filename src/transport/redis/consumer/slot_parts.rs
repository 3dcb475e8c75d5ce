//! Makes the parts of a slot's consumer, each with only what it uses.

use std::sync::{Arc, Weak};

use tokio::sync::{Notify, mpsc};

use super::{
    announcer::Announcer,
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
    in_flight::InFlightTable,
    key_order::{KeyOrder, KeyOrderParts},
    last_read::LastRead,
    lease::LeaseRenewer,
    maintenance::{Maintenance, StepSchedule},
    pause::PauseSignal,
    prefetch::PrefetchWriter,
    registry::{RegistryChanges, RegistryReader},
    served_names::NameRecorder,
    settle::SettlePolicy,
    settle_queue::{MAX_ACKNOWLEDGING_BATCHES, MAX_REPLYING_BATCHES, carry_out},
    settler::Settler,
    slot_consumer::{SharedPipelines, SlotContext},
    state::ConsumerState,
    streams::{ServedStream, StreamSet},
    task_notes::TaskRecords,
    task_starter::TaskStarter,
    upkeep::Upkeep,
    woken::WokenReader,
};
use crate::{
    error::Error,
    transport::{
        StreamSchedule,
        redis::{
            Redis,
            handle::SharedHandle,
            keys,
            pipeline::{Pipeline, Resend},
            server::{Connector, LogLimit, Outage},
            source_state::{Heartbeat, SourceState},
        },
    },
};

/// The parts of a slot's consumer that its other parts share.
pub(super) struct SlotParts<'a> {
    pub(super) context: SlotContext<'a>,
    pub(super) connector: Connector,
    /// The connection for settlements, scans and recoveries.
    pipeline: Pipeline,
    pub(super) streams: Arc<StreamSet>,
    pub(super) buffer: PrefetchWriter,
    pub(super) in_flight: Arc<InFlightTable>,
    pub(super) group: Arc<Membership>,
    pub(super) blocked: Arc<BlockedRead>,
    pub(super) state: Arc<ConsumerState>,
    /// The order of the deliveries, if the worker owns this partition.
    pub(super) order: Option<Arc<KeyOrder>>,
    /// Reads over a connection that several slots share. `None` if this slot has a separate one.
    woken: Option<WokenReader>,
    clock: Arc<ServerClock>,
    pauses: Arc<PauseSignal>,
    due_timers: Arc<DueTimers>,
}

impl<'a> SlotParts<'a> {
    /// Connects to the primary of these streams. Fails if the server is not ready.
    pub(super) async fn connect(
        context: SlotContext<'a>,
        streams: Vec<Arc<ServedStream>>,
        buffer: PrefetchWriter,
    ) -> Result<Self, Error> {
        let SlotContext {
            member, settings, ..
        } = context;
        // Only a worker that serves a registry may start without streams, and no worker serves a
        // registry on a cluster.
        let connector = match streams.first() {
            Some(first) => context.shared.connector.for_key(&first.keys.stream_key),
            None => context.shared.connector.clone(),
        };
        let reads = context.pipelines.and_then(|shared| shared.reads.as_ref());
        let pipeline = match (context.pipelines, streams.first()) {
            (Some(pipelines), Some(stream)) => {
                // With shared reads, the source has already checked each node.
                if reads.is_none() {
                    connector.checked_connection().await?;
                }
                pipelines.settling.for_key(&stream.keys.stream_key)
            }
            _ => {
                let checked = connector.checked_connection().await?;
                let counters = context.shared.counters.clone();
                Pipeline::spawn(connector.clone(), Some(checked), counters)
            }
        };
        let woken = reads.map(|reads| reads.reader(&streams, settings.lease));
        if let Some(woken) = &woken {
            buffer.put_and_expect(Vec::new(), woken.expected());
        }
        let time = pipeline.command(redis::cmd("TIME"), Resend::Never).await?;
        let group = Membership {
            member: member.clone(),
            pipeline: pipeline.clone(),
            start: settings.start.clone(),
            has_unknown_names_policy: settings.unknown_names.is_some(),
            names: context.names.cloned(),
        };
        let state = ConsumerState {
            member: member.clone(),
            pipeline: pipeline.clone(),
            health: Arc::default(),
            read_heartbeat: Arc::new(Heartbeat::default()),
            closed: context.stop_signals.closed.clone(),
        };
        let blocked = Arc::new(BlockedRead::new(pipeline.clone(), member.interval()));
        let order = context.term.map(|term| {
            KeyOrder::new(KeyOrderParts {
                term,
                member: member.clone(),
                pipeline: pipeline.clone(),
                report: context.report.clone(),
                buffer: buffer.clone(),
                max_waiting: settings.max_in_flight,
            })
        });
        Ok(Self {
            connector,
            pipeline,
            streams: Arc::new(StreamSet::new(streams)),
            buffer,
            in_flight: Arc::default(),
            group: Arc::new(group),
            pauses: Arc::new(PauseSignal::new(blocked.clone())),
            blocked,
            state: Arc::new(state),
            order,
            woken,
            clock: Arc::new(ServerClock::new(time)?),
            due_timers: Arc::default(),
            context,
        })
    }

    /// Starts the upkeep, which renews the leases, and maintains the streams and the group.
    /// Returns where the upkeep puts the changes of the streams in a registry, and `None` if the
    /// settings list the streams.
    pub(super) fn start_upkeep(&self) -> Result<Option<Arc<RegistryChanges>>, Error> {
        let SlotContext {
            member,
            settings,
            options,
            shared,
            report,
            ref stop_signals,
            ..
        } = self.context;
        let health = &self.state.health;
        let registry = settings.served_registry().map(|registry| {
            let key = keys::registry(&options.namespace, registry);
            let changes = Arc::<RegistryChanges>::default();
            let reader = RegistryReader::new(
                key,
                self.streams.clone(),
                changes.clone(),
                self.blocked.clone(),
            );
            (reader, changes)
        });
        let (registry, changes) = registry.unzip();
        let renewer = LeaseRenewer {
            member: member.clone(),
            streams: self.streams.clone(),
            in_flight: self.in_flight.clone(),
            health: health.clone(),
            report: report.clone(),
        };
        let maintenance = Maintenance {
            member: member.clone(),
            streams: self.streams.clone(),
            health: health.clone(),
            report: report.clone(),
            clock: self.clock.clone(),
            due_timers: self.due_timers.clone(),
            buffer: self.buffer.buffer().clone(),
            trim_beside_foreign: options.trim_beside_foreign,
            foreign_lease: options.foreign_lease,
            pauses: self.pauses.clone(),
            schedule: StepSchedule::default(),
            announcer: Announcer::new(
                self.context.monitor.clone(),
                shared.connector.topology_name(),
            ),
        };
        let pipelines = self.context.pipelines;
        let upkeep = Upkeep {
            member: member.clone(),
            connector: self.connector.clone(),
            pipeline: pipelines
                .map(|shared| shared.upkeep.clone())
                .unwrap_or_default(),
            counters: shared.counters.clone(),
            renewer,
            maintenance,
            due_timers: self.due_timers.clone(),
            registry,
            names: self.context.names.cloned().map(NameRecorder::new),
            canary: Canary::start(options.stall_limit, stop_signals.closed.clone()),
            stall_warnings: LogLimit::default(),
            outage: Outage::default(),
            stop_signals: stop_signals.clone(),
        };
        upkeep.start()?;
        Ok(changes)
    }

    /// Returns what sends follow-ups. On a cluster, starts the task that forwards them to the
    /// primaries of their streams.
    pub(super) fn start_follow_ups(&self) -> Arc<FollowUpContext> {
        let SlotContext {
            settings,
            options,
            shared,
            pipelines,
            ..
        } = self.context;
        // Sends over the connections of this source, so that the source keeps none of the handle's
        // connections open.
        let sending = match pipelines {
            _ if !shared.connector.is_cluster() => self.pipeline.clone(),
            Some(SharedPipelines { settling, .. }) => settling.clone(),
            None => Pipeline::spawn(shared.connector.clone(), None, shared.counters.clone()),
        };
        let counters = shared.counters.clone();
        let handle = SharedHandle::new(shared.connector.clone(), sending, counters);
        let redis = Redis {
            settings: settings.clone(),
            options: options.clone(),
            shared: Arc::new(handle),
            rpc: Arc::default(),
        };
        let forwards = Arc::<Notify>::default();
        if shared.connector.is_cluster() {
            let forwarder = Forwarder {
                redis: redis.clone(),
                streams: self.streams.clone(),
                interval: settings.lease,
                warnings: LogLimit::default(),
                closed: self.context.stop_signals.closed.clone(),
            };
            tokio::spawn(forwarder.run(forwards.clone()));
        }
        Arc::new(FollowUpContext { redis, forwards })
    }

    /// Starts the two tasks that carry out settlements, and returns the policy that hands them
    /// over.
    pub(super) fn start_settling(
        &self,
        follow_ups: Arc<FollowUpContext>,
    ) -> (Arc<Settler>, SettlePolicy) {
        let SlotContext {
            member,
            settings,
            options,
            report,
            ..
        } = self.context;
        let settler = Arc::new(Settler::new(
            member.clone(),
            self.pipeline.clone(),
            self.in_flight.clone(),
            report.clone(),
            self.due_timers.clone(),
            follow_ups.clone(),
            self.context.stop_signals.closed.clone(),
        ));
        let (queue, acknowledgements) = mpsc::unbounded_channel();
        let carrying = carry_out(settler.clone(), acknowledgements, MAX_ACKNOWLEDGING_BATCHES);
        tokio::spawn(carrying);
        let (replies, stored_replies) = mpsc::unbounded_channel();
        let carrying = carry_out(settler.clone(), stored_replies, MAX_REPLYING_BATCHES);
        tokio::spawn(carrying);
        let policy = SettlePolicy {
            max_deliveries: settings.max_deliveries,
            backoff: settings.backoff,
            allowed_reply_prefixes: options.allowed_channel_prefixes(),
            report: report.clone(),
            queue,
            replies,
            follow_ups,
            last_read: Arc::<LastRead>::default(),
        };
        (settler, policy)
    }

    /// Returns the fetch. `changes` are those of [`start_upkeep`](Self::start_upkeep).
    pub(super) fn fetch(
        &mut self,
        changes: Option<Arc<RegistryChanges>>,
        settler: Arc<Settler>,
        settle_policy: SettlePolicy,
    ) -> Fetch {
        let SlotContext {
            member,
            settings,
            options,
            report,
            poison,
            ..
        } = self.context;
        let last_read = settle_policy.last_read.clone();
        let deliverer = Deliverer {
            streams: self.streams.clone(),
            in_flight: self.in_flight.clone(),
            clock: self.clock.clone(),
            poison: poison.clone(),
            settle_policy: Arc::new(settle_policy),
            notes: TaskRecords {
                member: member.clone(),
                pipeline: self.pipeline.clone(),
            },
            report: report.clone(),
            order: self.order.clone(),
        };
        let claimer = Claimer {
            member: member.clone(),
            pipeline: self.pipeline.clone(),
            in_flight: self.in_flight.clone(),
            health: self.state.health.clone(),
            poison: poison.clone(),
            report: report.clone(),
            foreign_lease: options.foreign_lease,
            max_deliveries: settings.max_deliveries,
            max_dead_letters: settings.max_dead_letters,
            allowed_reply_prefixes: options.allowed_channel_prefixes(),
        };
        let starter = TaskStarter {
            member: member.clone(),
            pipeline: self.pipeline.clone(),
        };
        let recovery = Recovery::new(
            member.clone(),
            self.streams.clone(),
            self.pipeline.clone(),
            self.in_flight.clone(),
            report.clone(),
        );
        let policy = settings.streams.as_ref().map(|set| set.policy);
        Fetch::new(FetchParts {
            member: member.clone(),
            streams: self.streams.clone(),
            schedule: StreamSchedule::new(policy.unwrap_or_default()),
            changes,
            connector: self.connector.clone(),
            group: self.group.clone(),
            buffer: self.buffer.clone(),
            deliverer,
            starter,
            claimer,
            recovery,
            settler,
            last_read,
            report: report.clone(),
            namespace: options.namespace.clone(),
            clock: self.clock.clone(),
            pipeline: self.pipeline.clone(),
            reading: self.state.read_heartbeat.clone(),
            blocked: self.blocked.clone(),
            woken: self.woken.take(),
            max_in_flight: settings.max_in_flight,
            order: self.order.clone(),
            pauses: self.pauses.clone(),
            in_flight: self.in_flight.clone(),
            group_limit: settings.max_in_flight_of_group,
            closed: self.context.stop_signals.closed.clone(),
        })
    }

    /// Lets the handle report the state of this consumer while the consumer lives.
    pub(super) fn add_to_handle(&self) {
        let state: Weak<dyn SourceState> = Arc::<ConsumerState>::downgrade(&self.state);
        self.context.shared.sources.add(state);
    }
}
