//! The transport in memory: tasks, events and RPC within one process, without a server.
//!
//! [`Memory`] behaves as the Redis transport does. It has streams with consumer groups, attempts
//! and redelivery, delays, dead letters, leases, Pub/Sub with patterns, and requests with
//! deadlines. Messages and replies are encoded as on the wire. Use it for examples, for tests, and
//! for applications of one process.
//!
//! ```
//! use campanile::{Client, Json, Router, serve, transport::memory::Memory};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), campanile::Error> {
//! let app: Router = Router::new().rpc("double", async |Json(n): Json<u32>| Json(2 * n));
//! let memory = Memory::new();
//! let worker = tokio::spawn(serve(memory.clone(), app).into_future());
//!
//! let Json(n): Json<u32> = Client::new(memory.clone()).request("double", Json(21)).await?;
//! assert_eq!((n, memory.counts().delivered), (42, 1));
//! # worker.abort();
//! # Ok(())
//! # }
//! ```
//!
//! All clones of a handle share one broker, even if their settings differ. This example has two
//! groups of one stream, drives their sources without `serve`, and pauses the clock:
//!
//! ```
//! use std::time::Duration;
//! use campanile::{
//!     Message,
//!     transport::{
//!         Interest, Source, Start, Transport, UnknownNames, Verdict, memory::Memory,
//!     },
//! };
//! use tower::ServiceExt;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
//! # .block_on(async {
//! let memory = Memory::new().stream("shop").unknown_names(UnknownNames::Ignore);
//! let billing = memory.clone().group("billing").start(Start::Beginning);
//! let mailing = memory.clone().group("mailing").start(Start::Beginning);
//! memory.oneshot(Message::task("orders.create", "{}")).await?;
//!
//! let mut billing = billing.open(Interest::stream()).await?;
//! let mut mailing = mailing.open(Interest::stream()).await?;
//! let delivery = billing.next(1).await?.remove(0);
//! let tomorrow = Verdict::Redeliver {
//!     after: Some(Duration::from_secs(86_400)),
//!     counted: true,
//!     reason: "the bank is closed".into(),
//! };
//! delivery.settle(tomorrow).await?;
//! assert_eq!(mailing.next(1).await?.len(), 1);
//!
//! let again = billing.next(1).await?.remove(0); // a day later, on the paused clock
//! assert!(again.content.unwrap().parts().attempt.is_retry());
//! # Ok::<_, campanile::BoxError>(()) }).unwrap();
//! ```
//!
//! # Ordering
//! The entries of a stream are delivered in the order in which they were sent. Redeliveries and new
//! entries take turns. In partitions that workers [own](crate::transport::Streams::owned), the
//! messages with one key keep their order.
//!
//! # Back-pressure
//! Without a [bound](Memory::max_waiting), senders are never refused and never wait. A stream keeps
//! each entry until all groups of the stream have finished the entry. A stream without groups keeps
//! all entries. The buffer of events is bounded: further events are dropped and counted.
//!
//! # Delivery guarantee
//! Tasks are delivered at least once, as long as the process lives. All messages are lost when the
//! last handle and the last source are dropped. If a source is dropped, other workers claim its
//! unsettled deliveries when their leases end, and then own its partitions. A live worker keeps its
//! deliveries as long as its handlers run.
//!
//! # Errors
//! A message that [`check`](crate::transport::check) refuses fails with `is_invalid`. A task that
//! has expired fails with `is_timeout`, and so does a request whose deadline passes without a
//! reply.

mod broker;
mod clock;
mod context;
mod control;
mod dead;
mod dead_letters;
mod delayed;
mod events;
mod follow_ups;
mod group;
mod limits;
mod log;
mod messages;
// Only the test kit observes the broker.
#[cfg_attr(not(feature = "testing"), allow(dead_code, unreachable_pub))]
pub(crate) mod observer;
mod ownership;
mod records;
mod registry;
mod request;
#[cfg(feature = "schedule")]
mod schedules;
mod source;
mod task_lists;
mod tasks;
mod workers;

use std::{
    fmt,
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};
use tower::Service;
use uuid::Uuid;

use self::{
    broker::{Broker, BrokerState},
    request::Requests,
};
pub use self::{
    request::ResponseFuture,
    source::{MemorySettler, MemorySource},
};
use crate::{
    error::{Error, ErrorKind},
    message::{Deadline, Kind, Message, MessageId, Name, ReplyMode},
    reply::Reply,
    transport::{
        Backlog, Bound, ConnectionState, Control, Counts, DeadLetters, Interest, Limit, Minute,
        PartitionedDeadLetters, Role, Settings, StreamStats, Tasks, Transport, Workers, codec,
        consumer_settings, sending,
    },
};

