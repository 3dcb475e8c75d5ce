//! Settlements: verdicts, in the form in which the server carries them out.

use std::{sync::Arc, time::Duration};

use redis::Cmd;

use super::{
    follow_ups::EncodedFollowUps,
    in_flight::LeaseGuard,
    key_order::Turn,
    poison::PoisonGuard,
    reply_to::{ReplyRoute, ReplyTo},
    streams::ServedStream,
};
use crate::{
    error::{Error, ErrorKind, RpcError},
    message::{IdempotencyKey, MessageId, PermitRequest},
    reply::Reply,
    transport::{Discarded, TaskOutcome, redis::entry::StreamEntryId},
};

/// The maximum size, in bytes, of a reply that is sent over the connection that also fetches
/// entries.
const MAX_REPLY_ON_READ_CONNECTION: usize = 64 << 10;

/// A callback for the outcome of a settlement. Dropped without a call if the source ends first.
pub(super) type OnSettled = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// A delivery, the effect of its verdict, and the callback for the outcome.
pub(super) struct Settlement<E = Effect> {
    pub(super) delivery: Unsettled,
    pub(super) effect: E,
    pub(super) on_settled: OnSettled,
}

/// The effect of a verdict on the server.
#[derive(Debug)]
pub(super) enum Effect {
    /// Publishes the reply, if there is one, and acknowledges the entry. Many such effects share
    /// one command.
    Acknowledge(Option<PublishedReply>),
    /// Stores the reply and acknowledges the entry, in one step. Many such effects share one script
    /// call.
    Reply(StoredReply),
    /// Any other effect, by a fenced script call for this delivery alone.
    Fenced(FencedEffect),
}

/// The channel and the envelope of a reply.
pub(super) type PublishedReply = (bytes::Bytes, Vec<u8>);

/// An effect that takes place only if the entry is still pending for this consumer.
#[derive(Debug)]
pub(super) enum FencedEffect {
    /// Moves the delivery to the retry stream, now or after a delay.
    Redeliver {
        after: Option<Duration>,
        /// The number of attempts that count so far.
        attempts: u32,
        /// The number of redeliveries in a row that did not count.
        uncounted_redeliveries: u32,
        /// Set if the delivery was not started. Such redeliveries have a separate counter.
        released: bool,
        /// The reason of the failure, for the status record of the task.
        reason: String,
    },
    /// Parks the delivery: its message waits on the server until the request is granted.
    Park(PermitRequest),
    /// Ends the delivery.
    End {
        end: End,
        /// The outcome for the status record of the task, if the task has one.
        outcome: TaskOutcome,
        /// The route and the envelope of the reply to a request.
        reply: Option<(ReplyRoute, Vec<u8>)>,
    },
    /// Ends the delivery as done, and carries out its follow-ups.
    Complete {
        follow_ups: Box<EncodedFollowUps>,
        /// The outcome for the status record of the task, if the task has one.
        outcome: TaskOutcome,
        reply: Option<(ReplyRoute, Vec<u8>)>,
    },
}

/// A reply that is stored for its client.
#[derive(Debug)]
pub(super) struct StoredReply {
    /// The client's reply stream.
    pub(super) stream: String,
    pub(super) envelope: Vec<u8>,
    /// The envelope to store if the server refuses the reply for its size. `None` for replies below
    /// [`LEAST_SIZE_LIMIT`](crate::transport::redis::error::LEAST_SIZE_LIMIT), which no server
    /// refuses.
    pub(super) fallback: Option<Vec<u8>>,
}

/// The way in which a delivery ends.
#[derive(Debug)]
pub(super) enum End {
    /// Handled successfully. Used only for an owned partition, or for a task whose status is
    /// recorded. Any other success is an [`Effect::Acknowledge`] or an [`Effect::Reply`].
    Done,
    /// Made a dead letter, for this reason.
    DeadLetter(String),
    /// Discarded, without a dead letter.
    Discarded(Discarded),
}

