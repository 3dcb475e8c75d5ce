//! The settings of a worker, for every transport.

use std::time::Duration;

use super::{Backoff, Members, Partitions, Streams, WhenFull};
use crate::{
    error::{Error, ErrorKind},
    message::{Name, Parts},
};

/// The position at which a new group starts on its stream.
///
/// ```
/// use campanile::transport::{Start, memory::Memory};
///
/// // A group that is added to a stream, and wants only what is sent from now on.
/// let audit = Memory::new().group("audit").start(Start::End);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Start {
    /// At the oldest entry if the stream has no other group, so that messages from before the first
    /// worker's start are not lost. If the stream has other groups, opening the source fails, and
    /// another value must be set.
    #[default]
    Auto,
    /// At the oldest entry.
    Beginning,
    /// After the newest entry.
    End,
    /// After this entry.
    After(String),
}

/// Decides how tasks and requests without a route are settled.
///
/// ```
/// use campanile::transport::{UnknownNames, memory::Memory};
///
/// // A group that handles a few names of a stream of events.
/// let billing = Memory::new().group("billing").unknown_names(UnknownNames::Ignore);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnknownNames {
    /// The delivery of a task fails and is repeated, because a worker of a newer version may have
    /// the route. A request is answered with `not_found`.
    Fail,
    /// The delivery is acknowledged and counted, because the message is meant for another group of
    /// the stream.
    Ignore,
}

/// Decides about a task that expires before it is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Expired {
    /// The task is dropped and counted.
    #[default]
    Drop,
    /// The task becomes a dead letter. If it is replayed, it has no time to live.
    DeadLetter,
}

/// The settings of a transport's handle. The text of each field ends with its default value.
///
/// ```
/// use std::time::Duration;
/// use campanile::transport::memory::Memory;
///
/// // The methods of a handle change its settings.
/// let memory = Memory::new().stream("orders").group("billing").max_in_flight(8);
/// let memory = memory.lease(Duration::from_secs(30)).max_deliveries(5);
/// # let _ = memory;
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Settings {
    /// The stream to which tasks and requests are sent, and from which a worker reads them.
    /// `app_stream`.
    pub stream: Name,
    /// The streams that a worker serves instead of [`stream`](Self::stream). `None`, which means
    /// only [`stream`](Self::stream).
    pub streams: Option<Streams>,
    /// The registry in which the sending half registers the streams that it sends to. `None`, which
    /// means that it registers none.
    pub registry: Option<Name>,
    /// The consumer group of the workers. `app_group`.
    pub group: Name,
    /// The position at which a new group starts. [`Start::Auto`].
    pub start: Start,
    /// The maximum number of deliveries in flight, that is, fetched and not settled. 64.
    pub max_in_flight: usize,
    /// The maximum number of deliveries in flight of all workers of the group together. `None`,
    /// which means no limit.
    pub max_in_flight_of_group: Option<usize>,
    /// The number of bytes of payload in flight at which a worker stops fetching. 64 MiB.
    pub max_in_flight_bytes: usize,
    /// The number of attempts after which a message is given up and becomes a dead letter, unless
    /// its sender has [chosen another](crate::client::Call::max_attempts). 10.
    pub max_deliveries: u32,
    /// The time after which other workers claim the deliveries of a dead worker. 10 s.
    pub lease: Duration,
    /// The delay of a redelivery if the failure does not set one. From 1 s, doubling up to 5 min.
    pub backoff: Backoff,
    /// Decides about messages without a route. Must be set if the stream has several groups.
    /// `None`, which means `Fail`.
    pub unknown_names: Option<UnknownNames>,
    /// The maximum number of dead letters that the group keeps. Older dead letters are dropped and
    /// counted. 10,000.
    pub max_dead_letters: usize,
    /// The maximum number of events that wait for a handler. Further events are dropped and
    /// counted. 10,000.
    pub event_buffer: usize,
    /// Decides about tasks that expire before they are started. [`Expired::Drop`].
    pub expired: Expired,
    /// The time for which an idempotency key is remembered after its task is due. 24 h.
    pub idempotency_window: Duration,
    /// The maximum number of messages that may wait on a stream to which this handle sends. `None`,
    /// which means no bound.
    pub max_waiting: Option<usize>,
    /// The maximum age of the messages that wait on a stream to which this handle sends. `None`,
    /// which means no bound.
    pub max_waiting_age: Option<Duration>,
    /// Decides about a message for a stream that has reached `max_waiting` or `max_waiting_age`.
    /// [`WhenFull::Fail`].
    pub when_full: WhenFull,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            stream: Name::from_static("app_stream"),
            streams: None,
            registry: None,
            group: Name::from_static("app_group"),
            start: Start::default(),
            max_in_flight: 64,
            max_in_flight_of_group: None,
            max_in_flight_bytes: 64 << 20,
            max_deliveries: 10,
            lease: Duration::from_secs(10),
            backoff: Backoff::exponential(Duration::from_secs(1), Duration::from_secs(300)),
            unknown_names: None,
            max_dead_letters: 10_000,
            event_buffer: 10_000,
            expired: Expired::default(),
            idempotency_window: Duration::from_secs(24 * 60 * 60),
            max_waiting: None,
            max_waiting_age: None,
            when_full: WhenFull::default(),
        }
    }
}

