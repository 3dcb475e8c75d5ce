//! Dead letters, and how to list, replay and purge them.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{Undecodable, codec};
use crate::{
    error::{Error, ErrorKind},
    message::{Attempt, DeadLetterId, Message, MessageId, Name},
    sync::lock,
};

/// A message that will not be delivered again, stored with the reason.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The id of the dead letter.
    pub id: DeadLetterId,
    /// The id of the message, which is unique in its stream only.
    pub message_id: MessageId,
    /// The stream of the message, if the transport knows it.
    pub stream: Option<Name>,
    /// The consumer group of the failed deliveries, if the transport knows it.
    pub group: Option<Name>,
    /// The raw fields of the message's entry, without the fields that the transport adds for a
    /// redelivery.
    pub fields: Vec<(Bytes, Bytes)>,
    /// The reason why the message became a dead letter.
    pub reason: String,
    /// The number of deliveries.
    pub attempts: u32,
    /// The time at which the message became a dead letter, on the broker's clock.
    pub died_at: SystemTime,
}

impl DeadLetter {
    /// Creates a dead letter, for custom transports.
    pub fn new(
        id: DeadLetterId,
        message_id: MessageId,
        fields: Vec<(Bytes, Bytes)>,
        reason: impl Into<String>,
        attempts: u32,
        died_at: SystemTime,
    ) -> Self {
        Self {
            id,
            message_id,
            stream: None,
            group: None,
            fields,
            reason: reason.into(),
            attempts,
            died_at,
        }
    }

    /// Sets the stream of the message and the consumer group of its deliveries, for custom
    /// transports.
    #[must_use]
    pub fn died_in(mut self, stream: Name, group: Name) -> Self {
        self.stream = Some(stream);
        self.group = Some(group);
        self
    }

    /// Decodes the message: its name, kind, headers and payload.
    ///
    /// # Errors
    /// If the fields cannot be decoded. The error has the fields and the reason.
    pub fn message(&self) -> Result<Message, Undecodable> {
        let mut message = codec::decode(self.fields.clone())?.message;
        let parts = message.parts_mut();
        parts.id = Some(self.message_id.clone());
        parts.stream.clone_from(&self.stream);
        parts.group.clone_from(&self.group);
        parts.attempt = Attempt(self.attempts);
        Ok(message)
    }
}

// Shows only the number of fields, because the fields contain payloads and header values.
impl fmt::Debug for DeadLetter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetter")
            .field("id", &self.id)
            .field("message_id", &self.message_id)
            .field("stream", &self.stream)
            .field("group", &self.group)
            .field("fields", &self.fields.len())
            .field("reason", &self.reason)
            .field("attempts", &self.attempts)
            .field("died_at", &self.died_at)
            .finish()
    }
}

/// The dead letters of a group, on any transport.
///
/// A replayed message is delivered again only to the group in which it became a dead letter. Its
/// attempts are counted from 1 again. A task loses its time to live, so that it does not expire
/// immediately.
///
/// ```
/// use campanile::{Client, transport::{Selection, memory::Memory}};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), campanile::Error> {
/// let memory = Memory::new();
/// let dead = memory.dead_letters();
/// for letter in dead.list(Default::default()).await?.letters {
///     println!("{} died: {}", letter.message_id, letter.reason);
/// }
/// let replayed = dead.replay(Selection::named("orders.create")).await?;
/// assert_eq!(replayed, 0);
/// # Ok(())
/// # }
/// ```
///
/// # Cancel safety
/// Letters are replayed or purged in steps, and each step is atomic. If the future is dropped, some
/// steps may have been done. The remaining letters can be replayed or purged later, and no letter
/// is replayed twice.
#[derive(Clone)]
pub struct DeadLetters(Arc<dyn DeadLetterStore>);

impl DeadLetters {
    /// Wraps a store, for custom transports.
    pub fn new(store: impl DeadLetterStore) -> Self {
        Self(Arc::new(store))
    }

    /// Lists a page, the oldest first.
    ///
    /// # Errors
    /// If the server cannot be reached or refuses.
    pub async fn list(&self, page: Page) -> Result<DeadLetterPage, Error> {
        self.0.list(page).await
    }

    /// Finds a dead letter. Returns `None` if it does not exist.
    ///
    /// # Errors
    /// If the server cannot be reached or refuses.
    pub async fn get(&self, id: &DeadLetterId) -> Result<Option<DeadLetter>, Error> {
        self.0.get(id).await
    }

