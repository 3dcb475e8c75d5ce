//! The traits that a transport implements, and the types that it shares with the other modules.
//!
//! A transport has two halves. The *sending half* is a `tower::Service<Message>`. The *serving
//! half* is a [`Transport`], which opens a [`Source`] of [`Delivery`]s for
//! [`serve`](crate::serve()). Each delivery contains the right to settle it, a [`SettleDelivery`].
//!
//! The handles [`Memory`](memory::Memory) and `Redis` are both halves in one type. To write a
//! transport, implement these traits, and test it with the `conformance` suite (a feature). The
//! [guide](crate::guide) has a chapter about writing a transport.
//!
//! A handle of either transport lists and changes the contents of a stream:
//!
//! ```
//! use std::time::Duration;
//! use campanile::{Client, transport::{Selection, TaskQuery, memory::Memory}};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), campanile::Error> {
//! let memory = Memory::new();
//! let call = Client::new(memory.clone()).enqueue("orders.create", "7");
//! let receipt = call.tracked(Duration::from_secs(3600)).await?;
//!
//! assert_eq!(memory.stats().await?.entries, 1);
//! assert_eq!(memory.tasks().list(TaskQuery::all()).await?.tasks.len(), 1);
//! assert_eq!(memory.dead_letters().replay(Selection::All).await?, 0);
//! if let Some(id) = receipt.id() {
//!     assert!(memory.tasks().cancel(id, "not wanted").await?);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Delivery guarantee
//! If a delivery is dropped before it is settled, its message is delivered again when the lease
//! ends, to this worker or to another.

mod backlog;
mod backoff;
mod bound;
mod claims;
pub mod codec;
pub(crate) mod control;
mod counters;
mod dead;
mod dead_partitions;
pub(crate) mod glob;
pub(crate) mod limits;
pub mod memory;
mod messages;
pub(crate) mod partitions;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "schedule")]
mod schedules;
mod sending;
mod settings;
mod state;
mod stats;
mod streams;
mod tasks;
pub(crate) mod workers;

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::oneshot;
use tower::Service;

use crate::{
    error::{Error, RpcError},
    message::{Kind, Message, MessageId, Name, PermitRequest},
    reply::Reply,
};

#[cfg(feature = "schedule")]
pub use self::schedules::{
    FireOutcome, Fired, ScheduleChange, ScheduleList, ScheduleRun, ScheduleStatus, ScheduleStore,
    Schedules,
};
pub use self::{
    backlog::Backlog,
    backoff::Backoff,
    bound::WhenFull,
    control::{Control, ControlStore, Pause, PauseTarget, PurgeStep, PurgeSteps},
    counters::Counts,
    dead::{
        Acted, Action, DeadLetter, DeadLetterPage, DeadLetterStore, DeadLetters, Page, Selection,
        Step, Steps, StoreFuture,
    },
    limits::{Limit, LimitStore, Permit},
    messages::{
        ListedMessage, MessagePage, MessageQuery, MessageState, MessageStore, Messages, ParkedKey,
        StreamPage,
    },
    partitions::PartitionTerm,
    sending::check,
    settings::{Expired, Settings, Start, UnknownNames},
    state::ConnectionState,
    stats::{ConsumerStats, GroupStats, StreamStats},
    streams::Streams,
    tasks::{
        Changes, ChangesFrom, Feed, FeedItem, FeedStep, ListStep, Listed, TaskChange, TaskPage,
        TaskQuery, TaskState, TaskStatus, TaskStore, Tasks,
    },
    workers::{
        Answers, FollowedOrder, LastError, Minute, Pong, Quantiles, RouteStats, Running,
        WorkerDescription, WorkerInfo, WorkerMonitor, WorkerOrder, WorkerState, WorkerStats,
        WorkerStore, Workers,
    },
};
#[allow(unused_imports)]
pub(crate) use self::{
    bound::{Bound, DrainRate, Waiting},
    claims::Claims,
    counters::Counters,
    partitions::{Partitions, Role, owned_by_others_text},
    settings::consumer_settings,
    streams::{Members, Quota, StreamPolicy, StreamSchedule},
    workers::{MINUTES, MinuteCounts, host_name},
};
pub(crate) use self::{
    dead::{DroppedLetters, PAGE_BYTES},
    dead_partitions::PartitionedDeadLetters,
    messages::{format_position, invalid_position},
    sending::check_key,
    tasks::{SharedTasks, TaskOutcome},
};

