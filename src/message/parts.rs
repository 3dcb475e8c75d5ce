//! A message and its parts.

use std::{
    fmt,
    ops::{Index, IndexMut},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Extensions, HeaderMap};
use tokio::time::Instant;

use super::{CorrelationId, IdempotencyKey, Lease, MessageId, Name, PartitionKey, Unique};

/// The kind of a message. The workers that get the message and the delivery guarantee depend on it.
///
/// ```
/// use campanile::{Kind, Router};
///
/// async fn audit(kind: Kind, payload: String) {
///     println!("{kind}: {payload}"); // `task: …` or `event: …`
/// }
///
/// let app: Router = Router::new().task("orders.create", audit).event("orders.*", audit);
/// assert_eq!(Kind::Rpc.as_str(), "rpc");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Work that one worker of each group handles, at least once.
    Task,
    /// A notice to all current subscribers, at most once.
    Event,
    /// A request whose sender waits for a reply.
    Rpc,
}

impl Kind {
    /// Returns `task`, `event` or `rpc`, as on the wire.
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

/// The way in which the reply to an RPC request is delivered. Chosen by the sender.
///
/// ```
/// use campanile::{Message, ReplyMode};
///
/// let mut request = Message::rpc("users.get", "7");
/// assert_eq!(request.parts().reply_mode, ReplyMode::Reliable);
/// request.parts_mut().reply_mode = ReplyMode::Fast; // as `Client::request_fast` does
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ReplyMode {
    /// The server stores the reply for the caller, so the reply survives a lost connection on
    /// either side.
    #[default]
    Reliable,
    /// The reply is published once. This is fastest, but the reply is lost if the caller is not
    /// connected at that moment.
    Fast,
}

/// The number of the attempt to handle a message, from 1. Each redelivery adds one, also a
/// redelivery to another worker after a lost lease. A delivery may not count as an attempt, for
/// example because the worker was overloaded. In this case, the next delivery has the same number.
/// In the status of a task, 0 means that no attempt was started.
///
/// ```
/// use campanile::{Attempt, Router};
///
/// async fn charge(attempt: Attempt, order: String) {
///     if attempt.is_retry() {
///         println!("order {order}: attempt {}, so look for an earlier charge", attempt.0);
///     }
/// }
///
/// let app: Router = Router::new().task("orders.charge", charge);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attempt(pub u32);

impl Default for Attempt {
    fn default() -> Self {
        Attempt(1)
    }
}

impl Attempt {
    /// Returns `true` if an earlier delivery of the message counted as an attempt.
    pub fn is_retry(self) -> bool {
        self.0 > 1
    }
}

/// The time after which nobody needs the outcome of a message, on this process's monotonic clock.
///
/// A message is sent with the time that remains until its deadline. Workers measure this time on
/// the server's clock, so the clocks of the sender and the worker need not agree.
///
/// ```
/// use campanile::{Deadline, Router, RpcError};
/// use std::time::Duration;
///
/// async fn report(deadline: Deadline) -> Result<String, RpcError> {
///     if deadline.remaining() < Duration::from_secs(1) {
///         return Err(RpcError::deadline("a report takes a second"));
///     }
///     Ok("the report".into())
/// }
///
/// let app: Router = Router::new().rpc("report", report);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Deadline(pub Instant);

impl Deadline {
    /// The default timeout of a request.
    pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

    /// Creates a deadline that passes after this time.
    pub fn after(after: Duration) -> Self {
        let now = Instant::now();
        // If the sum overflows, the deadline is a century away.
        Deadline(
            now.checked_add(after)
                .unwrap_or_else(|| now + Duration::from_secs(3_155_760_000)),
        )
    }

    /// Returns the time left until the deadline. Zero if it has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Returns whether the deadline has passed.
    pub fn has_passed(self) -> bool {
        self.0 <= Instant::now()
    }
}

/// The time at which a delayed task is added to its stream. Chosen by the sender.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use campanile::{Due, Message};
///
/// let mut reminder = Message::task("mails.remind", "Ada");
/// reminder.parts_mut().due = Some(Due::After(Duration::from_secs(3600)));
/// assert_eq!(Due::At(SystemTime::UNIX_EPOCH).wait(), Duration::ZERO);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Due {
    /// This long after the server has stored the task, on the server's clock.
    After(Duration),
    /// At this time on the server's clock, or immediately if the time has passed.
    At(SystemTime),
}

