//! The state of a transport's handle.

use std::fmt;

/// The state of a handle and of the sources that were opened from it. States are ordered from good
/// to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ConnectionState {
    /// The handle is connected, and its loops run on time.
    Connected,
    /// The handle is connected, but the loop that reads the stream or the loop that renews leases
    /// is late.
    Lagging,
    /// The handle is making a new connection.
    Reconnecting,
    /// The handle can no longer be used, because the tokio runtime that ran it has ended.
    Closed,
}

impl ConnectionState {
    /// Returns `true` if a readiness probe should succeed.
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
