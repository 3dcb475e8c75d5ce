//! The broker: the state that all clones of a handle share.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use foldhash::HashMap;
use tokio::{sync::Notify, time::Instant};
use uuid::Uuid;

use super::{
    clock::{BrokerClock, EntryId, instant_after},
    context::GroupContext,
    delayed::{DelayedTasks, IdempotencyKeys},
    events::Subscribers,
    group::{Group, SourceNumber},
    log::{Log, LogEntry},
    observer::MessageEvent,
    records::TaskEnd,
    registry::Registries,
    workers::BrokerWorkers,
};
use crate::{
    error::Error,
    message::{Due, Message, MessageId, Name, OnConflict, Parts},
    reply::Reply,
    sync::lock,
    transport::{
        Backlog, Bound, DrainRate, Role, Settings, SharedTasks, Start, StreamStats, TaskState,
        TaskStatus, Waiting, codec,
    },
};

/// The state of a broker: its streams, its subscribers and its registries.
#[derive(Debug)]
pub(super) struct BrokerState {
    pub(super) context: GroupContext,
    pub(super) subscribers: Subscribers,
    pub(super) registries: Registries,
    pub(super) tasks: SharedTasks,
    pub(super) workers: BrokerWorkers,
    /// For each partitioned stream, every number of partitions that it has had, the current one
    /// last.
    partitions: Mutex<HashMap<Name, Vec<usize>>>,
    streams: Mutex<HashMap<Name, BrokerStream>>,
    next_source_number: AtomicU64,
}

/// A stream: its entries, its groups and its delayed tasks.
#[derive(Debug, Default)]
pub(super) struct BrokerStream {
    pub(super) log: Log,
    pub(super) groups: HashMap<Name, Group>,
    pub(super) delayed: DelayedTasks,
    pub(super) idempotency_keys: IdempotencyKeys,
    /// The values that handlers change through their outboxes.
    pub(super) values: HashMap<String, Bytes>,
    /// The rate at which workers take messages, for senders with a bound.
    drain_rate: DrainRate,
    /// Notified when there may be more room, for senders that wait for room.
    room: Arc<Notify>,
    /// The scheduled tasks of the stream.
    #[cfg(feature = "schedule")]
    pub(super) schedules: super::schedules::StreamSchedules,
}

impl BrokerStream {
    fn append(&mut self, clock: &BrokerClock, fields: Vec<(Bytes, Bytes)>) -> Arc<LogEntry> {
        let entry = self.log.append(clock.milliseconds(), fields);
        self.wake();
        entry
    }

    /// Wakes the workers of all groups.
    fn wake(&self) {
        for group in self.groups.values() {
            group.wake();
        }
    }

    /// Moves due tasks into the log. `name` is the name of this stream.
    pub(super) fn promote(&mut self, context: &GroupContext, name: &Name) {
        // The clock is read only if there are delayed tasks.
        while self.delayed.len() > 0
            && let Some(fields) = self.delayed.pop_due(Instant::now())
        {
            let waits = |status: &mut TaskStatus| status.state = TaskState::Waiting;
            let (of_any_group, clock) = ((name, None), &context.clock);
            context.records.change(of_any_group, &fields, clock, waits);
            self.append(&context.clock, fields);
        }
    }

    /// Fails if the bound leaves no room for another message.
    fn check_room(
        &mut self,
        bound: &Bound,
        context: &GroupContext,
        name: &Name,
    ) -> Result<(), Error> {
        self.promote(context, name);
        let groups = self.groups.iter().filter(|(_, group)| group.is_served());
        let waiting = groups.map(|(name, group)| group.waiting(name, &self.log, &context.clock));
        let mut full: Option<Waiting> = None;
        let mut most_waiting: Option<Waiting> = None;
        for waiting in waiting {
            if most_waiting
                .as_ref()
                .is_none_or(|most| most.messages < waiting.messages)
            {
                most_waiting = Some(waiting.clone());
            }
            if bound.room(&waiting) == 0 {
                full = Some(waiting);
            }
        }
        if let Some(most_waiting) = &most_waiting {
            self.drain_rate
                .add_measurement(Instant::now(), most_waiting);
        }
        full.map_or(Ok(()), |full| {
            Err(bound.refusal(name, &full, &self.drain_rate))
        })
    }
}

