//! The interface between the suite and a transport.

use std::future::Future;

use bytes::Bytes;
use tower::Service;

use crate::{
    error::Error,
    message::{Message, Name},
    reply::Reply,
    transport::{
        Backlog, Control, DeadLetters, Limit, Messages, Minute, Schedules, Settings, StreamStats,
        Tasks, Transport, Workers, memory::Memory,
    },
};

/// Connects handles of the transport under test.
///
/// All handles of a factory must reach the same server. Each check uses a new stream and new event
/// names, so checks can run in parallel on one server.
///
/// A method with a default body is needed only for the [`Capabilities`] that its documentation
/// names. The suite does not call the method if [`capabilities`](Self::capabilities) has none of
/// them.
pub trait Factory: Send + Sync {
    /// A handle of the transport. It sends messages as a `Service`, and receives them as a
    /// [`Transport`].
    type Handle: Service<Message, Response = Reply, Error = Error, Future: Send + 'static>
        + Transport
        + Clone
        + Send
        + Sync
        + 'static;

    /// Returns a handle with these settings and with new connections.
    fn connect(
        &self,
        settings: Settings,
    ) -> impl Future<Output = Result<Self::Handle, Error>> + Send;

    /// Returns the capabilities of the transport. A check is skipped if it needs a capability that
    /// is not among them.
    fn capabilities(&self) -> Capabilities;

    /// Adds an entry with these fields to a stream, as a program without this library would. Needed
    /// for [`Capabilities::raw_entries`].
    fn add_raw(
        &self,
        stream: &Name,
        fields: Vec<(Bytes, Bytes)>,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        let _ = (stream, fields);
        async { Err(not_implemented("raw_entries", "add_raw")) }
    }

    /// Returns the dead letters of the handle's group. Needed for [`Capabilities::dead_letters`]:
    /// with this capability, `None` fails the check.
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
        async { Err(not_implemented("statistics", "stats")) }
    }

    /// Counts the messages that wait for the handle's group, by the reason of their wait. Needed
    /// for [`Capabilities::backlog`].
    fn backlog(
        &self,
        handle: &Self::Handle,
    ) -> impl Future<Output = Result<Backlog, Error>> + Send {
        let _ = handle;
        async { Err(not_implemented("backlog", "backlog")) }
    }

    /// Returns the tasks of the handle's stream and group. Needed for
    /// [`Capabilities::delayed_tasks`] and [`Capabilities::tasks`].
    fn tasks(&self, handle: &Self::Handle) -> Option<Tasks> {
        let _ = handle;
        None
    }

    /// Returns the messages of the handle's stream and group. Needed for
    /// [`Capabilities::messages`].
    fn messages(&self, handle: &Self::Handle) -> Option<Messages> {
        let _ = handle;
        None
    }

    /// Returns the [`Control`] of the handle's stream. Needed for [`Capabilities::control`].
    fn control(&self, handle: &Self::Handle) -> Option<Control> {
        let _ = handle;
        None
    }

    /// Returns the workers of the handle's group. Needed for [`Capabilities::workers`].
    fn workers(&self, handle: &Self::Handle) -> Option<Workers> {
        let _ = handle;
        None
    }

    /// Returns the history of the handle's group: the last hour, minute by minute. Needed for
    /// [`Capabilities::workers`].
    fn history(
        &self,
        handle: &Self::Handle,
    ) -> impl Future<Output = Result<Vec<Minute>, Error>> + Send {
        let _ = handle;
        async { Err(not_implemented("workers", "history")) }
    }

    /// Returns the scheduled tasks of the handle's stream. Needed for [`Capabilities::schedules`].
    fn schedules(&self, handle: &Self::Handle) -> Option<Schedules> {
        let _ = handle;
        None
    }

    /// Returns a limit that the workers of the handle's group share. Needed for
    /// [`Capabilities::limits`].
    fn limit(&self, handle: &Self::Handle, name: &str) -> Option<Result<Limit, Error>> {
        let _ = (handle, name);
        None
    }

    /// Ends the leases of all deliveries of the group, although its workers still run. Other
    /// workers can then claim the deliveries. Workers that own partitions count as dead for a
    /// moment. Needed for [`Capabilities::end_leases`].
    fn end_leases(&self, settings: &Settings) -> impl Future<Output = Result<(), Error>> + Send {
        let _ = settings;
        async { Err(not_implemented("end_leases", "end_leases")) }
    }

    /// Restarts the server without loss of data, and returns once it accepts connections. The
    /// restart may close the connections of all handles. Needed for [`Capabilities::restart`].
    fn restart(&self) -> impl Future<Output = Result<(), Error>> + Send {
        async { Err(not_implemented("restart", "restart")) }
    }
}

/// Returns the error of a method that the factory must implement, because it declares the
/// capability.
fn not_implemented(capability: &str, method: &str) -> Error {
    Error::config(format!(
        "the factory has the capability `{capability}`: implement its method `{method}`, or remove \
         the capability"
    ))
}

