//! What this worker holds: fetched, and not settled yet.

use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use foldhash::HashMap;
use tokio::time::Instant;

use super::entry::{EntryId, Lane};
use crate::{message::Lease, sync::lock};

/// The key of a delivery.
pub(super) type Key = (Lane, EntryId);

/// The deliveries whose leases are to be renewed.
#[derive(Debug, Default)]
pub(super) struct Held(Mutex<Holds>);

#[derive(Debug, Default)]
struct Holds {
    by_key: HashMap<Key, Hold>,
    /// How many of them have no verdict yet.
    open: usize,
}

#[derive(Debug)]
struct Hold {
    lease: Lease,
    renewed: Instant,
    /// Whether a verdict is on its way: when the entry is not ours any more, that was probably us.
    settling: bool,
}

impl Held {
    /// Adds a delivery that was fetched, or whose lease was renewed, at this time.
    pub(super) fn add(&self, key: Key, lease: Lease, at: Instant) {
        let hold = Hold {
            lease,
            renewed: at,
            settling: false,
        };
        let mut held = self.lock();
        held.remove(key);
        held.by_key.insert(key, hold);
        held.open += 1;
    }

    pub(super) fn holds(&self, key: Key) -> bool {
        self.lock().by_key.contains_key(&key)
    }

    /// Whether there are deliveries whose verdict is still to come.
    pub(super) fn has_open(&self) -> bool {
        self.lock().open > 0
    }

    /// A verdict is on its way. The lease is kept until it has arrived.
    pub(super) fn settling(&self, key: Key) {
        let mut held = self.lock();
        if let Some(hold) = held.by_key.get_mut(&key)
            && !std::mem::replace(&mut hold.settling, true)
        {
            held.open -= 1;
        }
    }

    /// These are not held any more.
    pub(super) fn remove(&self, keys: impl IntoIterator<Item = Key>) {
        let mut held = self.lock();
        for key in keys {
            held.remove(key);
        }
    }

    /// What was not renewed for this long, on a lane.
    pub(super) fn older_than(&self, age: Duration, lane: Lane) -> Vec<EntryId> {
        let now = Instant::now();
        let due = |hold: &Hold| now.saturating_duration_since(hold.renewed) > age;
        let mut old: Vec<_> = (self.lock().by_key.iter())
            .filter(|((on, _), hold)| *on == lane && due(hold))
            .map(|((_, id), _)| *id)
            .collect();
        // The oldest first.
        old.sort_unstable();
        old
    }

    /// These were renewed by a command that was sent at this time.
    pub(super) fn renewed(&self, lane: Lane, ids: &[EntryId], at: Instant) {
        let mut held = self.lock();
        for id in ids {
            if let Some(hold) = held.by_key.get_mut(&(lane, *id)) {
                hold.renewed = at;
            }
        }
    }

    /// Another worker has this one. Where that is news, for it was held and not being settled: its
    /// lease, which is to be [lost](Lease::lose) once the loss is counted.
    pub(super) fn lose(&self, key: Key) -> Option<Lease> {
        let mut held = self.lock();
        if held.by_key.get(&key).is_some_and(|hold| hold.settling) {
            return None;
        }
        held.remove(key).map(|hold| hold.lease)
    }

    fn lock(&self) -> MutexGuard<'_, Holds> {
        // No caller's code runs under the lock, so a panic cannot leave the map half changed.
        lock(&self.0)
    }
}

impl Holds {
    fn remove(&mut self, key: Key) -> Option<Hold> {
        let hold = self.by_key.remove(&key)?;
        self.open -= usize::from(!hold.settling);
        Some(hold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_news_once_and_not_while_a_verdict_is_on_its_way() {
        let held = Held::default();
        let key = |id| (Lane::Main, EntryId::parse(id).unwrap());
        held.add(key(b"1-1"), Lease::new(), Instant::now());
        held.add(key(b"1-2"), Lease::new(), Instant::now());
        held.settling(key(b"1-2"));
        assert!(held.lose(key(b"1-1")).is_some());
        assert!(held.lose(key(b"1-1")).is_none(), "it is known");
        assert!(
            held.lose(key(b"1-2")).is_none(),
            "our own verdict may have done that"
        );
        assert!(held.holds(key(b"1-2")));
    }

    #[test]
    fn a_delivery_is_open_until_its_verdict_comes_or_it_is_gone() {
        let held = Held::default();
        let key = |id| (Lane::Main, EntryId::parse(id).unwrap());
        let add = |id| held.add(key(id), Lease::new(), Instant::now());
        add(b"1-1");
        add(b"1-1");
        held.settling(key(b"1-1"));
        held.settling(key(b"1-1"));
        assert!(!held.has_open());
        add(b"1-2");
        assert!(held.has_open());
        held.remove([key(b"1-1"), key(b"1-2")]);
        assert!(!held.has_open());
    }

    #[test]
    fn only_what_is_old_on_the_lane_is_to_be_renewed() {
        let held = Held::default();
        let id = EntryId::parse(b"1-1").unwrap();
        let long_ago = Instant::now() - Duration::from_secs(5);
        held.add((Lane::Main, id), Lease::new(), long_ago);
        let old = |lane| held.older_than(Duration::from_secs(3), lane);
        assert_eq!(old(Lane::Main), [id]);
        assert_eq!(old(Lane::Retry), []);
        held.renewed(Lane::Main, &[id], Instant::now());
        assert_eq!(old(Lane::Main), []);
    }
}
