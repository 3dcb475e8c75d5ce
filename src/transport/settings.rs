//! What a worker is set up with, the same for every transport.

use std::time::Duration;

use super::{Backoff, Members, Streams};
use crate::{
    error::{Error, ErrorKind},
    message::{Name, Parts},
};

/// Where a group that does not exist yet starts on its stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Start {
    /// At the beginning where the stream has no other group, so that nothing sent before the first
    /// worker is lost; beside another group the choice must be made, and opening fails.
    #[default]
    Auto,
    /// At the oldest entry.
    Beginning,
    /// At what comes from now on.
    End,
    /// After this entry.
    After(String),
}

/// What a worker does with tasks and requests whose names it does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnknownNames {
    /// A failed delivery: another, newer worker of the group may know the name. A request is
    /// answered `not_found` at once.
    Fail,
    /// Acknowledged and counted: the name belongs to another group of the stream.
    Ignore,
}

/// What becomes of a task whose time to live was over before it could be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Expired {
    /// It is dropped and counted.
    #[default]
    Drop,
    /// It becomes a dead letter. A replay of it has no time to live any more.
    DeadLetter,
}

/// What a worker is set up with.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Settings {
    /// The stream that tasks and requests travel on. `app_stream`.
    pub stream: Name,
    /// The streams that a worker serves in place of [`stream`](Self::stream). None.
    pub streams: Option<Streams>,
    /// The registry in which the sending half registers the streams that it sends to. None.
    pub registry: Option<Name>,
    /// The consumer group of the workers. `app_group`.
    pub group: Name,
    /// Where a new group starts.
    pub start: Start,
    /// How many deliveries may be in flight: fetched and not yet settled. 64.
    pub max_in_flight: usize,
    /// How many bytes of payload may be in flight before nothing more is fetched. 64 MiB.
    pub max_in_flight_bytes: usize,
    /// How many deliveries a message gets before it is a dead letter. 10.
    pub max_deliveries: u32,
    /// How long a worker that is not heard of keeps its deliveries. 10 s.
    pub lease: Duration,
    /// The wait before a redelivery where the failure does not name one. 1 s, doubling to 5 min.
    pub backoff: Backoff,
    /// What becomes of unknown names; `None` is `Fail`, and must be chosen where the stream has
    /// several groups.
    pub unknown_names: Option<UnknownNames>,
    /// How many dead letters the group keeps; older ones are dropped and counted. 10,000.
    pub max_dead_letters: usize,
    /// How many events may wait for a free handler; what comes then is dropped and counted. 10,000.
    pub event_buffer: usize,
    /// What becomes of tasks that expire before they are started. They are dropped.
    pub expired: Expired,
    /// How long an idempotency key is remembered by the sending half. 24 h.
    pub idempotency_window: Duration,
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
            max_in_flight_bytes: 64 << 20,
            max_deliveries: 10,
            lease: Duration::from_secs(10),
            backoff: Backoff::exponential(Duration::from_secs(1), Duration::from_secs(300)),
            unknown_names: None,
            max_dead_letters: 10_000,
            event_buffer: 10_000,
            expired: Expired::default(),
            idempotency_window: Duration::from_secs(24 * 60 * 60),
        }
    }
}

impl Settings {
    /// These settings for one stream of the set that they serve.
    pub(crate) fn of_stream(&self, stream: &Name) -> Self {
        Self {
            stream: stream.clone(),
            streams: None,
            ..self.clone()
        }
    }

    /// The streams that these settings list for a worker, each with its weight. None where senders
    /// register them.
    pub(crate) fn listed_streams(&self) -> Vec<(Name, u32)> {
        match self.streams.as_ref().map(|set| &set.members) {
            None => vec![(self.stream.clone(), 1)],
            Some(Members::Listed(listed)) => listed.to_vec(),
            Some(Members::Registered(_)) => Vec::new(),
        }
    }

    /// The registry whose streams a worker serves.
    pub(crate) fn served_registry(&self) -> Option<&Name> {
        match self.streams.as_ref().map(|set| &set.members) {
            Some(Members::Registered(registry)) => Some(registry),
            _ => None,
        }
    }

    /// The one stream that these settings name.
    ///
    /// # Errors
    /// When they name a set of streams.
    pub(crate) fn one_stream(&self) -> Result<&Name, Error> {
        match self.streams {
            None => Ok(&self.stream),
            Some(_) => Err(Error::new(
                ErrorKind::Invalid,
                "this handle serves a set of streams, and this needs one: choose it with \
                 `.stream(name)` on the call, or on a clone of the handle",
            )),
        }
    }

    /// The stream that a task or a request is sent to.
    ///
    /// # Errors
    /// When neither the message nor these settings name one stream.
    pub(crate) fn target<'a>(&'a self, parts: &'a Parts) -> Result<&'a Name, Error> {
        parts.to.as_ref().map_or_else(|| self.one_stream(), Ok)
    }
}

