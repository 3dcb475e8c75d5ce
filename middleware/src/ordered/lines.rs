//! The lines of all keys, and the order in which messages join them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::{Arc, Mutex},
    task::Waker,
    time::Duration,
};

use tokio::time::Instant;

use super::line::{Away, Line, Step, Turn};
use crate::{
    key::{Identity, Key},
    sync::lock,
};

/// How many may be away before those who do not come back are searched for, and how often they are.
const SEARCHED_FROM: usize = 1_000;
const SEARCHED_EVERY: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Lines(Mutex<State>);

#[derive(Default)]
struct State {
    drawn: Turn,
    /// Turns whose messages have not come yet.
    reserved: BTreeSet<Turn>,
    /// Who could run if it were not for a reserved turn before.
    held_up: BTreeMap<Turn, Waker>,
    lines: HashMap<Key, Line>,
    /// How many of all lines are away.
    away: usize,
    searched: Option<Instant>,
}

impl Lines {
    /// Reserves the next turn, for a message that is about to come.
    pub(super) fn reserve(self: &Arc<Self>) -> Reserved {
        let mut state = lock(&self.0);
        state.drawn += 1;
        let turn = state.drawn;
        state.reserved.insert(turn);
        Reserved {
            turn,
            lines: self.clone(),
        }
    }

    /// How many lines there are.
    pub(super) fn keys(&self) -> usize {
        lock(&self.0).lines.len()
    }

    /// What the message of this turn has to do. It is woken when that changes.
    pub(super) fn step(&self, key: &Key, turn: Turn, can_be_put_off: bool, waker: &Waker) -> Step {
        let mut state = lock(&self.0);
        if state.reserved.first().is_some_and(|first| *first < turn) {
            state.held_up.insert(turn, waker.clone());
            return Step::Wait(None);
        }
        let state = &mut *state;
        let line = state.lines.get_mut(key).expect("it has somebody in it");
        let before = line.away();
        let step = line.step(turn, can_be_put_off);
        state.away -= before - line.away();
        if let Step::Wait(_) = step {
            line.wake_by(turn, waker);
        }
        step
    }

    /// The message of this turn ends here, and is delivered again if it is to be `away`. Returns
    /// whether it keeps its turn then.
    pub(super) fn end(&self, key: &Key, turn: Turn, away: Option<Away>, most_away: usize) -> bool {
        let (keeps, wakers) = lock(&self.0).end(key, turn, away, most_away);
        wakers.into_iter().for_each(Waker::wake);
        keeps
    }
}

impl State {
    /// Returns whether the message keeps its turn, and whom to wake.
    fn end(
        &mut self,
        key: &Key,
        turn: Turn,
        away: Option<Away>,
        most_away: usize,
    ) -> (bool, Vec<Waker>) {
        self.held_up.remove(&turn);
        if self.away >= SEARCHED_FROM.min(most_away) {
            self.search(Instant::now());
        }
        let away = away.filter(|_| self.away < most_away);
        let keeps = away.is_some();
        let line = self.lines.get_mut(key);
        let line = line.expect("it has somebody in it");
        line.leave(turn);
        if let Some(away) = away
            && line.keep(turn, away)
        {
            self.away += 1;
        }
        let wakers = line.wakers(keeps);
        if line.is_empty() {
            self.lines.remove(key);
        }
        (keeps, wakers)
    }

    /// Forgets who does not come back.
    fn search(&mut self, now: Instant) {
        if self
            .searched
            .is_some_and(|last| now - last < SEARCHED_EVERY)
        {
            return;
        }
        self.searched = Some(now);
        self.lines.retain(|_, line| {
            line.forget(now);
            !line.is_empty()
        });
        self.away = self.lines.values().map(Line::away).sum();
    }

    /// A turn is not reserved any more. Returns those who were held up by it.
    fn unreserve(&mut self, turn: Turn) -> BTreeMap<Turn, Waker> {
        let was_first = self.reserved.first() == Some(&turn);
        self.reserved.remove(&turn);
        if !was_first {
            return BTreeMap::new();
        }
        match self.reserved.first() {
            Some(next) => {
                let still = self.held_up.split_off(next);
                std::mem::replace(&mut self.held_up, still)
            }
            None => std::mem::take(&mut self.held_up),
        }
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.0);
        f.debug_struct("Lines")
            .field("keys", &state.lines.len())
            .field("away", &state.away)
            .finish_non_exhaustive()
    }
}

/// A turn whose message has not come yet. Dropping it gives the turn up.
#[derive(Debug)]
pub(super) struct Reserved {
    turn: Turn,
    lines: Arc<Lines>,
}

impl Reserved {
    /// The message has come.
    pub(super) fn arrive(self, key: &Key, identity: Option<&Identity>) -> Turn {
        let state = &mut *lock(&self.lines.0);
        let line = state.lines.entry(key.clone()).or_default();
        let before = line.away();
        let turn = line.arrive(self.turn, identity);
        state.away -= before - line.away();
        turn
        // The turn stays reserved until `self` is dropped, which is after the message is in line.
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let woken = lock(&self.lines.0).unreserve(self.turn);
        woken.into_values().for_each(Waker::wake);
    }
}
