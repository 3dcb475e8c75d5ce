//! The dead letters of all partitions of a stream.

use bytes::Bytes;

use super::{Acted, Action, DeadLetter, DeadLetterPage, DeadLetterStore, Page, Step, StoreFuture};
use crate::{
    error::{Error, ErrorKind},
    message::DeadLetterId,
};

/// Joins the dead letters of all partitions into one list.
///
/// In this list, the id of a letter begins with the number of its partition: `7/1795430237570-0` is
/// the letter `1795430237570-0` of partition 7. The list has the letters of the first partition
/// first, and the oldest letter of each partition first.
pub(crate) struct PartitionedDeadLetters<S> {
    stores: Vec<S>,
}

/// A position in the list: after a letter of a partition, or at the beginning of the partition.
#[derive(Debug, Default)]
struct LetterPosition {
    partition: usize,
    /// The id of the letter in its partition. `None` at the beginning.
    letter: Option<DeadLetterId>,
}

impl LetterPosition {
    fn parse(text: &str) -> Option<Self> {
        let (partition, letter) = text.split_once('/')?;
        Some(Self {
            partition: partition.parse().ok()?,
            letter: (!letter.is_empty()).then(|| letter.into()),
        })
    }

    fn id(partition: usize, letter: &str) -> DeadLetterId {
        format!("{partition}/{letter}").into()
    }
}

impl<S: DeadLetterStore> PartitionedDeadLetters<S> {
    /// Joins the stores of the partitions. They must be in the order of the partitions' numbers.
    pub(crate) fn new(stores: impl IntoIterator<Item = S>) -> Self {
        Self {
            stores: stores.into_iter().collect(),
        }
    }

