//! What whoever watches a broker is told. Without an observer nothing is made for one.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::{broker::Shared, log::Entry};
use crate::{
    error::RpcError,
    message::{Attempt, Message, MessageId, Name},
    reply::Reply,
    transport::{Discarded, Settings, Undecodable, Verdict, codec},
};

/// What happened to a message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Happened {
    /// The transport took it.
    Sent {
        /// How long its sender wanted it to wait before it is put on its stream.
        delay: Duration,
    },
    /// It was handled: a task is done, a request is answered, the handler of an event succeeded.
    Acknowledged,
    /// It failed, and nothing comes after that: a request was answered with an error, or the
    /// handler of an event failed.
    Failed {
        /// The answer, or why.
        reason: String,
    },
    /// It failed, and is to be delivered again.
    Redelivered {
        /// After this long.
        after: Duration,
        /// Whether this delivery counts as an attempt.
        counted: bool,
        /// Why.
        reason: String,
    },
    /// It became a dead letter.
    DeadLettered {
        /// Why.
        reason: String,
    },
    /// It was dropped, because it had expired, because its handler asked for that, or because
    /// nobody knew its name.
    Discarded(Discarded),
    /// It was handed back before it was started.
    GivenBack,
    /// Its handler was dropped before it ended. It comes back when the lease ends; an event is
    /// lost.
    Abandoned,
}

/// A message as an observer sees it, and where it was seen. Events have no place.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) stream: Option<Name>,
    /// `None` where it is not about a delivery.
    pub(crate) group: Option<Name>,
    pub(crate) message: Result<Message, Undecodable>,
}

/// Whoever watches a broker. It is told under the broker's locks, so that what it hears is in
/// order, and must not call the broker back.
pub(crate) trait Observer: fmt::Debug + Send + Sync {
    /// Something happened to a message.
    fn happened(&self, seen: Seen, what: Happened);

    /// A delivery was handed to a worker; it is in flight until [`ended`](Self::ended) is called
    /// with the number that this returns.
    fn started(&self, seen: Seen) -> u64;

    /// Its right to settle is used, or dropped.
    fn ended(&self, number: u64);

    /// A worker can take messages from now on.
    fn opened(&self);

    /// A worker takes no more of them.
    fn closed(&self);
}

/// What is left to do on a broker, for those who serve from it.
#[derive(Debug, Default)]
pub(crate) struct Outlook {
    /// How many messages a worker could take now: the stream, the group, and the number.
    pub(crate) queued: Vec<(Name, Name, usize)>,
    /// Events that wait for a handler.
    pub(crate) events: usize,
    /// When the next message is due of those that wait.
    pub(crate) next_due: Option<Instant>,
}

impl Shared {
    /// From now on this observer is told; `false` if there is one already.
    pub(super) fn watch(&self, observer: Arc<dyn Observer>) -> bool {
        self.observer.set(observer).is_ok()
    }

    pub(super) fn observer(&self) -> Option<&Arc<dyn Observer>> {
        self.observer.get()
    }

    pub(super) fn tell_of_sent(
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
            let seen = Seen {
                stream: Some(stream.clone()),
                group: None,
                message,
            };
            observer.happened(seen, Happened::Sent { delay });
        }
    }

    pub(super) fn tell_of_event(&self, event: &Message, what: impl FnOnce() -> Happened) {
        if let Some(observer) = self.observer() {
            observer.happened(Seen::event(event.clone()), what());
        }
    }

    pub(super) fn tell_of_delivery(
        &self,
        settings: &Settings,
        entry: &Entry,
        attempt: u32,
        what: impl FnOnce() -> Happened,
    ) {
        if let Some(observer) = self.observer() {
            observer.happened(Seen::delivery(settings, entry, attempt), what());
        }
    }

    /// A delivery for whoever watches.
    pub(super) fn in_flight(&self, seen: impl FnOnce() -> Seen) -> Option<Box<InFlight>> {
        let observer = self.observer()?;
        Some(Box::new(InFlight::start(observer, seen())))
    }
}

/// A delivery in flight, as the observer knows it.
#[derive(Debug)]
pub(super) struct InFlight {
    observer: Arc<dyn Observer>,
    number: u64,
    seen: Seen,
}

impl InFlight {
    fn start(observer: &Arc<dyn Observer>, seen: Seen) -> Self {
        Self {
            number: observer.started(seen.clone()),
            observer: Arc::clone(observer),
            seen,
        }
    }

    pub(super) fn is_an_event(&self) -> bool {
        self.seen.group.is_none()
    }

    pub(super) fn happened(&self, what: Happened) {
        self.observer.happened(self.seen.clone(), what);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.observer.ended(self.number);
    }
}

impl Seen {
    /// A delivery of an entry to a group.
    pub(super) fn delivery(settings: &Settings, entry: &Entry, attempt: u32) -> Self {
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

impl Happened {
    pub(super) fn answered(answer: &Result<Reply, RpcError>) -> Self {
        match answer {
            Ok(_) => Self::Acknowledged,
            Err(answer) => Self::Failed {
                reason: answer.to_string(),
            },
        }
    }

    /// What a verdict means for an event, which there is nothing to settle about.
    pub(super) fn to_an_event(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Done(answer) => Self::answered(answer),
            Verdict::Redeliver { reason, .. } | Verdict::Dead { reason, .. } => Self::Failed {
                reason: reason.clone(),
            },
            Verdict::Discard { reason, .. } => Self::Discarded(*reason),
            Verdict::GiveBack => Self::GivenBack,
        }
    }
}
