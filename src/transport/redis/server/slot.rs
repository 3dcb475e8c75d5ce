//! Computes the slot of a key in a Redis Cluster.

use crate::transport::partitions::CRC;

/// The number of slots of a cluster.
pub(super) const SLOTS: u16 = 16384;

/// A slot of a cluster, to which keys are hashed.
/// <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#key-distribution-model>
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::transport::redis) struct HashSlot(pub(super) u16);

impl HashSlot {
    /// A placeholder for commands that any server can run.
    pub(in crate::transport::redis) const ANY: Self = Self(0);

    /// Computes the slot of a key.
    pub(in crate::transport::redis) fn of(key: &[u8]) -> Self {
        Self(CRC.checksum(hash_tag(key)) % SLOTS)
    }

    /// Returns a random slot.
    pub(super) fn random() -> Self {
        Self(fastrand::u16(..SLOTS))
    }
}

/// Returns the part of a key that is hashed: the text between the first `{` and the next `}`, or
/// the whole key if there is no such text.
pub(in crate::transport::redis) fn hash_tag(key: &[u8]) -> &[u8] {
    let position = |text: &[u8], byte| text.iter().position(|it| *it == byte);
    let tag = position(key, b'{').and_then(|open| {
        let rest = &key[open + 1..];
        Some(&rest[..position(rest, b'}')?])
    });
    tag.filter(|tag| !tag.is_empty()).unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    // The expected slots were returned by `CLUSTER KEYSLOT`.
    #[test]
    fn a_key_has_the_slot_that_the_server_computes() {
        for (key, slot) in [
            ("", 0),
            ("123456789", 12739),
            ("foo", 12182),
            ("{foo}.bar", 12182),
            ("foo{}{bar}", 8363),
            ("foo{{bar}}zap", 4015),
            ("foo{bar}{zap}", 5061),
            ("bar", 5061),
            ("jobs", 9631),
        ] {
            assert_eq!(HashSlot::of(key.as_bytes()), HashSlot(slot), "{key}");
        }
    }
}
