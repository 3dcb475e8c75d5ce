//! Opens a source: subscribes to events, and opens a consumer for each slot, or begins to own
//! partitions.

use std::sync::{Arc, Weak};

use futures_util::{StreamExt, TryStreamExt, future::join_all, stream};
use tokio_util::sync::CancellationToken;

use super::{
    RedisSource,
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
    slots::{ServedSlots, WeightedStreams, by_slot, listed_streams, served_streams},
    state::SubscriptionState,
    streams::ServedStream,
    upkeep::StopSignals,
    woken::SharedReads,
};
use crate::{
    error::Error,
    transport::{
        Interest, Role, Transport,
        redis::{Redis, error, keys::Keys, server::Outage, source_state::SourceState},
    },
};

/// The number of slots that are opened at the same time.
const OPENED_AT_ONCE: usize = 16;

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
            let attempt = self.try_open(&interest, member.clone(), &slots);
            match attempt.await {
                Err(error) if error::is_temporary(&error) => {
                    let address = self.shared.connector.address();
                    outage.record_failed_attempt(&address, "begin to serve", &error);
                    tokio::time::sleep(outage.delay()).await;
                }
                opened => return opened.inspect(|_| outage.record_success()),
            }
        }
    }
}

impl Redis {
    /// Makes one attempt to open a source.
    async fn try_open(
        &self,
        interest: &Interest,
        member: Arc<Member>,
        slots: &ServedSlots,
    ) -> Result<RedisSource, Error> {
        let listed = match interest.stream {
            true => &slots.streams[..],
            false => &[],
        };
        if let Some(partitions) = self.settings.partitions().filter(|_| interest.stream) {
            self.check_partitions(partitions, Role::Worker).await?;
        }
        let owned: Vec<_> = match self.settings.has_owners() {
            true => listed
                .iter()
                .flatten()
                .map(|(keys, _)| keys.clone())
                .collect(),
            false => Vec::new(),
        };
        let fetches = listed.len().max(owned.len());
        let (events, schedule) = (self.settings.event_buffer, slots.schedule());
        let mut source = RedisSource {
            member,
            settings: self.settings.clone(),
            report: Arc::new(Report::new(
                self.shared.counters.clone(),
                self.settings.max_dead_letters,
            )),
            buffer: Arc::new(PrefetchBuffer::new(events, fetches, schedule)),
            slots: Vec::new(),
            ownership: None,
            subscriptions: None,
            rpc: Arc::downgrade(&self.rpc),
            closed: CancellationToken::new(),
            monitor: MonitorSlot::default(),
        };
        if interest.has_events() {
            source.subscribe(self, interest).await?;
        }
        let names = ServedNames::of(interest).map(Arc::new);
        match owned.is_empty() {
            true => {
                let shares_reads = slots.share_reads();
                source.open_slots(self, names, listed, shares_reads).await?;
            }
            false => source.own_partitions(self, names, owned).await?,
        }
        Ok(source)
    }
}

impl RedisSource {
    /// Subscribes to events, over separate connections.
    async fn subscribe(&mut self, redis: &Redis, interest: &Interest) -> Result<(), Error> {
        let Redis {
            options, shared, ..
        } = redis;
        let (closed, counters) = (&self.closed, shared.counters.clone());
        let channels = Arc::new(EventChannels::new(interest, options.event_channel_prefix()));
        let connector = &shared.connector;
        let state = Arc::new(SubscriptionState::new(closed.clone()));
        let sink = EventSink::new(channels.clone(), self.buffer.clone(), counters.clone());
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
        self.subscriptions = Some(state);
        Ok(())
    }

    /// Opens a consumer for each slot.
    async fn open_slots(
        &mut self,
        redis: &Redis,
        names: Option<Arc<ServedNames>>,
        slots: &[WeightedStreams],
        shares_reads: bool,
    ) -> Result<(), Error> {
        let shared = &redis.shared;
        let poison = PoisonSlot::default();
        let reads = (shares_reads && !slots.is_empty()).then(|| SharedReads::new(shared));
        if let Some(reads) = &reads {
            let first = slots.iter().map(|streams| &streams[0].0);
            reads.check(first).await?;
        }
        let pipelines = (slots.len() > 1).then(|| SharedPipelines::new(shared, reads));
        let mut opening = Vec::with_capacity(slots.len());
        for (index, streams) in slots.iter().enumerate() {
            let context = SlotContext {
                member: &self.member,
                settings: &self.settings,
                options: &redis.options,
                shared,
                report: &self.report,
                poison: &poison,
                names: names.as_ref(),
                stop_signals: self.stop_signals(),
                monitor: &self.monitor,
                pipelines: pipelines.as_ref(),
                term: None,
            };
            let writer = PrefetchWriter::new(self.buffer.clone(), index);
            opening.push(SlotConsumer::open(context, served_streams(streams), writer));
        }
        let opened = stream::iter(opening).buffered(OPENED_AT_ONCE);
        self.slots = opened.try_collect().await?;
        Ok(())
    }

    /// Joins the group on all partitions, and begins to own some of them.
    async fn own_partitions(
        &mut self,
        redis: &Redis,
        names: Option<Arc<ServedNames>>,
        owned: Vec<Keys>,
    ) -> Result<(), Error> {
        let Redis {
            options, shared, ..
        } = redis;
        let Some(partitions) = self.settings.partitions() else {
            return Ok(());
        };
        let pipelines = SharedPipelines::new(shared, None);
        // Creates the group on all partitions before this worker owns one, so that errors are
        // returned here.
        let joined = join_all(owned.iter().map(async |keys| {
            let group = Membership {
                member: self.member.clone(),
                pipeline: pipelines.settling.for_key(&keys.stream_key),
                start: self.settings.start.clone(),
                has_unknown_names_policy: self.settings.unknown_names.is_some(),
                names: None,
            };
            let partition = ServedStream::new(0, keys.clone(), 1);
            group.join(&partition).await
        }));
        joined.await.into_iter().collect::<Result<(), _>>()?;
        // The first heartbeat is sent here, too, so that its error is returned.
        let group = &self.member.group;
        let members = Keys::new(&options.namespace, &partitions.stream, group)?.members();
        let connector = shared.connector.for_key(&members);
        let stop_signals = self.stop_signals();
        let mut heartbeats = Heartbeats::new(self.member.clone(), connector, members);
        heartbeats.send_first(&shared.pipeline).await?;
        let parts = OwnershipParts {
            member: self.member.clone(),
            settings: self.settings.clone(),
            options: options.clone(),
            shared: shared.clone(),
            report: self.report.clone(),
            buffer: self.buffer.clone(),
            pipelines: pipelines.clone(),
            names,
            monitor: self.monitor.clone(),
            stop_signals: stop_signals.clone(),
        };
        self.ownership = Some(Ownership::start(parts, owned, heartbeats.members()));
        let canary = Canary::start(options.stall_limit, self.closed.clone());
        heartbeats.start(
            pipelines.upkeep,
            shared.counters.clone(),
            canary,
            stop_signals,
        )
    }

    fn stop_signals(&self) -> StopSignals {
        StopSignals {
            closed: self.closed.clone(),
            ..StopSignals::default()
        }
    }
}
