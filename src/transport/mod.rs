//! The two halves of a transport, and what passes between them and the rest.
//!
//! The *sending half* is nothing new: a `tower::Service<Message>` whose reply comes from the other
//! side. The *serving half* is a [`Transport`], opened as a [`Source`] of [`Delivery`]s, each with
//! the right to settle it, [`SettleDelivery`]. [`serve`](crate::serve()) drives a source.
//!
//! [`Memory`](memory::Memory) and `Redis` are both halves in one handle. To write a transport,
//! implement these traits and run the `conformance` suite (a feature) on it: the
//! [guide](crate::guide) has a chapter about that.
//!
//! # Delivery guarantee
//! A delivery that is dropped unsettled stays with its worker's lease: it is delivered again, to
//! this worker or another, once the lease ends.

mod backoff;
pub mod codec;
mod counters;
mod dead;
pub(crate) mod glob;
pub mod memory;
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
    message::{Message, Name},
    reply::Reply,
};

pub(crate) use self::dead::{DroppedLetters, PAGE_BYTES};
pub use self::{
    backoff::Backoff,
    counters::Counts,
    dead::{
        Acted, Action, DeadLetter, DeadLetterPage, DeadLetterStore, DeadLetters, Page, Selection,
        Step, Steps, StoreFuture,
    },
    sending::check,
    settings::{Expired, Settings, Start, UnknownNames},
    state::ConnectionState,
    stats::{GroupStats, StreamStats},
    streams::Streams,
};
#[allow(unused_imports)]
pub(crate) use self::{
    counters::Counters,
    settings::consumer_settings,
    streams::{Members, Quota, StreamSchedule},
};

/// What a service wants of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Interest {
    /// Whether it takes tasks and RPC requests from the stream. A source that nobody asks for them
    /// must leave them to others.
    pub stream: bool,
    /// The events it listens to, by their full names.
    pub events: Vec<Name>,
    /// The events it listens to, by Redis glob patterns.
    pub patterns: Vec<Name>,
    /// How many deliveries it handles at once if there are as many, where that is more than one: a
    /// source that has fewer in flight keeps a batch waiting.
    pub at_once: usize,
}

impl Interest {
    /// Everything on the stream, and no events.
    pub fn stream() -> Self {
        Self {
            stream: true,
            ..Self::default()
        }
    }
}

/// The serving half of a transport, not yet open.
pub trait Transport: Send + 'static {
    /// What it opens to.
    type Source: Source;

    /// Connects, prepares what is missing on the server, subscribes to the events and starts
    /// whatever runs beside the source. Subscriptions are confirmed when it returns.
    ///
    /// # Errors
    /// When it cannot work as it is set up. A transport with a server waits for one that is away, as
    /// its [`next`](Source::next) does.
    ///
    /// # Cancel safety
    /// Dropping the future ends the attempt. [`serve`](crate::serve()) drops it when it is told to end.
    fn open(self, interest: Interest) -> impl Future<Output = Result<Self::Source, Error>> + Send;
}

/// Both halves of a transport in one handle that is cheap to clone: what an application is given
/// when it must not care which transport it runs on.
///
/// Implemented for everything that is both; nothing needs to implement it.
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

    /// What it was set up with.
    fn settings(&self) -> &Settings;

    /// The number of requests that the handles of this source's broker in this process wait for.
    /// `serve` logs it when none of its handlers makes progress: they may wait for each other. A
    /// transport that does not know returns 0.
    fn requests_waiting(&self) -> usize {
        0
    }

    /// Waits for deliveries, at least one and at most `max`. It never asks the server for more
    /// than that.
    ///
    /// # Errors
    /// Only what cannot pass by itself. A source outlives a server that is away: it reconnects.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped: what had been fetched by then is kept for the
    /// next call, or given back by [`stop`](Self::stop).
    fn next(
        &mut self,
        max: usize,
    ) -> impl Future<Output = Result<Vec<Delivery<Self::Settle>>, Error>> + Send;

    /// Stops fetching and gives back at once what was fetched and not handed out by
    /// [`next`](Self::next), as deliveries that were no attempt. What was handed out can still be
    /// settled. Idempotent.
    fn stop(&mut self) -> impl Future<Output = ()> + Send;

    /// Ends what runs beside the source, after the settlements that are under way, and leaves the
    /// group if (and only if) nothing is pending for this worker.
    ///
    /// # Errors
    /// When the server could not be told. Nothing is lost then either: the leases end.
    fn close(self) -> impl Future<Output = Result<(), Error>> + Send;
}

/// One delivery: a message, or what could not be read as one, and the right to settle it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Delivery<H> {
    /// What was delivered.
    pub content: Result<Message, Undecodable>,
    /// The right to settle it.
    pub settle: H,
}

impl<H> Delivery<H> {
    /// A delivery.
    pub fn new(content: Result<Message, Undecodable>, settle: H) -> Self {
        Self { content, settle }
    }
}

/// An entry that is no message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Undecodable {
    /// Why not.
    pub reason: String,
    /// The fields as they came.
    pub fields: Vec<(Bytes, Bytes)>,
}

/// The right to settle one delivery. Dropping it leaves the delivery to its lease.
///
/// [`Delivery::settle`] settles a delivery and waits for the confirmation.
pub trait SettleDelivery: Send + 'static {
    /// Carries a verdict out, and calls `on_settled` when the server has confirmed it: from any thread,
    /// and perhaps before this returns, so it must not block. The verdict takes effect with the call. A
    /// transport repeats it until it is answered; verdicts that come late, from a worker whose lease was
    /// lost, change nothing. Only that a delivery is done may count even then: the first to finish wins.
    ///
    /// `on_settled` is called with an error when the transport was closed, or the server refuses for
    /// good. It is dropped if the verdict can never be confirmed.
    fn settle(self, verdict: Verdict, on_settled: impl FnOnce(Result<(), Error>) + Send + 'static);
}

impl<H: SettleDelivery> Delivery<H> {
    /// Carries a verdict out, and waits until the server has confirmed it.
    ///
    /// # Errors
    /// When the transport was closed, or the server refuses for good.
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

/// What becomes of a delivery. The source carries it out, atomically with the acknowledgement.
#[derive(Debug)]
#[non_exhaustive]
pub enum Verdict {
    /// Handled: acknowledge it, and send the answer if it was an RPC request.
    Done(Result<Reply, RpcError>),
    /// Deliver it again.
    Redeliver {
        /// After this long, or after the source's back-off for this attempt.
        after: Option<Duration>,
        /// Whether this delivery counts as an attempt.
        counted: bool,
        /// Why; kept where the message becomes a dead letter instead, because its deliveries are
        /// used up.
        reason: String,
    },
    /// Make it a dead letter.
    Dead {
        /// Why.
        reason: String,
        /// The answer, if it was an RPC request.
        answer: Option<RpcError>,
    },
    /// Drop it.
    Discard {
        /// Why.
        reason: Discarded,
        /// The answer, if it was an RPC request.
        answer: Option<RpcError>,
    },
    /// It was not started: hand it to another worker at once. No attempt.
    GiveBack,
}

/// Why a delivery was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Discarded {
    /// Its deadline had passed before it was started.
    Expired,
    /// A handler or a layer asked for it.
    Asked,
    /// Nobody here knows its name, and [`UnknownNames::Ignore`] leaves it to the other groups.
    Ignored,
}
