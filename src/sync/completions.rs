//! A slab of one-shot completions that are resolved as a batch.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use tokio::sync::Notify;

use super::lock;

/// Stores the outcomes of many operations in one vector, by index. A channel for each outcome would
/// cost an allocation, and often another thread would free it.
#[derive(Debug)]
pub(crate) struct CompletionSlab<T> {
    slots: Mutex<Slots<T>>,
    /// Notified when every completion was dropped without its outcome.
    all_dropped: Notify,
}

#[derive(Debug)]
struct Slots<T> {
    all: Vec<Slot<T>>,
    /// The number of completions that were dropped without their outcome.
    dropped_count: usize,
}

#[derive(Debug)]
enum Slot<T> {
    Pending(Option<Waker>),
    Complete(T),
    /// The completion has returned its outcome, or was dropped.
    Done,
}

impl<T> Slots<T> {
    fn are_all_dropped(&self) -> bool {
        self.dropped_count == self.all.len()
    }
}

impl<T> CompletionSlab<T> {
    /// Creates an empty slab with memory for this number of completions. The slab grows if more are
    /// added.
    pub(crate) fn with_capacity(completions: usize) -> Self {
        Self {
            slots: Mutex::new(Slots {
                all: Vec::with_capacity(completions),
                dropped_count: 0,
            }),
            all_dropped: Notify::new(),
        }
    }

    /// Adds a completion.
    pub(crate) fn insert(self: &Arc<Self>) -> Completion<T> {
        let mut slots = lock(&self.slots);
        slots.all.push(Slot::Pending(None));
        Completion {
            slab: self.clone(),
            index: slots.all.len() - 1,
            is_done: false,
        }
    }

    /// Returns `true` if no completion was dropped without its outcome.
    pub(crate) fn are_all_wanted(&self) -> bool {
        lock(&self.slots).dropped_count == 0
    }

    /// Returns `true` for each index whose completion still waits for an outcome.
    pub(crate) fn pending_flags(&self) -> Vec<bool> {
        let slots = lock(&self.slots);
        let is_pending = |slot: &Slot<T>| matches!(slot, Slot::Pending(_));
        slots.all.iter().map(is_pending).collect()
    }

    /// Returns `true` if the completion of this index waits for an outcome.
    pub(crate) fn is_pending(&self, index: usize) -> bool {
        matches!(lock(&self.slots).all[index], Slot::Pending(_))
    }

    /// Resolves the completions of these indices, and then wakes their tasks. The outcome of a
    /// completion that no longer waits is dropped.
    pub(crate) fn complete(&self, outcomes: impl IntoIterator<Item = (usize, T)>) {
        let (mut wakers, mut unwanted) = (Vec::new(), Vec::new());
        let mut slots = lock(&self.slots);
        for (index, outcome) in outcomes {
            match &mut slots.all[index] {
                Slot::Pending(waker) => {
                    wakers.extend(waker.take());
                    slots.all[index] = Slot::Complete(outcome);
                }
                _ => unwanted.push(outcome),
            }
        }
        drop(slots);
        drop(unwanted);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Resolves all completions that still wait.
    pub(crate) fn complete_all(&self, mut outcome: impl FnMut() -> T) {
        let slots = self.pending_flags().into_iter().enumerate();
        let pending = slots.filter_map(|(index, is_pending)| is_pending.then_some(index));
        self.complete(pending.map(|index| (index, outcome())));
    }

    /// Waits until every completion was dropped without its outcome.
    pub(crate) async fn all_dropped(&self) {
        while !lock(&self.slots).are_all_dropped() {
            self.all_dropped.notified().await;
        }
    }
}

/// The future of one outcome. If this future is dropped before the outcome arrives, the outcome is
/// dropped on arrival.
#[derive(Debug)]
pub(crate) struct Completion<T> {
    slab: Arc<CompletionSlab<T>>,
    index: usize,
    is_done: bool,
}

impl<T> Completion<T> {
    pub(crate) fn index(&self) -> usize {
        self.index
    }
}

impl<T> Future for Completion<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let Self {
            slab,
            index,
            is_done,
        } = &mut *self;
        let mut slots = lock(&slab.slots);
        let slot = &mut slots.all[*index];
        match std::mem::replace(slot, Slot::Done) {
            Slot::Complete(outcome) => {
                *is_done = true;
                Poll::Ready(outcome)
            }
            previous => {
                *slot = Slot::Pending(Some(cx.waker().clone()));
                drop(slots);
                // Dropping a waker may drop its task, and with it another completion of this slab.
                // That completion takes the lock, so the waker is dropped after the lock is
                // released.
                drop(previous);
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for Completion<T> {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        let mut slots = lock(&self.slab.slots);
        let previous = std::mem::replace(&mut slots.all[self.index], Slot::Done);
        slots.dropped_count += 1;
        let all_dropped = slots.are_all_dropped();
        drop(slots);
        drop(previous);
        if all_dropped {
            self.slab.all_dropped.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn each_completion_gets_its_first_outcome() {
        let slab = Arc::new(CompletionSlab::with_capacity(1));
        let [first, second, third] = [(); 3].map(|()| slab.insert());
        assert_eq!(third.index(), 2);
        slab.complete([(2, "c"), (0, "a"), (2, "again")]);
        assert_eq!(slab.pending_flags(), [false, true, false]);
        slab.complete_all(|| "rest");
        assert_eq!((first.await, second.await, third.await), ("a", "rest", "c"));
    }

    #[tokio::test]
    async fn a_task_that_waits_is_woken() {
        let slab = Arc::new(CompletionSlab::with_capacity(2));
        let waiting = tokio::spawn(slab.insert());
        tokio::task::yield_now().await;
        assert!(slab.is_pending(0));
        slab.complete([(0, 7)]);
        assert_eq!(waiting.await.unwrap(), 7);
        assert!(!slab.is_pending(0));
    }

    #[tokio::test]
    async fn a_slab_notices_that_no_outcome_is_wanted_any_more() {
        let slab = Arc::new(CompletionSlab::with_capacity(2));
        let (resolved, dropped) = (slab.insert(), slab.insert());
        assert!(slab.are_all_wanted());
        drop(dropped);
        assert!(!slab.are_all_wanted());
        assert!(slab.all_dropped().now_or_never().is_none());
        slab.complete([(0, ()), (1, ())]);
        drop(resolved);
        slab.all_dropped().await;
    }
}
