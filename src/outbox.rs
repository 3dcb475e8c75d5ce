//! The outbox of a delivery: what is sent together with its acknowledgement.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use tower::Service;

use crate::{
    client::{Call, receipt::Receipt, typed::Client},
    contract::{EventName, PayloadFor, TaskName},
    error::{Error, ErrorKind, Rejection},
    extract::{FromMessageParts, OptionalFromMessageParts},
    message::{FollowUp, FollowUps, Kind, MAX_INTEGER, Message, Parts, Write},
    reply::Reply,
    transport::{check, check_key},
};

/// Collects tasks and events that are sent if, and only if, the delivery succeeds. An extractor.
///
/// A message that a handler sends through a [`Client`] is sent immediately. If the worker then
/// crashes before the acknowledgement, the handler runs again, and sends the message twice. An
/// outbox keeps the message until the handler returns `Ok`. The transport then stores it in the
/// same atomic step as the acknowledgement. So even after a crash or a lost lease, the message is
/// stored if, and only if, the acknowledgement is stored.
///
/// ```
/// use std::time::Duration;
/// use campanile::{Error, Json, Outbox, Router};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Order {
///     id: u64,
/// }
///
/// async fn place(outbox: Outbox, Json(order): Json<Order>) -> Result<(), Error> {
///     outbox.enqueue("invoices.make", Json(&order)).stream("invoices").await?;
///     outbox.enqueue("orders.remind", Json(&order)).delay(Duration::from_secs(3600)).await?;
///     outbox.publish("orders.placed", Json(&order)).await?;
///     outbox.increment("orders", 1)?;
///     Ok(())
/// }
///
/// let app: Router = Router::new().task("orders.place", place);
/// ```
///
/// Clones share their contents. An outbox is also a `Service<Message>`, so a [`Client`] with layers
/// can send into it.
///
/// # Streams
/// A task without [`stream`](Call::stream) goes to the stream of the delivery. If that stream is
/// [partitioned](crate::transport::Streams::partitioned), the task goes to the partition of its
/// key. On a Redis Cluster, the stream of the task and that of the delivery may be in different
/// hash slots. The task is then first stored in the hash slot of the delivery's stream, and a
/// worker moves the task to its stream. The move may be repeated, but the task is stored only once:
/// it has an [idempotency key](Call::idempotency_key), which is generated unless set.
///
/// If another task holds the key of a [unique](Call::unique) task, the rule
/// [`OnConflict`](crate::message::OnConflict) applies when the outbox is stored. The handler has
/// ended by then, so its call cannot fail because of the key: with the rule
/// [`Refuse`](crate::message::OnConflict::Refuse), the task is not stored, and no error is
/// reported.
///
/// # Values
/// [`increment`](Self::increment), [`set`](Self::set) and [`delete`](Self::delete) change values of
/// the application in the same step, exactly once for each message. The values are stored beside
/// the stream of the delivery. On Redis, [`value_key`](crate::Redis::value_key) returns the key of
/// a value. In memory, [`value`](crate::transport::memory::Memory::value) returns the value.
///
/// # Layers
/// If the outbox is extracted again for the same delivery, for example by a retry within the
/// process, the outbox starts empty. An idempotency layer skips messages that were handled before.
/// Such a layer must not record the success of a handler with an outbox. If the worker crashed
/// after the layer has recorded the success, and before the acknowledgement, the layer would skip
/// the redelivery, and the follow-ups would be lost. A handler whose effects are all in the outbox
/// needs no such layer.
///
/// # Bounds and errors
/// An outbox takes at most 1,000 follow-ups and 16 MiB. A call beyond these bounds, or with an
/// invalid message, fails. If the handler returns the error, nothing is sent. A call that returns
/// `Ok` has only added the task: the task is not stored yet, and its receipt has no id.
///
/// If the server cannot store a follow-up, for example because a key has another type, the delivery
/// becomes a dead letter with the reason, and nothing is stored.
///
/// # Rejection
/// An [ordinary](Rejection::ordinary) rejection, if the delivery has no outbox: on a transport
/// without outboxes, for an event, or if the router is called without a transport.
#[derive(Debug, Clone)]
pub struct Outbox(Arc<FollowUps>);

