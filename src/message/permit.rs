//! Requests to park a message until it gets a permit, until its name is no longer paused, or until
//! a newer worker starts.

use super::{Attempt, MessageId, Name, Parts};

/// A delivery's request for a permit, or to wait for a [newer worker](Self::newer).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PermitRequest {
    /// The stream of the message.
    pub stream: Name,
    /// The name of the limit, a colon, and the key within the limit.
    pub key: String,
    /// The delivery that holds the permit: the message's id and the attempt.
    pub holder: String,
    /// The number of permits of the key. For a rate, the number of messages in a period. 0 if the
    /// message waits for the end of a pause or for a newer worker.
    pub permits: usize,
}

impl PermitRequest {
    /// Creates the request that parks a message until there is a worker that knows this version of
    /// its payload.
    pub(crate) fn of_newer(parts: &Parts, version: u32) -> Self {
        Self::without_permits(parts, left_to_newer(&parts.name, version))
    }

    fn without_permits(parts: &Parts, key: String) -> Self {
        Self {
            stream: parts.stream.clone().unwrap_or_default(),
            key,
            holder: String::new(),
            permits: 0,
        }
    }

    /// Returns the name and the version of a message that waits for a newer worker. `None` if the
    /// message waits for something else. A newer worker has the name with this version or a higher
    /// one in its [interest](crate::transport::Interest::versions).
    pub fn newer(&self) -> Option<(&str, u32)> {
        let (name, version) = parked_for(&self.key)?;
        Some((name, version?))
    }
}

// The Redis transport delivers a message with a paused name and then parks it by a verdict. In
// memory, such a message is parked before it is delivered.
#[cfg(feature = "redis")]
impl PermitRequest {
    /// Creates the request that parks a message while its name is paused.
    pub(crate) fn of_paused(parts: &Parts) -> Self {
        Self::without_permits(parts, parked_under(&parts.name))
    }

    /// Returns the message's name if the message is parked because this name is paused. `None` if
    /// the message waits for something else.
    pub(crate) fn paused_name(&self) -> Option<&str> {
        let (name, version) = parked_for(&self.key)?;
        version.is_none().then_some(name)
    }
}

/// Returns the key under which messages with a paused name are parked. This key starts with a
/// colon. The key of a limit does not, because no limit has an empty name.
pub(crate) fn parked_under(name: &Name) -> String {
    format!(":{name}")
}

/// Returns the key under which messages with this name and version are parked until there is a
/// worker that knows the version.
pub(crate) fn left_to_newer(name: &Name, version: u32) -> String {
    format!("{}\n{version}", parked_under(name))
}

/// Returns the name of the messages that are parked under a key, and their version if they wait for
/// a newer worker. `None` for the key of a limit. The line feed in a key ends the name, because
/// names have no control characters.
pub(crate) fn parked_for(key: &str) -> Option<(&str, Option<u32>)> {
    let name = key.strip_prefix(':')?;
    Some(match name.split_once('\n') {
        Some((name, version)) => (name, version.parse().ok()),
        None => (name, None),
    })
}

/// Names the holder of a permit. The attempt is a part of the holder's name: a stalled worker and
/// the worker that claimed its delivery hold different permits.
pub(crate) fn holder(id: &MessageId, attempt: Attempt) -> String {
    format!("{id}:{}", attempt.0)
}
