//! One id along a chain of messages: a request, the tasks that its handler sends, what those ask for.
//!
//! The same layer stands around what is served and around what is called:
//!
//! ```
//! use campanile::{Client, Router, transport::memory::Memory};
//! use campanile_middleware::{RequestId, RequestIdLayer};
//! use tower::Layer;
//!
//! async fn create(id: RequestId) -> String {
//!     format!("request {id}")
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let memory = Memory::new();
//! let app = Router::new().rpc("create", create).layer(RequestIdLayer::new());
//! let client = Client::new(RequestIdLayer::new().layer(memory.clone()));
//! # let worker = tokio::spawn(campanile::serve(memory, app).into_future());
//! let answer: String = client.request("create", "").header("x-request-id", "7").await.unwrap();
//! assert_eq!(answer, "request 7");
//! # worker.abort();
//! # }
//! ```
//!
//! With ids of one's own in a header of one's own, and in a task that a handler spawns:
//!
//! ```
//! use campanile::{Message, Router};
//! use campanile_middleware::{RequestId, RequestIdLayer};
//! use http::HeaderName;
//! use std::sync::atomic::{AtomicU64, Ordering};
//!
//! async fn create(id: RequestId) {
//!     tokio::spawn(id.scope(async {
//!         assert!(RequestId::current().is_some());
//!     }));
//! }
//!
//! let count = AtomicU64::new(1);
//! let layer = RequestIdLayer::new()
//!     .header(HeaderName::from_static("x-correlation-id"))
//!     .make(move |_: &Message| count.fetch_add(1, Ordering::Relaxed).into());
//! # fn check(layer: impl tower::Layer<campanile::routing::Route>) {}
//! # check(layer);
//! ```
//!
//! # Which id
//! 1. The one in the message's header. One that cannot be carried on (empty, longer than 128 bytes, or
//!    not of visible ASCII) is replaced, and the log says so.
//! 2. Else that of the message which is being handled in the current task, if this one is sent by its
//!    handler.
//! 3. Else a new one: a UUID, unless a [`MakeRequestId`] makes another.
//!
//! # Where it is
//! In the message's header, which travels; for the handler as an extractor ([`RequestId`]) and as an
//! extension; in the current task, [`RequestId::current`], while the message is worked on; and in the
//! header of a request's reply, unless the handler has put another one there. Tasks that a handler
//! spawns are tasks of their own: [`RequestId::scope`] carries it over.
//!
//! An event has no headers on its way ([Pub/Sub](campanile::transport::check) has none), so its id
//! does not travel: each worker that hears it makes one of its own.
//!
//! # Errors
//! It adds none. The error of a request is answered without headers, and so without the id.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use campanile::{BoxError, FromMessageParts, Kind, Message, Parts, Rejection, Reply};
use http::{HeaderMap, HeaderName, HeaderValue};
use pin_project::pin_project;
use tokio::task::futures::TaskLocalFuture;
use tower::{Layer, Service};
use uuid::Uuid;

tokio::task_local! {
    static CURRENT: RequestId;
}

/// The id of a request. See the [module](self).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The length of the longest, in bytes.
    pub const MAX_LEN: usize = 128;

    /// An id of this text.
    ///
    /// # Errors
    /// When it is empty, longer than [`MAX_LEN`](Self::MAX_LEN), or has anything but visible ASCII.
    pub fn new(text: &str) -> Result<Self, InvalidRequestId> {
        let value = HeaderValue::from_str(text).map_err(|_| InvalidRequestId::NOT_VISIBLE)?;
        Self::from_value(&value)
    }

    fn from_value(value: &HeaderValue) -> Result<Self, InvalidRequestId> {
        match value.as_bytes() {
            [] => Err(InvalidRequestId("it is empty")),
            bytes if bytes.len() > Self::MAX_LEN => {
                Err(InvalidRequestId("it is longer than 128 bytes"))
            }
            bytes if !bytes.iter().all(u8::is_ascii_graphic) => Err(InvalidRequestId::NOT_VISIBLE),
            _ => Ok(Self(value.clone())),
        }
    }

    /// The id of the message that is being handled in the current task, within a
    /// [`RequestIdLayer`] or a [`scope`](Self::scope).
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Makes this id the current one within a future, for one that is spawned.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, future)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        self.0.to_str().expect("an id is visible ASCII")
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl From<u64> for RequestId {
    fn from(number: u64) -> Self {
        Self(number.into())
    }
}

impl From<Uuid> for RequestId {
    fn from(uuid: Uuid) -> Self {
        let text = uuid.to_string();
        Self(HeaderValue::try_from(text).expect("a UUID is visible ASCII"))
    }
}

/// Found where a [`RequestIdLayer`] stands around; without one it is an ordinary rejection.
impl<S: Sync> FromMessageParts<S> for RequestId {
    type Rejection = Rejection;

    async fn from_message_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        let found = parts.extensions.get().cloned();
        found.ok_or_else(|| Rejection::ordinary("no layer has given the message a request id"))
    }
}

/// Why a text cannot be a [`RequestId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidRequestId(&'static str);