impl Due {
    /// Returns the time until the task is due, by this machine's clock.
    pub fn wait(self) -> Duration {
        match self {
            Due::After(delay) => delay,
            Due::At(time) => time.duration_since(SystemTime::now()).unwrap_or_default(),
        }
    }
}

/// The number of replicas that have to confirm a task, and the maximum wait for them. Chosen by the
/// sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Replicas {
    /// The number of replicas.
    pub count: u32,
    /// The maximum time from the write to the last of these confirmations.
    pub within: Duration,
}

/// The name, or the pattern, of the route that a router chose for a message.
///
/// ```
/// use campanile::{MatchedRoute, Router};
///
/// async fn count(route: MatchedRoute) {
///     println!("{}", route.as_str()); // `orders.*`, whatever the name of the event
/// }
///
/// let app: Router = Router::new().event("orders.*", count);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MatchedRoute {
    pub(crate) pattern: Name,
    pub(crate) index: usize,
}

impl MatchedRoute {
    /// Returns the name or pattern of the route, with the prefixes under which its router is
    /// nested. For a fallback, returns only the prefix of its router, which is empty at the root.
    pub fn as_str(&self) -> &str {
        &self.pattern
    }
}

/// Everything in a message except its payload.
///
/// ```
/// use campanile::{Kind, Message, Parts};
///
/// let mut parts = Parts::new(Kind::Task, "orders.create");
/// parts.max_attempts = Some(3);
/// let message = Message::from_parts(parts, "7".into());
/// assert!(!message.parts().is_last_attempt());
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct Parts {
    /// Task, event or RPC.
    pub kind: Kind,
    /// The full dotted name.
    pub name: Name,
    /// The stream that the message is stored on. Set if the message was read from a stream: by a
    /// worker, from the dead letters, or by `tail`. `None` for a message to send, and for events.
    pub stream: Option<Name>,
    /// The consumer group of the delivery or of the dead letter. `None` if [`stream`](Self::stream)
    /// is `None`, or if the entry was read without a group, as by `tail`.
    pub group: Option<Name>,
    /// The id that the transport gave to the message, unique only within its stream. `None` for a
    /// message to send, and for events.
    pub id: Option<MessageId>,
    /// The time at which the transport accepted the message, on the server's clock, if known.
    pub accepted_at: Option<SystemTime>,
    /// The number of this attempt.
    pub attempt: Attempt,
    /// The time after which nobody needs the outcome, if the message has a deadline.
    pub deadline: Option<Deadline>,
    /// For sending a task or a request: the stream to send it to, instead of the stream of the
    /// transport's handle. Ignored in a delivery.
    pub to: Option<Name>,
    /// For sending a task: the time at which it is due. Ignored in a delivery, and by services that
    /// handle the task in this process instead of storing it.
    pub due: Option<Due>,
    /// For sending a task: its idempotency key. Of the tasks with the same key, the transport
    /// stores only the first within its idempotency window. Ignored by services that handle the
    /// task in this process.
    pub idempotency_key: Option<IdempotencyKey>,
    /// For sending a task with an idempotency key: a digest of its content. If an earlier task with
    /// another digest has the same key, the call fails with a [reused
    /// key](crate::Error::is_reused_key).
    pub content_digest: Option<u64>,
    /// For sending a task: its unique key. Ignored by services that handle the task in this
    /// process.
    pub unique: Option<Unique>,
    /// For sending a task: the time for which its status is kept after its end. `None` if its
    /// status is not recorded. Ignored by services that handle the task in this process.
    pub tracked: Option<Duration>,
    /// For a task: the number of attempts after which the task is given up, if its sender has
    /// chosen a number. Sent with the task. In a delivery that [`serve`](crate::serve()) handles,
    /// it is always set: to the sender's number, or else to the worker's
    /// [`max_deliveries`](crate::transport::Settings::max_deliveries).
    pub max_attempts: Option<u32>,
    /// For a task: the maximum duration of each attempt. Sent with the task.
    pub attempt_timeout: Option<Duration>,
    /// For a task or a request: the key that chooses its partition, if it is sent to a
    /// [partitioned](crate::transport::Streams::partitioned) stream. Sent with the message.
    pub partition_key: Option<PartitionKey>,
    /// For sending a task: the replicas that have to confirm the write. Ignored by services that
    /// handle the task in this process; a transport without replicas refuses the task.
    pub replicas: Option<Replicas>,
    /// For a request: the way in which its reply is delivered.
    pub reply_mode: ReplyMode,
    /// For a delivered request: the id that is returned with its reply.
    pub correlation_id: Option<CorrelationId>,
    /// For a delivered event: the pattern of the subscription that matched. `None` for a
    /// subscription to a name.
    pub pattern: Option<Name>,
    /// For events: `true` if the event is [sharded](crate::client::Call::sharded). Chosen by the
    /// sender, and set in a delivery.
    pub sharded: bool,
    /// Headers, sent with the message.
    pub headers: HeaderMap,
    /// Values for the layers and handlers of this process. Never sent.
    pub extensions: Extensions,
    /// The worker's lease on the delivery, if the transport has leases.
    pub lease: Option<Lease>,
    /// The route that the router chose.
    pub(crate) matched_route: Option<MatchedRoute>,
}