impl BrokerState {
    pub(super) fn new() -> Self {
        Self {
            context: GroupContext::new(),
            subscribers: Subscribers::default(),
            registries: Registries::default(),
            tasks: SharedTasks::default(),
            workers: BrokerWorkers::default(),
            partitions: Mutex::default(),
            streams: Mutex::default(),
            next_source_number: AtomicU64::new(0),
        }
    }

    pub(super) fn next_source_number(&self) -> SourceNumber {
        self.next_source_number.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn streams(&self) -> MutexGuard<'_, HashMap<Name, BrokerStream>> {
        lock(&self.streams)
    }

    /// Adds an entry to a stream.
    ///
    /// # Errors
    /// If the bound leaves no room for it.
    pub(super) fn append(
        &self,
        stream: &Name,
        bound: Option<&Bound>,
        fields: Vec<(Bytes, Bytes)>,
    ) -> Result<EntryId, Error> {
        // The clock is read under the lock, so that the ids are in the order of the entries.
        self.with_stream(stream, |contents| {
            if let Some(bound) = bound {
                contents.check_room(bound, &self.context, stream)?;
            }
            self.context.counters.sent.increment();
            let entry = contents.append(&self.context.clock, fields);
            self.context
                .observation
                .report_sent(stream, &entry.fields, Duration::ZERO, || entry.message_id());
            Ok(entry.id)
        })
    }

    /// Returns the [`Notify`] that is notified when there may be more room on a stream.
    pub(super) fn room_notify(&self, stream: &Name) -> Arc<Notify> {
        self.with_stream(stream, |contents| Arc::clone(&contents.room))
    }

    pub(super) fn with_stream<T>(
        &self,
        stream: &Name,
        act: impl FnOnce(&mut BrokerStream) -> T,
    ) -> T {
        act(stream_of(&mut self.streams(), stream))
    }

    /// Returns the time until a task is due.
    fn time_until(&self, due: Option<Due>) -> Duration {
        match due {
            None => Duration::ZERO,
            Some(Due::After(delay)) => delay,
            Some(Due::At(time)) => time
                .duration_since(self.context.clock.now())
                .unwrap_or_default(),
        }
    }

    /// Stores a task, in the log or among the delayed tasks. If an earlier task has the same
    /// idempotency key, stores nothing and returns the id of the earlier task.
    ///
    /// # Errors
    /// If the bound leaves no room for the task, if the idempotency key was used for other content,
    /// or if the rule of the unique key refuses the task.
    pub(super) fn accept(
        &self,
        stream: &Name,
        settings: &Settings,
        bound: Option<&Bound>,
        parts: &Parts,
        fields: Vec<(Bytes, Bytes)>,
    ) -> Result<Reply, Error> {
        let is_plain =
            parts.idempotency_key.is_none() && parts.unique.is_none() && parts.tracked.is_none();
        if is_plain && self.time_until(parts.due).is_zero() {
            // This path formats the id after the lock is released.
            let id = MessageId::from(self.append(stream, bound, fields)?.to_string());
            return Ok(Reply::accepted(id));
        }
        self.with_stream(stream, |contents| {
            if let Some(bound) = bound {
                contents.check_room(bound, &self.context, stream)?;
            }
            self.accept_on(stream, contents, settings, parts, fields)
        })
    }

