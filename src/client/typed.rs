//! Calls by name, with typed payloads and replies.

use std::time::Duration;

use futures_util::{StreamExt, stream::FuturesOrdered};
use tower::ServiceExt;

use super::{Call, Receipt};
use crate::{
    error::{Error, ErrorKind},
    message::{Deadline, Kind, Message, Name, ReplyMode},
    payload::IntoPayload,
    reply::{FromReply, Reply},
    service::MessageService,
};

/// Sends messages through a `Service<Message>`. See the [module](super).
///
/// A client is cheap to clone if its service is.
#[derive(Debug, Clone)]
pub struct Client<S> {
    service: S,
    prefix: Name,
    request_timeout: Duration,
}

impl<S> Client<S> {
    /// Creates a client of a service for messages: the sending half of a transport, or a router,
    /// with or without layers around it.
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

    /// Sets the timeout of requests; [`Call::timeout`] overrides it. 30 s unless set.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Returns the service that the client calls.
    pub fn service(&self) -> &S {
        &self.service
    }
}

impl<S: Clone> Client<S> {
    /// Returns a client that adds `prefix` and a dot before each name, as
    /// [`Router::nest`](crate::Router::nest) does for routes. Prefixes are joined in order.
    #[must_use]
    pub fn nest(&self, prefix: impl Into<Name>) -> Self {
        Self {
            prefix: Name::join(&self.prefix, &prefix.into()),
            ..self.clone()
        }
    }

    /// Sends a task. A worker of each group handles it at least once.
    pub fn enqueue(&self, name: impl Into<Name>, payload: impl IntoPayload) -> Call<S, Receipt> {
        self.message(Kind::Task, name.into(), payload)
    }

    /// Publishes an event to its current listeners.
    ///
    /// Success means that the server accepted the event, even if there is no listener.
    pub fn publish(&self, name: impl Into<Name>, payload: impl IntoPayload) -> Call<S, ()> {
        self.message(Kind::Event, name.into(), payload)
    }

    /// Sends a request whose reply survives a lost connection on either side. The request is
    /// handled at least once, unless it times out first, and answered at most once.
    pub fn request<R: FromReply>(
        &self,
        name: impl Into<Name>,
        payload: impl IntoPayload,
    ) -> Call<S, R> {
        self.message(Kind::Rpc, name.into(), payload)
            .reply_mode(ReplyMode::Reliable)
            .timeout(self.request_timeout)
    }

    /// Sends a request with the lowest latency. The reply is published once, and is lost if the
    /// caller is not connected at that moment.
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

    /// Joins the prefix and the name, or returns the reason why either is invalid. The name is also
    /// checked alone, because an empty name would silently become the prefix.
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
    /// Sends a task of this name for each payload, in few round trips. The results are in the order
    /// of the payloads.
    ///
    /// Up to 1,024 calls run at a time, and the Redis transport sends them in pipelines. If none
    /// fails, the tasks are stored in the order of the payloads.
    ///
    /// # Cancel safety
    /// If the future is dropped, it is unknown which tasks were sent.
    pub async fn enqueue_all<P: IntoPayload>(
        &self,
        name: impl Into<Name>,
        payloads: impl IntoIterator<Item = P>,
    ) -> Vec<Result<Receipt, Error>> {
        const MAX_CALLS: usize = 1_024;
        let name = self.full_name(&name.into());
        let payloads = payloads.into_iter();
        let mut results = Vec::with_capacity(payloads.size_hint().0);
        let mut calls = FuturesOrdered::new();
        let mut service = self.service.clone();
        for payload in payloads {
            // Polls the calls during the wait, because the service may become ready only after a
            // call ends.
            let ready = loop {
                let full = calls.len() >= MAX_CALLS;
                tokio::select! {
                    biased;
                    ready = service.ready(), if !full => break ready.map(drop),
                    Some(result) = calls.next() => results.push(result),
                }
            };
            let started = match (ready, build(Kind::Task, name.clone(), payload)) {
                (Ok(()), Ok(message)) => Ok(service.call(message)),
                (Err(error), _) => {
                    // A service that failed to become ready must not be used again.
                    service = self.service.clone();
                    Err(Error::from_service(error))
                }
                (_, Err(error)) => Err(error),
            };
            calls.push_back(async {
                let reply = started?.await.map_err(Error::from_service)?;
                Ok(Receipt::from(reply))
            });
        }
        // This clone may hold a reservation that was not used.
        drop(service);
        while let Some(result) = calls.next().await {
            results.push(result);
        }
        results
    }

    /// Sends a message without changes, and returns the whole reply. The client's prefix and
    /// timeout are not used.
    ///
    /// # Errors
    /// As for every [call](super#errors).
    pub async fn send(&self, message: Message) -> Result<Reply, Error> {
        let reply = self.service.clone().oneshot(message).await;
        reply.map_err(Error::from_service)
    }
}