/// A delivery from the stream that is not settled yet.
#[derive(Debug)]
pub(super) struct Unsettled {
    pub(super) stream: Arc<ServedStream>,
    pub(super) guard: LeaseGuard,
    /// The id of the message's first entry.
    pub(super) origin: StreamEntryId,
    pub(super) attempt: u32,
    /// The number of earlier redeliveries in a row that did not count.
    pub(super) uncounted_redeliveries: u32,
    /// The number of attempts after which the message is given up.
    pub(super) max_attempts: u32,
    pub(super) reply_to: Option<Box<ReplyTo>>,
    /// The id of the task, if this group records the task's status.
    pub(super) task: Option<Box<str>>,
    /// The idempotency key of the task, and the id that is stored under the key. `None` without a
    /// key.
    pub(super) idempotency: Option<Box<(IdempotencyKey, MessageId)>>,
    /// The delivery's place in the order of an owned partition. `None` for other streams.
    pub(super) turn: Option<Turn>,
    /// Set for a poison candidate: a message that may have crashed earlier workers. Until the guard
    /// is dropped, this worker runs no other candidate.
    pub(super) _poison: Option<PoisonGuard>,
}

impl Unsettled {
    /// Returns the id of the task if this group records the task's status. If not, returns an empty
    /// string.
    pub(super) fn task_id(&self) -> &str {
        self.task.as_deref().unwrap_or_default()
    }

    /// Returns the outcome of a task: its last progress, and its result if this group records the
    /// task's status.
    pub(super) fn outcome(&self, reply: Option<&Result<Reply, RpcError>>) -> TaskOutcome {
        let outcome = TaskOutcome {
            progress: self.guard.lease.take_progress(),
            ..TaskOutcome::default()
        };
        match reply {
            Some(Ok(reply)) if self.task.is_some() => outcome.with_result(reply),
            _ => outcome,
        }
    }
}

/// Appends the arguments of a task that ends: its id, its result, the length of a result that is
/// too large, and its progress. An argument without a value is empty.
pub(super) fn task_args(delivery: &Unsettled, outcome: &TaskOutcome, cmd: &mut Cmd) {
    let too_large = outcome.result_too_large.map(|length| length.to_string());
    cmd.arg(delivery.task_id())
        .arg(outcome.result.as_deref().unwrap_or_default())
        .arg(too_large.unwrap_or_default())
        .arg(outcome.progress.as_deref().unwrap_or_default());
}

impl End {
    /// Returns the state of the ended task, as text for its status record.
    pub(super) fn state(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::DeadLetter(_) => "dead",
            Self::Discarded(_) => "discarded",
        }
    }

    /// Returns `true` if the task has ended without success, so that it may be sent again. Returns
    /// `false` for a task that this group ignores, because it belongs to other groups.
    pub(super) fn frees_idempotency_key(&self) -> bool {
        !matches!(self, Self::Done | Self::Discarded(Discarded::Ignored))
    }
}

impl<E> Settlement<E> {
    /// Converts the effect.
    pub(super) fn map<F>(self, convert: impl FnOnce(E) -> F) -> Settlement<F> {
        Settlement {
            delivery: self.delivery,
            effect: convert(self.effect),
            on_settled: self.on_settled,
        }
    }

    /// Replaces the effect.
    pub(super) fn with<F>(self, effect: F) -> Settlement<F> {
        Settlement {
            delivery: self.delivery,
            effect,
            on_settled: self.on_settled,
        }
    }

    /// Reports that the settlement has failed. The delivery's lease is not renewed any more.
    pub(super) fn fail(self, error: &Error) {
        drop(self.delivery);
        (self.on_settled)(Err(match error.is_closed() {
            true => Error::closed(),
            false => Error::new(ErrorKind::Refused, error.chain()),
        }));
    }
}

impl Settlement {
    /// Returns `true` if the connection that fetches entries can carry this settlement out. It can
    /// if the settlement is a success on the primary stream, is not fenced, and has no reply or a
    /// small one. The server may refuse a large reply, and the read would then lose its connection.
    pub(super) fn fits_read_connection(&self) -> bool {
        let reply_bytes = match &self.effect {
            Effect::Acknowledge(None) => 0,
            Effect::Acknowledge(Some((_, envelope))) => envelope.len(),
            Effect::Reply(reply) => reply.envelope.len(),
            Effect::Fenced(_) => return false,
        };
        !self.delivery.guard.delivery_key.0.is_retry()
            && reply_bytes <= MAX_REPLY_ON_READ_CONNECTION
    }
}
