//! The serving half: a source of deliveries, and the right to settle a delivery.

use std::{future::pending, sync::Arc};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{
    broker::Broker,
    clock::EntryId,
    group::{self, DeliveryNumber, SourceNumber, TakenDelivery},
    observer::{MessageEvent, ObservedDelivery, ObservedMessage},
    tasks::MemoryRecord,
};
use crate::{
    error::Error,
    message::{Attempt, Deadline, Message, MessageId, Name},
    transport::{
        Delivery, Interest, Role, Settings, SettleDelivery, Source, StreamSchedule, Undecodable,
        Verdict, WorkerMonitor, codec, owned_by_others_text,
    },
};

/// The [`Source`] of [`Memory`](super::Memory): one worker of a group.
///
/// Dropping the source has the effect of a crash: other workers claim its unsettled deliveries when
/// their leases end, and then own its partitions.
#[derive(Debug)]
pub struct MemorySource {
    broker: Broker,
    settings: Arc<Settings>,
    /// The settings of each stream that this source serves. The index of a stream is its key in the
    /// schedule. Empty if the source serves only events.
    streams: Vec<Arc<Settings>>,
    /// Divides each fetch among the streams.
    schedule: StreamSchedule,
    /// The number of registered streams that this source has already tried to join.
    registry_position: usize,
    consumer: SourceNumber,
    wake: Arc<Notify>,
    /// The versions of payloads that the application knows.
    versions: Arc<[(Name, u32)]>,
    /// `true` if the last fetch took events before entries.
    events_first: bool,
    /// The minute for which the worker's monitor counts. When the minute ends, its counts move to
    /// the history.
    minute: u64,
    is_stopped: bool,
}

impl MemorySource {
    pub(super) fn open(
        broker: Broker,
        settings: Settings,
        interest: Interest,
    ) -> Result<Self, Error> {
        if let Some(fault) = settings.stream.fault().or(settings.group.fault()) {
            return Err(Error::config(format!(
                "the stream `{}` and the group `{}` cannot be used: {fault}",
                settings.stream, settings.group
            )));
        }
        let set = settings.streams.as_ref();
        set.map_or(Ok(()), |set| set.validate())?;
        let mut source = Self {
            streams: Vec::new(),
            schedule: StreamSchedule::new(set.map(|set| set.policy).unwrap_or_default()),
            registry_position: 0,
            consumer: broker.next_source_number(),
            wake: Arc::new(Notify::new()),
            versions: interest.versions.clone().into(),
            events_first: false,
            minute: broker.minute(),
            is_stopped: false,
            settings: Arc::new(settings),
            broker,
        };
        if interest.stream {
            source
                .broker
                .check_partitions(&source.settings, Role::Worker)?;
            source.join_all()?;
        }
        source.broker.subscribers.add(
            source.consumer,
            interest,
            source.settings.event_buffer,
            source.wake.clone(),
        );
        if let Some(observer) = source.broker.context.observation.observer() {
            observer.opened();
        }
        Ok(source)
    }

    /// Joins the groups of all configured streams.
    fn join_all(&mut self) -> Result<(), Error> {
        if let Some(registry) = self.settings.served_registry() {
            self.broker.registries.listen(registry, &self.wake);
        }
        let has_owners = self.settings.has_owners();
        for (number, (stream, weight)) in self.settings.listed_streams().into_iter().enumerate() {
            self.join(&stream, weight, has_owners.then_some(number))?;
        }
        Ok(())
    }

    /// Joins the group of a stream. If workers own the partitions, `owned_partition` is the number
    /// of this one.
    fn join(
        &mut self,
        stream: &Name,
        weight: u32,
        owned_partition: Option<usize>,
    ) -> Result<(), Error> {
        let settings = self.settings.of_stream(stream);
        self.broker.create_group(&settings)?;
        let (wake, versions) = (self.wake.clone(), self.versions.clone());
        let context = &self.broker.context;
        let joined = self.broker.with_group(&settings, |group, _| {
            if owned_partition.is_none() && group.has_owners(&settings, context) {
                let partitions = self.settings.partitions();
                let stream = partitions.map_or(stream, |partitions| &partitions.stream);
                return Err(Error::config(owned_by_others_text(stream, &settings.group)));
            }
            group.join(self.consumer, wake, versions);
            if let Some(partition) = owned_partition {
                group.join_owners(self.consumer, partition, &settings, context);
            }
            Ok(())
        });
        joined.expect("the group was just created")?;
        self.broker.workers.add_stream(self.consumer, stream);
        self.schedule.add(self.streams.len() as u32, weight);
        self.streams.push(Arc::new(settings));
        Ok(())
    }