    /// Delivers the messages of the selected letters again, and returns their number. Letters that
    /// no longer exist are skipped, so concurrent calls replay each letter only once. A letter
    /// whose fields cannot be decoded is kept, does not count, and is logged as a warning. To get
    /// the ids of such letters, use [`steps`](Self::steps) and [`Steps::skipped`].
    ///
    /// # Errors
    /// If the server cannot be reached or refuses. Some of the letters may have been replayed.
    pub async fn replay(&self, selection: Selection) -> Result<u64, Error> {
        self.carry_out(Action::Replay, selection).await
    }

    /// Delivers the message of a letter again, with the name, the headers and the payload of
    /// `message`. Get `message` from [`DeadLetter::message`], and edit it. Everything else, such as
    /// the kind, the id and the recorded status of a task, stays as it was. Returns `false`
    /// if the letter no longer exists.
    ///
    /// ```
    /// use campanile::transport::memory::Memory;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), campanile::Error> {
    /// let dead = Memory::new().dead_letters();
    /// for letter in dead.list(Default::default()).await?.letters {
    ///     if let Ok(mut message) = letter.message() {
    ///         *message.payload_mut() = r#"{"id":7}"#.into();
    ///         dead.replay_edited(&letter.id, &message).await?;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the message is [invalid](super::check), the letter cannot be decoded or has another kind,
    /// or the server cannot be reached or refuses.
    pub async fn replay_edited(&self, id: &DeadLetterId, message: &Message) -> Result<bool, Error> {
        super::check(message.parts())?;
        let Some(letter) = self.0.get(id).await? else {
            return Ok(false);
        };
        let old_message = letter.message().map_err(|undecodable| {
            let text = format!(
                "the dead letter `{id}` cannot be edited: {}",
                undecodable.reason
            );
            Error::new(ErrorKind::Invalid, text)
        })?;
        if old_message.kind() != message.kind() {
            let text = "a replay does not change the kind of a message";
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let is_content = |field: &[u8]| {
            matches!(field, b"type" | b"name" | b"payload") || field.starts_with(b"h:")
        };
        let kept = letter.fields.into_iter();
        let mut fields: Vec<_> = kept.filter(|(field, _)| !is_content(field)).collect();
        codec::encode(message, |field, value| {
            if is_content(field) {
                let copy = Bytes::copy_from_slice;
                fields.push((copy(field), copy(value)));
            }
        });
        self.0.replay_as(id, fields).await
    }

    /// Deletes the selected letters, and returns their number.
    ///
    /// # Errors
    /// If the server cannot be reached or refuses. Some of the letters may have been deleted.
    pub async fn purge(&self, selection: Selection) -> Result<u64, Error> {
        self.carry_out(Action::Purge, selection).await
    }

    /// Returns the number of dead letters.
    ///
    /// # Errors
    /// If the server cannot be reached or refuses.
    pub async fn count(&self) -> Result<u64, Error> {
        self.0.count().await
    }

    /// Replays or purges letters step by step, so that the caller can show the progress or stop
    /// between two steps. All steps together do the same as [`replay`](Self::replay) or
    /// [`purge`](Self::purge).
    ///
    /// ```
    /// use campanile::transport::{Action, Selection, memory::Memory};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), campanile::Error> {
    /// let mut steps = Memory::new().dead_letters().steps(Action::Replay, Selection::All);
    /// let mut replayed = 0;
    /// while let Some(letters) = steps.next().await? {
    ///     replayed += letters;
    ///     println!("{replayed} replayed so far");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn steps(&self, action: Action, selection: Selection) -> Steps {
        Steps {
            skipped: Vec::new(),
            store: self.0.clone(),
            action,
            rest: match selection {
                Selection::Ids(ids) => Rest::Ids(ids),
                Selection::All => Rest::All(None),
                Selection::Named(name) => Rest::All(Some(name)),
            },
        }
    }

    async fn carry_out(&self, action: Action, selection: Selection) -> Result<u64, Error> {
        let mut steps = self.steps(action, selection);
        let mut acted = 0;
        while let Some(letters) = steps.next().await? {
            acted += letters;
        }
        for id in steps.skipped() {
            tracing::warn!(%id, "a dead letter was not replayed: its fields cannot be decoded");
        }
        Ok(acted)
    }
}

/// Replays or purges dead letters step by step. Created by [`DeadLetters::steps`].
#[must_use = "nothing is done until `next` is called"]
pub struct Steps {
    store: Arc<dyn DeadLetterStore>,
    action: Action,
    rest: Rest,
    skipped: Vec<DeadLetterId>,
}

