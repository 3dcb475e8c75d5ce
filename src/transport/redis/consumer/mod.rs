//! The serving half: a consumer of the group, and a subscriber to events.
//!
//! A [`RedisSource`] reads the stream and the group's retry stream over a separate connection, and
//! only as much as it is asked for. A thread renews the leases of fetched deliveries until they are
//! settled. A dead worker renews nothing, so another worker claims its deliveries.
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
//! A read is never cancelled, since it may have claimed entries: a task reads for `next`. What
//! arrives after a `next` was dropped is kept for the following call or released.
//!
//! # Delivery guarantee
//! A settlement is one atomic step on the server. It takes effect only if the entry is still
//! pending for this consumer, so a late or repeated verdict changes nothing. The exception is the
//! verdict *done*: the first worker to finish acknowledges the entry and replies.

mod alarm;
mod canary;
mod claim;
mod clock;
mod deliver;
mod events;
mod fetch;
mod group;
mod health;
mod in_flight;
mod lease;
mod maintenance;
mod member;
mod poison;
mod prefetch;
#[cfg(any(test, fuzzing))]
pub(super) mod readers;
mod registry;
mod replies;
mod reply_to;
mod report;
mod settle;
mod settler;
mod state;
mod streams;
mod tick;
mod upkeep;

use std::{
    fmt,
    sync::{Arc, OnceLock, Weak, atomic::Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

pub(super) use self::member::CONSUMER_PREFIX;
pub use self::settle::RedisSettle;
use self::{
    alarm::Alarm,
    canary::Canary,
    claim::Claimer,
    clock::ServerClock,
    deliver::Deliverer,
    events::EventSubscriber,
    fetch::{BlockedRead, Fetch, LastRead, Recovery},
    group::Membership,
    health::RenewalHealth,
    in_flight::InFlightTable,
    lease::LeaseRenewer,
    maintenance::{Maintenance, Turns},
    member::Member,
    poison::PoisonSlot,
    prefetch::PrefetchBuffer,
    registry::{Changes, RegistryReader},
    report::Report,
    settle::SettlePolicy,
    settler::{MAX_ACKNOWLEDGING, MAX_REPLYING, Settler},
    state::ConsumerState,
    streams::{ServedStream, StreamSet},
    upkeep::{Ends, Upkeep},
};
use super::{
    Redis, error,
    keys::Keys,
    pipeline::{Pipeline, Resend},
    rpc::Hub,
    server::{Limit, Outage},
    state::{Beat, Heart},
};
use crate::{
    error::Error,
    transport::{Delivery, Interest, Settings, Source, StreamSchedule, Streams, Transport},
};

/// The deliveries of one consumer on Redis. [`Redis`] opens it.
pub struct RedisSource {
    member: Arc<Member>,
    streams: Arc<StreamSet>,
    settings: Settings,
    address: String,
    report: Arc<Report>,
    buffer: Arc<PrefetchBuffer>,
    in_flight: Arc<InFlightTable>,
    group: Arc<Membership>,
    blocked: Arc<BlockedRead>,
    /// Kept for the handle, which shows it.
    state: Arc<ConsumerState>,
    /// The RPC client of the handle that opened this source. It ends with that handle's last clone,
    /// so the reference is weak.
    rpc: Weak<OnceLock<Arc<Hub>>>,
    /// The task that fetches; `None` if the stream is not read.
    fetch: Option<JoinHandle<()>>,
    ends: Ends,
}

impl Transport for Redis {
    type Source = RedisSource;

    /// Waits while the server is unreachable, not ready, or refuses writes, and logs the cause as a
    /// warning every few seconds. A permanent error is returned at once: a wrong password, a
    /// missing permission, a key of another type.
    async fn open(self, interest: Interest) -> Result<RedisSource, Error> {
        let listed = listed(&self.settings)?;
        // The same member for all attempts, since a failed attempt may leave its consumer in the
        // group.
        let group = self.settings.group.clone();
        let member = Arc::new(Member::new(group, self.settings.lease));
        let mut outage = Outage::default();
        loop {
            let streams = served(&listed);
            let attempt = self.clone().attempt(&interest, member.clone(), streams);
            match attempt.await {
                Err(error) if error::is_temporary(&error) => {
                    let address = self.shared.connector.address();
                    outage.refused(address, "begin to serve", &error);
                    tokio::time::sleep(outage.wait()).await;
                }
                opened => return opened.inspect(|_| outage.answered()),
            }
        }
    }
}

/// The keys and weights of the streams that the settings list; empty if the streams come from a
/// registry.
fn listed(settings: &Settings) -> Result<Vec<(Keys, u32)>, Error> {
    let group = &settings.group;
    settings
        .streams
        .as_ref()
        .map_or(Ok(()), Streams::validate)?;
    if let Some(registry) = settings.served_registry() {
        // Only to check the names: the registry's as if it were a stream's.
        Keys::new(registry, group)?;
    }
    let listed = settings.listed_streams().into_iter();
    let keys = listed.map(|(stream, weight)| Ok((Keys::new(&stream, group)?, weight)));
    keys.collect()
}

fn served(listed: &[(Keys, u32)]) -> Vec<Arc<ServedStream>> {
    let streams = listed.iter().zip(0..);
    let streams = streams
        .map(|((keys, weight), index)| Arc::new(ServedStream::new(index, keys.clone(), *weight)));
    streams.collect()
}

impl Redis {
    /// Opens a source if the server is ready for it.
    async fn attempt(
        self,
        interest: &Interest,
        member: Arc<Member>,
        streams: Vec<Arc<ServedStream>>,
    ) -> Result<RedisSource, Error> {
        let Redis {
            settings,
            options,
            shared,
            rpc,
        } = self;
        let (connector, counters) = (shared.connector.clone(), shared.counters.clone());
        let first = connector.checked().await?;
        let pipeline = Pipeline::spawn(connector.clone(), Some(first), counters.clone());
        let time = pipeline.command(redis::cmd("TIME"), Resend::Never).await?;
        let clock = Arc::new(ServerClock::new(time)?);

        let ends = Ends::default();
        let report = Arc::new(Report::new(counters.clone(), settings.max_dead_letters));
        let in_flight = Arc::<InFlightTable>::default();
        let buffer = Arc::new(PrefetchBuffer::new(settings.event_buffer));
        let group = Arc::new(Membership {
            member: member.clone(),
            pipeline: pipeline.clone(),
            start: settings.start.clone(),
            knows_unknown_names: settings.unknown_names.is_some(),
        });
        let state = Arc::new(ConsumerState {
            member: member.clone(),
            pipeline: pipeline.clone(),
            health: Arc::default(),
            reads: interest.stream,
            reading: Arc::new(Beat::default()),
            subscription_lost: Default::default(),
            closed: ends.closed.clone(),
        });
        let heart: Weak<dyn Heart> = Arc::<ConsumerState>::downgrade(&state);
        shared.hearts.add(heart);
        let mut source = RedisSource {
            member: member.clone(),
            streams: Arc::default(),
            address: connector.address().to_owned(),
            report: report.clone(),
            buffer: buffer.clone(),
            in_flight: in_flight.clone(),
            group: group.clone(),
            blocked: Arc::new(BlockedRead::new(pipeline.clone(), member.interval())),
            state: state.clone(),
            rpc: Arc::downgrade(&rpc),
            fetch: None,
            ends: ends.clone(),
            settings: settings.clone(),
        };

        if !interest.events.is_empty() || !interest.patterns.is_empty() {
            let prefix = &options.event_prefix;
            let subscriber =
                EventSubscriber::new(connector.clone(), counters.clone(), interest, prefix);
            let first = subscriber.subscribe().await?;
            let (buffer, state) = (buffer.clone(), state.clone());
            let on_event_gap = options.on_event_gap.clone();
            let offer = move |events: &mut Vec<_>| buffer.offer(events);
            let gap = move |gap: Option<Duration>| {
                let lost = &state.subscription_lost;
                lost.store(gap.is_none(), Ordering::Relaxed);
                if let Some(gap) = gap {
                    on_event_gap.call(gap);
                }
            };
            tokio::spawn(subscriber.run(first, ends.closed.clone(), offer, gap));
        }
        // Without a fetch, `next` need not ask the stream first.
        buffer.set_reading(!interest.stream);
        if !interest.stream {
            return Ok(source);
        }
        group.join_all(&streams).await?;
        let policy = settings.streams.as_ref().map(|set| set.policy);
        let schedule = StreamSchedule::new(policy.unwrap_or_default());
        let streams = Arc::new(StreamSet::new(streams));
        source.streams = streams.clone();
        let registered = settings.served_registry();
        let registered = registered.map(|registry| (registry, Arc::<Changes>::default()));
        let registry = registered.as_ref().map(|(registry, changes)| {
            let blocked = source.blocked.clone();
            RegistryReader::new(registry, streams.clone(), changes.clone(), blocked)
        });
        let changes = registered.map(|(_, changes)| changes);

        let health: Arc<RenewalHealth> = state.health.clone();
        let due = Arc::new(Alarm::default());
        let poison = PoisonSlot::default();
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
            due: due.clone(),
            buffer: buffer.clone(),
            trim_beside_foreign: options.trim_beside_foreign,
            foreign_lease: options.foreign_lease,
            turns: Turns::default(),
        };
        let upkeep = Upkeep {
            member: member.clone(),
            connector: connector.clone(),
            counters,
            renewer,
            maintenance,
            due: due.clone(),
            registry,
            canary: Canary::start(options.stall_limit, ends.closed.clone()),
            warnings: Limit::default(),
            outage: Outage::default(),
            ends: ends.clone(),
        };
        upkeep.start()?;

        let (queue, settlements) = mpsc::unbounded_channel();
        let (replies, with_replies) = mpsc::unbounded_channel();
        let settler = Arc::new(Settler::new(
            member.clone(),
            pipeline.clone(),
            in_flight.clone(),
            report.clone(),
            due,
            settings.max_dead_letters,
            ends.closed.clone(),
        ));
        tokio::spawn(settler.clone().run(settlements, MAX_ACKNOWLEDGING));
        tokio::spawn(settler.clone().run(with_replies, MAX_REPLYING));
        let last_read = Arc::<LastRead>::default();
        let policy = SettlePolicy {
            max_deliveries: settings.max_deliveries,
            backoff: settings.backoff,
            allowed_reply_prefixes: options.allowed_reply_prefixes.clone(),
            report: report.clone(),
            queue,
            replies,
            last_read: last_read.clone(),
        };
        let deliverer = Deliverer {
            streams: streams.clone(),
            in_flight: in_flight.clone(),
            clock: clock.clone(),
            poison: poison.clone(),
            settle: Arc::new(policy),
            report: report.clone(),
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
            allowed_reply_prefixes: options.allowed_reply_prefixes.clone(),
        };
        let recovery = Recovery::new(
            member.clone(),
            streams.clone(),
            pipeline.clone(),
            in_flight,
            report.clone(),
        );
        let fetch = Fetch::new(fetch::FetchParts {
            member,
            streams,
            schedule,
            changes,
            connector,
            group,
            buffer,
            deliverer,
            claimer,
            recovery,
            settler,
            last_read,
            report,
            clock,
            pipeline,
            reading: state.reading.clone(),
            blocked: source.blocked.clone(),
            max_in_flight: settings.max_in_flight,
            closed: ends.closed,
        });
        source.fetch = Some(tokio::spawn(fetch.run()));
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
        hub.and_then(|hub| Some(hub.get()?.waiting())).unwrap_or(0)
    }

    async fn next(&mut self, max: usize) -> Result<Vec<Delivery<RedisSettle>>, Error> {
        let deliveries = self.buffer.take(max).await;
        let from_stream = deliveries
            .iter()
            .filter(|delivery| delivery.settle.is_owed());
        let delivered = &self.report.counters.delivered;
        delivered.add(from_stream.count() as u64);
        Ok(deliveries)
    }

    async fn stop(&mut self) {
        self.buffer.stop();
        if let Some(mut fetch) = self.fetch.take() {
            tokio::select! {
                biased;
                _ = &mut fetch => {}
                never = self.blocked.end() => match never {},
            }
        }
        let (deliveries, events) = self.buffer.rest();
        self.report.counters.events_dropped.add(events as u64);
        // Without a server the leases expire.
        let _ = timeout(self.settings.lease, fetch::give_back(deliveries)).await;
    }

    async fn close(mut self) -> Result<(), Error> {
        self.stop().await;
        // After that time the leases have expired anyway.
        let settled = timeout(self.settings.lease, self.in_flight.all_settled()).await;
        if settled.is_err() {
            return Err(error::unanswered(&self.address));
        }
        if self.state.reads {
            self.ends.leaving.cancel();
            let ended = self.ends.ended.cancelled();
            let _ = timeout(self.settings.lease, ended).await;
            let streams = self.streams.all();
            let left = join_all(streams.iter().map(|stream| self.group.leave(stream)));
            left.await.into_iter().collect::<Result<(), _>>()?;
        }
        Ok(())
    }
}

impl Drop for RedisSource {
    /// Stops the tasks of the source. Deliveries that were not handed out stay pending until their
    /// leases expire.
    fn drop(&mut self) {
        self.buffer.stop();
        self.ends.closed.cancel();
        drop(self.buffer.rest());
    }
}

impl fmt::Debug for RedisSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let streams = self.streams.all();
        let streams: Vec<_> = streams.iter().map(|it| &it.keys.stream).collect();
        f.debug_struct("RedisSource")
            .field("streams", &streams)
            .field("group", &self.member.group)
            .field("consumer", &self.member.consumer)
            .finish_non_exhaustive()
    }
}
