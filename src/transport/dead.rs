//! Dead letters.

use std::{fmt, time::SystemTime};

use bytes::Bytes;

use crate::message::MessageId;

/// A message that is not delivered any more, with everything that is known about it.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The id of the message.
    pub id: MessageId,
    /// The fields of its entry, as they came.
    pub fields: Vec<(Bytes, Bytes)>,
    /// Why it died.
    pub reason: String,
    /// How often it was delivered.
    pub attempts: u32,
    /// When it died, on the broker's clock.
    pub died_at: SystemTime,
}

impl DeadLetter {
    /// A dead letter. For transports outside this crate.
    pub fn new(
        id: MessageId,
        fields: Vec<(Bytes, Bytes)>,
        reason: impl Into<String>,
        attempts: u32,
        died_at: SystemTime,
    ) -> Self {
        Self {
            id,
            fields,
            reason: reason.into(),
            attempts,
            died_at,
        }
    }
}

// Fields hold payloads and header values, which are not shown.
impl fmt::Debug for DeadLetter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetter")
            .field("id", &self.id)
            .field("fields", &self.fields.len())
            .field("reason", &self.reason)
            .field("attempts", &self.attempts)
            .field("died_at", &self.died_at)
            .finish()
    }
}