/// A handle of the transport in memory. It is a `Service<Message>` that sends, and a [`Transport`]
/// to serve from. Clones share one broker. See the [module](self).
#[derive(Clone)]
pub struct Memory {
    broker: Broker,
    settings: Settings,
}

impl Memory {
    /// Creates an empty broker with default settings.
    pub fn new() -> Self {
        Self {
            broker: Arc::new(BrokerState::new()),
            settings: Settings::default(),
        }
    }

    consumer_settings!();

    /// Returns the message counters, summed over all handles of this broker.
    pub fn counts(&self) -> Counts {
        self.broker.context.counters.snapshot()
    }

    /// Returns the backlog of the group. Its `due_soon` counts the messages that are due within [30
    /// s](Backlog::HORIZON). For a set of streams, returns the sum.
    ///
    /// # Errors
    /// If this handle serves the streams of a registry.
    pub fn backlog(&self) -> impl Future<Output = Result<Backlog, Error>> + Send + use<> {
        self.backlog_within(Backlog::HORIZON)
    }

    /// Returns the backlog of the group. Its `due_soon` counts the messages that are due within the
    /// horizon.
    ///
    /// # Errors
    /// As for [`backlog`](Self::backlog).
    pub fn backlog_within(
        &self,
        horizon: Duration,
    ) -> impl Future<Output = Result<Backlog, Error>> + Send + use<> {
        let Self { broker, settings } = self.clone();
        async move {
            let streams = settings.backlog_streams()?;
            let streams = streams.iter().map(|stream| settings.of_stream(stream));
            let backlogs = streams.map(|settings| broker.backlog(&settings, horizon));
            Ok(backlogs.reduce(Backlog::join).unwrap_or_default())
        }
    }

    /// Returns the state of this handle, which is always [`Connected`](ConnectionState::Connected).
    pub fn state(&self) -> ConnectionState {
        ConnectionState::Connected
    }

    /// Waits until the state differs from `from`, and returns the new state. The state never
    /// changes, so this waits forever if `from` is [`Connected`](ConnectionState::Connected).
    pub async fn state_changed(&self, from: ConnectionState) -> ConnectionState {
        if from == ConnectionState::Connected {
            std::future::pending::<()>().await;
        }
        ConnectionState::Connected
    }

    /// Returns the statistics of the stream and its groups.
    ///
    /// # Errors
    /// If the handle has a set of streams that is not a partitioned stream.
    pub async fn stats(&self) -> Result<StreamStats, Error> {
        let (stream, parts) = self.settings.stream_and_parts()?;
        let mut stats: Vec<_> = parts.iter().map(|part| self.broker.stats(part)).collect();
        Ok(match self.settings.partitions() {
            Some(_) => StreamStats::of_partitions(stream, stats),
            None => stats.swap_remove(0),
        })
    }

    /// Returns the dead letters of the group.
    pub fn dead_letters(&self) -> DeadLetters {
        let letters_of = |settings| dead_letters::MemoryDeadLetters {
            broker: Arc::clone(&self.broker),
            settings,
        };
        match self.settings.partitions() {
            None => DeadLetters::new(letters_of(self.settings.clone())),
            Some(partitions) => {
                let settings = partitions
                    .names
                    .iter()
                    .map(|name| self.settings.of_stream(name));
                DeadLetters::new(PartitionedDeadLetters::new(settings.map(letters_of)))
            }
        }
    }

    /// Returns access to the tasks of the stream, as this handle's group sees them. If the handle
    /// has a set of streams that is not a partitioned stream, the result has no tasks.
    pub fn tasks(&self) -> Tasks {
        let parts = self.settings.stream_and_parts();
        let parts = parts.map_or_else(|_| &[][..], |(_, parts)| parts);
        let name = format!("{parts:?} {:?}", self.settings.group);
        self.broker.tasks.get(name, || tasks::MemoryTasks {
            broker: Arc::clone(&self.broker),
            streams: parts
                .iter()
                .map(|part| self.settings.of_stream(part))
                .collect(),
        })
    }

    /// Returns a handle to pause the stream, and to purge its waiting messages. If this handle has
    /// a set of streams that is not a partitioned stream, the result has no effect.
    pub fn control(&self) -> Control {
        let parts = self.settings.stream_and_parts();
        let parts = parts.map_or_else(|_| &[][..], |(_, parts)| parts).iter();
        Control::new(control::MemoryControl {
            broker: Arc::clone(&self.broker),
            streams: parts.map(|part| self.settings.of_stream(part)).collect(),
        })
    }

