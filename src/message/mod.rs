//! What travels: a [`Message`] is its [`Parts`] and a payload of bytes.
//!
//! A message is a request in tower's sense: whatever handles one is a
//! `tower::Service<Message>`. It is built like an `http::Request`, from the same
//! [`HeaderMap`] and [`Extensions`], so that what exists for
//! those works here.
//!
//! ```
//! use campanile::{Kind, Message};
//!
//! let message = Message::task("orders.create", r#"{"id":7}"#);
//! assert_eq!(message.kind(), Kind::Task);
//! assert_eq!(message.name(), "orders.create");
//! ```
//!
//! With headers:
//!
//! ```
//! use campanile::Message;
//! use http::HeaderValue;
//!
//! let mut message = Message::event("orders.events", "created");
//! message.headers_mut().insert("x-tenant", HeaderValue::from_static("acme"));
//! ```
//!
//! # Delivery guarantee
//! A message is cheap to clone, and a layer may clone it as often as it likes. The right to settle
//! the delivery it came with is not part of it and cannot be cloned.

mod correlation;
mod lease;
mod name;
mod shown;

use std::{
    fmt,
    ops::{Index, IndexMut},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Extensions, HeaderMap};
use tokio::time::Instant;

pub use self::{
    correlation::CorrelationId,
    lease::Lease,
    name::{DeadLetterId, IdempotencyKey, MessageId, Name},
    shown::Shown,
};

/// How a message travels and what its sender may expect of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Work to be done by one worker, at least once.
    Task,
    /// News for everyone who listens right now; best effort.
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
/// It is looked up by [`Kind`], in a `match`: another kind would be an error of the compiler and not
/// of an index.
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
    /// That of tasks.
    pub task: T,
    /// That of events.
    pub event: T,
    /// That of RPC requests.
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

/// How the reply to an RPC request travels. Chosen by the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ReplyMode {
    /// The reply is stored until the caller has read it: it survives a lost connection on either
    /// side.
    #[default]
    Reliable,
    /// The reply is published once: the fastest way, and lost when nobody listens at that moment.
    Fast,
}

/// Which delivery of a message this is, counted from 1 across redelivery, take-over and delayed
/// retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attempt(pub u32);

impl Default for Attempt {
    fn default() -> Self {
        Attempt(1)
    }
}

impl Attempt {
    /// Whether the message was delivered before.
    pub fn is_retry(self) -> bool {
        self.0 > 1
    }
}

/// When nobody is interested in the outcome any more, on this process's monotonic clock.
///
/// On the wire it is a time to live, measured on the server's clock: the clocks of two machines
/// need not agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Deadline(pub Instant);

impl Deadline {
    /// How long a request may take unless its sender says otherwise.
    pub(crate) const OF_A_REQUEST: Duration = Duration::from_secs(30);

    /// The deadline `after` from now.
    pub fn after(after: Duration) -> Self {
        let now = Instant::now();
        // A century stands for "never" where the sum would overflow.
        Deadline(
            now.checked_add(after)
                .unwrap_or_else(|| now + Duration::from_secs(3_155_760_000)),
        )
    }

    /// How long until then; zero once it has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether it has passed.
    pub fn has_passed(self) -> bool {
        self.0 <= Instant::now()
    }
}

/// When a task is to be put on its stream, if not at once. Chosen by the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Due {
    /// This long after the server has taken it, on the server's clock.
    After(Duration),
    /// When the server's clock shows this time; at once when that is past.
    At(SystemTime),
}

impl Due {
    /// How long until then, as far as this machine's clock can tell.
    pub fn wait(self) -> Duration {
        match self {
            Due::After(delay) => delay,
            Due::At(time) => time.duration_since(SystemTime::now()).unwrap_or_default(),
        }
    }
}

/// The name, or the pattern, of the route that a router chose for a message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MatchedRoute {
    pub(crate) pattern: Name,
    pub(crate) index: usize,
}

impl MatchedRoute {
    /// The route as it was registered, with the prefixes of the routers around it. For a fallback
    /// it is the prefix that the fallback serves, empty at the root.
    pub fn as_str(&self) -> &str {
        &self.pattern
    }
}

