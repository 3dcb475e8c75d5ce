//! The permit for which a message waits outside of the workers.

#[cfg(feature = "redis")]
use super::Parts;
use super::{Attempt, MessageId, Name};

/// The request of one delivery for a permit.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PermitRequest {
    /// The stream of the message.
    pub stream: Name,
    /// The name of the limit and the key, with a colon between.
    pub key: String,
    /// The delivery that holds the permit: the message's id and the attempt.
    pub holder: String,
    /// The number of permits of the key. For a rate, the number of messages in a period.
    pub permits: usize,
}

// Only the Redis transport parks messages with a paused name by a verdict. In memory they are
// parked before they are delivered.
#[cfg(feature = "redis")]
impl PermitRequest {
    /// Creates the request that parks a message while its name is paused. The key of the request
    /// starts with a colon. A limit has no such key, because no limit has an empty name.
    pub(crate) fn of_paused(parts: &Parts) -> Self {
        Self {
            stream: parts.stream.clone().unwrap_or_default(),
            key: parked_under(&parts.name),
            holder: String::new(),
            permits: 0,
        }
    }

    /// Returns the paused name for which the message is parked. `None` if the message waits for a
    /// permit.
    pub(crate) fn paused_name(&self) -> Option<&str> {
        self.key.strip_prefix(':')
    }
}

/// Returns the key for which messages with a paused name are parked.
pub(crate) fn parked_under(name: &Name) -> String {
    format!(":{name}")
}

/// Names the holder of a permit. The attempt is a part of it, so that a delivery that was claimed
/// from a stalled worker has another permit.
pub(crate) fn holder(id: &MessageId, attempt: Attempt) -> String {
    format!("{id}:{}", attempt.0)
}
