//! Whether a handle works right now.

use std::fmt;

/// How a handle and the sources that were opened from it are doing, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ConnectionState {
    /// Everything comes round in time.
    Connected,
    /// There is a connection, and a loop behind it does not come round in time: the one that reads
    /// from the stream, or the one that renews leases.
    Lagging,
    /// A connection is being made again.
    Reconnecting,
    /// Nothing is sent or received any more: the runtime that its tasks ran on has ended.
    Closed,
}

impl ConnectionState {
    /// Whether this is the answer that a readiness probe wants.
    pub fn is_ready(self) -> bool {
        self == Self::Connected
    }
}

impl fmt::Display for ConnectionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connected => "connected",
            Self::Lagging => "lagging",
            Self::Reconnecting => "reconnecting",
            Self::Closed => "closed",
        })
    }
}
