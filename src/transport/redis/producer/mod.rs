//! The sending half: adds tasks and requests to the stream, and publishes events.

pub(super) mod bound;
mod registration;
pub(super) mod replicas;
pub(super) mod schedule;

use std::{
    borrow::Cow,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tower::Service;

use self::bound::Admission;
pub(super) use self::{bound::Bounds, registration::Registrations, replicas::ReplicatedSends};
use super::{
    Redis,
    connection::{Encode, RespWriter},
    error, keys,
    options::Options,
    pipeline::{Resend, Submit},
    response::{Value, bytes, fixed_array, integer},
};
use crate::{
    error::{Error, ErrorKind},
    message::{Deadline, Kind, Message, MessageId, Name, Replicas},
    reply::Reply,
    transport::{Counters, codec, sending},
};

/// The largest value that a server accepts by default (`proto-max-bulk-len`).
const LARGEST_PAYLOAD: usize = 512 << 20;

impl Service<Message> for Redis {
    type Response = Reply;
    type Error = Error;
    type Future = SendFuture;

    /// Always ready: the future waits for room in the queue, or for a connection.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, message: Message) -> SendFuture {
        self.send_future(self.send(message))
    }
}

impl Redis {
    /// Starts to send a message. If checks need the server, the message is sent after them.
    fn send(&self, mut message: Message) -> Result<SendWork, Error> {
        check_message(&message)?;
        if message.kind() == Kind::Rpc {
            // Set before the first wait, so that the deadline bounds all waits.
            let deadline = &mut message.parts_mut().deadline;
            deadline.get_or_insert_with(|| Deadline::after(Deadline::DEFAULT_TIMEOUT));
        }
        if message.kind() != Kind::Event {
            self.settings.choose_partition(message.parts_mut())?;
            let stream = self.settings.target_stream(message.parts())?;
            keys::check(&self.options.namespace, stream)?;
            let partition_check = self.partition_check();
            let registration = self.registration(stream);
            let replicas = message.parts().replicas;
            let replica_check = replicas.and_then(|it| self.replica_check(stream, it));
            // The bound is checked after the other checks, so that an admitted message is sent
            // immediately.
            let has_checks =
                partition_check.is_some() || registration.is_some() || replica_check.is_some();
            let admission = match has_checks {
                true => None,
                false => Some(self.admission(&message)?),
            };
            let admission = match admission {
                Some(Admission::Now(admitted)) => {
                    let sent = self.dispatch(message);
                    drop(admitted);
                    return sent;
                }
                admission => admission,
            };
            let redis = self.clone();
            return Ok(SendWork::Boxed(Box::pin(async move {
                if let Some(check) = partition_check {
                    check.await?;
                }
                if let Some(registration) = registration {
                    registration.await?;
                }
                if let Some(check) = replica_check {
                    check.await?;
                }
                let admission = match admission {
                    Some(admission) => admission,
                    None => redis.admission(&message)?,
                };
                let admitted = admission.wait().await?;
                let sent = redis.send_future(redis.dispatch(message));
                drop(admitted);
                sent.await
            })));
        }
        self.dispatch(message)
    }

    fn send_future(&self, work: Result<SendWork, Error>) -> SendFuture {
        SendFuture {
            work: work.unwrap_or_else(|error| SendWork::Refused(Some(error))),
            counters: self.shared.counters.clone(),
        }
    }

    /// Returns the key of a message's stream: the stream's name with the namespace.
    fn key(&self, message: &Message) -> Result<Name, Error> {
        let stream = self.settings.target_stream(message.parts())?;
        Ok(self.options.namespace.apply(stream))
    }