/// The letters that remain to be replayed or purged.
#[derive(Debug)]
enum Rest {
    Ids(Vec<DeadLetterId>),
    /// All letters that exist at the first step. With a name, only letters whose messages have this
    /// name.
    All(Option<Name>),
    Range {
        after: Option<DeadLetterId>,
        until: DeadLetterId,
        name: Option<Name>,
    },
    Nothing,
}

impl Steps {
    /// Does the next step. Returns the number of letters that were replayed or purged, from 0 to
    /// 100, or `None` after the last step.
    ///
    /// # Errors
    /// If the server cannot be reached or refuses. The next call repeats the step.
    ///
    /// # Cancel safety
    /// If the future is dropped, its step may have been done. The next call repeats the step, and
    /// skips letters that no longer exist.
    pub async fn next(&mut self) -> Result<Option<u64>, Error> {
        if let Rest::All(name) = &self.rest {
            // The steps end at the letter that is the newest now. Without this end, a message that
            // fails again right after its replay would be replayed forever.
            self.rest = match self.store.newest_id().await? {
                None => Rest::Nothing,
                Some(until) => Rest::Range {
                    after: None,
                    until,
                    name: name.clone(),
                },
            };
        }
        match &mut self.rest {
            Rest::Ids(ids) if !ids.is_empty() => {
                let max = ids.len().min(MAX_STEP_LETTERS);
                let step = Step::Ids(ids[..max].to_vec());
                let done = self.store.act(self.action, step).await?;
                ids.drain(..max);
                self.skipped.extend(done.skipped);
                Ok(Some(done.acted))
            }
            Rest::Range { after, until, name } => {
                let step = Step::Range {
                    after: after.clone(),
                    until: until.clone(),
                    name: name.clone(),
                    max: MAX_STEP_LETTERS,
                };
                let done = self.store.act(self.action, step).await?;
                *after = done.next;
                if after.is_none() {
                    self.rest = Rest::Nothing;
                }
                self.skipped.extend(done.skipped);
                Ok(Some(done.acted))
            }
            _ => Ok(None),
        }
    }

    /// Returns the letters that were not replayed because their fields cannot be decoded. They
    /// still exist.
    pub fn skipped(&self) -> &[DeadLetterId] {
        &self.skipped
    }
}

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steps")
            .field("action", &self.action)
            .field("rest", &self.rest)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetters").finish_non_exhaustive()
    }
}

/// The maximum number of letters in one step. The server does nothing else during a step, so the
/// number is small.
const MAX_STEP_LETTERS: usize = 100;

/// The total size of letters at which a page ends, in bytes.
pub(crate) const PAGE_BYTES: usize = 4 << 20;

/// A request for a page of the list of dead letters. The default is the first 100 letters.
///
/// ```
/// use campanile::transport::{Page, memory::Memory};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), campanile::Error> {
/// let page = Memory::new().dead_letters().list(Page::first(20)).await?;
/// for letter in page.letters {
///     println!("{}: {}", letter.id, letter.reason);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page {
    /// The letter after which the page starts.
    pub after: Option<DeadLetterId>,
    /// The maximum number of letters. 100 unless set. A page also ends once its letters exceed 4
    /// MiB, so that large letters do not fill the memory. A page has at least one letter, if there
    /// is any. Its [`next`](DeadLetterPage::next) is set if more letters follow.
    pub max: usize,
}

impl Page {
    /// Requests the first `max` letters of the list. Zero counts as one.
    pub fn first(max: usize) -> Self {
        Self {
            after: None,
            max: max.max(1),
        }
    }

    /// Starts after this letter.
    #[must_use]
    pub fn after(mut self, id: DeadLetterId) -> Self {
        self.after = Some(id);
        self
    }
}

impl Default for Page {
    fn default() -> Self {
        Self::first(100)
    }
}

/// A page of the list of dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetterPage {
    /// The letters, the oldest first.
    pub letters: Vec<DeadLetter>,
    /// The request for the next page, or `None` at the end.
    pub next: Option<Page>,
}

impl DeadLetterPage {
    /// Creates a page, for custom transports.
    pub fn new(letters: Vec<DeadLetter>, next: Option<Page>) -> Self {
        Self { letters, next }
    }
}

