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
    /// Adds a letter. If there are more than `most` letters after that, drops the oldest ones.
    /// Returns the number of dropped letters.
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

    /// Returns the position of the first letter after this id, or 0 for `None` and for an invalid
    /// id.
    fn first_after(&self, id: Option<&DeadLetterId>) -> usize {
        match id.and_then(|id| id.parse::<EntryId>().ok()) {
            Some(id) => self.letters.partition_point(|letter| letter.id <= id),
            None => 0,
        }
    }

    pub(super) fn get(&self, id: &DeadLetterId) -> Option<DeadLetter> {
        self.position(id).map(|at| self.letters[at].read())
    }

    pub(super) fn newest(&self) -> Option<EntryId> {
        self.letters.back().map(|letter| letter.id)
    }

    fn position(&self, id: &DeadLetterId) -> Option<usize> {
        let id: EntryId = id.parse().ok()?;
        self.letters
            .binary_search_by_key(&id, |letter| letter.id)
            .ok()
    }

    pub(super) fn list(&self, page: &Page) -> DeadLetterPage {
        let from = self.first_after(page.after.as_ref());
        let mut bytes_left = PAGE_BYTES;
        let letters = self.letters.range(from..).take(page.most.max(1));
        let letters = letters.take_while(|letter| {
            let fits = bytes_left > 0;
            bytes_left = bytes_left.saturating_sub(letter.bytes());
            fits
        });
        let letters: Vec<_> = letters.map(StoredLetter::read).collect();
        let more = from + letters.len() < self.letters.len();
        let next = letters.last().filter(|_| more);
        let next = next.map(|last| Page::first(page.most).after(last.id.clone()));
        DeadLetterPage::new(letters, next)
    }

    /// Removes the letters that a step selects, and returns their entries.
    pub(super) fn take(&mut self, step: Step) -> (Vec<Arc<LogEntry>>, Acted) {
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
                let from = self.first_after(after.as_ref());
                let end = self.first_after(Some(&until)).max(from);
                let visited_end = end.min(from.saturating_add(most.max(1)));
                next = (visited_end < end).then(|| self.letters[visited_end - 1].id);
                let mut kept = VecDeque::new();
                for letter in self.letters.drain(from..visited_end) {
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
            // This transport does not decode the fields for a replay, so it skips no letter.
            skipped: Vec::new(),
        };
        (taken, acted)
    }
}