/// The messages that a service wants from a source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Interest {
    /// `true` if the service handles tasks and RPC requests. If `false`, the source must leave them
    /// to other workers.
    pub stream: bool,
    /// The full names of the events that the service handles.
    pub events: Vec<Name>,
    /// The Redis glob patterns of the events that the service handles.
    pub patterns: Vec<Name>,
    /// The full names of the [sharded](crate::Router::event_sharded) events that the service
    /// handles.
    pub sharded: Vec<Name>,
    /// The tasks and RPC requests that the service has routes for, or `None` if the service may
    /// handle any. A source logs a warning if workers of the same group serve other names.
    pub routes: Option<Vec<(Kind, Name)>>,
    /// For each name of a task, the [version](crate::contract#versions) of the payload that the
    /// service knows, if that version is above 1. A worker
    /// [parks](PermitRequest::awaited_version) tasks of a newer version. These tasks are delivered
    /// again once a source with their version is open.
    pub versions: Vec<(Name, u32)>,
    /// The largest number of messages that a handler of the service takes in one call: 1 without
    /// batch handlers, 0 without handlers. A worker with a smaller `max_in_flight` could never fill
    /// the largest batch, so it does not start.
    pub batch_size: usize,
}

impl Interest {
    /// Returns an interest in all tasks and requests of the stream, and in no events.
    pub fn stream() -> Self {
        Self {
            stream: true,
            ..Self::default()
        }
    }

    /// Returns `true` if the service handles events of any sort.
    pub fn has_events(&self) -> bool {
        !(self.events.is_empty() && self.patterns.is_empty() && self.sharded.is_empty())
    }
}

/// The serving half of a transport, before it is opened.
pub trait Transport: Send + 'static {
    /// The source that this transport opens.
    type Source: Source;

    /// Connects, creates the group if it does not exist, subscribes to the events, and starts the
    /// background tasks of the source. Completes when the subscriptions are confirmed.
    ///
    /// # Errors
    /// If a setting is invalid, or the server refuses it. A server that cannot be reached is not an
    /// error: like [`next`](Source::next), this method waits for the server.
    ///
    /// # Cancel safety
    /// The future can be dropped at any time. [`serve`](crate::serve()) drops it if a shutdown
    /// begins before the source is open.
    fn open(self, interest: Interest) -> impl Future<Output = Result<Self::Source, Error>> + Send;
}

/// A handle that is both halves of a transport and can be cloned. For applications that are generic
/// over the transport.
///
/// Implemented for every type that meets these bounds.
///
/// ```
/// use campanile::{Client, Error, Router, serve, transport::{Broker, memory::Memory}};
///
/// /// Runs over any transport.
/// async fn run(handle: impl Broker) -> Result<(), Error> {
///     Client::new(handle.clone()).enqueue("greet", "Ada").await?;
///     let app = Router::new().task("greet", async |name: String| println!("hello {name}"));
///     serve(handle, app).with_graceful_shutdown(async {}).await
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// run(Memory::new()).await
/// # }
/// ```
pub trait Broker:
    Transport + Service<Message, Response = Reply, Error = Error, Future: Send + 'static> + Clone + Sync
{
}

impl<T> Broker for T where
    T: Transport
        + Service<Message, Response = Reply, Error = Error, Future: Send + 'static>
        + Clone
        + Sync
{
}

