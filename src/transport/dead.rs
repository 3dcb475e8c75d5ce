//! Dead letters: what they hold, and what can be done with them.

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
    error::Error,
    message::{Attempt, DeadLetterId, Message, MessageId, Name},
    sync::lock,
};

/// A message that is not delivered any more, with everything that is known about it.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Its own id.
    pub id: DeadLetterId,
    /// The id of the message, which is unique in its stream only.
    pub message_id: MessageId,
    /// The stream of the message, where the transport knows it.
    pub stream: Option<Name>,
    /// The consumer group in which it died, where the transport knows it.
    pub group: Option<Name>,
    /// The fields of the message's entry, as they came, but for those that the transport itself
    /// writes on redelivery: a sender has no say in them.
    pub fields: Vec<(Bytes, Bytes)>,
    /// Why it died.
    pub reason: String,
    /// How often it was delivered.
    pub attempts: u32,
    /// When it died, on the broker's clock.
    pub died_at: SystemTime,
}

impl DeadLetter {
    /// A dead letter. For transports outside this crate.
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

    /// Says of which stream the message is, and in which consumer group it died. For transports
    /// outside this crate.
    #[must_use]
    pub fn died_in(mut self, stream: Name, group: Name) -> Self {
        self.stream = Some(stream);
        self.group = Some(group);
        self
    }

    /// The message: its name, kind, headers and payload.
    ///
    /// # Errors
    /// The raw fields and the reason, where the entry never was a message.
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

// Fields hold payloads and header values, which are not shown.
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

/// The dead letters of a group, on any transport: to list, to look at, to replay and to purge.
///
/// A replayed message goes back to the group in which it died, and to no other, as if it had never
/// been delivered: its attempts are counted from the beginning, and a task has no time to live any
/// more. The other groups of the stream see nothing of it.
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
/// Many letters are replayed or purged in steps, each of them atomic. A future that is dropped in
/// between has done some of the steps; the letters that are left can be replayed or purged later,
/// and none is replayed twice.
#[derive(Clone)]
pub struct DeadLetters(Arc<dyn DeadLetterStore>);

impl DeadLetters {
    /// The dead letters of a store. For transports outside this crate.
    pub fn new(store: impl DeadLetterStore) -> Self {
        Self(Arc::new(store))
    }

    /// Some of them, the oldest first.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn list(&self, page: Page) -> Result<DeadLetterPage, Error> {
        self.0.list(page).await
    }

    /// One of them; `None` when it is not there any more.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn get(&self, id: &DeadLetterId) -> Result<Option<DeadLetter>, Error> {
        self.0.get(id).await
    }

    /// Delivers them again, and returns how many. Those that are gone by then are passed over:
    /// each letter is replayed once, whoever asks for it and how often. One whose message cannot be
    /// read stays where it is, is not counted, and its id is logged as a warning;
    /// [`steps`](Self::steps) names those to the caller.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses. What was replayed by then is replayed.
    pub async fn replay(&self, selection: Selection) -> Result<u64, Error> {
        self.carry_out(Action::Replay, selection).await
    }

    /// Deletes them for good, and returns how many there were.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses. What was purged by then is gone.
    pub async fn purge(&self, selection: Selection) -> Result<u64, Error> {
        self.carry_out(Action::Purge, selection).await
    }

    /// The number of dead letters.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn count(&self) -> Result<u64, Error> {
        self.0.count().await
    }

    /// Replays or purges step by step, for whoever shows how far it is, or may have to stop in
    /// between. What all steps together do is what [`replay`](Self::replay) and
    /// [`purge`](Self::purge) do.
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
            tracing::warn!(%id, "this dead letter cannot be replayed and was left; its fields cannot be read");
        }
        Ok(acted)
    }
}

/// Dead letters that are replayed or purged, some at a time: see [`DeadLetters::steps`].
#[must_use = "nothing is done until the next step is asked for"]
pub struct Steps {
    store: Arc<dyn DeadLetterStore>,
    action: Action,
    rest: Rest,
    skipped: Vec<DeadLetterId>,
}

/// What is still to be done.
#[derive(Debug)]
enum Rest {
    Ids(Vec<DeadLetterId>),
    /// All, or all of a name, of those that are there when it begins.
    All(Option<Name>),
    Range {
        after: Option<DeadLetterId>,
        until: DeadLetterId,
        name: Option<Name>,
    },
    Nothing,
}