impl Settings {
    /// Returns a copy of these settings for one stream of the set.
    pub(crate) fn of_stream(&self, stream: &Name) -> Self {
        Self {
            stream: stream.clone(),
            streams: None,
            ..self.clone()
        }
    }

    /// Returns the listed streams with their weights. Empty if senders register the streams.
    pub(crate) fn listed_streams(&self) -> Vec<(Name, u32)> {
        match self.streams.as_ref().map(|set| &set.members) {
            None => vec![(self.stream.clone(), 1)],
            Some(Members::Listed(listed)) => listed.to_vec(),
            Some(Members::Registered(_)) => Vec::new(),
            Some(Members::Partitioned(partitions)) => partitions
                .names
                .iter()
                .map(|name| (name.clone(), 1))
                .collect(),
        }
    }

    /// Returns the streams that the backlog of this handle covers.
    ///
    /// # Errors
    /// If senders register the streams.
    pub(crate) fn backlog_streams(&self) -> Result<Vec<Name>, Error> {
        match self.served_registry() {
            None => Ok(self
                .listed_streams()
                .into_iter()
                .map(|(name, _)| name)
                .collect()),
            Some(registry) => Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "the streams of the registry `{registry}` are not known to this handle: ask for \
                     the backlog of each with `.stream(name)` on a clone of the handle"
                ),
            )),
        }
    }

    /// Returns the partitions of the stream, if it has any.
    pub(crate) fn partitions(&self) -> Option<&Partitions> {
        match self.streams.as_ref().map(|set| &set.members) {
            Some(Members::Partitioned(partitions)) => Some(partitions),
            _ => None,
        }
    }

    /// Returns `true` if the workers of the group own partitions.
    pub(crate) fn has_owners(&self) -> bool {
        let partitions = self.partitions();
        partitions.is_some_and(|partitions| partitions.owned)
    }

    /// Returns the registry whose streams a worker serves. `None` if the settings list the streams.
    pub(crate) fn served_registry(&self) -> Option<&Name> {
        match self.streams.as_ref().map(|set| &set.members) {
            Some(Members::Registered(registry)) => Some(registry),
            _ => None,
        }
    }

    /// Returns the name of the stream, and the streams that have its entries: its partitions, or
    /// only the stream itself.
    ///
    /// # Errors
    /// If the settings have a set of streams that is not a partitioned stream.
    pub(crate) fn stream_and_parts(&self) -> Result<(&Name, &[Name]), Error> {
        match self.partitions() {
            Some(partitions) => Ok((&partitions.stream, &partitions.names)),
            None => {
                let stream = self.one_stream()?;
                Ok((stream, std::slice::from_ref(stream)))
            }
        }
    }

    /// Returns the only stream of these settings.
    ///
    /// # Errors
    /// If the settings have a set of streams, or a partitioned stream.
    pub(crate) fn one_stream(&self) -> Result<&Name, Error> {
        match (&self.streams, self.partitions()) {
            (None, _) => Ok(&self.stream),
            (_, Some(Partitions { stream, .. })) => Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "the stream `{stream}` is partitioned, and this call needs one partition: make it \
                     with a handle of the stream `{stream}:0`, `{stream}:1` or another"
                ),
            )),
            (Some(_), None) => Err(Error::new(
                ErrorKind::Invalid,
                "this handle has a set of streams, and this call needs one: choose it with \
                 `.stream(name)` on the call, or on a clone of the handle",
            )),
        }
    }

    /// Chooses the partition to which a task or a request is sent, and sets [`Parts::to`] to this
    /// partition. Does nothing if the message names another stream, or if the stream is not
    /// partitioned.
    ///
    /// # Errors
    /// If the number of partitions is invalid.
    pub(crate) fn choose_partition(&self, parts: &mut Parts) -> Result<(), Error> {
        let Some(partitions) = self.partitions() else {
            return Ok(());
        };
        if parts.to.as_ref().is_none_or(|to| *to == partitions.stream) {
            partitions.validate()?;
            let unique = parts.unique.as_ref().map(|unique| unique.key.as_str());
            let key = parts.partition_key.as_deref().or(unique);
            parts.to = partitions.choose(key).cloned();
        }
        Ok(())
    }

    /// Returns the stream to which a task or a request is sent.
    ///
    /// # Errors
    /// If the message names no stream, and these settings have a set of streams.
    pub(crate) fn target_stream<'a>(&'a self, parts: &'a Parts) -> Result<&'a Name, Error> {
        parts.to.as_ref().map_or_else(|| self.one_stream(), Ok)
    }
}

