//! The traits of a transport, and the types that it shares with the other modules.
//!
//! A transport has two halves. The *sending half* is a `tower::Service<Message>`. The *serving
//! half* is a [`Transport`], which opens a [`Source`] of [`Delivery`]s. Each delivery carries the
//! right to settle it, a [`SettleDelivery`]. [`serve`](crate::serve()) drives a source.
//!
//! [`Memory`](memory::Memory) and `Redis` are both halves in one handle. To write a transport,
//! implement these traits and run the `conformance` suite (a feature) on it: the
//! [guide](crate::guide) has a chapter about that.
//!
//! # Delivery guarantee
//! A delivery that is dropped unsettled is delivered again, to this worker or another, once its
//! lease ends.

mod backoff;
mod claims;
pub mod codec;
mod counters;
mod dead;
mod dead_partitions;
pub(crate) mod glob;
pub mod memory;
pub(crate) mod partitions;
#[cfg(feature = "redis")]
pub mod redis;
mod sending;
mod settings;
mod state;
mod stats;
mod streams;

use std::{future::Future, time::Duration};

use bytes::Bytes;
use tokio::sync::oneshot;
use tower::Service;

use crate::{
    error::{Error, RpcError},
    message::{Kind, Message, MessageId, Name},
    reply::Reply,
};

pub use self::{
    backoff::Backoff,
    counters::Counts,
    dead::{
        Acted, Action, DeadLetter, DeadLetterPage, DeadLetterStore, DeadLetters, Page, Selection,
        Step, Steps, StoreFuture,
    },
    partitions::PartitionTerm,
    sending::check,
    settings::{Expired, Settings, Start, UnknownNames},
    state::ConnectionState,
    stats::{ConsumerStats, GroupStats, StreamStats},
    streams::Streams,
};
#[allow(unused_imports)]
pub(crate) use self::{
    claims::Claims,
    counters::Counters,
    partitions::{Partitions, Role},
    settings::consumer_settings,
    streams::{Members, Quota, StreamSchedule},
};
pub(crate) use self::{
    dead::{DroppedLetters, PAGE_BYTES},
    dead_partitions::PartitionedDeadLetters,
};

/// The messages that a service wants from a source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Interest {
    /// True if the service handles tasks and RPC requests. Otherwise the source must leave them to
    /// other workers.
    pub stream: bool,
    /// The full names of the events that the service handles.
    pub events: Vec<Name>,
    /// The Redis glob patterns of the events that the service handles.
    pub patterns: Vec<Name>,
    /// The full names of the [sharded](crate::Router::event_sharded) events that the service handles.
    pub sharded: Vec<Name>,
    /// The tasks and RPC requests that the service has routes for, or `None` if the service may handle any. A source of
    /// a group whose workers serve other names warns about it.
    pub routes: Option<Vec<(Kind, Name)>>,
    /// The size of the service's largest batch, or 0 without batch handlers. A worker with a
    /// smaller `max_in_flight` could never fill that batch.
    pub at_once: usize,
}

impl Interest {
    /// All tasks and requests of the stream, and no events.
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

/// The serving half of a transport, not yet open.
pub trait Transport: Send + 'static {
    /// The type of the sources that it opens.
    type Source: Source;

    /// Connects, creates the group if it does not exist, subscribes to the events and starts the
    /// background tasks of the source. When it returns, the subscriptions are confirmed.
    ///
    /// # Errors
    /// If the settings cannot work. A transport waits for a server that cannot be reached, as
    /// [`next`](Source::next) does.
    ///
    /// # Cancel safety
    /// Dropping the future ends the attempt. [`serve`](crate::serve()) drops it at a shutdown.
    fn open(self, interest: Interest) -> impl Future<Output = Result<Self::Source, Error>> + Send;
}