/// Selects dead letters.
///
/// ```
/// use campanile::transport::{Selection, memory::Memory};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), campanile::Error> {
/// let letters = Memory::new().dead_letters();
/// let replayed = letters.replay(Selection::Named("orders.create".into())).await?;
/// assert_eq!(replayed, 0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Selection {
    /// All letters that exist at the start.
    All,
    /// The letters with these ids.
    Ids(Vec<DeadLetterId>),
    /// The letters that exist at the start and whose messages have this name.
    Named(Name),
}

impl Selection {
    /// Selects the letters with these ids.
    pub fn ids<I: Into<DeadLetterId>>(ids: impl IntoIterator<Item = I>) -> Self {
        Self::Ids(ids.into_iter().map(Into::into).collect())
    }

    /// Selects the letters whose messages have this name.
    pub fn named(name: impl Into<Name>) -> Self {
        Self::Named(name.into())
    }
}

/// The future of a store, such as a [`DeadLetterStore`].
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// Stores the dead letters of one group. A transport implements this trait for [`DeadLetters`].
pub trait DeadLetterStore: Send + Sync + 'static {
    /// Lists a page, the oldest first.
    fn list(&self, page: Page) -> StoreFuture<'_, DeadLetterPage>;

    /// Finds a letter.
    fn get<'a>(&'a self, id: &'a DeadLetterId) -> StoreFuture<'a, Option<DeadLetter>>;

    /// Returns the id of the newest letter.
    fn newest_id(&self) -> StoreFuture<'_, Option<DeadLetterId>>;

    /// Replays or purges those letters of a step that still exist. Each letter is handled
    /// atomically.
    fn act(&self, action: Action, step: Step) -> StoreFuture<'_, Acted>;

    /// Delivers the message of a letter again, with these fields. Returns `false` if the letter
    /// does not exist, or cannot be decoded.
    fn replay_as<'a>(
        &'a self,
        id: &'a DeadLetterId,
        fields: Vec<(Bytes, Bytes)>,
    ) -> StoreFuture<'a, bool>;

    /// Returns the number of letters, without visiting each.
    fn count(&self) -> StoreFuture<'_, u64>;
}

/// An action on dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Deliver the messages again.
    Replay,
    /// Delete the letters.
    Purge,
}

/// Selects the dead letters of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The letters with these ids, at most 100.
    Ids(Vec<DeadLetterId>),
    /// The first letters of a range.
    Range {
        /// The letter after which the range starts.
        after: Option<DeadLetterId>,
        /// The last letter of the range.
        until: DeadLetterId,
        /// The name of the messages. Letters of other messages are skipped.
        name: Option<Name>,
        /// The maximum number of letters to visit.
        max: usize,
    },
}

/// The result of a step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acted {
    /// The number of letters that were replayed or purged.
    pub acted: u64,
    /// The last letter that was visited, if the range may have more letters after it.
    pub next: Option<DeadLetterId>,
    /// The letters that exist and were not replayed because their fields cannot be decoded.
    pub skipped: Vec<DeadLetterId>,
}

/// Logs the number of dead letters that were dropped, at most once a second. The fields are the
/// number of dropped letters that are not logged yet, and the time of the last log line.
#[derive(Debug, Default)]
pub(crate) struct DroppedLetters(Mutex<(u64, Option<Instant>)>);

impl DroppedLetters {
    /// Adds to the number of dropped letters. Logs the number unless the last log line is less than
    /// a second old.
    pub(crate) fn report(&self, dropped: u64, stream: &Name, group: &Name, limit: usize) {
        if let Some(dropped) = self.add(dropped) {
            tracing::warn!(
                %stream,
                %group,
                dropped,
                limit,
                "the oldest dead letters were dropped to make room for newer ones"
            );
        }
    }

    /// Adds to the number of dropped letters. Returns the number to log now, if any.
    fn add(&self, dropped: u64) -> Option<u64> {
        let mut state = lock(&self.0);
        let (unlogged, last_logged) = &mut *state;
        *unlogged += dropped;
        let is_early = last_logged.is_some_and(|last| last.elapsed() < Duration::from_secs(1));
        if *unlogged == 0 || is_early {
            return None;
        }
        *last_logged = Some(Instant::now());
        Some(std::mem::take(unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn dropped_dead_letters_are_reported_once_a_second() {
        let dropped = DroppedLetters::default();
        assert_eq!(dropped.add(0), None);
        assert_eq!(dropped.add(3), Some(3));
        assert_eq!(dropped.add(2), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(dropped.add(0), Some(2));
    }
}