    /// Joins the groups of newly registered streams.
    fn join_registered(&mut self) {
        let Some(registry) = self.settings.served_registry() else {
            return;
        };
        for stream in self
            .broker
            .registries
            .after(registry, self.registry_position)
        {
            self.registry_position += 1;
            if let Err(error) = self.join(&stream, 1, None) {
                tracing::warn!(%stream, error = error.chain(), "a registered stream cannot be served");
            }
        }
    }

    fn take(&mut self, max: usize) -> Vec<Delivery<MemorySettler>> {
        let mut taken = Vec::new();
        // Calls alternate between events first and entries first, so that neither starves the
        // other.
        self.events_first = !self.events_first;
        if self.events_first {
            self.take_events(max, &mut taken);
            self.take_entries(max, &mut taken);
        } else {
            self.take_entries(max, &mut taken);
            self.take_events(max, &mut taken);
        }
        taken
    }

    fn take_events(&self, max: usize, taken: &mut Vec<Delivery<MemorySettler>>) {
        let room = max - taken.len();
        let hand_out = |event: Message| {
            let settle = MemorySettler {
                held: None,
                observed: self
                    .broker
                    .context
                    .observation
                    .report_start(|| ObservedMessage::event(event.clone())),
            };
            Delivery::new(Ok(event), settle)
        };
        let subscribers = &self.broker.subscribers;
        taken.extend(subscribers.take(self.consumer, room, hand_out));
    }

    fn take_entries(&mut self, max: usize, taken: &mut Vec<Delivery<MemorySettler>>) {
        self.join_registered();
        // A stream may use less than its quota. The next round offers the rest to the other
        // streams.
        loop {
            let room = max - taken.len();
            let before = taken.len();
            if room == 0 || self.streams.is_empty() {
                return;
            }
            for quota in self.schedule.quotas(room) {
                let max = quota.max.min(max - taken.len());
                let stream = self.streams[quota.stream as usize].clone();
                let count = self.take_from(&stream, max, taken);
                if count > 0 {
                    self.schedule.record_fetched(quota.stream, count);
                }
            }
            if taken.len() == before || self.streams.len() == 1 {
                return;
            }
        }
    }

    /// Fetches entries of one stream, and returns their number.
    fn take_from(
        &self,
        stream: &Arc<Settings>,
        max: usize,
        taken: &mut Vec<Delivery<MemorySettler>>,
    ) -> usize {
        let entries = self.broker.with_group(stream, |group, log| {
            group.take(log, max, self.consumer, stream, &self.broker.context)
        });
        let entries = entries.unwrap_or_default();
        let count = entries.len();
        taken.extend(entries.into_iter().map(|mut entry| {
            let observed = entry.observed.take();
            if let Some(task) = entry.task.take() {
                let record = MemoryRecord::new(&self.broker, stream, entry.serial, task);
                entry.lease.set_record(record);
            }
            let held = Some(HeldEntry {
                broker: Arc::clone(&self.broker),
                source_settings: Arc::clone(&self.settings),
                stream_settings: Arc::clone(stream),
                serial: entry.serial,
            });
            let content = self.decode(stream, entry);
            Delivery::new(content, MemorySettler { held, observed })
        }));
        count
    }

    fn decode(&self, stream: &Settings, taken: TakenDelivery) -> Result<Message, Undecodable> {
        let id = || MessageId::from(taken.entry.id.to_string());
        let decoded = codec::decode(taken.entry.fields.clone()).map_err(|mut undecodable| {
            self.broker.context.counters.undecodable.increment();
            undecodable.id = Some(id());
            undecodable.stream = Some(stream.stream.clone());
            undecodable
        })?;
        let EntryId { milliseconds, .. } = taken.entry.id;
        let mut message = decoded.message;
        let parts = message.parts_mut();
        parts.stream = Some(stream.stream.clone());
        parts.group = Some(stream.group.clone());
        parts.id = Some(decoded.id.unwrap_or_else(id));
        parts.accepted_at = taken.entry.id.time();
        parts.attempt = Attempt(taken.attempt);
        parts.lease = Some(taken.lease);
        if let Some(term) = taken.term {
            parts.extensions.insert(term);
        }
        parts.deadline = decoded.time_to_live.map(|time_to_live| {
            let age = self
                .broker
                .context
                .clock
                .milliseconds()
                .saturating_sub(milliseconds);
            Deadline::after(time_to_live.saturating_sub(std::time::Duration::from_millis(age)))
        });
        Ok(message)
    }

