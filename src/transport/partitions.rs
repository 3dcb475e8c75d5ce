//! A stream that is divided into partitions.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crc::{CRC_16_XMODEM, Crc};

use crate::{
    error::{Error, ErrorKind},
    message::Name,
};

/// The maximum number of partitions of a stream.
pub(crate) const MAX_PARTITIONS: usize = 1024;

/// The hash function by which Redis Cluster assigns keys to hash slots.
pub(crate) const CRC: Crc<u16> = Crc::<u16>::new(&CRC_16_XMODEM);

/// The partitions of a stream. Clones share the counter that distributes messages without a key.
#[derive(Debug, Clone)]
pub(crate) struct Partitions {
    /// The name that senders and workers use.
    pub(crate) stream: Name,
    /// The streams of the partitions, which contain the entries: `orders:0`, `orders:1`, …
    pub(crate) names: Arc<[Name]>,
    /// The number of messages without a key so far. This number chooses the partition of the next
    /// such message.
    keyless_messages: Arc<AtomicUsize>,
    /// `true` if only one worker of a group reads each partition at a time.
    pub(crate) owned: bool,
}

/// Identifies the term in which a worker owns the partition of a delivery. Handlers of an
/// [owned](crate::transport::Streams::owned) stream extract it with
/// [`Extension`](crate::Extension).
///
/// Use the term as a fencing token, to protect another system against the writes of a former owner.
/// That system remembers the highest term of each partition, and refuses a write with a lower term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct PartitionTerm {
    /// The number of the partition, from 0.
    pub partition: usize,
    /// The number of the term. Each new owner of the partition increments it.
    pub term: u64,
}

impl PartitionTerm {
    /// Creates the term of a delivery, for custom transports and tests.
    pub const fn new(partition: usize, term: u64) -> Self {
        Self { partition, term }
    }
}

impl Partitions {
    pub(crate) fn new(stream: Name, count: usize) -> Self {
        // Bounded, so that a huge count takes little memory. `validate` refuses any number above
        // the maximum.
        let names =
            (0..count.min(MAX_PARTITIONS + 1)).map(|number| partition_name(&stream, number));
        Self {
            names: names.collect(),
            keyless_messages: Arc::default(),
            owned: false,
            stream,
        }
    }

    /// Returns the partition of a message with this key. A key keeps its partition as long as the
    /// number of partitions stays the same. Messages without a key go to the partitions in turn.
    pub(crate) fn choose(&self, key: Option<&str>) -> Option<&Name> {
        let count = self.names.len();
        let number = match key {
            Some(key) => usize::from(CRC.checksum(key.as_bytes())),
            None => self.keyless_messages.fetch_add(1, Ordering::Relaxed),
        };
        self.names.get(number.checked_rem(count)?)
    }

    /// Checks the name of the stream and the number of partitions.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let stream = &self.stream;
        if let Some(fault) = stream.fault() {
            return Err(Error::config(format!(
                "the stream `{stream}` cannot be used: {fault}"
            )));
        }
        if (1..=MAX_PARTITIONS).contains(&self.names.len()) {
            return Ok(());
        }
        Err(Error::config(format!(
            "a stream has 1 to {MAX_PARTITIONS} partitions; give `{stream}` a number between them"
        )))
    }

    /// Checks the number of partitions of this handle against the record of the stream. The record
    /// lists every number of partitions that the stream has had, the current one last.
    pub(crate) fn check_against_record(&self, role: Role, record: &[usize]) -> Result<(), Error> {
        let (count, stream) = (self.names.len(), &self.stream);
        let Some(&current) = record.last() else {
            return Ok(());
        };
        let (text, kind) = match role {
            _ if count == current => return Ok(()),
            Role::Worker if count > current => return Ok(()),
            Role::Worker => (
                format!(
                    "the stream `{stream}` has {current} partitions, and a worker for {count} of them \
                     would leave messages unread: give the worker {current} partitions"
                ),
                ErrorKind::Config,
            ),
            // The stream has more partitions than before, and this sender still uses an earlier
            // number.
            Role::Sender if record.contains(&count) => {
                tracing::warn!(
                    %stream,
                    partitions = current,
                    of_this_sender = count,
                    "the stream has more partitions than this sender uses: a key may have another \
                     partition than for other senders"
                );
                return Ok(());
            }
            Role::Sender if count > current => (
                format!(
                    "the stream `{stream}` has {current} partitions, so nobody reads the others of \
                     this sender's {count}: start the workers with {count} partitions first, or give \
                     the sender {current}"
                ),
                ErrorKind::Invalid,
            ),
            Role::Sender => (
                format!(
                    "the stream `{stream}` has {current} partitions, and this sender has {count}: give \
                     the sender {current} partitions"
                ),
                ErrorKind::Invalid,
            ),
        };
        Err(Error::new(kind, text))
    }
}

/// Returns the error text for a worker that may not read partitions, because other workers of its
/// group own them.
pub(crate) fn owned_by_others_text(stream: &Name, group: &Name) -> String {
    format!(
        "workers of the group `{group}` own partitions of the stream `{stream}`, and this one would \
         read them too: serve `Streams::partitioned(…).owned()`, or choose another group"
    )
}

/// The way in which a handle uses a partitioned stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Reads the partitions. Records its number of partitions if no number is recorded, or if all
    /// recorded numbers are lower.
    Worker,
    /// Sends to the partitions. Records its number of partitions if no number is recorded.
    Sender,
}

/// Ignores the counter of messages without a key.
impl PartialEq for Partitions {
    fn eq(&self, other: &Self) -> bool {
        (&self.stream, self.names.len(), self.owned)
            == (&other.stream, other.names.len(), other.owned)
    }
}

impl Eq for Partitions {}

/// Returns the name of a partition.
fn partition_name(stream: &Name, number: usize) -> Name {
    Name::from(format!("{stream}:{number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_partition_and_messages_without_one_take_turns() {
        let partitions = Partitions::new("orders".into(), 3);
        let chosen = |key: Option<&str>| partitions.choose(key).unwrap().to_string();
        // The specification of Redis Cluster gives 12739 as the checksum of this key.
        assert_eq!(chosen(Some("123456789")), format!("orders:{}", 12739 % 3));
        assert_eq!(
            [None; 4].map(chosen),
            ["orders:0", "orders:1", "orders:2", "orders:0"]
        );
        assert_eq!(chosen(Some("123456789")), format!("orders:{}", 12739 % 3));
    }

    #[test]
    fn numbers_that_leave_messages_unread_are_refused() {
        let check = |count, role, record: &[usize]| {
            Partitions::new("orders".into(), count)
                .check_against_record(role, record)
                .map_err(|error| error.to_string())
        };
        for (count, role, record) in [
            (16, Role::Worker, &[][..]),
            (16, Role::Sender, &[]),
            (16, Role::Worker, &[16]),
            (32, Role::Worker, &[16]),
            (16, Role::Sender, &[16]),
            (16, Role::Sender, &[16, 32]),
        ] {
            assert_eq!(
                check(count, role, record),
                Ok(()),
                "{count} {role:?} {record:?}"
            );
        }
        for (count, role, record, advice) in [
            (16, Role::Worker, &[16, 32][..], "give the worker 32"),
            (8, Role::Sender, &[16, 32], "give the sender 32"),
            (
                64,
                Role::Sender,
                &[16, 32],
                "workers with 64 partitions first",
            ),
        ] {
            let refused = check(count, role, record).unwrap_err();
            assert!(refused.contains(advice), "{refused}");
        }
    }
}
