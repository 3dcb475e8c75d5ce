//! Lists the messages of a group, without any effect on them.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{Settings, StoreFuture, Undecodable};
use crate::{
    error::{Error, ErrorKind},
    message::{Attempt, Message, MessageId, Name, parse_parked_key},
};

/// The maximum number of messages on a page.
const MAX_ON_PAGE: usize = 1_000;

/// The messages of a stream, as one group sees them: waiting, running, delayed and parked ones.
/// Tasks are listed even if they are not recorded. Returned by the `messages` method of a
/// transport's handle. Listing messages does not affect their delivery.
///
/// ```
/// use campanile::{Client, transport::{MessageQuery, MessageState, memory::Memory}};
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), campanile::Error> {
/// let memory = Memory::new();
/// let tomorrow = Duration::from_secs(24 * 3600);
/// Client::new(memory.clone()).enqueue("orders.create", "{}").delay(tomorrow).await?;
/// let page = memory.messages().list(MessageQuery::of(MessageState::Delayed)).await?;
/// assert_eq!(page.messages.len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Messages(Arc<dyn MessageStore>);

impl Messages {
    /// Creates a handle of a store. For transports.
    pub fn new(store: impl MessageStore + 'static) -> Self {
        Self(Arc::new(store))
    }

    /// Lists a page of messages: the redeliveries first, then the messages on the stream, both in
    /// the order of their delivery. A message that changes its state meanwhile may be missed, or
    /// listed twice.
    ///
    /// # Errors
    /// If the store cannot be reached, or the position of the query is invalid. If the handle has a
    /// set of streams or a partitioned stream: use a handle of one stream or partition instead.
    pub async fn list(&self, query: MessageQuery) -> Result<MessagePage, Error> {
        self.0.list(query).await
    }

    /// Lists the keys under which messages of the group are parked: keys of limits, and paused
    /// names. On Redis, at most 100 keys are listed.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub async fn parked(&self) -> Result<Vec<ParkedKey>, Error> {
        self.0.parked().await
    }
}

impl fmt::Debug for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Messages").finish_non_exhaustive()
    }
}

/// The state of a listed message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MessageState {
    /// A worker can fetch the message now.
    Waiting,
    /// A worker has fetched the message, and has not settled it.
    Running,
    /// The message is not due: its sender has delayed it, or it waits for its next attempt.
    Delayed,
}

/// Selects messages by their state, and a page of their list.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct MessageQuery {
    /// The state of the messages.
    pub state: MessageState,
    /// The maximum number of messages on a page, from 1 to 1,000. A page also ends once its
    /// messages exceed 4 MiB, and has at least one message, if there is any.
    pub max: usize,
    /// The position at which the page starts, from [`MessagePage::next`]. `None` for the first
    /// page.
    pub after: Option<String>,
}

impl MessageQuery {
    /// Selects the first 100 messages in this state.
    pub fn of(state: MessageState) -> Self {
        Self {
            state,
            max: 100,
            after: None,
        }
    }

    /// Sets the maximum number of messages on a page. The number is clamped to 1 to 1,000.
    pub fn max(mut self, max: usize) -> Self {
        self.max = max.clamp(1, MAX_ON_PAGE);
        self
    }

    /// Starts at this position in the list.
    pub fn after(mut self, position: impl Into<String>) -> Self {
        self.after = Some(position.into());
        self
    }

    /// Returns `true` and the position within the stream, or `false` and the position within the
    /// redeliveries.
    pub(crate) fn list_and_position(&self) -> Result<(bool, &str), Error> {
        let Some(after) = &self.after else {
            return Ok((false, ""));
        };
        match after.split_once('/') {
            Some(("again", at)) => Ok((false, at)),
            Some(("stream", at)) => Ok((true, at)),
            _ => Err(invalid_position()),
        }
    }
}

/// Formats a position in a list, for [`MessageQuery::list_and_position`].
pub(crate) fn format_position(is_stream: bool, at: &str) -> String {
    let list = if is_stream { "stream" } else { "again" };
    format!("{list}/{at}")
}

pub(crate) fn invalid_position() -> Error {
    let text = "this is no position in a list of messages; pass the one of the page before";
    Error::new(ErrorKind::Invalid, text)
}