impl Parts {
    /// Creates the parts of a new message without headers.
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
            content_digest: None,
            unique: None,
            tracked: None,
            max_attempts: None,
            attempt_timeout: None,
            partition_key: None,
            replicas: None,
            reply_mode: ReplyMode::default(),
            correlation_id: None,
            pattern: None,
            sharded: false,
            headers: HeaderMap::new(),
            extensions: Extensions::new(),
            lease: None,
            matched_route: None,
        }
    }

    /// Returns `true` if the message is given up when this attempt fails. Returns `false` if
    /// [`max_attempts`](Self::max_attempts) is not set, as in a message that
    /// [`serve`](crate::serve()) has not delivered.
    pub fn is_last_attempt(&self) -> bool {
        self.max_attempts.is_some_and(|max| self.attempt.0 >= max)
    }

    /// Returns the route that the router chose for the message; `None` outside a router. Layers of
    /// the router get the route, too, because the router chooses it before they run.
    pub fn matched_route(&self) -> Option<&MatchedRoute> {
        self.matched_route.as_ref()
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
///
/// ```
/// use campanile::{Kind, Message};
///
/// let mut message = Message::task("orders.create", "7");
/// message.headers_mut().insert("x-tenant", "acme".parse()?);
/// assert_eq!((message.kind(), &**message.name()), (Kind::Task, "orders.create"));
/// assert_eq!(message.payload(), "7");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Message(
    // Boxed, so that a move copies only a pointer: layers, futures and queues move each message
    // about a dozen times.
    Box<MessageInner>,
);

#[derive(Clone)]
struct MessageInner {
    parts: Parts,
    payload: Bytes,
}

impl Message {
    /// Creates a message of any kind.
    pub fn new(kind: Kind, name: impl Into<Name>, payload: impl Into<Bytes>) -> Self {
        Self::from_parts(Parts::new(kind, name), payload.into())
    }

    /// Creates a task.
    pub fn task(name: impl Into<Name>, payload: impl Into<Bytes>) -> Self {
        Self::new(Kind::Task, name, payload)
    }

    /// Creates an event.
    pub fn event(name: impl Into<Name>, payload: impl Into<Bytes>) -> Self {
        Self::new(Kind::Event, name, payload)
    }

    /// Creates an RPC request.
    pub fn rpc(name: impl Into<Name>, payload: impl Into<Bytes>) -> Self {
        Self::new(Kind::Rpc, name, payload)
    }

    /// Creates a message from its parts and a payload.
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

    /// Returns everything in the message except its payload.
    pub fn parts(&self) -> &Parts {
        &self.0.parts
    }

    /// Returns a mutable reference to everything in the message except its payload.
    pub fn parts_mut(&mut self) -> &mut Parts {
        &mut self.0.parts
    }

    /// Returns the kind: task, event or RPC.
    pub fn kind(&self) -> Kind {
        self.0.parts.kind
    }

    /// Returns the full dotted name.
    pub fn name(&self) -> &Name {
        &self.0.parts.name
    }

    /// Returns the headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.0.parts.headers
    }

    /// Returns a mutable reference to the headers.
    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.0.parts.headers
    }

    /// Returns the values for the layers and handlers of this process.
    pub fn extensions(&self) -> &Extensions {
        &self.0.parts.extensions
    }

    /// Returns a mutable reference to the values for the layers and handlers of this process.
    pub fn extensions_mut(&mut self) -> &mut Extensions {
        &mut self.0.parts.extensions
    }

    /// Returns the payload.
    pub fn payload(&self) -> &Bytes {
        &self.0.payload
    }

    /// Returns a mutable reference to the payload.
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
