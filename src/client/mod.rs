//! The calling side: typed words over any `Service<Message>`.
//!
//! A [`Client`] stands on a transport's sending half, on that inside layers, or on a router: then
//! the handlers run in place, which is how an application is tested without a transport.
//!
//! ```
//! use campanile::{Client, Json, Router};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), campanile::Error> {
//! let app: Router = Router::new().rpc("double", async |Json(n): Json<u32>| Json(2 * n));
//! let client = Client::new(app);
//!
//! let Json(n): Json<u32> = client.request("double", Json(21)).await?;
//! assert_eq!(n, 42);
//! # Ok(())
//! # }
//! ```
//!
//! With a prefix, a header and a timeout:
//!
//! ```
//! use std::time::Duration;
//! use campanile::{Client, transport::memory::Memory};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), campanile::Error> {
//! let client = Client::new(Memory::new());
//! let receipt = client
//!     .nest("orders")
//!     .enqueue("create", r#"{"id":7}"#)
//!     .header("x-tenant", "acme")
//!     .timeout(Duration::from_secs(1))
//!     .await?;
//! assert!(receipt.id().is_some());
//! # Ok(())
//! # }
//! ```
//!
//! A task for later, which is sent once however often the call is made, and not done when it is late:
//!
//! ```
//! use std::time::Duration;
//! use campanile::{Client, transport::memory::Memory};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), campanile::Error> {
//! let memory = Memory::new();
//! let receipt = Client::new(memory.clone())
//!     .enqueue("reminders.send", "the milk")
//!     .delay(Duration::from_secs(3600))
//!     .expires_after(Duration::from_secs(600))
//!     .idempotency_key("reminder 7")
//!     .await?;
//! let id = receipt.id().expect("it is on a transport");
//! assert!(memory.cancel(id).await?, "it was not due yet");
//! # Ok(())
//! # }
//! ```
//!
//! # Over a router
//! There is no entry and so no id in the receipt, nothing is redelivered, delayed or remembered, and
//! `enqueue` and `publish` return what the handler failed with.
//!
//! # Cancel safety
//! Nothing is sent before the future is first polled. Dropping it later does not take back what
//! was sent; a dropped request frees its slot at once, and its reply is ignored.
//!
//! # Errors
//! Every call fails with an [`Error`]: ask it whether it
//! [was refused](crate::Error::is_refused), [never left](crate::Error::is_disconnected), or
//! [may have been taken](crate::Error::is_unknown_outcome). An answered error is in
//! [`Error::rpc`](crate::Error::rpc).

mod boxed;
mod call;

use std::{fmt, time::Duration};

use futures_util::{StreamExt, stream::FuturesOrdered};
use tower::ServiceExt;

pub use self::{
    boxed::BoxSender,
    call::{Call, CallFuture},
};
use crate::{
    error::{BoxError, Error, ErrorKind},
    message::{Deadline, Kind, Message, MessageId, Name, ReplyMode},
    payload::IntoPayload,
    reply::{FromReply, Reply},
    service::MessageService,
};

/// Sends messages through a `Service<Message>`. See the [module](self).
///
/// Cheap to clone where its service is.
#[derive(Debug, Clone)]
pub struct Client<S> {
    service: S,
    prefix: Name,
    request_timeout: Duration,
}

impl<S> Client<S> {
    /// A client of any service for messages: a transport's sending half, a router, either in layers.
    pub fn new(service: S) -> Self
    where
        S: MessageService,
    {
        Self {
            service,
            prefix: Name::default(),
            request_timeout: Deadline::OF_A_REQUEST,
        }
    }

    /// How long a request may take unless the call says otherwise. 30 s unless set.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// The service it stands on.
    pub fn service(&self) -> &S {
        &self.service
    }
}

impl<S: Clone> Client<S> {
    /// A client whose names begin with `prefix` and a dot, as those of a router in
    /// [`Router::nest`](crate::Router::nest) do. Prefixes are joined in order.
    #[must_use]
    pub fn nest(&self, prefix: impl Into<Name>) -> Self {
        Self {
            prefix: Name::join(&self.prefix, &prefix.into()),
            ..self.clone()
        }
    }

    /// A task for one of the workers: it is done at least once.
    pub fn enqueue(&self, name: impl Into<Name>, payload: impl IntoPayload) -> Call<S, Receipt> {
        self.message(Kind::Task, name.into(), payload)
    }

    /// An event for everyone who listens right now.
    ///
    /// The reply says that the server took it, not that anyone heard it.
    pub fn publish(&self, name: impl Into<Name>, payload: impl IntoPayload) -> Call<S, ()> {
        self.message(Kind::Event, name.into(), payload)
    }