/// Both halves of a transport in one handle that is cheap to clone, for applications that are
/// generic over the transport.
///
/// Implemented for every type that has both halves.
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
    /// The right to settle one of its deliveries.
    type Settle: SettleDelivery;

    /// The settings of the source.
    fn settings(&self) -> &Settings;

    /// The name of this worker in its group, which `serve` logs. `None` if the transport gives its
    /// workers no names.
    fn consumer(&self) -> Option<String> {
        None
    }

    /// The number of requests of this process to the same broker that wait for replies. `serve`
    /// logs it if all slots are taken for long: handlers may wait for replies of their own worker.
    /// A transport that does not know the number returns 0.
    fn requests_waiting(&self) -> usize {
        0
    }

    /// Waits for at least one and at most `max` deliveries. It never fetches more than `max` from
    /// the server.
    ///
    /// # Errors
    /// If the source cannot recover by itself. A lost connection is no error: the source
    /// reconnects.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing. Deliveries that were fetched by then are kept for the
    /// next call, or released by [`stop`](Self::stop).
    fn next(
        &mut self,
        max: usize,
    ) -> impl Future<Output = Result<Vec<Delivery<Self::Settle>>, Error>> + Send;

    /// Stops fetching, and releases at once the deliveries that were fetched and not returned by
    /// [`next`](Self::next). They do not count as attempts. Returned deliveries can still be
    /// settled. Idempotent.
    fn stop(&mut self) -> impl Future<Output = ()> + Send;

    /// Waits for running settlements, ends the background tasks, and leaves the group if (and only
    /// if) nothing is pending for this worker.
    ///
    /// # Errors
    /// If the server cannot be reached. Nothing is lost: the leases end.
    fn close(self) -> impl Future<Output = Result<(), Error>> + Send;
}

/// A delivery: a message, or an entry that could not be decoded, and the right to settle it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Delivery<H> {
    /// The message, or the entry that could not be decoded.
    pub content: Result<Message, Undecodable>,
    /// The right to settle it.
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
    /// The reason.
    pub reason: String,
    /// The raw fields.
    pub fields: Vec<(Bytes, Bytes)>,
    /// The id of the message, or `None` if it is unknown.
    pub id: Option<MessageId>,
    /// The stream, or `None` if it is unknown.
    pub stream: Option<Name>,
}

/// The right to settle one delivery. Dropping it leaves the delivery to its lease.
///
/// [`Delivery::settle`] settles a delivery and waits for the confirmation.
pub trait SettleDelivery: Send + 'static {
    /// Carries out a verdict, and calls `on_settled` once the server has confirmed it. The callback
    /// may run on any thread, and before this method returns, so it must not block.
    ///
    /// The verdict takes effect with the call. The transport sends it until the server answers. A
    /// late verdict, from a worker that has lost its lease, changes nothing. Exception: a late
    /// [`Verdict::Done`] may count, since the first worker to finish wins.
    ///
    /// `on_settled` gets an error if the transport was closed, or the server refuses the verdict
    /// permanently. It is dropped if the verdict can never be confirmed.
    fn settle(self, verdict: Verdict, on_settled: impl FnOnce(Result<(), Error>) + Send + 'static);
}

impl<H: SettleDelivery> Delivery<H> {
    /// Carries out a verdict, and waits until the server has confirmed it.
    ///
    /// # Errors
    /// If the transport was closed, or the server refuses the verdict permanently.
    ///
    /// # Cancel safety
    /// The verdict takes effect with the call. Dropping the future does not take it back.
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

/// The decision about a delivery. The source carries it out atomically with the acknowledgement.
#[derive(Debug)]
#[non_exhaustive]
pub enum Verdict {
    /// Acknowledge the delivery, and send the reply if it is an RPC request.
    Done(Result<Reply, RpcError>),
    /// Deliver the message again.
    Redeliver {
        /// The wait, or `None` for the source's back-off for this attempt.
        after: Option<Duration>,
        /// True if this delivery counts as an attempt.
        counted: bool,
        /// The reason. It is stored if the message becomes a dead letter because it has used up its
        /// deliveries.
        reason: String,
    },
    /// Make the message a dead letter.
    DeadLetter {
        /// The reason, which is stored with the dead letter.
        reason: String,
        /// The error reply, if it is an RPC request.
        answer: Option<RpcError>,
    },
    /// Drop the message, and count it.
    Discard {
        /// The reason, which decides how it is counted.
        reason: Discarded,
        /// The error reply, if it is an RPC request.
        answer: Option<RpcError>,
    },
    /// Release the delivery to another worker at once. It was not started, and does not count as an
    /// attempt.
    Release,
}

/// The reason why a message was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Discarded {
    /// The message's deadline had passed before the message was started.
    Expired,
    /// A handler or a layer requested to discard the message.
    Requested,
    /// This group has no route for the message, and [`UnknownNames::Ignore`] leaves it to the other
    /// groups.
    Ignored,
}
