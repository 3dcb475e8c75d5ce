//! The [`Client`] and its calls, with typed payloads and replies.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesOrdered};
use tower::ServiceExt;

use super::{
    Call, Receipt,
    call::{PreparedCall, ReadReply, timeout_error},
};
use crate::{
    contract::{ContractReply, EventName, Named, PayloadFor, Rpc, RpcName, TaskName},
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
            request_timeout: Deadline::DEFAULT_TIMEOUT,
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
    /// [`Router::nest`](crate::Router::nest) does for routes. If this client has a prefix already,
    /// the new prefix follows it.
    #[must_use]
    pub fn nest(&self, prefix: impl Into<Name>) -> Self {
        Self {
            prefix: Name::join(&self.prefix, &prefix.into()),
            ..self.clone()
        }
    }

    /// Sends a task. A worker of each group handles it at least once.
    ///
    /// The name is a string or a [`Task`](crate::contract::Task) constant. The constant also sets
    /// the type of the payload.
    pub fn enqueue<N: TaskName>(
        &self,
        name: N,
        payload: impl PayloadFor<N::Payload>,
    ) -> Call<S, Receipt> {
        self.new_call(Kind::Task, &name.named(), payload, Receipt::from_reply)
    }

    /// Publishes an event to its current listeners.
    ///
    /// Success means that the server accepted the event, even if there is no listener.
    ///
    /// The name is a string or an [`Event`](crate::contract::Event) constant. The constant also
    /// sets the type of the payload.
    pub fn publish<N: EventName>(
        &self,
        name: N,
        payload: impl PayloadFor<N::Payload>,
    ) -> Call<S, ()> {
        self.new_call(Kind::Event, &name.named(), payload, <()>::from_reply)
    }

    /// Sends a request whose reply survives a lost connection on either side. The request is
    /// handled at least once, unless it times out first. It is answered at most once.
    pub fn request<R: FromReply>(
        &self,
        name: impl Into<Name>,
        payload: impl IntoPayload,
    ) -> Call<S, R> {
        self.request_as(Named::from_string(name), payload, ReplyMode::Reliable)
    }

    /// Sends a request with the lowest latency. The reply is published once, and is lost if the
    /// caller is not connected at that moment.
    pub fn request_fast<R: FromReply>(
        &self,
        name: impl Into<Name>,
        payload: impl IntoPayload,
    ) -> Call<S, R> {
        self.request_as(Named::from_string(name), payload, ReplyMode::Fast)
    }

    /// Sends a request as [`request`](Self::request) does. An [`Rpc`] constant sets its name, and
    /// the types of its payload and its reply.
    ///
    /// ```
    /// use campanile::{Client, Json, Router, contract::Rpc};
    ///
    /// const DOUBLE: Rpc<u32, u32> = Rpc::new("double");
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), campanile::Error> {
    /// let app: Router = Router::new().rpc(DOUBLE, async |Json(n): Json<u32>| Json(2 * n));
    /// assert_eq!(Client::new(app).call(DOUBLE, 21).await?, 42);
    /// # Ok(())
    /// # }
    /// ```
    pub fn call<Q, R: ContractReply>(
        &self,
        rpc: Rpc<Q, R>,
        payload: impl PayloadFor<Q>,
    ) -> Call<S, R> {
        self.call_as(rpc, payload, ReplyMode::Reliable)
    }

    /// Sends a request as [`request_fast`](Self::request_fast) does. An [`Rpc`] constant sets its
    /// name, and the types of its payload and its reply.
    pub fn call_fast<Q, R: ContractReply>(
        &self,
        rpc: Rpc<Q, R>,
        payload: impl PayloadFor<Q>,
    ) -> Call<S, R> {
        self.call_as(rpc, payload, ReplyMode::Fast)
    }

    fn request_as<R: FromReply>(
        &self,
        name: Named,
        payload: impl IntoPayload,
        mode: ReplyMode,
    ) -> Call<S, R> {
        self.new_call(Kind::Rpc, &name, payload, R::from_reply)
            .reply_mode(mode)
            .timeout(self.request_timeout)
    }

    fn call_as<Q, R: ContractReply>(
        &self,
        rpc: Rpc<Q, R>,
        payload: impl PayloadFor<Q>,
        mode: ReplyMode,
    ) -> Call<S, R> {
        self.new_call(Kind::Rpc, &rpc.named(), payload, R::read)
            .reply_mode(mode)
            .timeout(self.request_timeout)
    }

    fn new_call<C, R>(
        &self,
        kind: Kind,
        name: &Named,
        payload: impl PayloadFor<C>,
        read: ReadReply<R>,
    ) -> Call<S, R> {
        let message = build_message(kind, self.full_name(&name.name), name, payload);
        Call::new(self.service.clone(), message, read)
    }

    /// Joins the prefix and the name. Fails with the reason if the name or the joined name is
    /// invalid. The name is also checked alone, because joining an empty name would silently return
    /// the prefix.
    fn full_name(&self, name: &Name) -> Result<Name, &'static str> {
        let checked = |name: Name| match name.fault() {
            Some(fault) => Err(fault),
            None => Ok(name),
        };
        checked(name.clone()).and_then(|name| checked(Name::join(&self.prefix, &name)))
    }
}

