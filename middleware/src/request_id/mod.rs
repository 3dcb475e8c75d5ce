//! Gives the same id to all messages of a chain: to a request, to the tasks that its handler sends,
//! and to the requests that the handlers of those tasks make.
//!
//! The same layer is used around a router and around a client's transport:
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
//! The next example has custom ids in another header, and keeps the id in a task that a handler
//! spawns:
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
//!     .make_request_id(move |_: &Message| count.fetch_add(1, Ordering::Relaxed).into());
//! # fn check(layer: impl tower::Layer<campanile::routing::Route>) {}
//! # check(layer);
//! ```
//!
//! # The id of a message
//! The layer uses the first of these:
//!
//! 1. The id in the message's header. An id is invalid if it is empty, is longer than 128 bytes, or
//!    contains characters that are not visible ASCII. An invalid id is logged and replaced.
//! 2. The id of the message whose handler sends this message: [`RequestId::current`].
//! 3. A new id: a UUID, unless [`make_request_id`](RequestIdLayer::make_request_id) is set.
//!
//! # Access
//! The layer writes the id into the header and the extensions of the message. Handlers can extract
//! it as a [`RequestId`]. While the message is handled, [`RequestId::current`] returns the id in
//! the same task. Use [`RequestId::scope`] for tasks that a handler spawns. The reply to a request
//! has the id in its header, unless the handler has set another id.
//!
//! An event cannot have [headers](campanile::transport::check), so its id is not sent. Each worker
//! that receives the event makes a new id.
//!
//! # Errors
//! The layer adds no errors. An error reply has no headers, so it has no id.

mod id;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use campanile::{Kind, Message, MessageService, Reply, message::EscapedText};
use http::{HeaderMap, HeaderName};
use pin_project::pin_project;
use tokio::task::futures::TaskLocalFuture;
use tower::{Layer, Service};
use uuid::Uuid;

use self::id::CURRENT;
pub use self::id::{InvalidRequestId, MakeRequestId, RequestId};

/// The hook that makes ids.
type MakeHook = Arc<dyn MakeRequestId + Send + Sync>;

/// Makes [`WithRequestId`] services. See the [module](self).
#[derive(Clone)]
pub struct RequestIdLayer {
    header: HeaderName,
    /// `None` for random UUIDs.
    make: Option<MakeHook>,
}

impl RequestIdLayer {
    /// Creates a layer that uses the header `x-request-id`, and random UUIDs as new ids.
    pub const fn new() -> Self {
        Self {
            header: HeaderName::from_static("x-request-id"),
            make: None,
        }
    }

    /// Sets the header of the id. `x-request-id` unless set.
    #[must_use]
    pub fn header(mut self, header: HeaderName) -> Self {
        self.header = header;
        self
    }

    /// Sets the hook that makes an id for a message without an id. A random UUID unless set.
    #[must_use]
    pub fn make_request_id(mut self, make: impl MakeRequestId + Send + Sync + 'static) -> Self {
        self.make = Some(Arc::new(make));
        self
    }
}

impl Default for RequestIdLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RequestIdLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestIdLayer")
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

impl<S> Layer<S> for RequestIdLayer {
    type Service = WithRequestId<S>;

    fn layer(&self, inner: S) -> Self::Service {
        WithRequestId {
            inner,
            header: self.header.clone(),
            make: self.make.clone(),
        }
    }
}

/// A service whose messages have a request id. See the [module](self).
#[derive(Clone)]
pub struct WithRequestId<S> {
    inner: S,
    header: HeaderName,
    make: Option<MakeHook>,
}

impl<S> WithRequestId<S> {
    /// Wraps a service, as [`RequestIdLayer::new`] does.
    pub fn new(inner: S) -> Self {
        RequestIdLayer::new().layer(inner)
    }

    /// Determines the id of a message, and writes it into the message.
    fn identify(&self, message: &mut Message) -> RequestId {
        let header_value = message.headers().get(&self.header);
        let id = match header_value.map(RequestId::from_value) {
            Some(Ok(id)) => id,
            missing_or_invalid => {
                if let Some(Err(fault)) = missing_or_invalid {
                    let (name, header) = (EscapedText::new(message.name()), &self.header);
                    tracing::warn!(%name, %header, %fault, "an invalid request id was replaced");
                }
                let id = RequestId::current().unwrap_or_else(|| match &self.make {
                    Some(make) => make.make_request_id(message),
                    None => Uuid::new_v4().into(),
                });
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

/// Inserts the header, unless the map is full. A map has at most 32,768 headers.
fn insert(headers: &mut HeaderMap, header: &HeaderName, id: &RequestId) {
    let _ = headers.try_insert(header, id.value().clone());
}

inner_accessors!(WithRequestId<S>);

impl<S> Service<Message> for WithRequestId<S>
where
    S: MessageService,
{
    type Response = Reply;
    type Error = S::Error;
    type Future = WithRequestIdFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut message: Message) -> Self::Future {
        let id = self.identify(&mut message);
        // Only a request has a reply.
        let reply_header = (message.kind() == Kind::Rpc).then(|| (self.header.clone(), id.clone()));
        let work = CURRENT.sync_scope(id.clone(), || self.inner.call(message));
        WithRequestIdFuture {
            work: CURRENT.scope(id, work),
            reply_header,
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for WithRequestId<S> {
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
pub struct WithRequestIdFuture<W> {
    #[pin]
    work: TaskLocalFuture<RequestId, W>,
    /// The header and the id for the reply, or `None` if the message is not a request.
    reply_header: Option<(HeaderName, RequestId)>,
}

impl<W, E> Future for WithRequestIdFuture<W>
where
    W: Future<Output = Result<Reply, E>>,
{
    type Output = Result<Reply, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut outcome = ready!(this.work.poll(cx));
        if let (Ok(reply), Some((header, id))) = (&mut outcome, this.reply_header)
            && !reply.headers.contains_key(&*header)
        {
            insert(&mut reply.headers, header, id);
        }
        Poll::Ready(outcome)
    }
}

impl<W> fmt::Debug for WithRequestIdFuture<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WithRequestIdFuture")
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
