//! The queues of all keys, and the order in which messages join them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::{Arc, Mutex},
    task::Waker,
    time::Duration,
};

use tokio::time::Instant;

use super::queue::{Deferred, KeyQueue, NextStep, Turn};
use crate::{
    key::{Key, MessageIdentity},
    sync::lock,
};

/// No clean-up runs below this number of deferred messages. A clean-up removes messages that have
/// lost their turns.
const CLEANUP_THRESHOLD: usize = 1_000;
/// The minimum time between two clean-ups.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(1);

/// The queues of all keys. A key without messages takes no memory.
#[derive(Default)]
pub(super) struct KeyQueues(Mutex<QueuesState>);

#[derive(Default)]
struct QueuesState {
    last_turn: Turn,
    /// The turns that `poll_ready` has reserved, and that `call` has not used yet.
    reserved: BTreeSet<Turn>,
    /// The wakers of messages that wait because an earlier turn is still reserved: the message of
    /// that turn may have the same key.
    blocked: BTreeMap<Turn, Waker>,
    queues: HashMap<Key, KeyQueue>,
    /// The number of deferred messages in all queues.
    deferred: usize,
    cleaned_at: Option<Instant>,
}

impl KeyQueues {
    /// Reserves the next turn for a message that is not known yet.
    pub(super) fn reserve(self: &Arc<Self>) -> ReservedTurn {
        let mut state = lock(&self.0);
        state.last_turn += 1;
        let turn = state.last_turn;
        state.reserved.insert(turn);
        ReservedTurn {
            turn,
            queues: self.clone(),
        }
    }

    /// Returns the number of keys with a queue.
    pub(super) fn keys(&self) -> usize {
        lock(&self.0).queues.len()
    }

    /// Returns the next step of the message with this turn. `waker` is called when the step may
    /// have changed.
    pub(super) fn next_step(
        &self,
        key: &Key,
        turn: Turn,
        can_be_put_off: bool,
        waker: &Waker,
    ) -> NextStep {
        let mut state = lock(&self.0);
        // The message of an earlier reserved turn may have the same key.
        if state.reserved.first().is_some_and(|first| *first < turn) {
            state.blocked.insert(turn, waker.clone());
            return NextStep::Wait(None);
        }
        let state = &mut *state;
        let queue = state.queues.get_mut(key).expect("the message is in it");
        let deferred_before = queue.deferred_count();
        let step = queue.next_step(turn, can_be_put_off);
        state.deferred -= deferred_before - queue.deferred_count();
        if let NextStep::Wait(_) = step {
            queue.set_waker(turn, waker);
        }
        step
    }

    /// Removes the message with this turn from its queue. The message keeps the turn if `deferred`
    /// is `Some` and fewer than `max_deferred` messages are deferred. Returns `true` if the message
    /// keeps its turn.
    pub(super) fn end(
        &self,
        key: &Key,
        turn: Turn,
        deferred: Option<Deferred>,
        max_deferred: usize,
    ) -> bool {
        let (keeps_turn, wakers) = lock(&self.0).end(key, turn, deferred, max_deferred);
        wakers.into_iter().for_each(Waker::wake);
        keeps_turn
    }
}

impl QueuesState {
    /// Does the work of [`KeyQueues::end`] under the lock. The caller must wake the returned wakers
    /// after it has released the lock.
    fn end(
        &mut self,
        key: &Key,
        turn: Turn,
        deferred: Option<Deferred>,
        max_deferred: usize,
    ) -> (bool, Vec<Waker>) {
        self.blocked.remove(&turn);
        if self.deferred >= CLEANUP_THRESHOLD.min(max_deferred) {
            self.clean_up(Instant::now());
        }
        let deferred = deferred.filter(|_| self.deferred < max_deferred);
        let keeps_turn = deferred.is_some();
        let queue = self.queues.get_mut(key);
        let queue = queue.expect("the message is in it");
        queue.leave(turn);
        if let Some(deferred) = deferred
            && queue.defer(turn, deferred)
        {
            self.deferred += 1;
        }
        let wakers = queue.take_wakers(keeps_turn);
        if queue.is_empty() {
            self.queues.remove(key);
        }
        (keeps_turn, wakers)
    }

    /// Removes deferred messages that have lost their turns, at most once per interval.
    fn clean_up(&mut self, now: Instant) {
        if self
            .cleaned_at
            .is_some_and(|last| now - last < CLEANUP_INTERVAL)
        {
            return;
        }
        self.cleaned_at = Some(now);
        self.queues.retain(|_, queue| {
            queue.remove_expired(now);
            !queue.is_empty()
        });
        self.deferred = self.queues.values().map(KeyQueue::deferred_count).sum();
    }

    /// Ends the reservation of a turn. Returns the wakers of the messages that waited for it.
    fn unreserve(&mut self, turn: Turn) -> BTreeMap<Turn, Waker> {
        let was_first = self.reserved.first() == Some(&turn);
        self.reserved.remove(&turn);
        if !was_first {
            return BTreeMap::new();
        }
        match self.reserved.first() {
            Some(next) => {
                let still_blocked = self.blocked.split_off(next);
                std::mem::replace(&mut self.blocked, still_blocked)
            }
            None => std::mem::take(&mut self.blocked),
        }
    }
}

impl fmt::Debug for KeyQueues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.0);
        f.debug_struct("KeyQueues")
            .field("keys", &state.queues.len())
            .field("deferred", &state.deferred)
            .finish_non_exhaustive()
    }
}

/// A reserved turn. Dropping it gives up the turn, and later messages no longer wait for it.
#[derive(Debug)]
pub(super) struct ReservedTurn {
    turn: Turn,
    queues: Arc<KeyQueues>,
}

impl ReservedTurn {
    /// Adds a message to the queue of its key, and returns its turn. A message that has kept an
    /// earlier turn gets that turn instead of the reserved turn.
    pub(super) fn arrive(self, key: &Key, identity: Option<&MessageIdentity>) -> Turn {
        let state = &mut *lock(&self.queues.0);
        let queue = state.queues.entry(key.clone()).or_default();
        let deferred_before = queue.deferred_count();
        let turn = queue.arrive(self.turn, identity);
        state.deferred -= deferred_before - queue.deferred_count();
        turn
        // The message has joined its queue. Dropping `self` now ends the reservation.
    }
}

impl Drop for ReservedTurn {
    fn drop(&mut self) {
        let wakers = lock(&self.queues.0).unreserve(self.turn);
        wakers.into_values().for_each(Waker::wake);
    }
}
