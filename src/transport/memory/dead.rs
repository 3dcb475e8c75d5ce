//! The dead letters of a group.

use std::{collections::VecDeque, sync::Arc, time::SystemTime};

use super::{
    clock::{BrokerClock, EntryId},
    log::LogEntry,
};
use crate::{
    message::DeadLetterId,
    transport::{Acted, DeadLetter, DeadLetterPage, PAGE_BYTES, Page, Step},
};

/// The dead letters of a group.
#[derive(Debug, Default)]
pub(super) struct DeadLetterLog {
    /// The letters, the oldest first. Their ids increase.
    letters: VecDeque<StoredLetter>,
    /// The id of the letter that was added last. That letter may have been removed.
    last_id: EntryId,
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
    /// Returns the size of the fields and of the reason, in bytes.
    fn size(&self) -> usize {
        let fields = self.entry.fields.iter();
        let fields = fields.map(|(field, value)| field.len() + value.len());
        fields.sum::<usize>() + self.reason.len()
    }

    fn to_dead_letter(&self) -> DeadLetter {
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
    /// Adds a letter. Drops the oldest letters, so that at most `max_letters` remain. Returns the
    /// number of dropped letters.
    pub(super) fn add(
        &mut self,
        entry: Arc<LogEntry>,
        attempts: u32,
        reason: String,
        max_letters: usize,
        clock: &BrokerClock,
    ) -> u64 {
        self.last_id = self.last_id.following(clock.milliseconds());
        self.letters.push_back(StoredLetter {
            id: self.last_id,
            entry,
            reason,
            attempts,
            died_at: clock.now(),
        });
        let surplus = self.letters.len().saturating_sub(max_letters);
        self.letters.drain(..surplus);
        surplus as u64
    }

    pub(super) fn len(&self) -> usize {
        self.letters.len()
    }

    /// Returns the index of the first letter whose id is greater than `id`. Returns 0 for `None`
    /// and for an invalid id.
    fn index_after(&self, id: Option<&DeadLetterId>) -> usize {
        match id.and_then(|id| id.parse::<EntryId>().ok()) {
            Some(id) => self.letters.partition_point(|letter| letter.id <= id),
            None => 0,
        }
    }

    /// Returns a letter, or `None` if the log does not contain it.
    pub(super) fn get(&self, id: &DeadLetterId) -> Option<DeadLetter> {
        self.index_of(id)
            .map(|at| self.letters[at].to_dead_letter())
    }

    /// Returns the id of the newest letter, or `None` without letters.
    pub(super) fn newest_id(&self) -> Option<EntryId> {
        self.letters.back().map(|letter| letter.id)
    }

    fn index_of(&self, id: &DeadLetterId) -> Option<usize> {
        let id: EntryId = id.parse().ok()?;
        self.letters
            .binary_search_by_key(&id, |letter| letter.id)
            .ok()
    }

    /// Returns a page of the list. The page ends after `page.max` letters, or with the letter that
    /// makes the page as large as [`PAGE_BYTES`].
    pub(super) fn list(&self, page: &Page) -> DeadLetterPage {
        let from = self.index_after(page.after.as_ref());
        let mut bytes_left = PAGE_BYTES;
        let letters = self.letters.range(from..).take(page.max.max(1));
        let letters = letters.take_while(|letter| {
            let fits = bytes_left > 0;
            bytes_left = bytes_left.saturating_sub(letter.size());
            fits
        });
        let letters: Vec<_> = letters.map(StoredLetter::to_dead_letter).collect();
        let has_more = from + letters.len() < self.letters.len();
        let next = letters.last().filter(|_| has_more);
        let next = next.map(|last| Page::first(page.max).after(last.id.clone()));
        DeadLetterPage::new(letters, next)
    }

    /// Removes a letter. Returns its entry, or `None` if the log does not contain it.
    pub(super) fn remove(&mut self, id: &DeadLetterId) -> Option<Arc<LogEntry>> {
        let at = self.index_of(id)?;
        self.letters.remove(at).map(|letter| letter.entry)
    }

    /// Removes the letters that a step selects. Returns their entries and the result of the step.
    pub(super) fn take(&mut self, step: Step) -> (Vec<Arc<LogEntry>>, Acted) {
        let mut entries = Vec::new();
        let mut next = None;
        match step {
            Step::Ids(ids) => {
                for id in ids {
                    if let Some(letter) = self.index_of(&id).and_then(|at| self.letters.remove(at))
                    {
                        entries.push(letter.entry);
                    }
                }
            }
            Step::Range {
                after,
                until,
                name,
                max,
            } => {
                let from = self.index_after(after.as_ref());
                let end = self.index_after(Some(&until)).max(from);
                let visited_end = end.min(from.saturating_add(max.max(1)));
                next = (visited_end < end).then(|| self.letters[visited_end - 1].id);
                // Takes out all visited letters, and puts those with another name back.
                let mut kept = VecDeque::new();
                for letter in self.letters.drain(from..visited_end) {
                    let letter_name = letter.entry.field("name").map(|name| &name[..]);
                    match &name {
                        Some(name) if letter_name != Some(name.as_bytes()) => {
                            kept.push_back(letter)
                        }
                        _ => entries.push(letter.entry),
                    }
                }
                for letter in kept.into_iter().rev() {
                    self.letters.insert(from, letter);
                }
            }
        }
        let acted = Acted {
            acted: entries.len() as u64,
            next: next.map(|id| DeadLetterId::from(id.to_string())),
            // A replay copies the fields without decoding them, so it cannot fail for a letter.
            skipped: Vec::new(),
        };
        (entries, acted)
    }
}
