//! A message and its parts.

use std::{
    fmt,
    ops::{Index, IndexMut},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Extensions, HeaderMap};
use tokio::time::Instant;

use super::{CorrelationId, IdempotencyKey, Lease, MessageId, Name, PartitionKey};

/// The kind of a message, which decides who gets it and the delivery guarantee.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Work for one worker of each group, at least once.
    Task,
    /// A notice to all current subscribers; best effort.
    Event,
    /// A request whose sender waits for a reply.
    Rpc,
}

impl Kind {
    /// `task`, `event` or `rpc`, as on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Task => "task",
            Kind::Event => "event",
            Kind::Rpc => "rpc",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A value for each kind of message.
///
/// Indexing is a `match` on [`Kind`], so code that forgets a new kind does not compile.
///
/// ```
/// use campanile::{Kind, message::ByKind};
///
/// let mut sent = ByKind::<u64>::default();
/// sent[Kind::Event] += 1;
/// assert_eq!((sent[Kind::Event], sent[Kind::Task]), (1, 0));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ByKind<T> {
    /// The value for tasks.
    pub task: T,
    /// The value for events.
    pub event: T,
    /// The value for RPC requests.
    pub rpc: T,
}

impl<T> Index<Kind> for ByKind<T> {
    type Output = T;

    fn index(&self, kind: Kind) -> &T {
        match kind {
            Kind::Task => &self.task,
            Kind::Event => &self.event,
            Kind::Rpc => &self.rpc,
        }
    }
}

impl<T> IndexMut<Kind> for ByKind<T> {
    fn index_mut(&mut self, kind: Kind) -> &mut T {
        match kind {
            Kind::Task => &mut self.task,
            Kind::Event => &mut self.event,
            Kind::Rpc => &mut self.rpc,
        }
    }
}

/// The delivery mode of the reply to an RPC request. Chosen by the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ReplyMode {
    /// The server stores the reply until the caller has read it: it survives a lost connection on
    /// either side.
    #[default]
    Reliable,
    /// The reply is published once: fastest, and lost if the caller is not connected at that
    /// moment.
    Fast,
}

/// The number of a delivery of a message, from 1, counted across redelivery, claims and delayed
/// retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attempt(pub u32);

impl Default for Attempt {
    fn default() -> Self {
        Attempt(1)
    }
}

impl Attempt {
    /// Returns whether the message was delivered before.
    pub fn is_retry(self) -> bool {
        self.0 > 1
    }
}

/// The time after which the outcome does not matter, on this process's monotonic clock.
///
/// On the wire it is a time to live on the server's clock, so the clocks of two machines need not
/// agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Deadline(pub Instant);

impl Deadline {
    /// The default time from a request to its deadline.
    pub(crate) const OF_A_REQUEST: Duration = Duration::from_secs(30);

    /// The deadline `after` from now.
    pub fn after(after: Duration) -> Self {
        let now = Instant::now();
        // Use a century if the sum overflows.
        Deadline(
            now.checked_add(after)
                .unwrap_or_else(|| now + Duration::from_secs(3_155_760_000)),
        )
    }

    /// The time left; zero once the deadline has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Returns whether the deadline has passed.
    pub fn has_passed(self) -> bool {
        self.0 <= Instant::now()
    }
}

/// The time at which a delayed task is added to its stream. Chosen by the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Due {
    /// This long after the server has stored the task, on the server's clock.
    After(Duration),
    /// At this time on the server's clock; at once if the time has passed.
    At(SystemTime),
}

impl Due {
    /// The time until the task is due, by this machine's clock.
    pub fn wait(self) -> Duration {
        match self {
            Due::After(delay) => delay,
            Due::At(time) => time.duration_since(SystemTime::now()).unwrap_or_default(),
        }
    }
}

/// The number of replicas that have to confirm a task, and the time for it. Chosen by the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Replicas {
    /// The number of replicas.
    pub count: u32,
    /// The longest wait for their confirmations, which starts with the write.
    pub within: Duration,
}

/// The name, or the pattern, of the route that a router chose for a message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MatchedRoute {
    pub(crate) pattern: Name,
    pub(crate) index: usize,
}

