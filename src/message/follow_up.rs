//! Follow-ups: messages and values that are stored together with the acknowledgement of a delivery.

use std::sync::Mutex;

use bytes::Bytes;

use super::Message;
use crate::{
    error::{Error, ErrorKind, RpcError},
    sync::lock,
};

/// The maximum number of follow-ups of a delivery.
const MAX_FOLLOW_UPS: usize = 1_000;
/// The maximum size of the follow-ups of a delivery, in bytes.
const MAX_BYTES: usize = 16 << 20;

/// Integers below this limit are exact in a Lua script.
pub(crate) const MAX_INTEGER: u64 = 1_000_000_000_000_000;

/// A follow-up of a delivery: see [`Outbox`](crate::Outbox).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum FollowUp {
    /// A task is stored, or an event is published.
    Outgoing(Message),
    /// A value of the application is changed. The value is stored beside the delivery's stream.
    Write {
        /// The key of the value, unique within the stream.
        key: String,
        /// The change.
        write: Write,
    },
}

/// A change of a value of the application: see [`Outbox`](crate::Outbox).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Write {
    /// Adds to the integer. A value that does not exist counts as zero.
    Increment(i64),
    /// Replaces the value.
    Set(Bytes),
    /// Deletes the value.
    Delete,
}

impl FollowUp {
    /// Returns the outcome of a delivery whose follow-up was refused: the reason of the dead
    /// letter, and the error reply to a request.
    pub(crate) fn refusal(reason: &str) -> (String, RpcError) {
        let reason = format!("a follow-up in the outbox was refused: {reason}");
        let reply = RpcError::internal("the request could not be handled");
        (reason, reply)
    }

    /// Returns the approximate size in bytes.
    fn size(&self) -> usize {
        match self {
            Self::Outgoing(message) => {
                let headers = message.headers().iter();
                let headers = headers.map(|(name, value)| name.as_str().len() + value.len());
                message.name().len() + message.payload().len() + headers.sum::<usize>()
            }
            Self::Write { key, write } => {
                let value = match write {
                    Write::Set(value) => value.len(),
                    Write::Increment(_) | Write::Delete => 8,
                };
                key.len() + value
            }
        }
    }
}

/// The follow-ups of one extraction of an [`Outbox`](crate::Outbox).
#[derive(Debug, Default)]
pub(crate) struct FollowUps(Mutex<Collected>);

#[derive(Debug, Default)]
struct Collected {
    list: Vec<FollowUp>,
    bytes: usize,
    closed: bool,
}

impl FollowUps {
    /// Adds a follow-up. Fails if the list is closed, or would be too large.
    pub(crate) fn add(&self, follow_up: FollowUp) -> Result<(), Error> {
        let mut collected = lock(&self.0);
        if collected.closed {
            return Err(Error::new(
                ErrorKind::Closed,
                "the outbox was used after its handler had returned, or after the delivery's outbox \
                 was extracted again",
            ));
        }
        let bytes = collected.bytes + follow_up.size();
        if collected.list.len() == MAX_FOLLOW_UPS || bytes > MAX_BYTES {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "an outbox takes at most {MAX_FOLLOW_UPS} follow-ups and {} MiB; divide the work among \
                     several tasks",
                    MAX_BYTES >> 20
                ),
            ));
        }
        collected.bytes = bytes;
        collected.list.push(follow_up);
        Ok(())
    }

    /// Closes the list and returns the follow-ups.
    pub(crate) fn close(&self) -> Vec<FollowUp> {
        let mut collected = lock(&self.0);
        collected.closed = true;
        std::mem::take(&mut collected.list)
    }
}
