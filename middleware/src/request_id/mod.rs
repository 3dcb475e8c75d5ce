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

mod id;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use campanile::{BoxError, Kind, Message, Reply, message::Shown};
use http::{HeaderMap, HeaderName};
use pin_project::pin_project;
use tokio::task::futures::TaskLocalFuture;
use tower::{Layer, Service};
use uuid::Uuid;

use self::id::CURRENT;
pub use self::id::{InvalidRequestId, MakeRequestId, RequestId};

/// What makes the ids of a layer and its services: random UUIDs where there is nothing else.
type Make = Option<Arc<dyn MakeRequestId + Send + Sync>>;

/// Makes [`WithRequestId`] services. See the [module](self).
#[derive(Clone)]
pub struct RequestIdLayer {
    header: HeaderName,
    make: Make,
}

impl RequestIdLayer {
    /// A layer that makes UUIDs, in the header `x-request-id`.
    pub const fn new() -> Self {
        Self {
            header: HeaderName::from_static("x-request-id"),
            make: None,
        }
    }

    /// The header that the id is in. `x-request-id` unless set.
    #[must_use]
    pub fn header(mut self, header: HeaderName) -> Self {
        self.header = header;
        self
    }

    /// Makes the id of a message that has none. A random UUID unless set.
    #[must_use]
    pub fn make(mut self, make: impl MakeRequestId + Send + Sync + 'static) -> Self {
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

/// A service whose messages have an id. See the [module](self).
#[derive(Clone)]
pub struct WithRequestId<S> {
    inner: S,
    header: HeaderName,
    make: Make,
}

impl<S> WithRequestId<S> {
    /// The id of a message, which is then in it.
    fn identify(&self, message: &mut Message) -> RequestId {
        let carried = message.headers().get(&self.header);
        let id = match carried.map(RequestId::from_value) {
            Some(Ok(id)) => id,
            missing => {
                if let Some(Err(fault)) = missing {
                    let (name, header) = (Shown::new(message.name()), &self.header);
                    tracing::warn!(%name, %header, %fault, "a request id was replaced");
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

/// A message with as many headers as there can be goes without.
fn insert(headers: &mut HeaderMap, header: &HeaderName, id: &RequestId) {
    let _ = headers.try_insert(header, id.value().clone());
}

impl<S> Service<Message> for WithRequestId<S>
where
    S: Service<Message, Response = Reply, Error: Into<BoxError>>,
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