/// The builder methods of a handle that has a `settings: Settings` field: the same words on every
/// transport.
macro_rules! consumer_settings {
    () => {
        /// All settings at once, in place of those set so far.
        #[must_use]
        pub fn with_settings(mut self, settings: crate::transport::Settings) -> Self {
            self.settings = settings;
            self
        }

        /// The stream that tasks and requests travel on: sent to, and served from. `app_stream`
        /// unless set. A call can choose another with
        /// [`Call::stream`](crate::client::Call::stream).
        #[must_use]
        pub fn stream(mut self, stream: impl Into<crate::Name>) -> Self {
            self.settings.stream = stream.into();
            self.settings.streams = None;
            self
        }

        /// Several streams to serve with one worker, and the order between them. What is sent with this
        /// handle must name its stream itself.
        #[must_use]
        pub fn streams(mut self, streams: crate::transport::Streams) -> Self {
            self.settings.streams = Some(streams);
            self
        }

        /// The registry in which the streams that this handle sends to are registered, for workers
        /// that serve [`Streams::registered`](crate::transport::Streams::registered).
        #[must_use]
        pub fn registry(mut self, registry: impl Into<crate::Name>) -> Self {
            self.settings.registry = Some(registry.into());
            self
        }

        /// The consumer group of the workers. Each group of a stream gets every message; the
        /// workers of one group share them. `app_group` unless set.
        #[must_use]
        pub fn group(mut self, group: impl Into<crate::Name>) -> Self {
            self.settings.group = group.into();
            self
        }

        /// Where the group starts if it does not exist yet.
        #[must_use]
        pub fn start(mut self, start: crate::transport::Start) -> Self {
            self.settings.start = start;
            self
        }

        /// How many deliveries may be in flight at once: the capacity of this worker. It fetches no
        /// more than it can start, so an idle worker is never kept waiting by a busy one. 64
        /// unless set.
        ///
        /// # Panics
        /// When it is zero.
        #[must_use]
        #[track_caller]
        pub fn max_in_flight(mut self, deliveries: usize) -> Self {
            assert!(deliveries > 0, "max_in_flight must be at least 1");
            self.settings.max_in_flight = deliveries;
            self
        }

        /// How many bytes of payload may be in flight before nothing more is fetched. A single
        /// message may be larger. 64 MiB unless set.
        #[must_use]
        pub fn max_in_flight_bytes(mut self, bytes: usize) -> Self {
            self.settings.max_in_flight_bytes = bytes;
            self
        }

        /// How many deliveries a message gets before it is a dead letter. It is checked before the
        /// message is decoded, so that one that kills its worker cannot do so for ever. 10 unless
        /// set.
        ///
        /// # Panics
        /// When it is zero.
        #[must_use]
        #[track_caller]
        pub fn max_deliveries(mut self, deliveries: u32) -> Self {
            assert!(deliveries > 0, "max_deliveries must be at least 1");
            self.settings.max_deliveries = deliveries;
            self
        }

        /// How long a worker that is not heard of keeps its deliveries before others take them
        /// over. A worker renews its lease while it runs, however long its handlers take. Workers
        /// of one group may have different leases: the longer one of the holder and of the
        /// worker that claims counts. 10 s unless set.
        ///
        /// # Panics
        /// When it is shorter than 100 ms.
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

        /// The wait before a redelivery if the failure names none. 1 s, doubling to 5 min, unless
        /// set.
        #[must_use]
        pub fn backoff(mut self, backoff: crate::transport::Backoff) -> Self {
            self.settings.backoff = backoff;
            self
        }

        /// What becomes of tasks and requests whose names this worker does not know. Must be set
        /// where the stream has several groups; `Fail` elsewhere.
        #[must_use]
        pub fn unknown_names(mut self, unknown: crate::transport::UnknownNames) -> Self {
            self.settings.unknown_names = Some(unknown);
            self
        }

        /// How many dead letters the group keeps. Older ones are dropped and counted. 10,000
        /// unless set.
        #[must_use]
        pub fn max_dead_letters(mut self, dead_letters: usize) -> Self {
            self.settings.max_dead_letters = dead_letters;
            self
        }

        /// How many events may wait for a free handler; what comes when they do is dropped and
        /// counted. 10,000 unless set.
        ///
        /// # Panics
        /// When it is zero.
        #[must_use]
        #[track_caller]
        pub fn event_buffer(mut self, events: usize) -> Self {
            assert!(events > 0, "event_buffer must be at least 1");
            self.settings.event_buffer = events;
            self
        }

        /// What becomes of a task whose time to live is over before it is started: it is dropped
        /// and counted unless set.
        #[must_use]
        pub fn expired(mut self, expired: crate::transport::Expired) -> Self {
            self.settings.expired = expired;
            self
        }

        /// How long the idempotency key of a task is remembered from when the task was sent. It
        /// should be longer than whoever sends goes on trying. 24 h unless set.
        ///
        /// # Panics
        /// When it is shorter than a millisecond.
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
    };
}
pub(crate) use consumer_settings;
