//! The embedded transport: tasks, events and RPC within one process, without a server.
//!
//! [`Memory`] means what Redis means: streams with consumer groups, attempts and redelivery, delays,
//! dead letters, leases, Pub/Sub with patterns, requests with deadlines. Messages and replies pass
//! through the same encoding as on the wire, so that what works here works there. It is made for
//! examples, for tests, and for applications that are one process.
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
//! All clones of a handle, with whatever settings, share one broker. Here are two groups of one
//! stream without a serving loop, and time that passes as fast as a test wants:
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
//! let again = billing.next(1).await?.remove(0); // a day later, at once
//! assert!(again.content.unwrap().parts().attempt.is_retry());
//! # Ok::<_, campanile::BoxError>(()) }).unwrap();
//! ```
//!
//! # Ordering
//! The entries of a stream are delivered in the order in which they were sent. Redeliveries and new
//! entries take turns.
//!
//! # Back-pressure
//! None towards the sender: a stream grows until every group of it has finished an entry, and a
//! stream without a group keeps everything. Events wait in a bounded buffer; what it cannot hold is
//! dropped and counted.
//!
//! # Delivery guarantee
//! At least once for tasks, as long as the process lives: everything is gone with the last handle.
//! A worker that is dropped without being closed loses its deliveries to others when its lease
//! ends; one that lives keeps them for ever, however long its handlers take.
//!
//! # Errors
//! Sending fails only where the message cannot be sent (`is_invalid`): its name is empty or too
//! long, or it is an event with headers. A request fails with `is_timeout` when its deadline passes
//! without a reply.

mod broker;
mod clock;
mod dead;
mod events;
mod group;
mod log;
// Only the test kit watches.
#[cfg_attr(not(feature = "testing"), allow(dead_code, unreachable_pub))]
pub(crate) mod observer;
mod registry;
mod request;
mod schedule;
mod source;

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tower::Service;
use uuid::Uuid;

use self::{
    broker::{Broker, Shared},
    observer::Happened,
};
pub use self::{
    group::Backlog,
    request::ResponseFuture,
    source::{MemorySettle, MemorySource},
};
use crate::{
    error::{Error, ErrorKind},
    message::{Deadline, Kind, Message, MessageId, Name, ReplyMode},
    reply::Reply,
    transport::{
        ConnectionState, Counts, DeadLetters, Interest, Settings, StreamStats, Transport, codec,
        consumer_settings, sending,
    },
};

/// Both halves of the embedded transport: a `Service<Message>` that sends, and a [`Transport`] to
/// serve from. A clone shares its broker. See the [module](self).
#[derive(Clone)]
pub struct Memory {
    broker: Broker,
    settings: Settings,
}

impl Memory {
    /// A broker of its own, with nothing in it.
    pub fn new() -> Self {
        Self {
            broker: Arc::new(Shared::new()),
            settings: Settings::default(),
        }
    }

    consumer_settings!();

    /// What happened so far, over all handles of this broker.
    pub fn counts(&self) -> Counts {
        self.broker.counters.snapshot()
    }

    /// How much of the stream is where, as the group sees it.
    pub fn backlog(&self) -> Backlog {
        self.broker.backlog(&self.settings)
    }

    /// Whether this handle works right now: it always does, as long as the process lives.
    pub fn state(&self) -> ConnectionState {
        ConnectionState::Connected
    }

    /// Waits until the state is another than `from`, and returns it.
    pub async fn state_changed(&self, from: ConnectionState) -> ConnectionState {
        if from == ConnectionState::Connected {
            std::future::pending::<()>().await;
        }
        ConnectionState::Connected
    }

    /// How the stream and all of its groups are doing.
    ///
    /// # Errors
    /// None; on Redis there are.
    pub async fn stats(&self) -> Result<StreamStats, Error> {
        Ok(self.broker.stats(self.settings.one_stream()?))
    }

    /// The dead letters of the group.
    pub fn dead_letters(&self) -> DeadLetters {
        DeadLetters::new(dead::Store(self.clone()))
    }

    /// Takes a task back that its sender has delayed, by the id in its receipt. `false` when it is
    /// on the stream already, or there is no such task. Its idempotency key is forgotten with it.
    ///
    /// # Errors
    /// None; on Redis there are.
    pub async fn cancel(&self, id: &MessageId) -> Result<bool, Error> {
        Ok(self.broker.cancel(self.settings.one_stream()?, id))
    }