impl Outbox {
    /// Adds a task. The options of the call are those of [`Client::enqueue`], except
    /// [`replicas`](Call::replicas), which the call refuses.
    pub fn enqueue<N: TaskName>(
        &self,
        name: N,
        payload: impl PayloadFor<N::Payload>,
    ) -> Call<Self, Receipt> {
        Client::new(self.clone()).enqueue(name, payload)
    }

    /// Adds an event. It is published with the acknowledgement, and has the delivery guarantee of
    /// any event. A [sharded](Call::sharded) event is refused.
    pub fn publish<N: EventName>(
        &self,
        name: N,
        payload: impl PayloadFor<N::Payload>,
    ) -> Call<Self, ()> {
        Client::new(self.clone()).publish(name, payload)
    }

    /// Adds `by` to the integer under a key. A value that does not exist counts as zero.
    ///
    /// # Errors
    /// If the key is empty or longer than 1024 bytes, `by` has more than 15 digits, or the outbox
    /// is full. If the stored value or the sum is not an integer of at most 15 digits, the call
    /// succeeds, but the delivery becomes a dead letter.
    pub fn increment(&self, key: impl Into<String>, by: i64) -> Result<(), Error> {
        if by.unsigned_abs() >= MAX_INTEGER {
            let text = "an increment must have at most 15 digits";
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        self.write(key.into(), Write::Increment(by))
    }

    /// Stores a value under a key.
    ///
    /// # Errors
    /// If the key is empty or longer than 1024 bytes, or the outbox is full.
    pub fn set(&self, key: impl Into<String>, value: impl Into<Bytes>) -> Result<(), Error> {
        self.write(key.into(), Write::Set(value.into()))
    }

    /// Deletes the value under a key, if it exists.
    ///
    /// # Errors
    /// If the key is empty or longer than 1024 bytes, or the outbox is full.
    pub fn delete(&self, key: impl Into<String>) -> Result<(), Error> {
        self.write(key.into(), Write::Delete)
    }

    fn write(&self, key: String, write: Write) -> Result<(), Error> {
        check_key("key of a value", &key)?;
        self.0.add(FollowUp::Write { key, write })
    }

    fn add(&self, message: Message) -> Result<(), Error> {
        check(message.parts())?;
        let parts = message.parts();
        if parts.kind == Kind::Rpc {
            let text = "an outbox takes tasks and events; send a request through a client";
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        if parts.sharded {
            let text = "an outbox takes no sharded events; publish it through a client";
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        self.0.add(FollowUp::Outgoing(message))
    }

    /// Starts an empty outbox for a delivery. `None` if the delivery can have no outbox.
    pub(crate) fn of_delivery(parts: &Parts) -> Option<Self> {
        parts.lease.as_ref()?.start_outbox().map(Self)
    }
}

impl<S: Sync> FromMessageParts<S> for Outbox {
    type Rejection = Rejection;

    async fn from_message_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        Self::of_delivery(parts).ok_or_else(|| {
            Rejection::ordinary(
                "this message has no outbox: only a task or a request that a transport delivers has \
                 one; serve the router, for example over the transport in memory",
            )
        })
    }
}

impl<S: Sync> OptionalFromMessageParts<S> for Outbox {
    type Rejection = Infallible;

    async fn from_message_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(Self::of_delivery(parts))
    }
}

impl Service<Message> for Outbox {
    type Response = Reply;
    type Error = Error;
    type Future = Ready<Result<Reply, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, message: Message) -> Self::Future {
        ready(self.add(message).map(|()| Reply::default()))
    }
}