    /// Sends a message that was checked.
    fn dispatch(&self, message: Message) -> Result<SendWork, Error> {
        let pipeline = &self.shared.pipeline;
        match message.kind() {
            Kind::Task if schedule::needs_script(message.parts()) => {
                let replicas = message.parts().replicas;
                Ok(SendWork::task(self.accept(message)?, replicas))
            }
            Kind::Task => {
                let replicas = message.parts().replicas;
                let key = self.key(&message)?;
                let pipeline = self.task_pipeline(&key, replicas);
                let task = AddTask { key, message };
                let sent = pipeline.submit_owned(task, Resend::Never, None);
                Ok(SendWork::task(sent, replicas))
            }
            Kind::Event => {
                let event = PublishEvent {
                    options: self.options.clone(),
                    message,
                };
                // A sharded event must go to the node of its channel. Any other event reaches all
                // nodes of a cluster, whichever node it is sent to.
                let pipeline = pipeline.for_key(&event.channel());
                Ok(SendWork::Event(pipeline.submit_owned(
                    event,
                    Resend::Never,
                    None,
                )))
            }
            Kind::Rpc => {
                let key = self.key(&message)?;
                let reply = self.hub().request(&key, message);
                Ok(SendWork::Boxed(Box::pin(reply)))
            }
        }
    }
}

/// Refuses messages that cannot be sent, before anything is sent.
fn check_message(message: &Message) -> Result<(), Error> {
    sending::check_replicated(message.parts())?;
    if message.payload().len() > LARGEST_PAYLOAD {
        let text = "the payload is larger than the 512 MiB that Redis takes";
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    Ok(())
}

/// The `XADD` of a task. Owns its message.
struct AddTask {
    key: Name,
    message: Message,
}

impl AddTask {
    fn add(&self) -> AddCommand<'_> {
        AddCommand {
            key: &self.key,
            message: &self.message,
            extra_fields: &[],
        }
    }
}

impl Encode for AddTask {
    fn encode(&self, out: &mut Vec<u8>) {
        self.add().encode(out);
    }

    fn size_hint(&self) -> usize {
        self.add().size_hint()
    }
}

/// The `PUBLISH` or `SPUBLISH` of an event. Owns its message.
struct PublishEvent {
    options: Arc<Options>,
    message: Message,
}

/// Returns the channel of an event.
pub(super) fn event_channel<'a>(options: &Options, name: &'a Name) -> Cow<'a, str> {
    let (namespace, prefix) = (options.namespace.prefix(), &options.event_prefix);
    match (namespace.as_str(), prefix.as_str()) {
        ("", "") => Cow::Borrowed(name.as_str()),
        (namespace, prefix) => Cow::Owned([namespace, prefix, name.as_str()].concat()),
    }
}

impl PublishEvent {
    fn channel(&self) -> Cow<'_, str> {
        event_channel(&self.options, self.message.name())
    }

    fn publish(&self) -> PublishCommand<'_> {
        let channel = match self.channel() {
            Cow::Borrowed(channel) => Cow::Borrowed(channel.as_bytes()),
            Cow::Owned(channel) => Cow::Owned(channel.into_bytes()),
        };
        let publish = PublishCommand::new(channel, self.message.payload());
        match self.message.parts().sharded {
            true => PublishCommand {
                command: "SPUBLISH",
                ..publish
            },
            false => publish,
        }
    }
}

impl Encode for PublishEvent {
    fn encode(&self, out: &mut Vec<u8>) {
        self.publish().encode(out);
    }

    fn size_hint(&self) -> usize {
        self.publish().size_hint()
    }
}

/// The `XADD` of a message.
pub(super) struct AddCommand<'a> {
    pub(super) key: &'a str,
    pub(super) message: &'a Message,
    /// Fields in addition to those of the message.
    pub(super) extra_fields: &'a [(&'a str, &'a [u8])],
}

impl Encode for AddCommand<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut writer = RespWriter::new(out);
        writer.arg("XADD").arg(self.key).arg("*");
        codec::encode(self.message, |field, value| {
            writer.arg(field).arg(value);
        });
        for (field, value) in self.extra_fields {
            writer.arg(field).arg(value);
        }
        writer.finish();
    }

    fn size_hint(&self) -> usize {
        size_hint(self.message)
    }
}

/// Returns the approximate size in bytes of a command with this message.
pub(super) fn size_hint(message: &Message) -> usize {
    let headers = message.headers().iter();
    let headers = headers.map(|(name, value)| 64 + name.as_str().len() + value.len());
    512 + message.payload().len() + headers.sum::<usize>()
}

/// The `PUBLISH` or `SPUBLISH` of a payload.
pub(super) struct PublishCommand<'a> {
    command: &'static str,
    channel: Cow<'a, [u8]>,
    payload: &'a [u8],
}