impl InvalidRequestId {
    const NOT_VISIBLE: Self = Self("it has other bytes than visible ASCII");
}

impl fmt::Display for InvalidRequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no request id: {}", self.0)
    }
}

impl std::error::Error for InvalidRequestId {}

/// Makes the id of a message that has none. Every `Fn(&Message) -> RequestId` is one.
pub trait MakeRequestId {
    /// Makes one.
    fn make_request_id(&self, message: &Message) -> RequestId;
}

impl<F: Fn(&Message) -> RequestId> MakeRequestId for F {
    fn make_request_id(&self, message: &Message) -> RequestId {
        self(message)
    }
}

/// Makes a random UUID.
#[derive(Debug, Clone, Copy, Default)]
pub struct MakeRequestUuid;

impl MakeRequestId for MakeRequestUuid {
    fn make_request_id(&self, _: &Message) -> RequestId {
        Uuid::new_v4().into()
    }
}

/// Makes [`WithRequestId`] services. See the [module](self).
#[derive(Clone)]
pub struct RequestIdLayer<M = MakeRequestUuid> {
    header: HeaderName,
    make: M,
}

impl RequestIdLayer {
    /// A layer that makes UUIDs, in the header `x-request-id`.
    pub const fn new() -> Self {
        Self {
            header: HeaderName::from_static("x-request-id"),
            make: MakeRequestUuid,
        }
    }
}

impl Default for RequestIdLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<M> RequestIdLayer<M> {
    /// The header that the id is in. `x-request-id` unless set.
    #[must_use]
    pub fn header(mut self, header: HeaderName) -> Self {
        self.header = header;
        self
    }

    /// Makes the id of a message that has none. A random UUID unless set.
    #[must_use]
    pub fn make<N: MakeRequestId>(self, make: N) -> RequestIdLayer<N> {
        RequestIdLayer {
            header: self.header,
            make,
        }
    }
}

impl<M> fmt::Debug for RequestIdLayer<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestIdLayer")
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

impl<S, M: Clone> Layer<S> for RequestIdLayer<M> {
    type Service = WithRequestId<S, M>;

    fn layer(&self, inner: S) -> Self::Service {
        WithRequestId {
            inner,
            header: self.header.clone(),
            make: self.make.clone(),
        }
    }
}

/// A service whose messages have an id. See the [module](self).
#[derive(Clone)]
pub struct WithRequestId<S, M> {
    inner: S,
    header: HeaderName,
    make: M,
}

impl<S, M: MakeRequestId> WithRequestId<S, M> {
    /// The id of a message, which is then in it.
    fn identify(&self, message: &mut Message) -> RequestId {
        let carried = message.headers().get(&self.header);
        let id = match carried.map(RequestId::from_value) {
            Some(Ok(id)) => id,
            missing => {
                if let Some(Err(fault)) = missing {
                    let (name, header) = (message.name(), &self.header);
                    tracing::warn!(%name, %header, %fault, "a request id was replaced");
                }
                let current = RequestId::current();
                let id = current.unwrap_or_else(|| self.make.make_request_id(message));
                if message.kind() != Kind::Event {
                    insert(message.headers_mut(), &self.header, &id);
                }
                id
            }
        };
        message.extensions_mut().insert(id.clone());
        id
    }
}

/// A message with as many headers as there can be goes without.
fn insert(headers: &mut HeaderMap, header: &HeaderName, id: &RequestId) {
    let _ = headers.try_insert(header, id.0.clone());
}

impl<S, M> Service<Message> for WithRequestId<S, M>
where
    S: Service<Message, Response = Reply, Error: Into<BoxError>>,
    M: MakeRequestId,
{
    type Response = Reply;
    type Error = S::Error;
    type Future = RequestIdFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut message: Message) -> Self::Future {
        let id = self.identify(&mut message);
        // The reply of anything else goes nowhere.
        let echo = (message.kind() == Kind::Rpc).then(|| (self.header.clone(), id.clone()));
        let work = CURRENT.sync_scope(id.clone(), || self.inner.call(message));
        RequestIdFuture {
            work: CURRENT.scope(id, work),
            echo,
        }
    }
}

impl<S: fmt::Debug, M> fmt::Debug for WithRequestId<S, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WithRequestId")
            .field("inner", &self.inner)
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

/// The future of [`WithRequestId`].
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct RequestIdFuture<W> {
    #[pin]
    work: TaskLocalFuture<RequestId, W>,
    echo: Option<(HeaderName, RequestId)>,
}

impl<W, E> Future for RequestIdFuture<W>
where
    W: Future<Output = Result<Reply, E>>,
{
    type Output = Result<Reply, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut outcome = ready!(this.work.poll(cx));
        if let (Ok(reply), Some((header, id))) = (&mut outcome, this.echo)
            && !reply.headers.contains_key(&*header)
        {
            insert(&mut reply.headers, header, id);
        }
        Poll::Ready(outcome)
    }
}

impl<W> fmt::Debug for RequestIdFuture<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestIdFuture").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