    /// Stores a task as [`accept`](Self::accept) does, on a stream that the caller has locked.
    pub(super) fn accept_on(
        &self,
        stream: &Name,
        contents: &mut BrokerStream,
        settings: &Settings,
        parts: &Parts,
        mut fields: Vec<(Bytes, Bytes)>,
    ) -> Result<Reply, Error> {
        if let Some(reply) = self.earlier_task(stream, contents, settings, parts)? {
            return Ok(reply);
        }
        // Only a task that is recorded or delayed gets an id before it is stored.
        let wait = self.time_until(parts.due);
        let is_recorded = parts.unique.is_some() || parts.tracked.is_some();
        let given_id =
            (is_recorded || !wait.is_zero()).then(|| MessageId::from(Uuid::new_v4().to_string()));
        if let Some(id) = &given_id {
            fields.push((
                codec::RECEIPT_ID.into(),
                Bytes::copy_from_slice(id.as_bytes()),
            ));
        }
        if is_recorded {
            let group = Bytes::copy_from_slice(settings.group.as_bytes());
            fields.push((codec::RECORDING_GROUP.into(), group));
        }
        // Stores the task in the log, or among the delayed tasks.
        let id = if wait.is_zero() {
            let entry = contents.append(&self.context.clock, fields);
            let id = entry.message_id();
            self.context
                .observation
                .report_sent(stream, &entry.fields, wait, || id.clone());
            id
        } else {
            let id = given_id.expect("a delayed task has a given id");
            self.context
                .observation
                .report_sent(stream, &fields, wait, || id.clone());
            contents
                .delayed
                .add(instant_after(wait), id.clone(), fields);
            contents.wake();
            id
        };
        if is_recorded {
            let state = match wait.is_zero() {
                true => TaskState::Waiting,
                false => TaskState::Delayed,
            };
            let GroupContext { records, clock, .. } = &self.context;
            let group_key = (stream, &settings.group);
            records.accept(group_key, id.clone(), parts, state, clock);
        }
        if let Some(key) = &parts.idempotency_key {
            // The time window of the key starts when the task is due.
            let window = wait.saturating_add(settings.idempotency_window);
            let digest = parts.content_digest;
            contents
                .idempotency_keys
                .remember(key.clone(), id.clone(), digest, window);
        }
        self.context.counters.sent.increment();
        Ok(Reply::accepted(id))
    }

