//! The line of one key.

use std::{
    collections::{BTreeMap, HashMap},
    task::Waker,
    time::Duration,
};

use tokio::time::Instant;

use crate::key::Identity;

/// How long a message waits in place for one that is to come back before it: long enough for what
/// was put off together to come back in any order, and short since it keeps a slot from that one.
pub(super) const IN_PLACE: Duration = Duration::from_millis(250);
/// How long after the one before them those who are put off come back at the earliest.
const BEHIND: Duration = Duration::from_millis(10);
/// How long those who are put off at most wait for one that is overdue before they look again.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// The number of a message in the order of all messages.
pub(super) type Turn = u64;

/// Everybody with one key.
#[derive(Debug, Default)]
pub(super) struct Line {
    running: Option<Turn>,
    /// Who waits in place.
    here: BTreeMap<Turn, Option<Waker>>,
    /// Who is to be delivered again.
    away: BTreeMap<Turn, Away>,
    /// The turns of those who are away.
    turns: HashMap<Identity, Turn>,
}

/// A message that is to be delivered again.
#[derive(Debug)]
pub(super) struct Away {
    pub(super) identity: Identity,
    /// When it should come.
    pub(super) expected: Instant,
    /// When nobody waits for it any more.
    pub(super) until: Instant,
}

/// What a message that waits has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// It is its turn.
    Run,
    /// Wait until it is woken, or until then at the latest.
    Wait(Option<Instant>),
    /// Come back after this.
    PutOff(Duration),
}

impl Line {
    /// A message has come. Returns its turn: the one that it kept where it was away.
    pub(super) fn arrive(&mut self, turn: Turn, identity: Option<&Identity>) -> Turn {
        let kept = identity.and_then(|identity| self.turns.remove(identity));
        let turn = match kept {
            Some(kept) => {
                self.away.remove(&kept);
                kept
            }
            None => turn,
        };
        self.here.insert(turn, None);
        turn
    }

    /// What the message of this turn has to do. One that cannot be put off waits for nobody who is
    /// away.
    pub(super) fn step(&mut self, turn: Turn, can_be_put_off: bool) -> Step {
        let now = Instant::now();
        while let Some(first) = self.away.first_entry()
            && first.get().until <= now
        {
            let gone = first.remove();
            self.turns.remove(&gone.identity);
        }
        if can_be_put_off
            && let Some((first, away)) = self.away.first_key_value()
            && *first < turn
        {
            let in_place = away.expected + IN_PLACE;
            if now >= in_place {
                let overdue = now - away.expected;
                return Step::PutOff(overdue.min(LOOK_AGAIN));
            }
            if away.expected > now + IN_PLACE {
                // The later its turn, the later it comes, so that few come before their turn.
                let spread = Duration::from_millis((turn - first).min(1_000));
                return Step::PutOff(away.expected - now + BEHIND + spread);
            }
            return Step::Wait(Some(in_place.min(away.until)));
        }
        let is_first = self.here.keys().next() == Some(&turn);
        if self.running.is_none() && is_first {
            self.here.remove(&turn);
            self.running = Some(turn);
            return Step::Run;
        }
        Step::Wait(None)
    }

    /// Whom to wake when something changed before this turn.
    pub(super) fn wake_by(&mut self, turn: Turn, waker: &Waker) {
        if let Some(slot) = self.here.get_mut(&turn) {
            match slot {
                Some(known) if known.will_wake(waker) => {}
                slot => *slot = Some(waker.clone()),
            }
        }
    }

    /// The message of this turn is not here any more.
    pub(super) fn leave(&mut self, turn: Turn) {
        self.here.remove(&turn);
        if self.running == Some(turn) {
            self.running = None;
        }
    }

    /// The message of this turn will be delivered again, and keeps it. Returns whether it is one
    /// more that does.
    pub(super) fn keep(&mut self, turn: Turn, away: Away) -> bool {
        // Where a message was delivered twice at once, it is in one place all the same: the first.
        let first = self
            .turns
            .get(&away.identity)
            .map_or(turn, |known| turn.min(*known));
        let known = self.turns.insert(away.identity.clone(), first);
        if let Some(known) = known {
            self.away.remove(&known);
        }
        self.away.insert(first, away);
        known.is_none()
    }

    /// Those who have to look again: the first, or all, since somebody before them went away.
    pub(super) fn wakers(&mut self, all: bool) -> Vec<Waker> {
        let most = if all { usize::MAX } else { 1 };
        let waiting = self.here.values_mut().take(most);
        waiting.filter_map(Option::take).collect()
    }

    /// Forgets who is not waited for any more.
    pub(super) fn forget(&mut self, now: Instant) {
        self.away.retain(|_, away| away.until > now);
        self.turns.retain(|_, turn| self.away.contains_key(turn));
    }

    pub(super) fn away(&self) -> usize {
        self.away.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.running.is_none() && self.here.is_empty() && self.away.is_empty()
    }
}
