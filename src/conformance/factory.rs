//! What an author provides: a [`Factory`].

use std::future::Future;

use bytes::Bytes;
use tower::Service;

use crate::{
    error::Error,
    message::{Message, MessageId},
    reply::Reply,
    transport::{Settings, Transport, memory::Memory},
};

/// Makes connected handles of the transport under test.
///
/// All handles of one factory reach the same server. Every check uses a stream and event names of
/// its own, so that checks may share a server and run side by side.
pub trait Factory: Send + Sync {
    /// Both halves of the transport.
    type Handle: Service<Message, Response = Reply, Error = Error, Future: Send + 'static>
        + Transport
        + Clone
        + Send
        + Sync
        + 'static;

    /// A handle with these settings, with connections of its own where the transport has any.
    fn connect(
        &self,
        settings: Settings,
    ) -> impl Future<Output = Result<Self::Handle, Error>> + Send;

    /// What the transport can do. Checks of what it cannot are passed over.
    fn capabilities(&self) -> Capabilities;

    /// Adds an entry to the handle's stream, field by field, past all that this library does.
    /// Needed for [`Capabilities::raw_entries`].
    fn add_raw(
        &self,
        handle: &Self::Handle,
        fields: Vec<(Bytes, Bytes)>,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        let _ = (handle, fields);
        async {
            Err(Error::config(
                "the factory declares `raw_entries` and does not add any",
            ))
        }
    }

    /// The dead letters of the handle's group, the oldest first. Needed for
    /// [`Capabilities::dead_letters`].
    fn dead_letters(
        &self,
        handle: &Self::Handle,
    ) -> impl Future<Output = Result<Vec<DeadRecord>, Error>> + Send {
        let _ = handle;
        async {
            Err(Error::config(
                "the factory declares `dead_letters` and does not list them",
            ))
        }
    }
}

/// What a transport can do.
///
/// ```
/// use campanile::conformance::Capabilities;
///
/// let mut simple = Capabilities::all();
/// simple.patterns = false;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// A redelivery can wait.
    pub delayed_redelivery: bool,
    /// A stream can have several groups.
    pub groups: bool,
    /// What a vanished worker held goes to others.
    pub take_over: bool,
    /// Events, to exact subscriptions.
    pub events: bool,
    /// Events, to patterns.
    pub patterns: bool,
    /// Requests with fast replies.
    pub fast_rpc: bool,
    /// Requests with reliable replies.
    pub reliable_rpc: bool,
    /// [`Factory::add_raw`] works.
    pub raw_entries: bool,
    /// [`Factory::dead_letters`] works.
    pub dead_letters: bool,
}

impl Capabilities {
    /// Everything.
    pub const fn all() -> Self {
        Self {
            delayed_redelivery: true,
            groups: true,
            take_over: true,
            events: true,
            patterns: true,
            fast_rpc: true,
            reliable_rpc: true,
            raw_entries: true,
            dead_letters: true,
        }
    }
}

/// A dead letter, as far as the checks look at it.
#[derive(Debug, Clone)]
pub struct DeadRecord {
    /// The message's id.
    pub id: MessageId,
    /// The fields of its entry.
    pub fields: Vec<(Bytes, Bytes)>,
    /// Why it died.
    pub reason: String,
    /// How often it was delivered.
    pub attempts: u32,
}

/// The embedded transport, as the example to follow.
impl Factory for Memory {
    type Handle = Memory;

    async fn connect(&self, settings: Settings) -> Result<Memory, Error> {
        Ok(self.clone().with_settings(settings))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::all()
    }

    async fn add_raw(&self, handle: &Memory, fields: Vec<(Bytes, Bytes)>) -> Result<(), Error> {
        handle.add_raw(fields);
        Ok(())
    }

    async fn dead_letters(&self, handle: &Memory) -> Result<Vec<DeadRecord>, Error> {
        let dead = handle.dead_letters().into_iter();
        Ok(dead
            .map(|letter| DeadRecord {
                id: letter.id,
                fields: letter.fields,
                reason: letter.reason,
                attempts: letter.attempts,
            })
            .collect())
    }
}