    /// Returns the reply for a task in whose place an earlier one with the same idempotency key or
    /// unique key stays. Returns `None` if the task is to be stored.
    fn earlier_task(
        &self,
        stream: &Name,
        contents: &mut BrokerStream,
        settings: &Settings,
        parts: &Parts,
    ) -> Result<Option<Reply>, Error> {
        // If an earlier task has the same idempotency key and the same content, returns its id.
        let key = parts.idempotency_key.as_ref();
        if let Some(holder) = key.and_then(|key| contents.idempotency_keys.get(key)) {
            let digests = holder.digest.zip(parts.content_digest);
            return match digests.is_some_and(|(one, other)| one != other) {
                true => Err(Error::reused_key(holder.id.clone())),
                false => Ok(Some(Reply::duplicate(holder.id.clone()))),
            };
        }
        // If another task holds the unique key, `on_conflict` decides. `Replace` cancels a delayed
        // holder. A holder that is no longer delayed stays.
        let group_key = (stream, &settings.group);
        if let Some(unique) = &parts.unique {
            contents.promote(&self.context, stream);
            let mut records = self.context.records.lock_and_expire();
            if let Some(holder) = records.holder(group_key, &unique.key).cloned() {
                match unique.on_conflict {
                    OnConflict::Refuse => return Err(Error::duplicate(holder)),
                    OnConflict::Replace if contents.delayed.cancel(&holder).is_some() => {
                        let owned_group_key = (stream.clone(), settings.group.clone());
                        let end = TaskEnd::new(TaskState::Cancelled, "replaced by a newer task");
                        records.end(&owned_group_key, &holder, end, &self.context.clock);
                        self.context.records.changed.notify_waiters();
                    }
                    OnConflict::Keep | OnConflict::Replace => {
                        return Ok(Some(Reply::duplicate(holder)));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Publishes an event.
    pub(super) fn publish(&self, event: &Message) {
        let sent = || MessageEvent::Sent {
            delay: Duration::ZERO,
        };
        self.context.observation.report_published(event, sent);
        self.subscribers.publish(event, &self.context.counters);
        self.context.counters.sent.increment();
    }

    /// Returns a value that handlers change through their outboxes.
    pub(super) fn value(&self, stream: &Name, key: &str) -> Option<Bytes> {
        self.streams().get(stream)?.values.get(key).cloned()
    }

    /// Returns the next time at which a message is due or a lease ends. The broker does not wake
    /// workers at that time, so they set a timer.
    pub(super) fn next_due(&self, settings: &Settings) -> Option<Instant> {
        let streams = self.streams();
        let stream = streams.get(&settings.stream)?;
        let group = stream.groups.get(&settings.group)?;
        group
            .next_due()
            .into_iter()
            .chain(stream.delayed.next_due())
            .min()
    }

    /// Creates the group if it does not exist.
    pub(super) fn create_group(&self, settings: &Settings) -> Result<(), Error> {
        let Settings { stream, group, .. } = settings;
        let mut streams = self.streams();
        // If the stream has other groups, some settings have no safe default.
        let has_other_groups = streams
            .get(stream)
            .is_some_and(|stream| stream.groups.keys().any(|other| other != group));
        if has_other_groups && settings.unknown_names.is_none() {
            return Err(Error::config(format!(
                "the stream `{stream}` has other groups, so messages that this worker does not know \
                 may be theirs: choose `.unknown_names(UnknownNames::Ignore)` to leave them to the \
                 others, or `.unknown_names(UnknownNames::Fail)` to treat them as failed"
            )));
        }
        let exists = streams
            .get(stream)
            .is_some_and(|stream| stream.groups.contains_key(group));
        if exists {
            return Ok(());
        }
        // The group is new: finds its first entry.
        let after = match &settings.start {
            Start::Auto if has_other_groups => {
                return Err(Error::config(format!(
                    "the group `{group}` is new and the stream `{stream}` has other groups: choose \
                     where it starts, with `.start(Start::Beginning)` or `.start(Start::End)`"
                )));
            }
            Start::After(id) => Some(id.parse::<EntryId>().map_err(|error| {
                Error::config(format!("`{id}` is not the id of an entry")).with_source(error)
            })?),
            _ => None,
        };
        let stream = streams.entry(stream.clone()).or_default();
        let next = match (&settings.start, after) {
            (_, Some(id)) => stream.log.index_after(id),
            (Start::End, _) => stream.log.end(),
            _ => stream.log.start(),
        };
        stream
            .groups
            .insert(group.clone(), Group::starting_at(next));
        Ok(())
    }

    /// Calls `act` with a group, if it exists, and trims the entries that every group has finished.
    pub(super) fn with_group<T>(
        &self,
        settings: &Settings,
        act: impl FnOnce(&mut Group, &Log) -> T,
    ) -> Option<T> {
        with_group(&mut self.streams(), &self.context, settings, act)
    }

    pub(super) fn backlog(&self, settings: &Settings, horizon: Duration) -> Backlog {
        let mut streams = self.streams();
        let Some(stream) = streams.get_mut(&settings.stream) else {
            return Backlog::default();
        };
        stream.promote(&self.context, &settings.stream);
        let horizon = instant_after(horizon);
        let mut backlog = match stream.groups.get(&settings.group) {
            Some(group) => group.backlog(&stream.log, &self.context.clock, horizon),
            None => Backlog {
                waiting: stream.log.len() as u64,
                ..Backlog::default()
            },
        };
        backlog.delayed = stream.delayed.len() as u64;
        backlog.due_soon += stream.delayed.count_due_by(horizon) as u64;
        backlog
    }

    /// Checks the number of partitions of a handle against the record of the stream, and adds the
    /// number to the record if necessary. Does nothing if the handle's stream is not partitioned.
    pub(super) fn check_partitions(&self, settings: &Settings, role: Role) -> Result<(), Error> {
        let Some(partitions) = settings.partitions() else {
            return Ok(());
        };
        let mut records = lock(&self.partitions);
        let record = records.entry(partitions.stream.clone()).or_default();
        partitions.check_against_record(role, record)?;
        let count = partitions.names.len();
        if record.is_empty() || role == Role::Worker && record.last() < Some(&count) {
            record.push(count);
        }
        Ok(())
    }

    pub(super) fn stats(&self, name: &Name) -> StreamStats {
        let mut streams = self.streams();
        let Some(stream) = streams.get_mut(name) else {
            return StreamStats::new(name, 0, 0);
        };
        stream.promote(&self.context, name);
        let (entries, delayed) = (stream.log.len(), stream.delayed.len());
        let mut stats = StreamStats::new(name, entries as u64, delayed as u64);
        let groups = stream.groups.iter();
        stats.groups = groups
            .map(|(name, group)| group.stats(name, &stream.log, &self.context.clock))
            .collect();
        stats.groups.sort_by(|a, b| a.group.cmp(&b.group));
        stats.set_kept_entries();
        stats
    }

    /// Returns the work that remains for groups with workers. Messages of groups without workers
    /// wait forever, so they do not count.
    #[cfg(feature = "testing")]
    pub(super) fn outlook(&self) -> super::observer::RemainingWork {
        let mut outlook = super::observer::RemainingWork::default();
        let mut due = Vec::new();
        for (name, stream) in &mut *self.streams() {
            if !stream.groups.values().any(Group::is_served) {
                continue;
            }
            stream.promote(&self.context, name);
            due.extend(stream.delayed.next_due());
            for (group_name, group) in &stream.groups {
                if group.is_served() {
                    let queued = group.queued(&stream.log);
                    if queued > 0 {
                        let of_group = (name.clone(), group_name.clone(), queued);
                        outlook.queued.push(of_group);
                    }
                    due.extend(group.next_due());
                }
            }
        }
        outlook.queued.sort();
        outlook.next_due = due.into_iter().min();
        outlook.events = self.subscribers.buffered_events();
        outlook
    }
}

/// Returns a stream, and creates it if it does not exist.
pub(super) fn stream_of<'a>(
    streams: &'a mut HashMap<Name, BrokerStream>,
    stream: &Name,
) -> &'a mut BrokerStream {
    if !streams.contains_key(stream) {
        streams.insert(stream.clone(), BrokerStream::default());
    }
    streams.get_mut(stream).expect("just inserted")
}

/// Calls `act` with a group, if it exists, and trims the entries that every group has finished.
pub(super) fn with_group<T>(
    streams: &mut HashMap<Name, BrokerStream>,
    context: &GroupContext,
    settings: &Settings,
    act: impl FnOnce(&mut Group, &Log) -> T,
) -> Option<T> {
    let stream = streams.get_mut(&settings.stream)?;
    stream.promote(context, &settings.stream);
    let BrokerStream {
        log,
        groups,
        idempotency_keys,
        room,
        ..
    } = stream;
    let group = groups.get_mut(&settings.group)?;
    let result = act(group, log);
    // Senders may have room now: fewer messages may wait, or this group may have lost its last
    // worker. A group without workers does not limit senders.
    room.notify_waiters();
    for id in group.given_up.drain(..) {
        idempotency_keys.forget(&id);
    }
    if let Some(finished) = groups.values().map(Group::finished_before).min() {
        log.trim(finished);
    }
    Some(result)
}

/// The shared state of a broker.
pub(super) type Broker = Arc<BrokerState>;
