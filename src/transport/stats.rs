//! How a stream and its groups are doing.

use std::time::Duration;

use crate::message::Name;

/// How a stream is doing, for a scrape of metrics.
///
/// On Redis it is read with a handful of commands, none of which looks at each entry:
/// [`XLEN`](https://redis.io/docs/latest/commands/xlen/),
/// [`XINFO GROUPS`](https://redis.io/docs/latest/commands/xinfo-groups/),
/// [`XINFO CONSUMERS`](https://redis.io/docs/latest/commands/xinfo-consumers/),
/// [`XPENDING`](https://redis.io/docs/latest/commands/xpending/) of one entry,
/// [`ZCARD`](https://redis.io/docs/latest/commands/zcard/). Each group's numbers are of one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamStats {
    /// The stream.
    pub stream: Name,
    /// Entries that it keeps: those that some group has not finished, and those that were not
    /// trimmed yet.
    pub entries: u64,
    /// Tasks that their senders have delayed and that are not due.
    pub delayed: u64,
    /// All of its groups, by name.
    pub groups: Vec<GroupStats>,
}

impl StreamStats {
    /// A stream without groups. For transports outside this crate.
    pub fn new(stream: impl Into<Name>, entries: u64, delayed: u64) -> Self {
        Self {
            stream: stream.into(),
            entries,
            delayed,
            groups: Vec::new(),
        }
    }

    /// One of its groups.
    pub fn group(&self, name: &str) -> Option<&GroupStats> {
        self.groups.iter().find(|group| group.group == *name)
    }
}

/// How a group is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupStats {
    /// The group.
    pub group: Name,
    /// Messages that a worker of the group could take now: those that were not read yet, and those
    /// that are to be delivered again. `None` where the server cannot tell, as Redis before 7.0
    /// while there is something to read, or after entries were deleted in the middle.
    pub lag: Option<u64>,
    /// Deliveries that workers of the group hold.
    pub pending: u64,
    /// How long ago the oldest of them was put on the stream; for one that was delivered before,
    /// on Redis, when it was put in line again.
    pub oldest_pending: Option<Duration>,
    /// Messages that wait for their next attempt.
    pub delayed: u64,
    /// Dead letters.
    pub dead: u64,
    /// Workers that are heard of: within the time after which others take over from them.
    pub consumers: u64,
}

impl GroupStats {
    /// A group of which nothing else is known. For transports outside this crate.
    pub fn new(group: impl Into<Name>) -> Self {
        Self {
            group: group.into(),
            ..Self::default()
        }
    }
}