impl<'a> PublishCommand<'a> {
    pub(super) fn new(channel: impl Into<Cow<'a, [u8]>>, payload: &'a [u8]) -> Self {
        Self {
            command: "PUBLISH",
            channel: channel.into(),
            payload,
        }
    }
}

impl Encode for PublishCommand<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut writer = RespWriter::new(out);
        writer
            .arg(self.command)
            .arg(&self.channel)
            .arg(self.payload);
        writer.finish();
    }

    fn size_hint(&self) -> usize {
        128 + self.channel.len() + self.payload.len()
    }
}

/// A task that is stored. If `is_duplicate` is set, it is an earlier task with the same key.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) id: MessageId,
    is_duplicate: bool,
}

impl From<Stored> for Reply {
    fn from(stored: Stored) -> Self {
        match stored.is_duplicate {
            true => Reply::duplicate(stored.id),
            false => Reply::accepted(stored.id),
        }
    }
}

/// Decodes the response to an `XADD`, or to the script `ACCEPT`.
pub(super) fn decode_accepted(response: Value) -> Result<Stored, Error> {
    let without_id = || Error::new(ErrorKind::Decode, "Redis answered `XADD` without an id");
    let (id, outcome) = match error::check(response)? {
        Value::Text(id) => (id, 0),
        response => {
            let [id, outcome] = fixed_array(response).map_err(|_| without_id())?;
            (bytes(id)?, integer(&outcome)?)
        }
    };
    let id = MessageId::from_utf8(&id).map_err(|_| without_id())?;
    let is_duplicate = match outcome {
        0 => false,
        1 => true,
        2 => return Err(Error::duplicate(id)),
        3 => return Err(Error::reused_key(id)),
        _ => return Err(without_id()),
    };
    Ok(Stored { id, is_duplicate })
}

/// The future of [`Redis`] as a service.
///
/// # Cancel safety
/// Dropping the future does not stop a message that was sent. If the message is a request, its
/// reply is ignored.
#[must_use = "futures do nothing unless polled"]
pub struct SendFuture {
    work: SendWork,
    counters: Arc<Counters>,
}

enum SendWork {
    /// Refused before it was sent. `None` after the error was returned.
    Refused(Option<Error>),
    Task(Submit),
    /// A task that replicas confirm.
    Replicated(Submit, Replicas),
    Event(Submit),
    /// A request, or a message that has to wait before it is sent.
    Boxed(Pin<Box<dyn Future<Output = Result<Reply, Error>> + Send>>),
}

impl SendWork {
    fn task(sent: Submit, replicas: Option<Replicas>) -> Self {
        match replicas {
            None => Self::Task(sent),
            Some(replicas) => Self::Replicated(sent, replicas),
        }
    }
}

impl Future for SendFuture {
    type Output = Result<Reply, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let reply = match &mut self.work {
            SendWork::Refused(error) => {
                return Poll::Ready(Err(error.take().expect("polled after it was done")));
            }
            // The boxed future counts the message as sent. A request is counted with the response
            // to its `XADD`, which may come after the reply.
            SendWork::Boxed(reply) => return reply.as_mut().poll(cx),
            SendWork::Task(response) => {
                let response = ready!(Pin::new(response).poll(cx));
                response.and_then(decode_accepted).map(Reply::from)
            }
            SendWork::Replicated(response, required) => {
                let required = *required;
                let response = ready!(Pin::new(response).poll(cx));
                let reply =
                    response.and_then(|response| replicas::decode_confirmed(response, required));
                // A task that too few replicas have confirmed is stored, so it counts as sent.
                if reply.as_ref().is_err_and(Error::is_unreplicated) {
                    self.counters.sent.increment();
                }
                reply.map(Reply::from)
            }
            SendWork::Event(response) => {
                let response = ready!(Pin::new(response).poll(cx));
                response.and_then(error::check).map(|_| Reply::default())
            }
        };
        if reply.is_ok() {
            self.counters.sent.increment();
        }
        Poll::Ready(reply)
    }
}

impl fmt::Debug for SendFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendFuture").finish_non_exhaustive()
    }
}
