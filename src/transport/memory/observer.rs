//! Reports the events of a broker's messages to the observer of the test kit, if there is one.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::log::LogEntry;
use crate::{
    error::RpcError,
    message::{Attempt, Message, MessageId, Name},
    reply::Reply,
    transport::{Discarded, Settings, Undecodable, Verdict, codec},
};

/// An event in the life of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MessageEvent {
    /// The transport has accepted the message.
    Sent {
        /// The delay that the sender has set.
        delay: Duration,
    },
    /// The message was handled: a task is done, a request is answered, or the handler of an event
    /// succeeded.
    Acknowledged,
    /// The delivery failed, and the message is not delivered again: a request was answered with an
    /// error, or the handler of an event failed.
    Failed {
        /// The error reply, or the reason.
        reason: String,
    },
    /// The delivery failed, and the message will be delivered again.
    Redelivered {
        /// The wait before the redelivery.
        after: Duration,
        /// `true` if this delivery counts as an attempt.
        counted: bool,
        /// The reason.
        reason: String,
    },
    /// The message was parked. It waits for a permit of a shared limit, or for a worker of a newer
    /// version.
    Parked,
    /// The message became a dead letter.
    DeadLettered {
        /// The reason.
        reason: String,
    },
    /// The message was discarded.
    Discarded(Discarded),
    /// The delivery was released before its handler started.
    Released,
    /// The handler was dropped before its end. A task or a request is delivered again when its
    /// lease ends. An event is lost.
    Abandoned,
}

/// A message as an observer sees it, with its stream and its group.
#[derive(Debug, Clone)]
pub(crate) struct ObservedMessage {
    /// `None` for a published event, which is on no stream.
    pub(crate) stream: Option<Name>,
    /// `None` if the message is not a delivery from a stream.
    pub(crate) group: Option<Name>,
    pub(crate) message: Result<Message, Undecodable>,
}

/// An observer of a broker. The broker holds its locks while it calls the observer, so the calls
/// are in order, and the observer must not call the broker.
pub(crate) trait Observer: fmt::Debug + Send + Sync {
    /// Called for each event in the life of a message.
    fn happened(&self, seen: ObservedMessage, what: MessageEvent);

    /// Called when a message is delivered. The delivery is in flight until [`ended`](Self::ended)
    /// is called with the returned number.
    fn started(&self, seen: ObservedMessage) -> u64;

    /// Called when a delivery is settled, or is dropped without a verdict.
    fn ended(&self, number: u64);

    /// Called when a source is opened.
    fn opened(&self);

    /// Called when a source is stopped.
    fn closed(&self);
}

/// The remaining work of a broker. Groups without workers are left out.
#[derive(Debug, Default)]
pub(crate) struct RemainingWork {
    /// The stream, the group, and the number of messages that could be delivered now.
    pub(crate) queued: Vec<(Name, Name, usize)>,
    /// The number of buffered events.
    pub(crate) events: usize,
    /// The time at which the next message is due.
    pub(crate) next_due: Option<Instant>,
}

/// The observer of a broker, if it has one.
#[derive(Debug, Default)]
pub(super) struct ObserverSlot(OnceLock<Arc<dyn Observer>>);

impl ObserverSlot {
    /// Sets the observer. Returns `false` if there is one already.
    pub(super) fn watch(&self, observer: Arc<dyn Observer>) -> bool {
        self.0.set(observer).is_ok()
    }

    pub(super) fn observer(&self) -> Option<&Arc<dyn Observer>> {
        self.0.get()
    }

    pub(super) fn report_sent(
        &self,
        stream: &Name,
        fields: &[(Bytes, Bytes)],
        delay: Duration,
        id: impl FnOnce() -> MessageId,
    ) {
        if let Some(observer) = self.observer() {
            let message = codec::decode(fields.to_vec()).map(|decoded| {
                let mut message = decoded.message;
                message.parts_mut().id = Some(id());
                message
            });
            let seen = ObservedMessage {
                stream: Some(stream.clone()),
                group: None,
                message,
            };
            observer.happened(seen, MessageEvent::Sent { delay });
        }
    }

    pub(super) fn report_published(&self, event: &Message, what: impl FnOnce() -> MessageEvent) {
        if let Some(observer) = self.observer() {
            observer.happened(ObservedMessage::event(event.clone()), what());
        }
    }

    pub(super) fn report_delivery(
        &self,
        settings: &Settings,
        entry: &LogEntry,
        attempt: u32,
        what: impl FnOnce() -> MessageEvent,
    ) {
        if let Some(observer) = self.observer() {
            observer.happened(ObservedMessage::delivery(settings, entry, attempt), what());
        }
    }

    /// Reports the start of a delivery to the observer, if there is one. Dropping the returned
    /// value reports its end.
    pub(super) fn report_start(
        &self,
        seen: impl FnOnce() -> ObservedMessage,
    ) -> Option<Box<ObservedDelivery>> {
        let observer = self.observer()?;
        Some(Box::new(ObservedDelivery::start(observer, seen())))
    }
}

/// A delivery that was reported to the observer. Dropping it reports its end.
#[derive(Debug)]
pub(super) struct ObservedDelivery {
    observer: Arc<dyn Observer>,
    number: u64,
    seen: ObservedMessage,
}

impl ObservedDelivery {
    fn start(observer: &Arc<dyn Observer>, seen: ObservedMessage) -> Self {
        Self {
            number: observer.started(seen.clone()),
            observer: Arc::clone(observer),
            seen,
        }
    }

    pub(super) fn is_an_event(&self) -> bool {
        self.seen.group.is_none()
    }

    pub(super) fn happened(&self, what: MessageEvent) {
        self.observer.happened(self.seen.clone(), what);
    }
}

impl Drop for ObservedDelivery {
    fn drop(&mut self) {
        self.observer.ended(self.number);
    }
}

impl ObservedMessage {
    /// Creates the message of a delivery to a group.
    pub(super) fn delivery(settings: &Settings, entry: &LogEntry, attempt: u32) -> Self {
        let message = codec::decode(entry.fields.clone()).map(|decoded| {
            let mut message = decoded.message;
            let parts = message.parts_mut();
            parts.stream = Some(settings.stream.clone());
            parts.group = Some(settings.group.clone());
            parts.id = Some(entry.message_id());
            parts.attempt = Attempt(attempt);
            message
        });
        Self {
            stream: Some(settings.stream.clone()),
            group: Some(settings.group.clone()),
            message,
        }
    }

    pub(super) fn event(message: Message) -> Self {
        Self {
            stream: None,
            group: None,
            message: Ok(message),
        }
    }
}

impl MessageEvent {
    pub(super) fn answered(answer: &Result<Reply, RpcError>) -> Self {
        match answer {
            Ok(_) => Self::Acknowledged,
            Err(answer) => Self::Failed {
                reason: answer.to_string(),
            },
        }
    }

    /// Returns the outcome of an event's handler. An event is never redelivered and never becomes a
    /// dead letter.
    pub(super) fn of_event(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Done(answer) => Self::answered(answer),
            Verdict::Redeliver { reason, .. } | Verdict::DeadLetter { reason, .. } => {
                Self::Failed {
                    reason: reason.clone(),
                }
            }
            Verdict::Discard { reason, .. } => Self::Discarded(*reason),
            Verdict::Park(_) => Self::Parked,
            Verdict::Release => Self::Released,
        }
    }
}