/// The capabilities of a transport, for [`Factory::capabilities`]. The suite has at least one check
/// for each capability, and skips these checks if the transport lacks the capability.
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
    /// A redelivery can have a delay.
    pub delayed_redelivery: bool,
    /// A stream can have several groups.
    pub groups: bool,
    /// Other workers claim the deliveries of a dead worker.
    pub claim: bool,
    /// Events can be delivered to subscriptions by name.
    pub events: bool,
    /// Events can be delivered to subscriptions by pattern.
    pub patterns: bool,
    /// Events can be [sharded](crate::client::Call::sharded).
    pub sharded_events: bool,
    /// Requests can have [fast](crate::ReplyMode::Fast) replies.
    pub fast_rpc: bool,
    /// Requests can have [reliable](crate::ReplyMode::Reliable) replies.
    pub reliable_rpc: bool,
    /// [`Factory::add_raw`] is implemented.
    pub raw_entries: bool,
    /// [`Factory::dead_letters`] is implemented.
    pub dead_letters: bool,
    /// A task can be [delayed](crate::Due) by its sender, and [`Factory::tasks`] can cancel it.
    pub delayed_tasks: bool,
    /// [`Factory::stats`] is implemented.
    pub statistics: bool,
    /// The statistics know the lag of a group that has read some of the entries.
    pub unread_lag: bool,
    /// [`Factory::messages`] is implemented.
    pub messages: bool,
    /// One worker can serve [several streams](crate::transport::Streams), and a sender can choose
    /// the stream of a message.
    pub stream_sets: bool,
    /// A stream can have [partitions](crate::transport::Streams::partitioned).
    pub partitions: bool,
    /// Workers can [own](crate::transport::Streams::owned) the partitions of a stream.
    pub owned_partitions: bool,
    /// A task can have an [idempotency key](crate::IdempotencyKey).
    pub idempotent_tasks: bool,
    /// A sender can require that [replicas confirm](crate::client::Call::replicas) a task. On a
    /// server without replicas, sending such a task must fail.
    pub replicas: bool,
    /// A delivery has an [outbox](crate::Outbox).
    pub outbox: bool,
    /// A task can be [unique](crate::client::Call::unique) and
    /// [tracked](crate::client::Call::tracked), and [`Factory::tasks`] is implemented.
    pub tasks: bool,
    /// Workers can share [limits](crate::transport::Limit), and [`Factory::limit`] is implemented.
    pub limits: bool,
    /// Streams and names can be [paused](crate::transport::Control), and [`Factory::control`] is
    /// implemented.
    pub control: bool,
    /// A source announces its [worker](crate::transport::Workers), and [`Factory::workers`] and
    /// [`Factory::history`] are implemented.
    pub workers: bool,
    /// Tasks can be [scheduled](crate::schedule), and [`Factory::schedules`] is implemented.
    pub schedules: bool,
    /// [`Factory::backlog`] is implemented.
    pub backlog: bool,
    /// A sender can have a [bound](crate::transport::Settings::max_waiting) on the number of
    /// messages that wait on a stream.
    pub bounds: bool,
    /// [`Factory::end_leases`] is implemented.
    pub end_leases: bool,
    /// [`Factory::restart`] is implemented.
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
            unread_lag: true,
            messages: true,
            stream_sets: true,
            partitions: true,
            owned_partitions: true,
            outbox: true,
            tasks: true,
            limits: true,
            control: true,
            workers: true,
            schedules: true,
            backlog: true,
            bounds: true,
            end_leases: true,
            restart: true,
        }
    }

    /// Returns a value without capabilities, for a transport that only sends and delivers tasks.
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
            unread_lag: false,
            messages: false,
            stream_sets: false,
            partitions: false,
            owned_partitions: false,
            outbox: false,
            tasks: false,
            limits: false,
            control: false,
            workers: false,
            schedules: false,
            backlog: false,
            bounds: false,
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
        let mut capabilities = Capabilities::all();
        // There is no server to restart, and there are no replicas.
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

    async fn backlog(&self, handle: &Memory) -> Result<Backlog, Error> {
        handle.backlog().await
    }

    fn tasks(&self, handle: &Memory) -> Option<Tasks> {
        Some(handle.tasks())
    }

    fn messages(&self, handle: &Memory) -> Option<Messages> {
        Some(handle.messages())
    }

    fn control(&self, handle: &Memory) -> Option<Control> {
        Some(handle.control())
    }

    fn workers(&self, handle: &Memory) -> Option<Workers> {
        Some(handle.workers())
    }

    async fn history(&self, handle: &Memory) -> Result<Vec<Minute>, Error> {
        handle.history().await
    }

    fn limit(&self, handle: &Memory, name: &str) -> Option<Result<Limit, Error>> {
        Some(handle.limit(name))
    }

    fn schedules(&self, handle: &Memory) -> Option<Schedules> {
        Some(handle.schedules())
    }

    async fn end_leases(&self, settings: &Settings) -> Result<(), Error> {
        self.clone().with_settings(settings.clone()).end_leases();
        Ok(())
    }
}