    /// Returns a handle to list and query the workers that serve the stream in this handle's group.
    /// If this handle has a set of streams that is not a partitioned stream, the result has no
    /// workers.
    pub fn workers(&self) -> Workers {
        let parts = self.settings.stream_and_parts();
        let parts = parts.map_or_else(|_| &[][..], |(_, parts)| parts).iter();
        Workers::new(workers::MemoryWorkers {
            broker: Arc::clone(&self.broker),
            streams: parts.map(|part| self.settings.of_stream(part)).collect(),
        })
    }

    /// Returns the group's counts on the stream for each of the last 60 minutes, the oldest first.
    /// The last item is the current minute.
    ///
    /// # Errors
    /// If the handle has a set of streams that is not a partitioned stream.
    pub async fn history(&self) -> Result<Vec<Minute>, Error> {
        let (_, parts) = self.settings.stream_and_parts()?;
        let parts: Vec<_> = parts
            .iter()
            .map(|part| self.settings.of_stream(part))
            .collect();
        Ok(self.broker.history(&parts))
    }

    /// Returns a limit that all workers of the group share. Limits with the same name share their
    /// permits.
    ///
    /// # Errors
    /// If the name is empty, longer than 512 bytes, or has a colon.
    pub fn limit(&self, name: impl Into<Name>) -> Result<Limit, Error> {
        let (broker, settings) = (Arc::clone(&self.broker), self.settings.clone());
        Limit::new(name, limits::MemoryLimits { broker, settings })
    }

    /// Returns the scheduled tasks of the stream. Each call fails if the handle has a set of
    /// streams, or a partitioned stream.
    #[cfg(feature = "schedule")]
    pub fn schedules(&self) -> crate::transport::Schedules {
        crate::transport::Schedules::new(schedules::MemorySchedules(self.clone()))
    }

    /// Returns a value that handlers of the stream have changed through their
    /// [outboxes](crate::Outbox#values). `None` if the value does not exist.
    ///
    /// # Errors
    /// If the handle has a set of streams, or a partitioned stream.
    pub fn value(&self, key: &str) -> Result<Option<Bytes>, Error> {
        Ok(self.broker.value(self.settings.one_stream()?, key))
    }

    /// Adds an entry with these raw fields to the stream, as another program could do on Redis. For
    /// tests.
    pub fn add_raw<F, V>(&self, fields: impl IntoIterator<Item = (F, V)>) -> MessageId
    where
        F: Into<Bytes>,
        V: Into<Bytes>,
    {
        let fields = fields
            .into_iter()
            .map(|(field, value)| (field.into(), value.into()))
            .collect();
        let id = self.broker.append(&self.settings.stream, None, fields);
        MessageId::from(id.expect("there is no bound").to_string())
    }

    /// Ends the leases of all deliveries of the group, as if its workers had died. The next worker
    /// to fetch claims these deliveries. Their handlers then see that the leases are lost. For
    /// tests.
    pub fn end_leases(&self) {
        for (stream, _) in self.settings.listed_streams() {
            let settings = self.settings.of_stream(&stream);
            self.broker
                .with_group(&settings, |group, _| group.end_all_leases());
        }
    }

    fn send(&self, mut message: Message) -> Result<ResponseFuture, Error> {
        sending::check(message.parts())?;
        if message.kind() != Kind::Event {
            self.settings.choose_partition(message.parts_mut())?;
            self.broker.check_partitions(&self.settings, Role::Sender)?;
        }
        if message.kind() == Kind::Rpc {
            let deadline = &mut message.parts_mut().deadline;
            deadline.get_or_insert_with(|| Deadline::after(Deadline::DEFAULT_TIMEOUT));
        }
        let bound = self.settings.bound(message.parts())?;
        let wait = bound.and_then(|bound| bound.wait_until(message.parts()));
        let (Some(bound), Some(until)) = (bound, wait) else {
            return self.try_send(&message, bound.as_ref());
        };
        let memory = self.clone();
        Ok(ResponseFuture::boxed(async move {
            memory.send_in_time(message, bound, until).await
        }))
    }