    /// Adds an entry to the stream field by field, message or not: what a program that knows
    /// nothing of this library could do to a stream on Redis. For tests.
    pub fn add_raw<F, V>(&self, fields: impl IntoIterator<Item = (F, V)>) -> MessageId
    where
        F: Into<Bytes>,
        V: Into<Bytes>,
    {
        let fields = fields
            .into_iter()
            .map(|(field, value)| (field.into(), value.into()))
            .collect();
        let id = self.broker.append(&self.settings.stream, fields);
        MessageId::from(id.to_string())
    }

    /// Ends the leases of everything that the group's workers hold, as if none of them had been
    /// heard of for long: whoever asks next takes it over, and handlers see their lease as lost.
    /// For tests.
    pub fn end_leases(&self) {
        self.broker
            .with_group(&self.settings, |group, _| group.end_all_leases());
    }

    fn send(&self, mut message: Message) -> Result<ResponseFuture, Error> {
        sending::check(message.parts())?;
        match message.kind() {
            Kind::Task => {
                let fields = self.encode(&message, None);
                let (stream, window) = (self.target(&message)?, self.settings.idempotency_window);
                let id = self.broker.accept(stream, message.parts(), window, fields);
                Ok(ResponseFuture::sent(Ok(Reply::accepted(id))))
            }
            Kind::Event => {
                self.broker.tell_of_event(&message, || Happened::Sent {
                    delay: Duration::ZERO,
                });
                self.broker.subscribers.publish(
                    message.name(),
                    message.payload(),
                    &self.broker.counters,
                );
                self.broker.counters.sent.increment();
                Ok(ResponseFuture::sent(Ok(Reply::default())))
            }
            Kind::Rpc => {
                let deadline = *message
                    .parts_mut()
                    .deadline
                    .get_or_insert_with(|| Deadline::after(Deadline::OF_A_REQUEST));
                if deadline.has_passed() {
                    return Err(Error::new(
                        ErrorKind::Timeout,
                        "the deadline of the request passed before it was sent",
                    ));
                }
                let id = Uuid::new_v4();
                let name = message.name().clone();
                let broker = Arc::clone(&self.broker);
                // First a place for the reply, then the request: a worker may be quick.
                let reply = ResponseFuture::waiting(broker, id, name, deadline);
                let fields = self.encode(&message, Some(id));
                self.broker.append(self.target(&message)?, fields);
                Ok(reply)
            }
        }
    }

    /// The stream that a message goes to, which is registered if it is to be.
    fn target<'a>(&'a self, message: &'a Message) -> Result<&'a Name, Error> {
        let stream = self.settings.target(message.parts())?;
        if let Some(registry) = &self.settings.registry {
            self.broker.registries.register(registry, stream);
        }
        Ok(stream)
    }

    /// The fields of an entry, all in one piece of memory: every group that reads it clones them.
    fn encode(&self, message: &Message, request: Option<Uuid>) -> Vec<(Bytes, Bytes)> {
        let mut bytes = Vec::with_capacity(128 + message.payload().len());
        let mut ends = Vec::with_capacity(6 + message.headers().len());
        let mut put = |field: &[u8], value: &[u8]| {
            bytes.extend_from_slice(field);
            let middle = bytes.len();
            bytes.extend_from_slice(value);
            ends.push((middle, bytes.len()));
        };
        codec::encode(message, &mut put);
        if let Some(id) = request {
            let mut put = |field: &str, value: &str| put(field.as_bytes(), value.as_bytes());
            put(codec::REPLY_TO, &self.broker.requests.address());
            put(codec::CORRELATION_ID, &id.to_string());
            if message.parts().reply_mode == ReplyMode::Reliable {
                put(codec::CLIENT, self.broker.requests.client());
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
}

/// What the test kit needs.
#[cfg(feature = "testing")]
impl Memory {
    /// Tells this observer from now on; `false` if there is one already.
    pub(crate) fn watch(&self, observer: Arc<dyn observer::Observer>) -> bool {
        self.broker.watch(observer)
    }

    /// What is left to do, on all streams.
    pub(crate) fn outlook(&self) -> observer::Outlook {
        self.broker.outlook()
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether both are handles of one broker.
    pub(crate) fn is_same_broker(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.broker, &other.broker)
    }
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
