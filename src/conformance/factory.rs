//! The interface between the suite and a transport.

use std::future::Future;

use bytes::Bytes;
use tower::Service;

use crate::{
    error::Error,
    message::{Message, Name},
    reply::Reply,
    transport::{DeadLetters, Settings, StreamStats, Tasks, Transport, memory::Memory},
};

/// Connects handles of the transport under test.
///
/// All handles of a factory reach the same server. Each check uses a new stream and new event
/// names, so that checks may share a server and run in parallel.
pub trait Factory: Send + Sync {
    /// A handle that is both halves of the transport.
    type Handle: Service<Message, Response = Reply, Error = Error, Future: Send + 'static>
        + Transport
        + Clone
        + Send
        + Sync
        + 'static;

    /// Creates a handle with these settings and with new connections.
    fn connect(
        &self,
        settings: Settings,
    ) -> impl Future<Output = Result<Self::Handle, Error>> + Send;

    /// Returns the capabilities of the transport. Checks that need other capabilities are skipped.
    fn capabilities(&self) -> Capabilities;

    /// Adds an entry with these raw fields to a stream, without this library. Needed for
    /// [`Capabilities::raw_entries`].
    fn add_raw(
        &self,
        stream: &Name,
        fields: Vec<(Bytes, Bytes)>,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        let _ = (stream, fields);
        async {
            Err(Error::config(
                "the factory declares `raw_entries` without an `add_raw` method",
            ))
        }
    }

    /// Returns the dead letters of the handle's group. Needed for [`Capabilities::dead_letters`].
    fn dead_letters(&self, handle: &Self::Handle) -> Option<DeadLetters> {
        let _ = handle;
        None
    }

    /// Returns the statistics of the handle's stream. Needed for [`Capabilities::statistics`].
    fn stats(
        &self,
        handle: &Self::Handle,
    ) -> impl Future<Output = Result<StreamStats, Error>> + Send {
        let _ = handle;
        async {
            Err(Error::config(
                "the factory declares `statistics` without a `stats` method",
            ))
        }
    }

    /// Returns the tasks of the handle's stream and group. Needed for
    /// [`Capabilities::delayed_tasks`] and [`Capabilities::tasks`].
    fn tasks(&self, handle: &Self::Handle) -> Option<Tasks> {
        let _ = handle;
        None
    }

    /// Ends the leases of all deliveries of the group, as if its workers had died. The workers
    /// still run. Needed for [`Capabilities::end_leases`].
    fn end_leases(&self, settings: &Settings) -> impl Future<Output = Result<(), Error>> + Send {
        let _ = settings;
        async {
            Err(Error::config(
                "the factory declares `end_leases` without an `end_leases` method",
            ))
        }
    }

    /// Restarts the server with its data, and returns once it accepts connections.
    /// Connections may break. Needed for [`Capabilities::restart`].
    fn restart(&self) -> impl Future<Output = Result<(), Error>> + Send {
        async {
            Err(Error::config(
                "the factory declares `restart` without a `restart` method",
            ))
        }
    }
}

/// The capabilities of a transport. Each has at least one check that is skipped without it.
///
/// ```
/// use campanile::conformance::Capabilities;
///
/// let mut simple = Capabilities::all();
/// simple.patterns = false;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// A redelivery can wait.
    pub delayed_redelivery: bool,
    /// A stream can have several groups.
    pub groups: bool,
    /// The deliveries of a dead worker are claimed by other workers.
    pub claim: bool,
    /// Events can be delivered to subscriptions by name.
    pub events: bool,
    /// Events can be delivered to subscriptions by pattern.
    pub patterns: bool,
    /// [Sharded](crate::client::Call::sharded) events.
    pub sharded_events: bool,
    /// Requests can have [fast](crate::ReplyMode::Fast) replies.
    pub fast_rpc: bool,
    /// Requests can have [reliable](crate::ReplyMode::Reliable) replies.
    pub reliable_rpc: bool,
    /// [`Factory::add_raw`] works.
    pub raw_entries: bool,
    /// [`Factory::dead_letters`] works.
    pub dead_letters: bool,
    /// A task can be [delayed](crate::Due) by its sender, and [`Factory::tasks`] can cancel it.
    pub delayed_tasks: bool,
    /// [`Factory::stats`] works.
    pub statistics: bool,
    /// One worker can serve [several streams](crate::transport::Streams), and a message can name
    /// the stream that it is sent to.
    pub stream_sets: bool,
    /// A stream can have [partitions](crate::transport::Streams::partitioned).
    pub partitions: bool,
    /// A task can have an [idempotency key](crate::IdempotencyKey).
    pub idempotent_tasks: bool,
    /// A task can be [confirmed by replicas](crate::client::Call::replicas). Without replicas the
    /// task is refused.
    pub replicas: bool,
    /// A delivery has an [outbox](crate::Outbox).
    pub outbox: bool,
    /// A task can be [unique](crate::client::Call::unique) and
    /// [tracked](crate::client::Call::tracked), and [`Factory::tasks`] works.
    pub tasks: bool,
    /// [`Factory::end_leases`] works.
    pub end_leases: bool,
    /// [`Factory::restart`] works.
    pub restart: bool,
}

impl Capabilities {
    /// Returns a value with all capabilities.
    pub const fn all() -> Self {
        Self {
            delayed_redelivery: true,
            groups: true,
            claim: true,
            events: true,
            patterns: true,
            sharded_events: true,
            fast_rpc: true,
            reliable_rpc: true,
            raw_entries: true,
            dead_letters: true,
            delayed_tasks: true,
            idempotent_tasks: true,
            replicas: true,
            statistics: true,
            stream_sets: true,
            partitions: true,
            outbox: true,
            tasks: true,
            end_leases: true,
            restart: true,
        }
    }

    /// Returns a value without capabilities: the transport only sends and delivers tasks.
    pub const fn none() -> Self {
        Self {
            delayed_redelivery: false,
            groups: false,
            claim: false,
            events: false,
            patterns: false,
            sharded_events: false,
            fast_rpc: false,
            reliable_rpc: false,
            raw_entries: false,
            dead_letters: false,
            delayed_tasks: false,
            idempotent_tasks: false,
            replicas: false,
            statistics: false,
            stream_sets: false,
            partitions: false,
            outbox: false,
            tasks: false,
            end_leases: false,
            restart: false,
        }
    }
}

/// The transport in memory, as an example.
impl Factory for Memory {
    type Handle = Memory;

    async fn connect(&self, settings: Settings) -> Result<Memory, Error> {
        Ok(self.clone().with_settings(settings))
    }

    fn capabilities(&self) -> Capabilities {
        // Memory has no server to restart, and no replicas.
        let mut capabilities = Capabilities::all();
        capabilities.restart = false;
        capabilities.replicas = false;
        capabilities
    }

    async fn add_raw(&self, stream: &Name, fields: Vec<(Bytes, Bytes)>) -> Result<(), Error> {
        self.clone().stream(stream).add_raw(fields);
        Ok(())
    }

    fn dead_letters(&self, handle: &Memory) -> Option<DeadLetters> {
        Some(handle.dead_letters())
    }

    async fn stats(&self, handle: &Memory) -> Result<StreamStats, Error> {
        handle.stats().await
    }

    fn tasks(&self, handle: &Memory) -> Option<Tasks> {
        Some(handle.tasks())
    }

    async fn end_leases(&self, settings: &Settings) -> Result<(), Error> {
        self.clone().with_settings(settings.clone()).end_leases();
        Ok(())
    }
}
