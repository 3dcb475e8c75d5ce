//! The dead letters of a group.

use std::{collections::VecDeque, future::ready, sync::Arc, time::SystemTime};

use super::{
    Memory,
    clock::{BrokerClock, EntryId},
    log::LogEntry,
};
use crate::{
    message::{DeadLetterId, MessageId},
    transport::{
        Acted, Action, DeadLetter, DeadLetterPage, DeadLetterStore, PAGE_BYTES, Page, Step,
        StoreFuture, codec,
    },
};

/// The dead letters of a group, the oldest first.
#[derive(Debug, Default)]
pub(super) struct DeadLetterLog {
    letters: VecDeque<StoredLetter>,
    last: EntryId,
}

#[derive(Debug)]
struct StoredLetter {
    id: EntryId,
    entry: Arc<LogEntry>,
    reason: String,
    attempts: u32,
    died_at: SystemTime,
}

impl StoredLetter {
    fn bytes(&self) -> usize {
        let fields = self.entry.fields.iter();
        let fields = fields.map(|(field, value)| field.len() + value.len());
        fields.sum::<usize>() + self.reason.len()
    }

    fn read(&self) -> DeadLetter {
        DeadLetter::new(
            DeadLetterId::from(self.id.to_string()),
            self.entry.message_id(),
            self.entry.fields.clone(),
            &*self.reason,
            self.attempts,
            self.died_at,
        )
    }
}

impl DeadLetterLog {
    /// Adds a letter, and drops the oldest ones beyond `most`. Returns the number of dropped letters.
    pub(super) fn add(
        &mut self,
        entry: Arc<LogEntry>,
        attempts: u32,
        reason: String,
        most: usize,
        clock: &BrokerClock,
    ) -> u64 {
        self.last = self.last.following(clock.milliseconds());
        self.letters.push_back(StoredLetter {
            id: self.last,
            entry,
            reason,
            attempts,
            died_at: clock.now(),
        });
        let surplus = self.letters.len().saturating_sub(most);
        self.letters.drain(..surplus);
        surplus as u64
    }

    pub(super) fn len(&self) -> usize {
        self.letters.len()
    }

    /// The position of the first letter after this id.
    fn behind(&self, id: Option<&DeadLetterId>) -> usize {
        match id.and_then(|id| id.parse::<EntryId>().ok()) {
            Some(id) => self.letters.partition_point(|letter| letter.id <= id),
            None => 0,
        }
    }

    fn position(&self, id: &DeadLetterId) -> Option<usize> {
        let id: EntryId = id.parse().ok()?;
        self.letters
            .binary_search_by_key(&id, |letter| letter.id)
            .ok()
    }

    fn list(&self, page: &Page) -> DeadLetterPage {
        let from = self.behind(page.after.as_ref());
        let mut room = PAGE_BYTES;
        let letters = self.letters.range(from..).take(page.most.max(1));
        let letters = letters.take_while(|letter| {
            let fits = room > 0;
            room = room.saturating_sub(letter.bytes());
            fits
        });
        let letters: Vec<_> = letters.map(StoredLetter::read).collect();
        let more = from + letters.len() < self.letters.len();
        let next = letters.last().filter(|_| more);
        let next = next.map(|last| Page::first(page.most).after(last.id.clone()));
        DeadLetterPage::new(letters, next)
    }

    /// Removes the letters of a step.
    fn take(&mut self, step: Step) -> (Vec<Arc<LogEntry>>, Acted) {
        let mut taken = Vec::new();
        let mut next = None;
        match step {
            Step::Ids(ids) => {
                for id in ids {
                    if let Some(letter) = self.position(&id).and_then(|at| self.letters.remove(at))
                    {
                        taken.push(letter.entry);
                    }
                }
            }
            Step::Range {
                after,
                until,
                name,
                most,
            } => {
                let from = self.behind(after.as_ref());
                let end = self.behind(Some(&until)).max(from);
                let looked_at = end.min(from.saturating_add(most.max(1)));
                next = (looked_at < end).then(|| self.letters[looked_at - 1].id);
                let mut kept = VecDeque::new();
                for letter in self.letters.drain(from..looked_at) {
                    let found = letter.entry.field("name").map(|name| &name[..]);
                    match &name {
                        Some(name) if found != Some(name.as_bytes()) => kept.push_back(letter),
                        _ => taken.push(letter.entry),
                    }
                }
                for letter in kept.into_iter().rev() {
                    self.letters.insert(from, letter);
                }
            }
        }
        let acted = Acted {
            acted: taken.len() as u64,
            next: next.map(|id| DeadLetterId::from(id.to_string())),
            // Letters are stored as fields here, so each can be replayed.
            skipped: Vec::new(),
        };
        (taken, acted)
    }
}

/// The dead letters of a handle's group.
pub(super) struct MemoryDeadLetters(pub(super) Memory);

impl MemoryDeadLetters {
    fn of_group(&self, letter: DeadLetter) -> DeadLetter {
        let settings = &self.0.settings;
        letter.died_in(settings.stream.clone(), settings.group.clone())
    }

    fn with<T: Default>(&self, act: impl FnOnce(&mut DeadLetterLog) -> T) -> T {
        let Memory { broker, settings } = &self.0;
        let acted = broker.with_group(settings, |group, _| act(&mut group.dead));
        acted.unwrap_or_default()
    }
}

impl DeadLetterStore for MemoryDeadLetters {
    fn list(&self, page: Page) -> StoreFuture<'_, DeadLetterPage> {
        let found = self.with(|dead| Some(dead.list(&page)));
        let mut found = found.unwrap_or_else(|| DeadLetterPage::new(Vec::new(), None));
        let letters = found.letters.into_iter();
        found.letters = letters.map(|letter| self.of_group(letter)).collect();
        Box::pin(ready(Ok(found)))
    }

    fn get<'a>(&'a self, id: &'a DeadLetterId) -> StoreFuture<'a, Option<DeadLetter>> {
        let letter = self.with(|dead| dead.position(id).map(|at| dead.letters[at].read()));
        Box::pin(ready(Ok(letter.map(|letter| self.of_group(letter)))))
    }

    fn newest(&self) -> StoreFuture<'_, Option<DeadLetterId>> {
        let newest = self.with(|dead| dead.letters.back().map(|letter| letter.id));
        let newest = newest.map(|id| DeadLetterId::from(id.to_string()));
        Box::pin(ready(Ok(newest)))
    }

    fn act(&self, action: Action, step: Step) -> StoreFuture<'_, Acted> {
        let Memory { broker, settings } = &self.0;
        let acted = broker.with_group(settings, |group, _| {
            let (entries, acted) = group.dead.take(step);
            if action == Action::Replay {
                for entry in entries {
                    group.replay(entry);
                }
            }
            acted
        });
        Box::pin(ready(Ok(acted.unwrap_or_default())))
    }

    fn count(&self) -> StoreFuture<'_, u64> {
        Box::pin(ready(Ok(self.with(|dead| dead.len() as u64))))
    }
}

impl LogEntry {
    /// The id of the entry's message.
    pub(super) fn message_id(&self) -> MessageId {
        let given = self.field(codec::ID).cloned().and_then(codec::given_id);
        given.unwrap_or_else(|| MessageId::from(self.id.to_string()))
    }
}