/// A page of a list of messages.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct MessagePage {
    /// The messages.
    pub messages: Vec<ListedMessage>,
    /// The position of the next page, for [`MessageQuery::after`]. `None` at the end.
    pub next: Option<String>,
}

impl MessagePage {
    /// Creates a page. For transports.
    pub fn new(messages: Vec<ListedMessage>, next: Option<String>) -> Self {
        Self { messages, next }
    }
}

/// A message of a list.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ListedMessage {
    /// The id of the message's entry on the stream or among the redeliveries. For a delayed task,
    /// the id of the task.
    pub entry: String,
    /// The id of the message.
    pub id: MessageId,
    /// The message, or the fields that could not be decoded. The message is not a delivery: it has
    /// no deadline and no lease.
    pub content: Result<Message, Undecodable>,
    /// `true` if the message is on the stream. `false` if it is a redelivery.
    pub on_stream: bool,
    /// The number of the running attempt, or of the next attempt if none runs.
    pub attempt: Attempt,
    /// The consumer that runs the message. Bytes of its name that are not UTF-8 are replaced.
    pub consumer: Option<String>,
    /// The time since the consumer last fetched, claimed or renewed the message.
    pub idle: Option<Duration>,
    /// The time at which a delayed message is due, on the server's clock.
    pub due: Option<SystemTime>,
}

impl ListedMessage {
    /// Creates a message that waits for its first attempt. For transports.
    pub fn new(
        entry: impl Into<String>,
        id: MessageId,
        content: Result<Message, Undecodable>,
    ) -> Self {
        Self {
            entry: entry.into(),
            id,
            content,
            on_stream: true,
            attempt: Attempt(1),
            consumer: None,
            idle: None,
            due: None,
        }
    }
}

/// The reason why messages are parked: a key of a limit, a paused name, or a version that no worker
/// knows.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParkedKey {
    /// The name of the limit and the key, with a colon between them. `None` for messages that do
    /// not wait for a permit.
    pub limit: Option<String>,
    /// The name of the messages, if they are parked because their name is paused, or because no
    /// worker knows their version.
    pub name: Option<Name>,
    /// The [version](crate::contract#versions) of the messages, if no worker knows it.
    pub version: Option<u32>,
    /// The number of parked messages.
    pub parked: u64,
    /// The number of permits in use.
    pub taken: u64,
    /// The number of permits of the key.
    pub permits: Option<u64>,
}

impl ParkedKey {
    /// Creates a key under which messages are parked. For transports.
    pub(crate) fn new(key: &str, parked: u64, taken: u64, permits: Option<u64>) -> Self {
        let name_and_version = parse_parked_key(key);
        Self {
            limit: name_and_version.is_none().then(|| key.to_owned()),
            name: name_and_version.map(|(name, _)| name.into()),
            version: name_and_version.and_then(|(_, version)| version),
            parked,
            taken,
            permits,
        }
    }
}

/// A page of a handle's streams.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamPage {
    /// The streams. A registered stream may be on several pages.
    pub streams: Vec<Name>,
    /// The position of the next page. `None` at the end.
    pub next: Option<String>,
}

impl StreamPage {
    /// Creates a page. For transports.
    pub fn new(streams: Vec<Name>, next: Option<String>) -> Self {
        Self { streams, next }
    }

    /// Returns the streams in the settings of a handle.
    ///
    /// # Errors
    /// The name of the registry, if the handle serves the streams of a registry.
    pub(crate) fn of_handle(settings: &Settings) -> Result<Self, &Name> {
        match settings.served_registry() {
            Some(registry) => Err(registry),
            None => {
                let listed = settings.listed_streams().into_iter();
                Ok(Self::new(listed.map(|(name, _)| name).collect(), None))
            }
        }
    }
}

/// The messages of a group in a transport. Implemented by transports, for [`Messages`].
pub trait MessageStore: Send + Sync {
    /// See [`Messages::list`].
    fn list(&self, query: MessageQuery) -> StoreFuture<'_, MessagePage>;

    /// See [`Messages::parked`].
    fn parked(&self) -> StoreFuture<'_, Vec<ParkedKey>>;
}