/// A source of deliveries.
pub trait Source: Send + 'static {
    /// The right to settle a delivery of this source.
    type Settle: SettleDelivery;

    /// Returns the settings of the source.
    fn settings(&self) -> &Settings;

    /// Returns the name of this worker in its group, which `serve` logs. `None` if the transport
    /// gives its workers no names.
    fn consumer(&self) -> Option<String> {
        None
    }

    /// Returns the number of requests that this process has sent to the broker of this source and
    /// that wait for replies. `serve` logs the number if all slots are taken for a long time,
    /// because the handlers may be waiting for replies from their own worker. A transport that does
    /// not know the number returns 0.
    fn requests_waiting(&self) -> usize {
        0
    }

    /// Receives the monitor of the worker that reads this source. `serve` calls this method once,
    /// before the first [`next`](Self::next). A source that implements this method announces the
    /// worker, answers questions about it, and passes orders on to it: see [`Workers`]. The source
    /// keeps the worker announced until it is closed or dropped. Unless overridden, does nothing.
    fn monitor(&mut self, monitor: Arc<WorkerMonitor>) {
        drop(monitor);
    }

    /// Waits for deliveries, and returns at least one and at most `max`. Never fetches more than
    /// `max` from the server.
    ///
    /// # Errors
    /// If the source cannot recover by itself. A lost connection is not an error: the source
    /// reconnects.
    ///
    /// # Cancel safety
    /// If the future is dropped, deliveries that it has fetched are kept for the next call, or
    /// released by [`stop`](Self::stop).
    fn next(
        &mut self,
        max: usize,
    ) -> impl Future<Output = Result<Vec<Delivery<Self::Settle>>, Error>> + Send;

    /// Stops fetching, and immediately releases the deliveries that were fetched but not returned
    /// by [`next`](Self::next). They do not count as attempts. Deliveries that `next` has returned
    /// can still be settled. Further calls have no effect.
    fn stop(&mut self) -> impl Future<Output = ()> + Send;

    /// Waits until all sent verdicts are confirmed, and ends the background tasks. Leaves the group
    /// only if no delivery is pending for this worker.
    ///
    /// # Errors
    /// If the server cannot be reached. No message is lost, because other workers claim the pending
    /// deliveries when their leases end.
    fn close(self) -> impl Future<Output = Result<(), Error>> + Send;
}

/// A message, or an entry that could not be decoded, with the right to settle it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Delivery<H> {
    /// The message, or the entry that could not be decoded.
    pub content: Result<Message, Undecodable>,
    /// The right to settle the delivery.
    pub settle: H,
}

impl<H> Delivery<H> {
    /// Creates a delivery.
    pub fn new(content: Result<Message, Undecodable>, settle: H) -> Self {
        Self { content, settle }
    }
}

/// An entry that could not be decoded as a message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Undecodable {
    /// The reason why it could not be decoded.
    pub reason: String,
    /// The raw fields of the entry.
    pub fields: Vec<(Bytes, Bytes)>,
    /// The id of the message, or `None` if it is unknown.
    pub id: Option<MessageId>,
    /// The stream, or `None` if it is unknown.
    pub stream: Option<Name>,
}

/// The right to settle one delivery. If the right is dropped, a worker claims the delivery when the
/// lease of the delivery ends.
///
/// To settle a delivery and wait for the confirmation, use [`Delivery::settle`].
pub trait SettleDelivery: Send + 'static {
    /// Carries out a verdict, and calls `on_settled` once the server has confirmed the verdict. The
    /// callback must not block: it may run on any thread, even before this method returns.
    ///
    /// The call itself submits the verdict, and the transport repeats it until the server answers.
    /// If the worker has lost its lease, only [`Verdict::Done`] may still take effect: the first
    /// worker to finish wins. Any other verdict then has no effect.
    ///
    /// `on_settled` gets an error if the transport was closed, or if the server refuses the verdict
    /// permanently. The callback is dropped without a call if the verdict can never be confirmed.
    fn settle(self, verdict: Verdict, on_settled: impl FnOnce(Result<(), Error>) + Send + 'static);
}

