//! What this worker holds: fetched, and not settled yet.

use std::{
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use foldhash::HashMap;
use tokio::time::Instant;

use crate::transport::redis::entry::{EntryId, Lane};
use crate::{message::Lease, sync::lock};

/// The key of a delivery.
pub(super) type Key = (Lane, EntryId);

/// The deliveries whose leases are to be renewed.
#[derive(Debug, Default)]
pub(super) struct Held {
    by_key: Mutex<HashMap<Key, Hold>>,
    /// How many have no verdict yet.
    open: AtomicUsize,
}

#[derive(Debug)]
struct Hold {
    lease: Lease,
    renewed: Instant,
}

impl Held {
    /// Adds deliveries that were fetched, or whose leases were renewed, at this time.
    pub(super) fn add(&self, deliveries: impl IntoIterator<Item = (Key, Lease)>, at: Instant) {
        let mut held = self.lock();
        for (key, lease) in deliveries {
            self.open.fetch_add(1, Ordering::SeqCst);
            let hold = Hold { lease, renewed: at };
            if let Some(before) = held.insert(key, hold) {
                self.settling(&before.lease);
            }
        }
    }

    pub(super) fn holds(&self, key: Key) -> bool {
        self.lock().contains_key(&key)
    }

    /// Whether there are deliveries whose verdict is still to come.
    pub(super) fn has_open(&self) -> bool {
        self.open.load(Ordering::SeqCst) > 0
    }

    /// A verdict is on its way, or none will be. The lease is kept until it has arrived.
    pub(super) fn settling(&self, lease: &Lease) {
        if lease.settle() {
            self.open.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// These are not held any more.
    pub(super) fn remove(&self, keys: impl IntoIterator<Item = Key>) {
        let mut held = self.lock();
        for key in keys {
            if let Some(hold) = held.remove(&key) {
                self.settling(&hold.lease);
            }
        }
    }

    /// What was not renewed for this long, on a lane.
    pub(super) fn older_than(&self, age: Duration, lane: Lane) -> Vec<EntryId> {
        let now = Instant::now();
        let due = |hold: &Hold| now.saturating_duration_since(hold.renewed) > age;
        let mut old: Vec<_> = (self.lock().iter())
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
            if let Some(hold) = held.get_mut(&(lane, *id)) {
                hold.renewed = at;
            }
        }
    }

    /// Another worker has this one. Where that is news, for it was held and not being settled: its
    /// lease, which is to be [lost](Lease::lose) once the loss is counted.
    pub(super) fn lose(&self, key: Key) -> Option<Lease> {
        let mut held = self.lock();
        let hold = held.get(&key).filter(|hold| !hold.lease.is_settling())?;
        let lease = hold.lease.clone();
        held.remove(&key);
        self.settling(&lease);
        Some(lease)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Hold>> {
        // No code of users runs under the lock, so a panic cannot leave the map half changed.
        lock(&self.by_key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_news_once_and_not_while_a_verdict_is_on_its_way() {
        let held = Held::default();
        let key = |id| (Lane::Main, EntryId::parse(id).unwrap());
        let settling = Lease::new();
        let leases = [(key(b"1-1"), Lease::new()), (key(b"1-2"), settling.clone())];
        held.add(leases, Instant::now());
        held.settling(&settling);
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
        let add = |id| {
            let lease = Lease::new();
            held.add([(key(id), lease.clone())], Instant::now());
            lease
        };
        let fetched_twice = [add(b"1-1"), add(b"1-1")];
        assert!(held.has_open());
        held.settling(&fetched_twice[0]);
        assert!(held.has_open(), "that was the one before");
        held.settling(&fetched_twice[1]);
        held.settling(&fetched_twice[1]);
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
        held.add([((Lane::Main, id), Lease::new())], long_ago);
        let old = |lane| held.older_than(Duration::from_secs(3), lane);
        assert_eq!(old(Lane::Main), [id]);
        assert_eq!(old(Lane::Retry), []);
        held.renewed(Lane::Main, &[id], Instant::now());
        assert_eq!(old(Lane::Main), []);
    }
}