    /// A request whose reply survives a lost connection of either side. It is answered at most
    /// once, and carried out at least once unless it times out first.
    pub fn request<R: FromReply>(
        &self,
        name: impl Into<Name>,
        payload: impl IntoPayload,
    ) -> Call<S, R> {
        self.message(Kind::Rpc, name.into(), payload)
            .reply_mode(ReplyMode::Reliable)
            .timeout(self.request_timeout)
    }

    /// A request on the fastest way: its reply is published once, and lost with the connection.
    pub fn request_fast<R: FromReply>(
        &self,
        name: impl Into<Name>,
        payload: impl IntoPayload,
    ) -> Call<S, R> {
        self.message(Kind::Rpc, name.into(), payload)
            .reply_mode(ReplyMode::Fast)
            .timeout(self.request_timeout)
    }

    fn message<R>(&self, kind: Kind, name: Name, payload: impl IntoPayload) -> Call<S, R> {
        let message = build(kind, self.full_name(&name), payload);
        Call::new(self.service.clone(), message)
    }

    /// The name behind the prefix, or what is wrong with it. An empty name would silently address
    /// the prefix itself.
    fn full_name(&self, name: &Name) -> Result<Name, &'static str> {
        let checked = |name: Name| match name.fault() {
            Some(fault) => Err(fault),
            None => Ok(name),
        };
        checked(name.clone()).and_then(|name| checked(Name::join(&self.prefix, &name)))
    }
}

fn build(
    kind: Kind,
    name: Result<Name, &'static str>,
    payload: impl IntoPayload,
) -> Result<Message, Error> {
    let name = name.map_err(|fault| Error::new(ErrorKind::Invalid, fault))?;
    let payload = payload.into_payload().map_err(|error| {
        Error::new(ErrorKind::Invalid, "the payload cannot be serialized").with_source(error)
    })?;
    Ok(Message::new(kind, name, payload))
}

impl<S> Client<S>
where
    S: MessageService + Clone,
{
    /// Many tasks of one name in few round trips: the results are in the order of the payloads.
    ///
    /// Up to 1,024 are under way at a time; a transport that coalesces, as Redis does, sends them
    /// in pipelines. They are accepted in order where none fails.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it open which of them were sent.
    pub async fn enqueue_all<P: IntoPayload>(
        &self,
        name: impl Into<Name>,
        payloads: impl IntoIterator<Item = P>,
    ) -> Vec<Result<Receipt, Error>> {
        const UNDER_WAY: usize = 1_024;
        let name = self.full_name(&name.into());
        let payloads = payloads.into_iter();
        let mut results = Vec::with_capacity(payloads.size_hint().0);
        let mut under_way = FuturesOrdered::new();
        let mut service = self.service.clone();
        for payload in payloads {
            // What is under way is driven on meanwhile: a limit may wait for it to end.
            let ready = loop {
                let full = under_way.len() >= UNDER_WAY;
                tokio::select! {
                    biased;
                    ready = service.ready(), if !full => break ready.map(drop),
                    Some(result) = under_way.next() => results.push(result),
                }
            };
            let started = match (ready, build(Kind::Task, name.clone(), payload)) {
                (Ok(()), Ok(message)) => Ok(service.call(message)),
                (Err(error), _) => {
                    // It is not to be asked again.
                    service = self.service.clone();
                    Err(Error::from_service(error))
                }
                (_, Err(error)) => Err(error),
            };
            under_way.push_back(async {
                let reply = started?.await.map_err(Error::from_service)?;
                Ok(Receipt::from(reply))
            });
        }
        // With it goes what was made ready for nothing.
        drop(service);
        while let Some(result) = under_way.next().await {
            results.push(result);
        }
        results
    }

    /// Sends a message as it is, and returns the reply as it is.
    ///
    /// # Errors
    /// As for every [call](self#errors).
    pub async fn send(&self, message: Message) -> Result<Reply, Error> {
        let reply = self.service.clone().oneshot(message).await;
        reply.map_err(Error::from_service)
    }
}

/// That a task was accepted, and under which id.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Receipt {
    id: Option<MessageId>,
}

impl Receipt {
    /// The id; `None` where a service handled the task in place.
    pub fn id(&self) -> Option<&MessageId> {
        self.id.as_ref()
    }
}

impl From<Reply> for Receipt {
    fn from(reply: Reply) -> Self {
        Self {
            id: reply.receipt().cloned(),
        }
    }
}

impl FromReply for Receipt {
    fn from_reply(reply: Reply) -> Result<Self, BoxError> {
        Ok(reply.into())
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.id {
            Some(id) => id.fmt(f),
            None => f.write_str("handled in place"),
        }
    }
}