impl<H: SettleDelivery> Delivery<H> {
    /// Carries out a verdict, and waits until the server has confirmed it.
    ///
    /// # Errors
    /// If the transport was closed, or the server refuses the verdict permanently.
    ///
    /// # Cancel safety
    /// The call itself submits the verdict. Dropping the future does not take the verdict back.
    pub fn settle(
        self,
        verdict: Verdict,
    ) -> impl Future<Output = Result<(), Error>> + Send + 'static {
        let (confirm, confirmed) = oneshot::channel();
        self.settle
            .settle(verdict, move |settled| drop(confirm.send(settled)));
        async { confirmed.await.unwrap_or_else(|_| Err(Error::closed())) }
    }
}

/// The decision about a delivery. The source carries out the verdict and acknowledges the delivery
/// in one atomic step.
#[derive(Debug)]
#[non_exhaustive]
pub enum Verdict {
    /// The message was handled. If it is an RPC request, the reply or the error reply is sent.
    Done(Result<Reply, RpcError>),
    /// The message is delivered again.
    Redeliver {
        /// The delay before the redelivery, or `None` for the source's back-off for this attempt.
        after: Option<Duration>,
        /// `true` if this delivery counts as an attempt.
        counted: bool,
        /// The reason of the failure. If the message has used up its deliveries, it becomes a dead
        /// letter with this reason.
        reason: String,
    },
    /// The message becomes a dead letter.
    DeadLetter {
        /// The reason, which is stored with the dead letter.
        reason: String,
        /// The error reply, if the message is an RPC request.
        answer: Option<RpcError>,
    },
    /// The message is dropped and counted.
    Discard {
        /// The reason, which decides the counter.
        reason: Discarded,
        /// The error reply, if the message is an RPC request.
        answer: Option<RpcError>,
    },
    /// The message waits outside of the workers, for a permit of a [`Limit`] or for a [worker that
    /// knows its version](PermitRequest::awaited_version). The delivery does not count as an
    /// attempt. A transport that cannot park messages delivers the message again.
    Park(PermitRequest),
    /// The delivery was not started. It is released immediately, so that another worker gets the
    /// message. The delivery does not count as an attempt.
    Release,
}

impl Verdict {
    /// Turns a counted redelivery into a dead letter if this attempt was the last one. `attempt` is
    /// the number of this delivery. For `max_attempts` see
    /// [`Parts::max_attempts`](crate::Parts::max_attempts). Other verdicts do not change.
    ///
    /// Every source calls this function before it settles a delivery.
    #[must_use]
    pub fn limited(self, attempt: u32, max_attempts: u32) -> Self {
        match self {
            Self::Redeliver {
                counted: true,
                reason,
                ..
            } if attempt >= max_attempts => Self::DeadLetter {
                reason: format!(
                    "given up by the worker after attempt {attempt} of {max_attempts}: {reason}"
                ),
                answer: Some(RpcError::unavailable("the request could not be handled")),
            },
            verdict => verdict,
        }
    }

    /// Turns a parking into a redelivery that does not count as an attempt, and leaves other
    /// verdicts as they are. Owned partitions need this: a parked message would lose its place in
    /// the order. Each redelivery asks again for the permit, or for a worker that knows the
    /// version.
    pub(crate) fn without_parking(self, attempt: u32, backoff: &Backoff) -> Self {
        match self {
            Self::Park(request) => Self::Redeliver {
                after: Some(match request.awaited_version() {
                    Some(_) => backoff.after(attempt),
                    None => PERMIT_RETRY_AFTER,
                }),
                counted: false,
                reason: String::new(),
            },
            verdict => verdict,
        }
    }
}

/// The time after which a message of an owned partition asks for a permit again.
const PERMIT_RETRY_AFTER: Duration = Duration::from_millis(100);

/// The reason why a message was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Discarded {
    /// The deadline of the message passed before its handler started.
    Expired,
    /// A handler or a layer requested to discard the message.
    Requested,
    /// The worker has no route for the message, and [`UnknownNames::Ignore`] leaves it to the other
    /// groups.
    Ignored,
}
