//! The handle of a transport whose streams the dashboard shows.

use crate::{
    error::Error,
    message::Name,
    transport::{
        ConnectionState, ConsumerStats, Control, DeadLetters, Messages, Minute, Schedules,
        StreamPage, StreamStats, Tasks, Workers, memory::Memory,
    },
};

/// A handle of a transport, for a [`Dashboard`](super::Dashboard). Made from a `Redis` or a
/// [`Memory`].
#[derive(Debug, Clone)]
pub struct Handle(InnerHandle);

#[derive(Debug, Clone)]
enum InnerHandle {
    Memory(Memory),
    #[cfg(feature = "redis")]
    Redis(crate::Redis),
}

impl From<Memory> for Handle {
    fn from(memory: Memory) -> Self {
        Self(InnerHandle::Memory(memory))
    }
}

#[cfg(feature = "redis")]
impl From<crate::Redis> for Handle {
    fn from(redis: crate::Redis) -> Self {
        Self(InnerHandle::Redis(redis))
    }
}

/// Calls the same method of either handle.
macro_rules! either {
    ($self:ident, $handle:ident => $call:expr) => {
        match &$self.0 {
            InnerHandle::Memory($handle) => $call,
            #[cfg(feature = "redis")]
            InnerHandle::Redis($handle) => $call,
        }
    };
}

impl Handle {
    /// Returns a handle of this stream.
    pub(super) fn stream(&self, stream: &Name) -> Self {
        either!(self, handle => handle.clone().stream(stream).into())
    }

    /// Returns a handle of this group.
    pub(super) fn group(&self, group: &Name) -> Self {
        either!(self, handle => handle.clone().group(group).into())
    }

    /// Returns the key of the stream in Redis. `None` for a stream in memory, for a
    /// partitioned stream, and for a set of streams.
    pub(super) fn redis_key(&self) -> Option<Name> {
        match &self.0 {
            InnerHandle::Memory(_) => None,
            #[cfg(feature = "redis")]
            InnerHandle::Redis(redis) => redis.stream_key().ok(),
        }
    }

    pub(super) fn state(&self) -> ConnectionState {
        either!(self, handle => handle.state())
    }

    pub(super) async fn list_streams(&self, after: Option<&str>) -> Result<StreamPage, Error> {
        either!(self, handle => handle.list_streams(after).await)
    }

    pub(super) async fn stats(&self) -> Result<StreamStats, Error> {
        either!(self, handle => handle.stats().await)
    }

    pub(super) async fn groups(&self) -> Result<Option<Vec<Name>>, Error> {
        either!(self, handle => handle.groups().await)
    }

    pub(super) async fn consumers(&self) -> Result<Option<Vec<ConsumerStats>>, Error> {
        either!(self, handle => handle.consumers().await)
    }

    pub(super) async fn history(&self) -> Result<Vec<Minute>, Error> {
        either!(self, handle => handle.history().await)
    }

    pub(super) fn workers(&self) -> Workers {
        either!(self, handle => handle.workers())
    }

    pub(super) fn messages(&self) -> Messages {
        either!(self, handle => handle.messages())
    }

    pub(super) fn dead_letters(&self) -> DeadLetters {
        either!(self, handle => handle.dead_letters())
    }

    pub(super) fn tasks(&self) -> Tasks {
        either!(self, handle => handle.tasks())
    }

    pub(super) fn control(&self) -> Control {
        either!(self, handle => handle.control())
    }

    pub(super) fn schedules(&self) -> Schedules {
        either!(self, handle => handle.schedules())
    }
}