    /// Returns the next time at which a message is due or a lease ends. The broker does not wake
    /// workers at that time, so `next` sets a timer.
    fn next_due(&self) -> Option<Instant> {
        let due = self.streams.iter();
        due.filter_map(|stream| self.broker.next_due(stream)).min()
    }

    fn leave(&mut self) {
        if !self.is_stopped {
            self.is_stopped = true;
            for stream in &self.streams {
                self.broker.with_group(stream, |group, _| {
                    group.leave(self.consumer, stream, &self.broker.context);
                });
            }
            self.broker
                .subscribers
                .remove(self.consumer, &self.broker.context.counters);
            if let Some(observer) = self.broker.context.observation.observer() {
                observer.closed();
            }
        }
    }
}

impl Source for MemorySource {
    type Settle = MemorySettler;

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn consumer(&self) -> Option<String> {
        Some(group::name_of(self.consumer))
    }

    fn requests_waiting(&self) -> usize {
        self.broker.context.requests.len()
    }

    fn monitor(&mut self, monitor: Arc<WorkerMonitor>) {
        let streams = self.streams.iter().map(|settings| settings.stream.clone());
        let workers = &self.broker.workers;
        workers.add(self.consumer, monitor, &self.settings.group, streams);
    }

    async fn next(&mut self, max: usize) -> Result<Vec<Delivery<MemorySettler>>, Error> {
        // Yields to the runtime from time to time, even if the backlog is long.
        tokio::task::coop::consume_budget().await;
        loop {
            if self.is_stopped {
                return Err(Error::closed());
            }
            let minute = self.broker.minute();
            if minute != self.minute {
                self.broker.workers.collect_of(self.consumer, self.minute);
                self.minute = minute;
            }
            let taken = self.take(max);
            if !taken.is_empty() {
                return Ok(taken);
            }
            let due = self.next_due();
            let timer = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => pending().await,
                }
            };
            // A wake-up after the check above is not lost: `Notify` stores one permit, and only
            // this source waits for this `Notify`.
            tokio::select! {
                () = self.wake.notified() => {}
                () = timer => {}
            }
        }
    }

    async fn stop(&mut self) {
        // This source does not prefetch, so it has nothing to release.
        self.leave();
    }

    async fn close(mut self) -> Result<(), Error> {
        self.leave();
        // As after a drop, the leases of unsettled deliveries end after at most `Settings::lease`.
        drop(self);
        Ok(())
    }
}

impl Drop for MemorySource {
    fn drop(&mut self) {
        // Without this call, the worker would lose its idle partitions at once when it leaves the
        // groups. With it, the worker keeps them until its lease ends.
        for stream in &self.streams {
            self.broker.with_group(stream, |group, _| {
                group.abandon(self.consumer, stream.lease);
            });
        }
        self.leave();
        self.broker
            .workers
            .remove(self.consumer, self.broker.minute());
    }
}

/// The right to settle a delivery of a [`MemorySource`].
#[derive(Debug)]
pub struct MemorySettler {
    /// `None` for an event, which is not settled.
    held: Option<HeldEntry>,
    /// Set if the broker is observed. Boxed, because few brokers are observed.
    observed: Option<Box<ObservedDelivery>>,
}

/// An entry of a stream that can be settled.
#[derive(Debug)]
struct HeldEntry {
    broker: Broker,
    source_settings: Arc<Settings>,
    /// The settings of the entry's stream.
    stream_settings: Arc<Settings>,
    serial: DeliveryNumber,
}

impl SettleDelivery for MemorySettler {
    fn settle(
        mut self,
        verdict: Verdict,
        on_settled: impl FnOnce(Result<(), Error>) + Send + 'static,
    ) {
        if let Some(held) = self.held.take() {
            let HeldEntry {
                broker,
                source_settings,
                stream_settings,
                serial,
            } = held;
            broker.settle(&source_settings, &stream_settings, serial, verdict);
        } else if let Some(event) = self.observed.take() {
            event.happened(MessageEvent::of_event(&verdict));
        }
        on_settled(Ok(()));
    }
}

impl Drop for MemorySettler {
    fn drop(&mut self) {
        if let Some(held) = &self.held {
            held.broker.with_group(&held.stream_settings, |group, _| {
                group.abandon_delivery(held.serial, &held.stream_settings, &held.broker.context);
            });
        } else if let Some(event) = self.observed.as_ref().filter(|one| one.is_an_event()) {
            event.happened(MessageEvent::Abandoned);
        }
    }
}