impl Steps {
    /// Does the next step, and returns how many letters were replayed or purged by it: a hundred at
    /// most, and perhaps none. `None` when there is nothing left to do.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses. The same step comes next then.
    ///
    /// # Cancel safety
    /// A future that is dropped may have done its step. The same step comes next, finds what is
    /// left of it, and does nothing twice.
    pub async fn next(&mut self) -> Result<Option<u64>, Error> {
        if let Rest::All(name) = &self.rest {
            // What dies from now on is left alone. A message that dies of its replay at once would
            // keep this going for ever.
            self.rest = match self.store.newest().await? {
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
                let most = ids.len().min(STEP);
                let step = Step::Ids(ids[..most].to_vec());
                let done = self.store.act(self.action, step).await?;
                ids.drain(..most);
                self.skipped.extend(done.skipped);
                Ok(Some(done.acted))
            }
            Rest::Range { after, until, name } => {
                let step = Step::Range {
                    after: after.clone(),
                    until: until.clone(),
                    name: name.clone(),
                    most: STEP,
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

    /// The letters that the steps so far could not replay, because their fields cannot be read. They
    /// are left where they are.
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

/// How many letters are looked at in one step: a server does nothing else meanwhile.
const STEP: usize = 100;

/// A page of letters ends behind the one with which it has this many bytes.
pub(crate) const PAGE_BYTES: usize = 4 << 20;

/// Which part of a list is asked for. The default is its beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page {
    /// It begins behind this one.
    pub after: Option<DeadLetterId>,
    /// The most letters on it; 100 unless set. A page ends earlier when its letters have
    /// about 4 MiB together, so that large letters do not fill the memory; it has at least one if
    /// there is any. [`next`](DeadLetterPage::next) says whether there are more.
    pub most: usize,
}

impl Page {
    /// The beginning of the list, at most so many. Zero counts as one.
    pub fn first(most: usize) -> Self {
        Self {
            after: None,
            most: most.max(1),
        }
    }

    /// What comes behind this one.
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

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetterPage {
    /// The letters, the oldest first.
    pub letters: Vec<DeadLetter>,
    /// What to ask for next; `None` when there is no more.
    pub next: Option<Page>,
}

impl DeadLetterPage {
    /// A page. For transports outside this crate.
    pub fn new(letters: Vec<DeadLetter>, next: Option<Page>) -> Self {
        Self { letters, next }
    }
}

/// Which dead letters are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Selection {
    /// All that there are when it begins.
    All,
    /// These.
    Ids(Vec<DeadLetterId>),
    /// Those whose messages have this name, of all that there are when it begins.
    Named(Name),
}

impl Selection {
    /// These.
    pub fn ids<I: Into<DeadLetterId>>(ids: impl IntoIterator<Item = I>) -> Self {
        Self::Ids(ids.into_iter().map(Into::into).collect())
    }

    /// Those whose messages have this name.
    pub fn named(name: impl Into<Name>) -> Self {
        Self::Named(name.into())
    }
}

/// The future of a [`DeadLetterStore`].
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// What a transport does for [`DeadLetters`]: the dead letters of one group.
pub trait DeadLetterStore: Send + Sync + 'static {
    /// A part of the list, the oldest first.
    fn list(&self, page: Page) -> StoreFuture<'_, DeadLetterPage>;

    /// One of them.
    fn get<'a>(&'a self, id: &'a DeadLetterId) -> StoreFuture<'a, Option<DeadLetter>>;

    /// The id of the newest.
    fn newest(&self) -> StoreFuture<'_, Option<DeadLetterId>>;

    /// Replays or purges letters that still exist. For each letter that is one atomic act.
    fn act(&self, action: Action, step: Step) -> StoreFuture<'_, Acted>;

    /// How many there are, without looking at each.
    fn count(&self) -> StoreFuture<'_, u64>;
}

/// What is done with dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// They are delivered again.
    Replay,
    /// They are deleted.
    Purge,
}

/// Which dead letters a step is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// These, a bounded number.
    Ids(Vec<DeadLetterId>),
    /// The first of a range.
    Range {
        /// The range begins behind this one.
        after: Option<DeadLetterId>,
        /// It ends with this one.
        until: DeadLetterId,
        /// Only letters whose messages have this name.
        name: Option<Name>,
        /// How many are looked at.
        most: usize,
    },
}

/// What a step has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acted {
    /// To how many letters.
    pub acted: u64,
    /// The last one of a range that was looked at, where there may be more behind it.
    pub next: Option<DeadLetterId>,
    /// Those that exist and cannot be replayed.
    pub skipped: Vec<DeadLetterId>,
}

/// Reports how many dead letters were dropped to make room for newer ones, at most once a second.
#[derive(Debug, Default)]
pub(crate) struct DroppedLetters(Mutex<(u64, Option<Instant>)>);

impl DroppedLetters {
    /// Adds some, and logs how many there were since the last report unless that was just now.
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

    /// Adds some, and returns how many are to be reported now.
    fn add(&self, dropped: u64) -> Option<u64> {
        let mut state = lock(&self.0);
        let (waiting, last) = &mut *state;
        *waiting += dropped;
        let early = last.is_some_and(|last| last.elapsed() < Duration::from_secs(1));
        if *waiting == 0 || early {
            return None;
        }
        *last = Some(Instant::now());
        Some(std::mem::take(waiting))
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
