//! The dead letters of one group, as a handle to the memory transport reads and changes them.

use std::{future::ready, sync::Arc};

use bytes::Bytes;

use super::{broker::Broker, context::GroupContext, dead::DeadLetterLog, log::LogEntry};
use crate::{
    message::DeadLetterId,
    transport::{
        Acted, Action, DeadLetter, DeadLetterPage, DeadLetterStore, Page, Settings, Step,
        StoreFuture,
    },
};

/// The dead letters of a handle's group.
pub(super) struct MemoryDeadLetters {
    pub(super) broker: Broker,
    pub(super) settings: Settings,
}

impl MemoryDeadLetters {
    /// Adds the stream and the group to a letter.
    fn with_origin(&self, letter: DeadLetter) -> DeadLetter {
        let settings = &self.settings;
        letter.died_in(settings.stream.clone(), settings.group.clone())
    }

    fn with_log<T: Default>(&self, act: impl FnOnce(&mut DeadLetterLog) -> T) -> T {
        let Self { broker, settings } = self;
        let acted = broker.with_group(settings, |group, _| act(&mut group.dead));
        acted.unwrap_or_default()
    }
}

impl DeadLetterStore for MemoryDeadLetters {
    fn list(&self, page: Page) -> StoreFuture<'_, DeadLetterPage> {
        let found = self.with_log(|dead| Some(dead.list(&page)));
        let mut found = found.unwrap_or_else(|| DeadLetterPage::new(Vec::new(), None));
        let letters = found.letters.into_iter();
        found.letters = letters.map(|letter| self.with_origin(letter)).collect();
        Box::pin(ready(Ok(found)))
    }

    fn get<'a>(&'a self, id: &'a DeadLetterId) -> StoreFuture<'a, Option<DeadLetter>> {
        let letter = self.with_log(|dead| dead.get(id));
        Box::pin(ready(Ok(letter.map(|letter| self.with_origin(letter)))))
    }

    fn newest_id(&self) -> StoreFuture<'_, Option<DeadLetterId>> {
        let newest = self.with_log(|dead| dead.newest_id());
        let newest = newest.map(|id| DeadLetterId::from(id.to_string()));
        Box::pin(ready(Ok(newest)))
    }

    fn act(&self, action: Action, step: Step) -> StoreFuture<'_, Acted> {
        let Self { broker, settings } = self;
        let acted = broker.with_group(settings, |group, _| {
            let (entries, acted) = group.dead.take(step);
            if action == Action::Replay {
                for entry in entries {
                    let GroupContext { records, clock, .. } = &broker.context;
                    records.replay(settings, &entry.fields, clock);
                    group.replay(entry);
                }
            }
            acted
        });
        Box::pin(ready(Ok(acted.unwrap_or_default())))
    }

    fn replay_as<'a>(
        &'a self,
        id: &'a DeadLetterId,
        fields: Vec<(Bytes, Bytes)>,
    ) -> StoreFuture<'a, bool> {
        let Self { broker, settings } = self;
        let replayed = broker.with_group(settings, |group, _| {
            let Some(entry) = group.dead.remove(id) else {
                return false;
            };
            let entry = LogEntry {
                id: entry.id,
                fields,
            };
            let GroupContext { records, clock, .. } = &broker.context;
            records.replay(settings, &entry.fields, clock);
            group.replay(Arc::new(entry));
            true
        });
        Box::pin(ready(Ok(replayed.unwrap_or_default())))
    }

    fn count(&self) -> StoreFuture<'_, u64> {
        Box::pin(ready(Ok(self.with_log(|dead| dead.len() as u64))))
    }
}
