//! The queue of one key.

use std::{
    collections::{BTreeMap, HashMap},
    task::Waker,
    time::Duration,
};

use tokio::time::Instant;

use crate::key::MessageIdentity;

/// Later messages wait in the worker for an earlier message whose redelivery is due within this
/// time, or is overdue by less than this time. Otherwise the later messages are put off.
///
/// The time must be long enough for messages that were put off together, which may return in any
/// order. It must be short, because a waiting message occupies a slot that the earlier message may
/// need.
pub(super) const WAIT_IN_PLACE: Duration = Duration::from_millis(250);
/// A message that is put off returns at least this time after the earlier message.
const RETURN_GAP: Duration = Duration::from_millis(10);
/// The maximum time for which a message is put off if the earlier message is overdue.
const MAX_OVERDUE_WAIT: Duration = Duration::from_secs(10);

/// The position of a message in the order of all messages of the layer.
pub(super) type Turn = u64;

/// The messages of one key.
#[derive(Debug, Default)]
pub(super) struct KeyQueue {
    running: Option<Turn>,
    /// Messages that wait in the worker, with their wakers.
    waiting: BTreeMap<Turn, Option<Waker>>,
    /// Messages that will be delivered again and keep their turns.
    deferred: BTreeMap<Turn, Deferred>,
    /// The turns of the deferred messages.
    turns: HashMap<MessageIdentity, Turn>,
}

/// A deferred message: it will be delivered again, and keeps its turn until then.
#[derive(Debug)]
pub(super) struct Deferred {
    pub(super) identity: MessageIdentity,
    /// The time at which the redelivery of the message is due.
    pub(super) due_at: Instant,
    /// The time at which the message loses its turn if it has not returned.
    pub(super) expires_at: Instant,
}

/// The next step of a message in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextStep {
    /// The message runs now.
    Run,
    /// The message waits until it is woken, or until this time if there is one.
    Wait(Option<Instant>),
    /// The message fails, and is delivered again after this time.
    PutOff(Duration),
}

impl KeyQueue {
    /// Adds a message, and returns its turn. A deferred message that returns gets the turn that it
    /// has kept. Any other message gets `turn`.
    pub(super) fn arrive(&mut self, turn: Turn, identity: Option<&MessageIdentity>) -> Turn {
        let kept_turn = identity.and_then(|identity| self.turns.remove(identity));
        let turn = match kept_turn {
            Some(kept_turn) => {
                self.deferred.remove(&kept_turn);
                kept_turn
            }
            None => turn,
        };
        self.waiting.insert(turn, None);
        turn
    }

    /// Returns the next step of the message with this turn. If the message cannot be put off, it
    /// does not wait for deferred messages.
    pub(super) fn next_step(&mut self, turn: Turn, can_be_put_off: bool) -> NextStep {
        let now = Instant::now();
        // The first deferred messages lose their turns if they did not return in time.
        while let Some(first) = self.deferred.first_entry()
            && first.get().expires_at <= now
        {
            let expired = first.remove();
            self.turns.remove(&expired.identity);
        }
        // If an earlier message is deferred, this message must not run before it.
        if can_be_put_off
            && let Some((first, deferred)) = self.deferred.first_key_value()
            && *first < turn
        {
            let wait_until = deferred.due_at + WAIT_IN_PLACE;
            if now >= wait_until {
                // The longer the earlier message is overdue, the longer this message is put off.
                let overdue = now - deferred.due_at;
                return NextStep::PutOff(overdue.min(MAX_OVERDUE_WAIT));
            }
            if deferred.due_at > now + WAIT_IN_PLACE {
                // Spreads the returns over up to a second, in the order of the turns.
                let spread = Duration::from_millis((turn - first).min(1_000));
                return NextStep::PutOff(deferred.due_at - now + RETURN_GAP + spread);
            }
            return NextStep::Wait(Some(wait_until.min(deferred.expires_at)));
        }
        // Messages that are not deferred run one after the other, in the order of their turns.
        let is_first = self.waiting.keys().next() == Some(&turn);
        if self.running.is_none() && is_first {
            self.waiting.remove(&turn);
            self.running = Some(turn);
            return NextStep::Run;
        }
        NextStep::Wait(None)
    }

    /// Sets the waker of a waiting message.
    pub(super) fn set_waker(&mut self, turn: Turn, waker: &Waker) {
        if let Some(stored) = self.waiting.get_mut(&turn) {
            match stored {
                Some(known) if known.will_wake(waker) => {}
                stored => *stored = Some(waker.clone()),
            }
        }
    }

    /// Removes a message that was waiting or running.
    pub(super) fn leave(&mut self, turn: Turn) {
        self.waiting.remove(&turn);
        if self.running == Some(turn) {
            self.running = None;
        }
    }

    /// Keeps the turn of a message that will be delivered again. Returns `false` if another
    /// delivery of the message is deferred already. The message then keeps the earlier of the two
    /// turns.
    pub(super) fn defer(&mut self, turn: Turn, deferred: Deferred) -> bool {
        let kept_turn = self
            .turns
            .get(&deferred.identity)
            .map_or(turn, |known| turn.min(*known));
        let previous_turn = self.turns.insert(deferred.identity.clone(), kept_turn);
        if let Some(previous_turn) = previous_turn {
            self.deferred.remove(&previous_turn);
        }
        self.deferred.insert(kept_turn, deferred);
        previous_turn.is_none()
    }

    /// Removes and returns the waker of the first waiting message, or the wakers of all waiting
    /// messages if `all` is set. When a message is deferred, all waiting messages are woken,
    /// because each of them may have to be put off.
    pub(super) fn take_wakers(&mut self, all: bool) -> Vec<Waker> {
        let count = if all { usize::MAX } else { 1 };
        let waiting = self.waiting.values_mut().take(count);
        waiting.filter_map(Option::take).collect()
    }

    /// Removes deferred messages that have lost their turns.
    pub(super) fn remove_expired(&mut self, now: Instant) {
        self.deferred
            .retain(|_, deferred| deferred.expires_at > now);
        self.turns
            .retain(|_, turn| self.deferred.contains_key(turn));
    }

    /// Returns the number of deferred messages.
    pub(super) fn deferred_count(&self) -> usize {
        self.deferred.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.running.is_none() && self.waiting.is_empty() && self.deferred.is_empty()
    }
}
