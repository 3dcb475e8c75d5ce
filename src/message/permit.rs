//! Requests to park a message until it gets a permit, until its name is no longer paused, or until
//! a newer worker starts. A worker is *newer* if it knows the version of the message's payload.

use super::{Attempt, MessageId, Name, Parts};

/// A delivery's request to be parked until it gets a permit, until its name is no longer paused, or
/// until a worker starts that [knows the version](Self::awaited_version) of its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PermitRequest {
    /// The stream of the message.
    pub stream: Name,
    /// The name of the limit, a colon, and the key within the limit. Begins with the colon if the
    /// message waits for the end of a pause or for a newer worker.
    pub key: String,
    /// The delivery that is to hold the permit: the message's id and the attempt. Empty if the
    /// message waits for the end of a pause or for a newer worker.
    pub holder: String,
    /// The number of permits of the key. For a rate, the number of messages in a period. 0 if the
    /// message waits for the end of a pause or for a newer worker.
    pub permits: usize,
}

impl PermitRequest {
    /// Creates the request that parks a message until there is a worker that knows this version of
    /// its payload.
    pub(crate) fn of_newer(parts: &Parts, version: u32) -> Self {
        Self::without_permits(parts, parking_key_of_newer(&parts.name, version))
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
    /// message waits for something else. A newer worker lists the name with this or a higher
    /// version in its [interest](crate::transport::Interest::versions).
    pub fn awaited_version(&self) -> Option<(&str, u32)> {
        let (name, version) = parse_parked_key(&self.key)?;
        Some((name, version?))
    }
}

// If the name of a message is paused, the Redis transport delivers the message, and a verdict parks
// it. The memory transport parks it before the delivery.
#[cfg(feature = "redis")]
impl PermitRequest {
    /// Creates the request that parks a message while its name is paused.
    pub(crate) fn of_paused(parts: &Parts) -> Self {
        Self::without_permits(parts, parking_key_of_paused(&parts.name))
    }

    /// Returns the message's name if the message is parked because this name is paused. `None` if
    /// the message waits for something else.
    pub(crate) fn paused_name(&self) -> Option<&str> {
        let (name, version) = parse_parked_key(&self.key)?;
        version.is_none().then_some(name)
    }
}

/// Returns the key under which messages with a paused name are parked. This key starts with a
/// colon. The key of a limit does not, because no limit has an empty name.
pub(crate) fn parking_key_of_paused(name: &Name) -> String {
    format!(":{name}")
}

/// Returns the key under which messages with this name and version are parked until there is a
/// worker that knows the version.
pub(crate) fn parking_key_of_newer(name: &Name, version: u32) -> String {
    format!("{}\n{version}", parking_key_of_paused(name))
}

/// Returns the name of the messages that are parked under a key, and their version if they wait for
/// a newer worker. `None` for the key of a limit. The line feed in a key ends the name, because
/// names have no control characters.
pub(crate) fn parse_parked_key(key: &str) -> Option<(&str, Option<u32>)> {
    let name = key.strip_prefix(':')?;
    Some(match name.split_once('\n') {
        Some((name, version)) => (name, version.parse().ok()),
        None => (name, None),
    })
}

/// Names the holder of a permit. The attempt is a part of the holder's name, so a stalled worker
/// and the worker that claimed its delivery hold different permits.
pub(crate) fn holder_name(id: &MessageId, attempt: Attempt) -> String {
    format!("{id}:{}", attempt.0)
}
