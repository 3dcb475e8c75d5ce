//! Statistics of a stream, its groups and their consumers.

use std::time::Duration;

use crate::message::Name;

/// Statistics of a stream. They are cheap enough to read at each scrape of metrics.
///
/// On Redis these commands read the statistics, and none of them visits each entry:
/// [`XLEN`](https://redis.io/docs/latest/commands/xlen/),
/// [`XINFO GROUPS`](https://redis.io/docs/latest/commands/xinfo-groups/),
/// [`XINFO CONSUMERS`](https://redis.io/docs/latest/commands/xinfo-consumers/),
/// [`XPENDING`](https://redis.io/docs/latest/commands/xpending/) of one entry,
/// [`ZCARD`](https://redis.io/docs/latest/commands/zcard/). The numbers of a group are read in one
/// atomic step.
///
/// ```
/// use campanile::{Client, transport::memory::Memory};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), campanile::Error> {
/// let memory = Memory::new();
/// Client::new(memory.clone()).enqueue("orders.create", "7").await?;
/// let stats = memory.stats().await?;
/// assert_eq!(stats.entries, 1);
/// for group in &stats.groups {
///     println!("{}: {} in flight, {} dead", group.group, group.pending, group.dead);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamStats {
    /// The name of the stream.
    pub stream: Name,
    /// The number of entries, including entries that every group has settled and that are not
    /// trimmed yet.
    pub entries: u64,
    /// The number of tasks that were delayed by their senders and are not due.
    pub delayed: u64,
    /// All groups, sorted by name.
    pub groups: Vec<GroupStats>,
}

impl StreamStats {
    /// Creates the statistics of a stream without groups, for custom transports.
    pub fn new(stream: impl Into<Name>, entries: u64, delayed: u64) -> Self {
        Self {
            stream: stream.into(),
            entries,
            delayed,
            groups: Vec::new(),
        }
    }

    /// Joins the statistics of the partitions of a stream. If a number is unknown for one
    /// partition, the sum is unknown. The number of workers is the maximum over the partitions,
    /// because each worker serves all of them.
    pub(crate) fn of_partitions(stream: &Name, partitions: Vec<Self>) -> Self {
        let mut joined = Self::new(stream, 0, 0);
        for partition in partitions {
            joined.entries += partition.entries;
            joined.delayed += partition.delayed;
            for group in partition.groups {
                match joined
                    .groups
                    .iter_mut()
                    .find(|known| known.group == group.group)
                {
                    Some(known) => known.join(&group),
                    None => joined.groups.push(group),
                }
            }
        }
        for group in &mut joined.groups {
            group.last_delivered = None;
        }
        joined.groups.sort_by(|a, b| a.group.cmp(&b.group));
        joined
    }

    /// Sets [`GroupStats::kept_entries`] of each group of this stream.
    pub(crate) fn set_kept_entries(&mut self) {
        let unfinished: Vec<_> = self.groups.iter().map(|group| group.unfinished).collect();
        for (index, group) in self.groups.iter_mut().enumerate() {
            let others = unfinished
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != index);
            let others = others.map(|(_, unfinished)| *unfinished);
            // The largest number of entries that another group has not finished. Unknown if the
            // number of any other group is unknown.
            let most = others
                .into_iter()
                .try_fold(0, |most, of| of.map(|of| most.max(of)));
            group.kept_entries = group
                .unfinished
                .zip(most)
                .map(|(own, most)| own.saturating_sub(most));
        }
    }

    /// Returns the statistics of a group.
    pub fn group(&self, name: &str) -> Option<&GroupStats> {
        self.groups.iter().find(|group| group.group == *name)
    }
}

/// Statistics of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupStats {
    /// The name of the group.
    pub group: Name,
    /// The number of messages that could be delivered now: unread messages, and messages that are
    /// due for redelivery. `None` if Redis does not know the number: before Redis 7.0 while
    /// messages are unread, and since 7.0 after an entry inside the stream was deleted.
    pub lag: Option<u64>,
    /// The number of deliveries that are not settled.
    pub pending: u64,
    /// The age of the oldest pending message. On Redis the age of a message starts again at zero
    /// when it is queued for redelivery.
    pub oldest_pending: Option<Duration>,
    /// The number of messages that wait for their next attempt.
    pub delayed: u64,
    /// The number of parked messages. They wait for a permit of a [`Limit`](super::Limit), or for
    /// the end of their name's [pause](super::PauseTarget::Name). On Redis, the messages of at most
    /// 1,000 keys and names are counted.
    pub parked: u64,
    /// The number of dead letters.
    pub dead: u64,
    /// The number of live workers: those whose leases have not ended. A group without live workers
    /// is *abandoned* if its service does not come back: nobody handles its messages, and the
    /// stream keeps every entry that the group has not handled.
    pub consumers: u64,
    /// The number of entries of the stream that the group has not handled. The stream keeps at
    /// least these entries for the group. The stream also keeps handled entries that are newer than
    /// a pending entry. On the `Memory` transport the number includes those handled entries. `None`
    /// if [`lag`](Self::lag) is `None`.
    pub unfinished: Option<u64>,
    /// The minimum number of entries that the stream keeps for this group alone, because all other
    /// groups have handled them. `None` if it is unknown.
    pub kept_entries: Option<u64>,
    /// The time since the last sign of life of any consumer. `None` if the group has none.
    pub idle: Option<Duration>,
    /// The number of consumers of other libraries. The stream is not trimmed while such a consumer
    /// has pending entries or was active recently.
    pub foreign: u64,
    /// The number of deliveries of consumers of other libraries that are not settled.
    pub foreign_pending: u64,
    /// The id of the newest entry that was delivered to the group, or `None` before the first
    /// delivery. On Redis the entries before the group's start count as delivered.
    pub last_delivered: Option<String>,
}

impl GroupStats {
    /// Creates empty statistics of a group, for custom transports.
    pub fn new(group: impl Into<Name>) -> Self {
        Self {
            group: group.into(),
            ..Self::default()
        }
    }

    /// Returns the number of messages that wait: those that could be delivered now, those that wait
    /// for their next attempt, and the parked ones. `None` if [`lag`](Self::lag) is `None`.
    pub fn waiting(&self) -> Option<u64> {
        Some(self.lag? + self.delayed + self.parked)
    }

    /// Adds the statistics of the same group on another partition.
    fn join(&mut self, other: &Self) {
        self.lag = self.lag.zip(other.lag).map(|(one, other)| one + other);
        self.pending += other.pending;
        self.oldest_pending = self.oldest_pending.max(other.oldest_pending);
        self.delayed += other.delayed;
        self.parked += other.parked;
        self.dead += other.dead;
        self.consumers = self.consumers.max(other.consumers);
        let sum = |one: Option<u64>, other: Option<u64>| Some(one? + other?);
        self.unfinished = sum(self.unfinished, other.unfinished);
        self.kept_entries = sum(self.kept_entries, other.kept_entries);
        self.idle = [self.idle, other.idle].into_iter().flatten().min();
        self.foreign = self.foreign.max(other.foreign);
        self.foreign_pending += other.foreign_pending;
    }
}

/// Statistics of a consumer of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerStats {
    /// The name of the consumer. Bytes that are not UTF-8 are replaced.
    pub consumer: String,
    /// The number of the consumer's deliveries that are not settled.
    pub pending: u64,
    /// The time since the consumer last read, renewed or claimed a delivery.
    pub idle: Duration,
    /// `true` if the consumer belongs to another library. Such consumers do not renew leases.
    pub foreign: bool,
}