impl MatchedRoute {
    /// The route as it was registered, with the prefixes of its outer routers. For a fallback, the
    /// prefix of its router, or an empty text at the root.
    pub fn as_str(&self) -> &str {
        &self.pattern
    }
}

/// All of a message except its payload.
#[derive(Clone)]
#[non_exhaustive]
pub struct Parts {
    /// Task, event or RPC.
    pub kind: Kind,
    /// The full dotted name.
    pub name: Name,
    /// The stream that the message was read from: by a worker, from the dead letters, or by `tail`.
    /// `None` before a transport has accepted the message, and for events.
    pub stream: Option<Name>,
    /// The consumer group of the delivery or of the dead letter. `None` if [`stream`](Self::stream)
    /// is `None`, or if the entry was read and not delivered.
    pub group: Option<Name>,
    /// The id from the transport; `None` before it accepted the message, and for events. Unique in
    /// its stream only.
    pub id: Option<MessageId>,
    /// The time at which the transport accepted the message, on the server's clock, if known.
    pub accepted_at: Option<SystemTime>,
    /// The number of this delivery.
    pub attempt: Attempt,
    /// The time after which the outcome does not matter, if there is one.
    pub deadline: Option<Deadline>,
    /// For sending a task or a request: its stream, instead of the stream of the transport's
    /// handle. Ignored in a delivery.
    pub to: Option<Name>,
    /// For sending a task: the time at which it is due. Ignored in a delivery, and by services that
    /// handle the task in this process instead of storing it.
    pub due: Option<Due>,
    /// For sending a task: tasks with the same key are stored once within the transport's window.
    /// Ignored by services that handle the task in this process.
    pub idempotency_key: Option<IdempotencyKey>,
    /// For a task or a request: chooses its partition if the handle of its sender has a
    /// [partitioned](crate::transport::Streams::partitioned) stream. Sent with the message.
    pub partition_key: Option<PartitionKey>,
    /// For sending a task: the replicas that have to confirm the write. Ignored by services that
    /// handle the task in this process; a transport without replicas refuses it.
    pub replicas: Option<Replicas>,
    /// For RPC: the delivery mode of the reply.
    pub reply_mode: ReplyMode,
    /// For a delivered RPC request: the id that its reply carries.
    pub correlation_id: Option<CorrelationId>,
    /// For events: the pattern of the subscription, if it has one.
    pub pattern: Option<Name>,
    /// For events: `true` if the event is [sharded](crate::client::Call::sharded). Chosen by the
    /// sender, and set in a delivery.
    pub sharded: bool,
    /// Headers, sent with the message.
    pub headers: HeaderMap,
    /// Values for the layers and handlers of this process; never sent.
    pub extensions: Extensions,
    /// The worker's lease on the delivery, in transports with leases.
    pub lease: Option<Lease>,
    pub(crate) matched: Option<MatchedRoute>,
}

impl Parts {
    /// The parts of a new message without headers.
    pub fn new(kind: Kind, name: impl Into<Name>) -> Self {
        Self {
            kind,
            name: name.into(),
            stream: None,
            group: None,
            id: None,
            accepted_at: None,
            attempt: Attempt::default(),
            deadline: None,
            to: None,
            due: None,
            idempotency_key: None,
            partition_key: None,
            replicas: None,
            reply_mode: ReplyMode::default(),
            correlation_id: None,
            pattern: None,
            sharded: false,
            headers: HeaderMap::new(),
            extensions: Extensions::new(),
            lease: None,
            matched: None,
        }
    }

    /// The route that the router chose; `None` outside a router. Layers of the router can read it,
    /// since the router chooses before they run.
    pub fn matched_route(&self) -> Option<&MatchedRoute> {
        self.matched.as_ref()
    }
}

// Header values can be secrets, so only their number is shown.
impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("kind", &self.kind)
            .field("name", &self.name)
            .field("stream", &self.stream)
            .field("group", &self.group)
            .field("id", &self.id)
            .field("attempt", &self.attempt)
            .field("deadline", &self.deadline)
            .field("headers", &self.headers.len())
            .finish_non_exhaustive()
    }
}