/// Defines the builder methods of a transport's handle, which has a field `settings: Settings`.
macro_rules! consumer_settings {
    () => {
        /// Replaces all settings.
        #[must_use]
        pub fn with_settings(mut self, settings: crate::transport::Settings) -> Self {
            self.settings = settings;
            self
        }

        /// Sets the stream to which tasks and requests are sent, and from which they are served.
        /// `app_stream` unless set. A call can choose another one with
        /// [`Call::stream`](crate::client::Call::stream).
        #[must_use]
        pub fn stream(mut self, stream: impl Into<crate::Name>) -> Self {
            self.settings.stream = stream.into();
            self.settings.streams = None;
            self
        }

        /// Sets the streams that one worker serves, and the order between them. With any set other
        /// than a partitioned stream, calls with this handle must choose a stream.
        #[must_use]
        pub fn streams(mut self, streams: crate::transport::Streams) -> Self {
            self.settings.streams = Some(streams);
            self
        }

        /// Sets the registry in which this handle registers the streams that it sends to. Workers
        /// that serve [`Streams::registered`](crate::transport::Streams::registered) find the
        /// streams there.
        #[must_use]
        pub fn registry(mut self, registry: impl Into<crate::Name>) -> Self {
            self.settings.registry = Some(registry.into());
            self
        }

        /// Sets the consumer group of the workers. Each group of a stream gets every message, and
        /// divides the messages among its workers. `app_group` unless set.
        #[must_use]
        pub fn group(mut self, group: impl Into<crate::Name>) -> Self {
            self.settings.group = group.into();
            self
        }

        /// Sets the position at which the group starts if it does not exist.
        /// [`Start::Auto`](crate::transport::Start::Auto) unless set.
        #[must_use]
        pub fn start(mut self, start: crate::transport::Start) -> Self {
            self.settings.start = start;
            self
        }

        /// Sets the capacity of this worker: the maximum number of deliveries in flight. A worker
        /// never fetches more than it can start, so that idle workers get the other messages. 64
        /// unless set.
        ///
        /// # Panics
        /// If it is zero.
        #[must_use]
        #[track_caller]
        pub fn max_in_flight(mut self, deliveries: usize) -> Self {
            assert!(deliveries > 0, "max_in_flight must be at least 1");
            self.settings.max_in_flight = deliveries;
            self
        }

        /// Sets the maximum number of deliveries in flight of all workers of the group together.
        /// The limit is applied before the fetch: a message over the limit stays on the stream and
        /// occupies no slot of a worker. An idle worker reserves no part of the limit. The
        /// deliveries of a worker that has died count until another worker has claimed and settled
        /// them. No limit unless set.
        ///
        /// All workers of the group must set the same number. On Redis one limit covers all streams
        /// of a worker, and on a Redis Cluster all its streams in one hash slot. In memory each
        /// stream has a separate limit. For limits by key, see [`limit`](Self::limit).
        ///
        /// # Panics
        /// If it is zero.
        #[must_use]
        #[track_caller]
        pub fn max_in_flight_of_group(mut self, deliveries: usize) -> Self {
            assert!(deliveries > 0, "max_in_flight_of_group must be at least 1");
            self.settings.max_in_flight_of_group = Some(deliveries);
            self
        }

        /// Sets the number of bytes of payload in flight at which the worker stops fetching. A
        /// single message may be larger. 64 MiB unless set.
        #[must_use]
        pub fn max_in_flight_bytes(mut self, bytes: usize) -> Self {
            self.settings.max_in_flight_bytes = bytes;
            self
        }

        /// Sets the number of attempts after which a message is given up and becomes a dead letter,
        /// unless its sender has [chosen another](crate::client::Call::max_attempts). Layers find
        /// the number that applies in [`Parts::max_attempts`](crate::Parts::max_attempts). 10
        /// unless set.
        ///
        /// The number is checked before the message is decoded, so that even a message that kills
        /// its worker is not delivered forever. On Redis a message is also given up after this
        /// number of deliveries in a row that no worker has settled, even if its sender has chosen
        /// more attempts. [Owned](crate::transport::Streams::owned) partitions do not have this
        /// second limit.
        ///
        /// # Panics
        /// If it is zero.
        #[must_use]
        #[track_caller]
        pub fn max_deliveries(mut self, deliveries: u32) -> Self {
            assert!(deliveries > 0, "max_deliveries must be at least 1");
            self.settings.max_deliveries = deliveries;
            self
        }

        /// Sets the time after which other workers claim the deliveries of a dead worker. A live
        /// worker renews its leases as long as its handlers run. If the workers of a group have
        /// different leases, a claim waits for the longer of two leases: the holder's and the
        /// claiming worker's. 10 s unless set.
        ///
        /// # Panics
        /// If it is shorter than 100 ms.
        #[must_use]
        #[track_caller]
        pub fn lease(mut self, lease: std::time::Duration) -> Self {
            assert!(
                lease >= std::time::Duration::from_millis(100),
                "a lease must be at least 100 ms"
            );
            self.settings.lease = lease;
            self
        }

        /// Sets the delay of a redelivery if the failure does not set one. From 1 s, doubling up to
        /// 5 min, unless set.
        #[must_use]
        pub fn backoff(mut self, backoff: crate::transport::Backoff) -> Self {
            self.settings.backoff = backoff;
            self
        }

        /// Sets how tasks and requests without a route are settled. Must be set if the stream has
        /// several groups. [`Fail`](crate::transport::UnknownNames::Fail) unless set.
        #[must_use]
        pub fn unknown_names(mut self, unknown: crate::transport::UnknownNames) -> Self {
            self.settings.unknown_names = Some(unknown);
            self
        }

        /// Sets the maximum number of dead letters that the group keeps. Older dead letters are
        /// dropped and counted. 10,000 unless set.
        #[must_use]
        pub fn max_dead_letters(mut self, dead_letters: usize) -> Self {
            self.settings.max_dead_letters = dead_letters;
            self
        }

        /// Sets the maximum number of events that wait for a handler. Further events are dropped
        /// and counted. 10,000 unless set.
        ///
        /// # Panics
        /// If it is zero.
        #[must_use]
        #[track_caller]
        pub fn event_buffer(mut self, events: usize) -> Self {
            assert!(events > 0, "event_buffer must be at least 1");
            self.settings.event_buffer = events;
            self
        }

        /// Sets what happens to tasks that expire before they are started. Unless set, they are
        /// dropped and counted.
        #[must_use]
        pub fn expired(mut self, expired: crate::transport::Expired) -> Self {
            self.settings.expired = expired;
            self
        }

        /// Sets the time for which the idempotency key of a task is remembered. The time starts
        /// when the task is sent or, if the task is delayed, when it is due. Choose a time that is
        /// longer than the time for which senders retry. 24 h unless set.
        ///
        /// # Panics
        /// If it is shorter than a millisecond.
        #[must_use]
        #[track_caller]
        pub fn idempotency_window(mut self, window: std::time::Duration) -> Self {
            assert!(
                window >= std::time::Duration::from_millis(1),
                "an idempotency window must be at least 1 ms"
            );
            self.settings.idempotency_window = window;
            self
        }

        /// Sets the maximum number of messages that may wait on a stream to which this handle sends
        /// tasks or requests. A call that would exceed the bound fails as
        /// [overloaded](crate::Error::is_overloaded), or [waits](Self::when_full). No bound unless
        /// set. Without a bound, calls do not ask for the number of waiting messages.
        ///
        /// The messages that wait are those that could be delivered now: unread ones, and those due
        /// for redelivery. If several groups of the stream have a live worker, the group with the
        /// most waiting messages counts. A group without a live worker does not count: otherwise
        /// its messages would stop the senders forever. If no group has a live worker, the stream
        /// has no bound. On a partitioned stream, the bound applies to each partition.
        ///
        /// The bound applies only to messages that a sender can send later:
        ///
        /// | message | the bound applies |
        /// |---|---|
        /// | a task that is due, also one that is tracked, unique or has an idempotency key, even if a task with the same key exists | yes |
        /// | a request | yes |
        /// | a delayed task | no; once it is due it counts as waiting |
        /// | an event | no |
        /// | a follow-up of an [outbox](crate::Outbox), a redelivery, a replayed dead letter, the task of a schedule | no; it counts as waiting |
        ///
        /// In memory the bound is exact. On Redis a sender asks the server for the numbers of the
        /// stream: twice a second while it sends, and whenever it has sent a sixteenth of the room
        /// that the last answer showed. So one handle and its clones keep to the bound. Each
        /// further handle that sends at the same time may exceed it by a sixteenth of the bound, or
        /// by one message if that is more. A handler that enqueues on the stream that it serves may
        /// wait for room that only its own worker can make: send such tasks through the outbox.
        ///
        /// # Panics
        /// If it is zero.
        #[must_use]
        #[track_caller]
        pub fn max_waiting(mut self, messages: usize) -> Self {
            assert!(messages > 0, "max_waiting must be at least 1");
            self.settings.max_waiting = Some(messages);
            self
        }

        /// Sets the maximum age of the messages that wait on a stream to which this handle sends
        /// tasks or requests. The rules of [`max_waiting`](Self::max_waiting) apply to this bound,
        /// too. Each of the two bounds can be set alone. On Redis the bound is exact to half a
        /// second. The age of a message starts again when it is due for redelivery.
        ///
        /// # Panics
        /// If it is zero.
        #[must_use]
        #[track_caller]
        pub fn max_waiting_age(mut self, age: std::time::Duration) -> Self {
            assert!(!age.is_zero(), "max_waiting_age must be longer than zero");
            self.settings.max_waiting_age = Some(age);
            self
        }

        /// Sets what happens to a message for a stream that has reached its
        /// [bound](Self::max_waiting): the call fails, or waits for room. Unless set, the call
        /// fails.
        ///
        /// # Panics
        /// If the wait is zero.
        #[must_use]
        #[track_caller]
        pub fn when_full(mut self, when_full: crate::transport::WhenFull) -> Self {
            let is_zero = when_full == crate::transport::WhenFull::Wait(std::time::Duration::ZERO);
            assert!(
                !is_zero,
                "a wait for room takes time; leave it out to fail at once"
            );
            self.settings.when_full = when_full;
            self
        }
    };
}
pub(crate) use consumer_settings;
