//! The serving half: a consumer of the group, and a subscriber to events.
//!
//! A [`RedisSource`] reads the streams and the group's retry streams over a separate connection,
//! and fetches only as much as `next` asks for. A thread renews the leases of fetched deliveries
//! until they are settled. The leases of a dead worker expire, and another worker claims its
//! deliveries.
//!
//! This module wires the parts and owns no logic:
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

use futures_util::{StreamExt, TryStreamExt, future::join_all, stream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use self::settle::RedisSettle;
use self::{
    announcer::MonitorSlot,
    canary::Canary,
    event_sink::{EventChannels, EventGaps, EventSink},
    events::EventSubscriber,
    group::Membership,
    heartbeat::Heartbeats,
    member::{KnownVersions, Member},
    ownership::{Ownership, OwnershipParts},
    poison::PoisonSlot,
    prefetch::{PrefetchBuffer, PrefetchWriter},
    report::Report,
    served_names::ServedNames,
    sharded::ShardSubscriber,
    slot_consumer::{SharedPipelines, SlotConsumer, SlotContext},
    state::SubscriptionState,
    streams::ServedStream,
    upkeep::StopSignals,
    woken::SharedReads,
};
use super::{
    Redis, error,
    keys::Keys,
    namespace::Namespace,
    rpc::Hub,
    server::{HashSlot, Outage},
    source_state::SourceState,
};
use crate::{
    error::Error,
    transport::{
        Delivery, Interest, Role, Settings, Source, StreamPolicy, StreamSchedule, Streams,
        Transport, WorkerMonitor,
    },
};

/// The source of [`Redis`]: the deliveries of one consumer.
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

impl Transport for Redis {
    type Source = RedisSource;

    /// Opens a source. Waits while the server is unreachable, not ready, or refuses writes, and
    /// logs the cause as a warning every few seconds. Returns a permanent error immediately, such
    /// as a wrong password, a missing permission, or a key of another type.
    async fn open(self, interest: Interest) -> Result<RedisSource, Error> {
        let listed = listed_streams(&self.options.namespace, &self.settings)?;
        let owns = self.settings.has_owners();
        let slots = match self.shared.connector.is_cluster() && !owns {
            true => by_slot(&self.settings, listed)?,
            false => ServedSlots::one(listed),
        };
        // All attempts use one member, since a failed attempt may leave its consumer in the group.
        let (group, lease) = (self.settings.group.clone(), self.settings.lease);
        let member = Arc::new(Member::new(group, lease, KnownVersions::of(&interest)));
        let mut outage = Outage::default();
        loop {
            let attempt = self.clone().try_open(&interest, member.clone(), &slots);
            match attempt.await {
                Err(error) if error::is_temporary(&error) => {
                    let address = self.shared.connector.address();
                    outage.failed(&address, "begin to serve", &error);
                    tokio::time::sleep(outage.wait()).await;
                }
                opened => return opened.inspect(|_| outage.succeeded()),
            }
        }
    }
}

/// The streams of one slot, with their weights.
type SlotStreams = Vec<(Keys, u32)>;

/// Checks the settings of the streams, and returns the keys and weights of the listed streams.
/// Empty if the streams come from a registry.
fn listed_streams(namespace: &Namespace, settings: &Settings) -> Result<SlotStreams, Error> {
    let group = &settings.group;
    settings
        .streams
        .as_ref()
        .map_or(Ok(()), Streams::validate)?;
    if let Some(registry) = settings.served_registry() {
        // Checks the registry's name by the rules for the names of streams.
        Keys::new(namespace, registry, group)?;
    }
    let listed = settings.listed_streams().into_iter();
    let keys = listed.map(|(stream, weight)| Ok((Keys::new(namespace, &stream, group)?, weight)));
    keys.collect()
}

/// The maximum number of cluster slots that one worker serves. Bounded, since the upkeep calls a
/// script on each slot at least once a second.
const MAX_SLOTS: usize = 1024;
/// Up to this number of slots, a worker reads each slot over a separate connection. With more
/// slots, all of them share read connections.
const MAX_BLOCKED_SLOTS: usize = 64;
/// The number of slots that are opened at the same time.
const OPENED_AT_ONCE: usize = 16;

/// The streams of each consumer of a source.
struct ServedSlots {
    streams: Vec<SlotStreams>,
    /// The order between streams of several slots. `None` if they take turns.
    policy: Option<StreamPolicy>,
}

impl ServedSlots {
    /// Makes one slot of streams that one command can read.
    fn one(streams: SlotStreams) -> Self {
        Self {
            streams: vec![streams],
            policy: None,
        }
    }

    /// Makes the schedule between the slots. `None` if they take turns.
    fn schedule(&self) -> Option<StreamSchedule> {
        let mut schedule = StreamSchedule::new(self.policy?);
        for (streams, number) in self.streams.iter().zip(0..) {
            schedule.add(number, streams.iter().map(|(_, weight)| *weight).sum());
        }
        Some(schedule)
    }

    /// Returns `true` if the slots share the connections that read them.
    fn share_reads(&self) -> bool {
        self.policy.is_some() || self.streams.len() > MAX_BLOCKED_SLOTS
    }
}

/// Groups the streams by their slots on a cluster, since no command reads several slots. Streams
/// with priorities stay together only if they are neighbours in the list. Streams with weights stay
/// together only if all streams are in one slot.
fn by_slot(settings: &Settings, listed: SlotStreams) -> Result<ServedSlots, Error> {
    if let Some(registry) = settings.served_registry() {
        return Err(Error::config(format!(
            "the streams of the registry `{registry}` cannot be served on a Redis Cluster, since \
             they may be in any slot; list the streams, or give each a worker"
        )));
    }
    let slot_of = |(keys, _): &(Keys, u32)| HashSlot::of(keys.primary.as_bytes());
    let is_one_slot = listed
        .windows(2)
        .all(|pair| slot_of(&pair[0]) == slot_of(&pair[1]));
    if is_one_slot {
        return Ok(ServedSlots::one(listed));
    }
    let set = settings.streams.as_ref();
    let policy = set.filter(|set| !set.is_in_turn()).map(|set| set.policy);
    let mut slots: Vec<(HashSlot, SlotStreams)> = Vec::new();
    for stream in listed {
        let slot = slot_of(&stream);
        let found = match policy {
            None => slots.iter_mut().find(|(known, _)| *known == slot),
            Some(StreamPolicy::Strict) => slots.last_mut().filter(|(last, _)| *last == slot),
            Some(StreamPolicy::Weighted) => None,
        };
        match found {
            Some((_, streams)) => streams.push(stream),
            None => slots.push((slot, vec![stream])),
        }
    }
    if slots.len() > MAX_SLOTS {
        return Err(Error::config(format!(
            "the streams are in {} slots of the Redis Cluster, and one worker serves at most \
             {MAX_SLOTS}; divide them among several workers, or give their names common hash tags",
            slots.len()
        )));
    }
    let streams = slots.into_iter().map(|(_, streams)| streams).collect();
    Ok(ServedSlots { streams, policy })
}

/// Makes the served streams of a slot. The index of each is its position in the list.
fn served_streams(listed: &SlotStreams) -> Vec<Arc<ServedStream>> {
    let streams = listed.iter().zip(0..);
    let streams = streams
        .map(|((keys, weight), index)| Arc::new(ServedStream::new(index, keys.clone(), *weight)));
    streams.collect()
}

impl Redis {
    /// Makes one attempt to open a source.
    async fn try_open(
        self,
        interest: &Interest,
        member: Arc<Member>,
        slots: &ServedSlots,
    ) -> Result<RedisSource, Error> {
        let redis = self.clone();
        let Redis {
            settings,
            options,
            shared,
            rpc,
        } = self;
        let slot_streams = match interest.stream {
            true => &slots.streams[..],
            false => &[],
        };
        if let Some(partitions) = settings.partitions().filter(|_| interest.stream) {
            redis.check_partitions(partitions, Role::Worker).await?;
        }
        let counters = shared.counters.clone();
        let report = Arc::new(Report::new(counters.clone(), settings.max_dead_letters));
        let owned: Vec<_> = match settings.has_owners() {
            true => slot_streams
                .iter()
                .flatten()
                .map(|(keys, _)| keys.clone())
                .collect(),
            false => Vec::new(),
        };
        let by_slot = match owned.is_empty() {
            true => slot_streams,
            false => &[],
        };
        let fetches = by_slot.len().max(owned.len());
        let (events, schedule) = (settings.event_buffer, slots.schedule());
        let buffer = Arc::new(PrefetchBuffer::new(events, fetches, schedule));
        let closed = CancellationToken::new();
        let mut source = RedisSource {
            member,
            settings,
            report,
            buffer,
            slots: Vec::new(),
            ownership: None,
            subscriptions: None,
            rpc: Arc::downgrade(&rpc),
            closed: closed.clone(),
            monitor: MonitorSlot::default(),
        };
        // Events come over separate connections.
        if interest.has_events() {
            let channels = Arc::new(EventChannels::new(interest, options.event_channels()));
            let connector = &shared.connector;
            let state = Arc::new(SubscriptionState::new(closed.clone()));
            let sink = EventSink::new(channels.clone(), source.buffer.clone(), counters.clone());
            let gaps = EventGaps::new(state.clone(), counters, options.on_event_gap.clone());
            if let Some(subscriber) = EventSubscriber::new(connector.clone(), channels.clone()) {
                let first = subscriber.subscribe().await?;
                let (sink, gaps) = (sink.clone(), gaps.clone());
                tokio::spawn(subscriber.run(first, sink, gaps, closed.clone()));
            }
            if let Some(subscriber) = ShardSubscriber::new(connector.clone(), &channels) {
                let first = subscriber.subscribe().await?;
                tokio::spawn(subscriber.run(first, sink, gaps, closed.clone()));
            }
            let of_source: Weak<dyn SourceState> = Arc::<SubscriptionState>::downgrade(&state);
            shared.sources.add(of_source);
            source.subscriptions = Some(state);
        }
        // Opens a consumer for each slot.
        let names = ServedNames::of(interest).map(Arc::new);
        let poison = PoisonSlot::default();
        let shares_reads = slots.share_reads() && !by_slot.is_empty();
        let reads = shares_reads.then(|| SharedReads::new(&shared));
        if let Some(reads) = &reads {
            let first = by_slot.iter().map(|streams| &streams[0].0);
            reads.check(first).await?;
        }
        let has_several = fetches > 1 || !owned.is_empty();
        let pipelines = has_several.then(|| SharedPipelines::new(&shared, reads));
        let mut opening = Vec::with_capacity(by_slot.len());
        for (index, streams) in by_slot.iter().enumerate() {
            let context = SlotContext {
                member: &source.member,
                settings: &source.settings,
                options: &options,
                shared: &shared,
                report: &source.report,
                poison: &poison,
                names: names.as_ref(),
                stop_signals: StopSignals {
                    closed: closed.clone(),
                    ..StopSignals::default()
                },
                monitor: &source.monitor,
                pipelines: pipelines.as_ref(),
                term: None,
            };
            let writer = PrefetchWriter::new(source.buffer.clone(), index);
            opening.push(SlotConsumer::open(context, served_streams(streams), writer));
        }
        let opened = stream::iter(opening).buffered(OPENED_AT_ONCE);
        source.slots = opened.try_collect().await?;
        let partitions = source.settings.partitions().filter(|_| !owned.is_empty());
        if let Some((partitions, pipelines)) = partitions.zip(pipelines) {
            // Creates the group on all partitions before this worker owns one, so that errors are
            // returned here.
            let joined = join_all(owned.iter().map(async |keys| {
                let group = Membership {
                    member: source.member.clone(),
                    pipeline: pipelines.settling.for_key(&keys.primary),
                    start: source.settings.start.clone(),
                    has_unknown_names_policy: source.settings.unknown_names.is_some(),
                    names: None,
                };
                let partition = ServedStream::new(0, keys.clone(), 1);
                group.join(&partition).await
            }));
            joined.await.into_iter().collect::<Result<(), _>>()?;
            // The first heartbeat is sent here, too, so that its error is returned.
            let group = &source.member.group;
            let members = Keys::new(&options.namespace, &partitions.stream, group)?.members();
            let connector = shared.connector.for_key(&members);
            let stop_signals = StopSignals {
                closed: closed.clone(),
                ..StopSignals::default()
            };
            let mut heartbeats = Heartbeats::new(source.member.clone(), connector, members);
            heartbeats.send_first(&shared.pipeline).await?;
            let parts = OwnershipParts {
                member: source.member.clone(),
                settings: source.settings.clone(),
                options: options.clone(),
                shared: shared.clone(),
                report: source.report.clone(),
                buffer: source.buffer.clone(),
                pipelines: pipelines.clone(),
                names: names.clone(),
                monitor: source.monitor.clone(),
                stop_signals: stop_signals.clone(),
            };
            source.ownership = Some(Ownership::start(parts, owned, heartbeats.members()));
            let canary = Canary::start(options.stall_limit, closed);
            heartbeats.start(
                pipelines.upkeep,
                shared.counters.clone(),
                canary,
                stop_signals,
            )?;
        }
        Ok(source)
    }
}

impl Source for RedisSource {
    type Settle = RedisSettle;

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

    async fn next(&mut self, max: usize) -> Result<Vec<Delivery<RedisSettle>>, Error> {
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