/// A task, an event or an RPC request. See the [module](super).
#[derive(Clone)]
pub struct Message(
    // Boxed, so that a move copies only a pointer: layers, futures and queues move a message about
    // a dozen times.
    Box<MessageInner>,
);

#[derive(Clone)]
struct MessageInner {
    parts: Parts,
    payload: Bytes,
}

impl Message {
    /// A message of any kind.
    pub fn new(kind: Kind, name: impl Into<Name>, payload: impl Into<Bytes>) -> Self {
        Self::from_parts(Parts::new(kind, name), payload.into())
    }

    /// A task.
    pub fn task(name: impl Into<Name>, payload: impl Into<Bytes>) -> Self {
        Self::new(Kind::Task, name, payload)
    }

    /// An event.
    pub fn event(name: impl Into<Name>, payload: impl Into<Bytes>) -> Self {
        Self::new(Kind::Event, name, payload)
    }

    /// An RPC request.
    pub fn rpc(name: impl Into<Name>, payload: impl Into<Bytes>) -> Self {
        Self::new(Kind::Rpc, name, payload)
    }

    /// Makes a message of its parts and a payload.
    pub fn from_parts(parts: Parts, payload: Bytes) -> Self {
        Self(Box::new(MessageInner { parts, payload }))
    }

    /// Returns the parts and the payload.
    pub fn into_parts(self) -> (Parts, Bytes) {
        let MessageInner { parts, payload } = *self.0;
        (parts, payload)
    }

    /// Returns the payload.
    pub fn into_payload(mut self) -> Bytes {
        std::mem::take(&mut self.0.payload)
    }

    /// All of the message except its payload.
    pub fn parts(&self) -> &Parts {
        &self.0.parts
    }

    /// All of the message except its payload, mutable.
    pub fn parts_mut(&mut self) -> &mut Parts {
        &mut self.0.parts
    }

    /// Task, event or RPC.
    pub fn kind(&self) -> Kind {
        self.0.parts.kind
    }

    /// The full dotted name.
    pub fn name(&self) -> &Name {
        &self.0.parts.name
    }

    /// The headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.0.parts.headers
    }

    /// The headers, mutable.
    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.0.parts.headers
    }

    /// Values for the layers and handlers of this process.
    pub fn extensions(&self) -> &Extensions {
        &self.0.parts.extensions
    }

    /// Values for the layers and handlers of this process, mutable.
    pub fn extensions_mut(&mut self) -> &mut Extensions {
        &mut self.0.parts.extensions
    }

    /// The payload.
    pub fn payload(&self) -> &Bytes {
        &self.0.payload
    }

    /// The payload, mutable.
    pub fn payload_mut(&mut self) -> &mut Bytes {
        &mut self.0.payload
    }
}

// Payloads must not get into logs, so they are not shown.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("parts", &self.0.parts)
            .field("payload", &format_args!("{} bytes", self.0.payload.len()))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_neither_payload_nor_header_values() {
        let mut message = Message::task("a", "secret");
        message
            .headers_mut()
            .insert("token", "hunter2".parse().unwrap());
        let shown = format!("{message:?}");
        assert!(
            !shown.contains("secret") && !shown.contains("hunter2"),
            "{shown}"
        );
        assert!(shown.contains("6 bytes"));
    }

    #[test]
    fn each_kind_has_a_value_of_its_own() {
        let mut counts = ByKind::<u32>::default();
        for (n, kind) in (1..).zip([Kind::Task, Kind::Event, Kind::Rpc]) {
            counts[kind] += n;
        }
        assert_eq!((counts.task, counts.event, counts.rpc), (1, 2, 3));
        assert_eq!(counts[Kind::Event], 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_counts_down_and_never_overflows() {
        let deadline = Deadline::after(Duration::from_secs(2));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(deadline.remaining(), Duration::from_secs(1));
        assert!(!deadline.has_passed());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(deadline.has_passed());
        assert!(!Deadline::after(Duration::MAX).has_passed());
    }
}