    /// Returns the partition of a letter, and the id of the letter in that partition.
    fn split_id(&self, id: &DeadLetterId) -> Result<(usize, DeadLetterId), Error> {
        let position =
            LetterPosition::parse(id).filter(|position| position.partition < self.stores.len());
        match position {
            Some(LetterPosition {
                partition,
                letter: Some(letter),
            }) => Ok((partition, letter)),
            _ => Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "`{id}` is not the id of a dead letter of a partitioned stream, such as \
                     7/1795430237570-0"
                ),
            )),
        }
    }

    /// Returns the position after this letter. `None` as the id means the beginning of the list.
    fn position_after(&self, id: Option<&DeadLetterId>) -> Result<LetterPosition, Error> {
        let Some(id) = id else {
            return Ok(LetterPosition::default());
        };
        match LetterPosition::parse(id) {
            Some(position) if position.partition < self.stores.len() => Ok(position),
            _ => self.split_id(id).map(|(partition, letter)| LetterPosition {
                partition,
                letter: Some(letter),
            }),
        }
    }

    async fn list_all(&self, page: Page) -> Result<DeadLetterPage, Error> {
        let LetterPosition {
            mut partition,
            mut letter,
        } = self.position_after(page.after.as_ref())?;
        let max = page.max.max(1);
        // Lists one partition after the other, until the page is full.
        let mut letters = Vec::new();
        let mut has_room = true;
        while partition < self.stores.len() && letters.len() < max && has_room {
            let request = Page {
                after: letter.take(),
                max: max - letters.len(),
            };
            let found = self.stores[partition].list(request).await?;
            let named = found.letters.into_iter();
            letters.extend(named.map(|letter| with_partition(partition, letter)));
            match found.next.and_then(|next| next.after) {
                // The partition has more letters, so this page has reached its maximum number of
                // letters or bytes.
                Some(last) => {
                    letter = Some(last);
                    has_room = false;
                }
                None => partition += 1,
            }
        }
        let has_more = letter.is_some() || self.has_any(partition).await?;
        let next = has_more.then(|| {
            let start = letter.as_deref().unwrap_or_default();
            Page::first(max).after(LetterPosition::id(partition, start))
        });
        Ok(DeadLetterPage::new(letters, next))
    }

    /// Returns `true` if this partition or a later one has letters.
    async fn has_any(&self, from: usize) -> Result<bool, Error> {
        for store in &self.stores[from..] {
            if store.count().await? > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the ids of the newest letter of each partition, joined as one id: `0/7-0,3/9-1`.
    async fn newest_of_each(&self) -> Result<Option<DeadLetterId>, Error> {
        let mut newest = Vec::new();
        for (partition, store) in self.stores.iter().enumerate() {
            if let Some(letter) = store.newest_id().await? {
                newest.push(LetterPosition::id(partition, &letter).to_string());
            }
        }
        Ok((!newest.is_empty()).then(|| newest.join(",").into()))
    }

    /// Does a step in the first partition that has letters between `after` and `until`.
    async fn act_in_range(
        &self,
        action: Action,
        after: Option<DeadLetterId>,
        until: &DeadLetterId,
        step: impl FnOnce(Option<DeadLetterId>, DeadLetterId) -> Step,
    ) -> Result<Acted, Error> {
        let LetterPosition { partition, letter } = self.position_after(after.as_ref())?;
        // `until` has the newest letter of each partition that has letters.
        let ends: Vec<_> = until.split(',').filter_map(LetterPosition::parse).collect();
        let Some(end) = ends.iter().find(|end| end.partition >= partition) else {
            return Ok(Acted::default());
        };
        let newest = end.letter.clone().unwrap_or_default();
        // The letter in `after` is a position only in its own partition.
        let letter = letter.filter(|_| end.partition == partition);
        let done = self.stores[end.partition].act(action, step(letter, newest));
        let mut done = add_partition(end.partition, done.await?);
        // After the last letter of a partition, the next step starts in a later partition.
        if done.next.is_none() {
            let later = ends.iter().find(|later| later.partition > end.partition);
            done.next = later.map(|later| LetterPosition::id(later.partition, ""));
        }
        Ok(done)
    }

    async fn act_on_ids(&self, action: Action, ids: Vec<DeadLetterId>) -> Result<Acted, Error> {
        let mut ids_by_partition = vec![Vec::new(); self.stores.len()];
        for id in &ids {
            let (partition, letter) = self.split_id(id)?;
            ids_by_partition[partition].push(letter);
        }
        let mut all = Acted::default();
        for (partition, ids) in ids_by_partition.into_iter().enumerate() {
            if !ids.is_empty() {
                let done = self.stores[partition].act(action, Step::Ids(ids)).await?;
                let done = add_partition(partition, done);
                all.acted += done.acted;
                all.skipped.extend(done.skipped);
            }
        }
        Ok(all)
    }
}

/// Adds the number of the partition to the id of a letter.
fn with_partition(partition: usize, mut letter: DeadLetter) -> DeadLetter {
    letter.id = LetterPosition::id(partition, &letter.id);
    letter
}

/// Adds the number of the partition to the ids.
fn add_partition(partition: usize, acted: Acted) -> Acted {
    let named = |id: DeadLetterId| LetterPosition::id(partition, &id);
    Acted {
        acted: acted.acted,
        next: acted.next.map(named),
        skipped: acted.skipped.into_iter().map(named).collect(),
    }
}

impl<S: DeadLetterStore> DeadLetterStore for PartitionedDeadLetters<S> {
    fn list(&self, page: Page) -> StoreFuture<'_, DeadLetterPage> {
        Box::pin(self.list_all(page))
    }

    fn get<'a>(&'a self, id: &'a DeadLetterId) -> StoreFuture<'a, Option<DeadLetter>> {
        Box::pin(async move {
            let (partition, letter) = self.split_id(id)?;
            let found = self.stores[partition].get(&letter).await?;
            Ok(found.map(|letter| with_partition(partition, letter)))
        })
    }

    fn newest_id(&self) -> StoreFuture<'_, Option<DeadLetterId>> {
        Box::pin(self.newest_of_each())
    }

    fn act(&self, action: Action, step: Step) -> StoreFuture<'_, Acted> {
        Box::pin(async move {
            match step {
                Step::Ids(ids) => self.act_on_ids(action, ids).await,
                Step::Range {
                    after,
                    until,
                    name,
                    max,
                } => {
                    let step = |after, until| Step::Range {
                        after,
                        until,
                        name,
                        max,
                    };
                    self.act_in_range(action, after, &until, step).await
                }
            }
        })
    }

    fn replay_as<'a>(
        &'a self,
        id: &'a DeadLetterId,
        fields: Vec<(Bytes, Bytes)>,
    ) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let (partition, letter) = self.split_id(id)?;
            self.stores[partition].replay_as(&letter, fields).await
        })
    }

    fn count(&self) -> StoreFuture<'_, u64> {
        Box::pin(async move {
            let mut count = 0;
            for store in &self.stores {
                count += store.count().await?;
            }
            Ok(count)
        })
    }
}