    /// Waits for room, at most until `until`, and sends the message.
    async fn send_in_time(
        &self,
        message: Message,
        bound: Bound,
        until: Instant,
    ) -> Result<Reply, Error> {
        let room = self.broker.room_notify(self.target(&message)?);
        loop {
            let mut changed = pin!(room.notified());
            // Registers before the attempt, so that a change right after the attempt is not missed.
            changed.as_mut().enable();
            match self.try_send(&message, Some(&bound)) {
                Err(error) if error.is_overloaded() => {
                    if timeout_at(until, changed).await.is_err() {
                        return Err(error);
                    }
                }
                sent => return sent?.await,
            }
        }
    }

    /// Sends a checked message if there is room.
    fn try_send(&self, message: &Message, bound: Option<&Bound>) -> Result<ResponseFuture, Error> {
        match message.kind() {
            Kind::Task => {
                let fields = encode(message, None);
                let stream = self.target(message)?;
                let (settings, parts) = (&self.settings, message.parts());
                let accepted = self.broker.accept(stream, settings, bound, parts, fields)?;
                Ok(ResponseFuture::sent(Ok(accepted)))
            }
            Kind::Event => {
                self.broker.publish(message);
                Ok(ResponseFuture::sent(Ok(Reply::default())))
            }
            Kind::Rpc => {
                let deadline = message.parts().deadline.expect("each request has one");
                if deadline.has_passed() {
                    return Err(Error::new(
                        ErrorKind::Timeout,
                        "the deadline of the request passed before it was sent",
                    ));
                }
                let id = Uuid::new_v4();
                let name = message.name().clone();
                let requests = Arc::clone(&self.broker.context.requests);
                // Registers the request before sending it, because the reply may arrive
                // immediately.
                let reply = ResponseFuture::waiting(requests, id, name, deadline);
                let fields = encode(message, Some((&self.broker.context.requests, id)));
                self.broker.append(self.target(message)?, bound, fields)?;
                Ok(reply)
            }
        }
    }

    /// Returns the stream of a message. Registers the stream if this handle has a registry.
    fn target<'a>(&'a self, message: &'a Message) -> Result<&'a Name, Error> {
        let stream = self.settings.target_stream(message.parts())?;
        if let Some(registry) = &self.settings.registry {
            self.broker.registries.register(registry, stream);
        }
        Ok(stream)
    }
}

/// Methods for the test kit.
#[cfg(feature = "testing")]
impl Memory {
    /// Sets the observer of the broker. Returns `false` if there is one already.
    pub(crate) fn watch(&self, observer: Arc<dyn observer::Observer>) -> bool {
        self.broker.context.observation.watch(observer)
    }

    /// Returns the work that remains for groups with workers, over all streams.
    pub(crate) fn outlook(&self) -> observer::RemainingWork {
        self.broker.outlook()
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns `true` if both are handles of one broker.
    pub(crate) fn is_same_broker(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.broker, &other.broker)
    }
}

/// Encodes the fields of an entry into one shared buffer, so that each group can clone them
/// cheaply. The fields of a request include the reply address.
fn encode(message: &Message, request: Option<(&Requests, Uuid)>) -> Vec<(Bytes, Bytes)> {
    let mut bytes = Vec::with_capacity(128 + message.payload().len());
    let mut ends = Vec::with_capacity(6 + message.headers().len());
    let mut put = |field: &[u8], value: &[u8]| {
        bytes.extend_from_slice(field);
        let middle = bytes.len();
        bytes.extend_from_slice(value);
        ends.push((middle, bytes.len()));
    };
    codec::encode(message, &mut put);
    if let Some((requests, id)) = request {
        let mut put = |field: &str, value: &str| put(field.as_bytes(), value.as_bytes());
        put(codec::REPLY_TO, &requests.reply_to());
        put(codec::CORRELATION_ID, &id.to_string());
        if message.parts().reply_mode == ReplyMode::Reliable {
            put(codec::CLIENT, requests.client_id());
        }
    }
    let (bytes, mut start) = (Bytes::from(bytes), 0);
    ends.into_iter()
        .map(|(middle, end)| {
            let field = (bytes.slice(start..middle), bytes.slice(middle..end));
            start = end;
            field
        })
        .collect()
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("settings", &self.settings)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

impl Service<Message> for Memory {
    type Response = Reply;
    type Error = Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, message: Message) -> ResponseFuture {
        self.send(message)
            .unwrap_or_else(|error| ResponseFuture::sent(Err(error)))
    }
}

impl Transport for Memory {
    type Source = MemorySource;

    async fn open(self, interest: Interest) -> Result<MemorySource, Error> {
        MemorySource::open(self.broker, self.settings, interest)
    }
}