/// Everything about a message but its payload.
#[derive(Clone)]
#[non_exhaustive]
pub struct Parts {
    /// Task, event or RPC.
    pub kind: Kind,
    /// The full dotted name.
    pub name: Name,
    /// The stream that it is on: that it was delivered from, in which it died, or that somebody looks
    /// at. `None` for what no transport has accepted yet, and for events.
    pub stream: Option<Name>,
    /// The consumer group that it was delivered to, or in which it died. `None` where
    /// [`stream`](Self::stream) is, and for what was found on a stream without being delivered.
    pub group: Option<Name>,
    /// The id that the transport gave it; `None` before it was accepted, and for events. It is
    /// unique in its stream only.
    pub id: Option<MessageId>,
    /// When the transport accepted it, on the server's clock, where that is known.
    pub accepted_at: Option<SystemTime>,
    /// Which delivery this is.
    pub attempt: Attempt,
    /// When the outcome stops to matter, if ever.
    pub deadline: Option<Deadline>,
    /// For a task or a request that is sent: the stream to send it to, in place of the one that the
    /// transport's handle names. It means nothing to a delivery.
    pub to: Option<Name>,
    /// For a task that is sent: when it is due. It means nothing to a delivery, or to a service
    /// that handles the task in place.
    pub due: Option<Due>,
    /// For a task: what makes sending it twice the same as sending it once. It means nothing to a
    /// service that handles the task in place.
    pub idempotency_key: Option<IdempotencyKey>,
    /// For RPC: how the reply travels.
    pub reply_mode: ReplyMode,
    /// For a delivered RPC request: the id by which its sender finds the reply.
    pub correlation_id: Option<CorrelationId>,
    /// For events: the pattern of the subscription that brought it, where it was a pattern.
    pub pattern: Option<Name>,
    /// Headers, carried on the wire.
    pub headers: HeaderMap,
    /// Values for the layers and handlers of this process; never carried on the wire.
    pub extensions: Extensions,
    /// The worker's hold on the delivery, where it is one.
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
            reply_mode: ReplyMode::default(),
            correlation_id: None,
            pattern: None,
            headers: HeaderMap::new(),
            extensions: Extensions::new(),
            lease: None,
            matched: None,
        }
    }

    /// The route that the router chose; `None` outside a router. Layers of the router can read it:
    /// the name is resolved before they run.
    pub fn matched_route(&self) -> Option<&MatchedRoute> {
        self.matched.as_ref()
    }
}

// Header values can hold secrets: they are counted, not shown.
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

/// A task, an event or an RPC request. See the [module](self).
#[derive(Clone)]
pub struct Message(
    // One allocation, and then a pointer: on its way through layers, futures and queues a message is
    // moved about a dozen times.
    Box<Whole>,
);

#[derive(Clone)]
struct Whole {
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

    /// Puts a message together.
    pub fn from_parts(parts: Parts, payload: Bytes) -> Self {
        Self(Box::new(Whole { parts, payload }))
    }

    /// Takes it apart.
    pub fn into_parts(self) -> (Parts, Bytes) {
        let Whole { parts, payload } = *self.0;
        (parts, payload)
    }

    /// The payload alone.
    pub fn into_payload(mut self) -> Bytes {
        std::mem::take(&mut self.0.payload)
    }

    /// Everything but the payload.
    pub fn parts(&self) -> &Parts {
        &self.0.parts
    }

    /// Everything but the payload, to change it.
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

    /// The headers, to change them.
    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.0.parts.headers
    }

    /// Values for the layers and handlers of this process.
    pub fn extensions(&self) -> &Extensions {
        &self.0.parts.extensions
    }

    /// Values for the layers and handlers of this process, to change them.
    pub fn extensions_mut(&mut self) -> &mut Extensions {
        &mut self.0.parts.extensions
    }

    /// The payload.
    pub fn payload(&self) -> &Bytes {
        &self.0.payload
    }

    /// The payload, to change it.
    pub fn payload_mut(&mut self) -> &mut Bytes {
        &mut self.0.payload
    }
}

// Payloads are never logged, so they are not shown either.
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