fn build_message<C>(
    kind: Kind,
    full_name: Result<Name, &'static str>,
    name: &Named,
    payload: impl PayloadFor<C>,
) -> Result<Message, Error> {
    let full_name = full_name.map_err(|fault| Error::new(ErrorKind::Invalid, fault))?;
    let encoded = payload.encode().map_err(|error| {
        Error::new(ErrorKind::Invalid, "the payload cannot be serialized").with_source(error)
    })?;
    let mut message = Message::new(kind, full_name, Bytes::new());
    name.write(encoded, &mut message);
    Ok(message)
}

impl<S> Client<S>
where
    S: MessageService + Clone,
{
    /// Sends a task of this name for each payload, in few round trips. The results are in the order
    /// of the payloads.
    ///
    /// Up to 1,024 calls run at a time, and the Redis transport sends them in pipelines. If no call
    /// fails, the tasks are stored in the order of the payloads.
    ///
    /// # Cancel safety
    /// If the future is dropped, it is unknown which tasks were sent.
    pub async fn enqueue_all<N: TaskName, P: PayloadFor<N::Payload>>(
        &self,
        name: N,
        payloads: impl IntoIterator<Item = P>,
    ) -> Vec<Result<Receipt, Error>> {
        let name = name.named();
        let full_name = self.full_name(&name.name);
        let tasks = payloads.into_iter().map(|payload| PreparedCall {
            message: build_message(Kind::Task, full_name.clone(), &name, payload),
            timeout: None,
        });
        self.send_tasks(tasks).await
    }

    /// Sends many tasks, each with its own name and options, in few round trips. The results are in
    /// the order of the calls.
    ///
    /// In other respects, this method is like [`enqueue_all`](Self::enqueue_all). The service of
    /// this client sends all calls, even those from clients with other prefixes.
    ///
    /// ```
    /// use std::time::Duration;
    /// use campanile::{Client, transport::memory::Memory};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), campanile::Error> {
    /// let client = Client::new(Memory::new());
    /// let reminders = (1..=3).map(|day| {
    ///     client
    ///         .enqueue("orders.remind", "7")
    ///         .delay(Duration::from_secs(day * 24 * 3600))
    ///         .idempotency_key(format!("order 7, day {day}"))
    /// });
    /// for receipt in client.enqueue_calls(reminders).await {
    ///     println!("{}", receipt?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    /// If the future is dropped, it is unknown which tasks were sent.
    pub async fn enqueue_calls(
        &self,
        calls: impl IntoIterator<Item = Call<S, Receipt>>,
    ) -> Vec<Result<Receipt, Error>> {
        self.send_tasks(calls.into_iter().map(Call::prepare)).await
    }

    async fn send_tasks(
        &self,
        tasks: impl Iterator<Item = PreparedCall>,
    ) -> Vec<Result<Receipt, Error>> {
        const MAX_CALLS: usize = 1_024;
        let mut results = Vec::with_capacity(tasks.size_hint().0);
        let mut calls = FuturesOrdered::new();
        let mut service = self.service.clone();
        for task in tasks {
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
            let PreparedCall { message, timeout } = task;
            let started = match (ready, message) {
                (Ok(()), Ok(message)) => Ok(service.call(message)),
                (Err(error), _) => {
                    // A service that failed to become ready must not be used again.
                    service = self.service.clone();
                    Err(Error::from_service(error))
                }
                (_, Err(error)) => Err(error),
            };
            calls.push_back(async move {
                let sent = started?;
                let reply = match timeout {
                    None => sent.await,
                    Some(timeout) => match tokio::time::timeout(timeout, sent).await {
                        Ok(reply) => reply,
                        Err(_) => return Err(timeout_error(timeout)),
                    },
                };
                Ok(Receipt::from(reply.map_err(Error::from_service)?))
            });
        }
        // Releases the reservation that the clone may hold.
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
