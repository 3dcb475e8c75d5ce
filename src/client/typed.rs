//! Calls by name, with typed payloads and replies.

use std::{fmt, time::Duration};

use futures_util::{StreamExt, stream::FuturesOrdered};
use tower::ServiceExt;

use super::Call;
use crate::{
    error::{BoxError, Error, ErrorKind},
    message::{Deadline, Kind, Message, MessageId, Name, ReplyMode},
    payload::IntoPayload,
    reply::{FromReply, Reply},
    service::MessageService,
};

/// Sends messages through a `Service<Message>`. See the [module](super).
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
    /// As for every [call](super#errors).
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
