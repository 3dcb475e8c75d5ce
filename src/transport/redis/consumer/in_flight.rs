//! The deliveries of this consumer that are running or settling.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use foldhash::HashMap;
use tokio::{sync::Notify, time::Instant};

use crate::{
    message::Lease,
    sync::lock,
    transport::redis::entry::{StreamEntryId, WhichStream},
};

/// The key of a delivery: the stream and the id of its entry.
pub(super) type DeliveryKey = (WhichStream, StreamEntryId);

/// The deliveries whose leases are renewed. Each delivery is in the table from its fetch until its
/// settlement is confirmed or has failed, or until it is lost.
#[derive(Debug, Default)]
pub(super) struct InFlightTable {
    deliveries: Mutex<Deliveries>,
    /// The number of deliveries with a verdict whose guards still exist.
    open_verdicts: AtomicUsize,
    /// Notified when `open_verdicts` falls to zero.
    settled: Notify,
    /// Notified when guards are dropped or removed. A lost delivery leaves the table before its
    /// guard is dropped.
    freed: Notify,
}

#[derive(Debug, Default)]
struct Deliveries {
    by_key: HashMap<DeliveryKey, InFlightEntry>,
    /// The number of deliveries that are not settling.
    running: usize,
    /// The number of the delivery that was added last.
    last_number: u64,
}

#[derive(Debug)]
struct InFlightEntry {
    /// Distinguishes this delivery from an earlier one of the same entry that was lost.
    number: u64,
    lease: Lease,
    /// The time at which the last command that renewed the lease was sent.
    renewed_at: Instant,
    /// Set before the settlement is sent. From then on, a missing pending entry does not mean that
    /// the lease is lost: the settlement itself may have removed the entry.
    is_settling: bool,
    /// The id of the task, if its status is recorded. Each tick of the upkeep renews the lease of
    /// such a task, because the renewal detects that the task was cancelled.
    task: Option<Box<str>>,
}

impl InFlightTable {
    /// Adds deliveries and returns their guards, in the order of the keys. `at` is the time at
    /// which the command that fetched the deliveries was sent.
    ///
    /// If a delivery has the key of an earlier one, the earlier delivery is removed and its lease
    /// is lost. This happens after a failover: the new primary lacks the earlier read, so that the
    /// entry was read again, or it lacks the entry, so that another entry got the same id.
    pub(super) fn add(
        self: &Arc<Self>,
        keys: impl ExactSizeIterator<Item = DeliveryKey>,
        at: Instant,
    ) -> Vec<LeaseGuard> {
        let mut guards = Vec::with_capacity(keys.len());
        let mut replaced = Vec::new();
        let mut deliveries = self.lock();
        for key in keys {
            deliveries.last_number += 1;
            let (number, lease) = (deliveries.last_number, Lease::with_outbox());
            let entry = InFlightEntry {
                number,
                lease: lease.clone(),
                renewed_at: at,
                is_settling: false,
                task: None,
            };
            deliveries.running += 1;
            if let Some(before) = deliveries.by_key.insert(key, entry) {
                deliveries.running -= usize::from(!before.is_settling);
                replaced.push(before.lease);
            }
            guards.push(LeaseGuard {
                table: self.clone(),
                delivery_key: key,
                number,
                lease,
                verdict_given: false,
                removed: false,
            });
        }
        drop(deliveries);
        replaced.iter().for_each(Lease::lose);
        guards
    }

    pub(super) fn contains(&self, key: DeliveryKey) -> bool {
        self.lock().by_key.contains_key(&key)
    }

    /// Returns `true` if a delivery is running, that is, not settling.
    pub(super) fn has_running(&self) -> bool {
        self.lock().running > 0
    }

    /// Marks deliveries as settling, before their settlements are sent.
    pub(super) fn mark_settling<'a>(&self, guards: impl IntoIterator<Item = &'a LeaseGuard>) {
        let mut deliveries = self.lock();
        for guard in guards {
            if let Some(entry) = deliveries.entry_of(guard) {
                let was_settling = std::mem::replace(&mut entry.is_settling, true);
                deliveries.running -= usize::from(!was_settling);
            }
        }
    }

    /// Removes deliveries as if each guard was dropped, but locks the table only once.
    pub(super) fn remove_all<'a>(&self, guards: impl IntoIterator<Item = &'a mut LeaseGuard>) {
        let mut confirmed = 0;
        let mut deliveries = self.lock();
        for guard in guards {
            guard.removed = true;
            confirmed += usize::from(guard.verdict_given);
            deliveries.remove(guard);
        }
        drop(deliveries);
        self.freed.notify_one();
        self.confirm(confirmed);
    }

    /// Waits until a guard is dropped or removed. Returns immediately if this has happened since
    /// the last call.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Waits until the guard of each delivery with a verdict is dropped or removed, because the
    /// delivery was settled or could not be settled.
    pub(super) async fn all_settled(&self) {
        loop {
            let settled = self.settled.notified();
            if self.open_verdicts.load(Ordering::SeqCst) == 0 {
                return;
            }
            settled.await;
        }
    }

    /// Returns the deliveries whose last renewal is longer than `age` ago, and all deliveries of
    /// tasks whose status is recorded. Groups them by stream, and sorts them by entry id.
    pub(super) fn due_for_renewal(&self, age: Duration) -> Vec<(WhichStream, Vec<StreamEntryId>)> {
        let now = Instant::now();
        let mut due = BTreeMap::<WhichStream, Vec<StreamEntryId>>::new();
        for ((which, id), entry) in &self.lock().by_key {
            if entry.task.is_some() || now.saturating_duration_since(entry.renewed_at) > age {
                due.entry(*which).or_default().push(*id);
            }
        }
        let mut due: Vec<_> = due.into_iter().collect();
        for (_, ids) in &mut due {
            ids.sort_unstable();
        }
        due
    }

    /// Records that deliveries were renewed by a command sent at `at`.
    pub(super) fn mark_renewed(&self, which: WhichStream, ids: &[StreamEntryId], at: Instant) {
        let mut deliveries = self.lock();
        for id in ids {
            if let Some(entry) = deliveries.by_key.get_mut(&(which, *id)) {
                entry.renewed_at = at;
            }
        }
    }

    /// Removes a delivery that is no longer pending for this consumer. Returns its lease, and the
    /// id of the task if its status is recorded. `None` if the delivery is not in the table, or is
    /// settling. The caller counts the loss before it marks the lease as [lost](Lease::lose).
    pub(super) fn lose(&self, key: DeliveryKey) -> Option<(Lease, Option<Box<str>>)> {
        let mut deliveries = self.lock();
        let entry = deliveries.by_key.get(&key).filter(|it| !it.is_settling)?;
        let lease = entry.lease.clone();
        let entry = deliveries.by_key.remove(&key);
        deliveries.running -= 1;
        Some((lease, entry.and_then(|entry| entry.task)))
    }

    /// Removes all deliveries that are not settling. Returns their keys and leases, for the caller
    /// to mark as [lost](Lease::lose).
    pub(super) fn lose_all(&self) -> Vec<(DeliveryKey, Lease)> {
        let mut deliveries = self.lock();
        let running = deliveries.by_key.iter().filter(|(_, it)| !it.is_settling);
        let lost: Vec<_> = running.map(|(key, it)| (*key, it.lease.clone())).collect();
        deliveries.by_key.retain(|_, it| it.is_settling);
        deliveries.running = 0;
        lost
    }

    /// Subtracts verdicts from `open_verdicts`, and notifies if none is left.
    fn confirm(&self, verdicts: usize) {
        if verdicts > 0 && self.open_verdicts.fetch_sub(verdicts, Ordering::SeqCst) == verdicts {
            self.settled.notify_waiters();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Deliveries> {
        // No user code runs under the lock, so a panic cannot leave the map half changed.
        lock(&self.deliveries)
    }
}

impl Deliveries {
    /// Returns the entry of a guard. `None` if a later delivery has replaced it.
    fn entry_of(&mut self, guard: &LeaseGuard) -> Option<&mut InFlightEntry> {
        let entry = self.by_key.get_mut(&guard.delivery_key)?;
        (entry.number == guard.number).then_some(entry)
    }

    fn remove(&mut self, guard: &LeaseGuard) {
        if let Some(entry) = self.entry_of(guard) {
            self.running -= usize::from(!entry.is_settling);
            self.by_key.remove(&guard.delivery_key);
        }
    }
}

/// A delivery in the table. Its lease is renewed until the guard is dropped.
pub(super) struct LeaseGuard {
    table: Arc<InFlightTable>,
    pub(super) delivery_key: DeliveryKey,
    number: u64,
    pub(super) lease: Lease,
    verdict_given: bool,
    removed: bool,
}

impl LeaseGuard {
    /// Records the id of a task whose status is recorded.
    pub(super) fn set_task(&self, id: &str) {
        if let Some(entry) = self.table.lock().entry_of(self) {
            entry.task = Some(id.into());
        }
    }

    /// Makes [`InFlightTable::all_settled`] wait until this guard is dropped or removed.
    pub(super) fn give_verdict(&mut self) {
        if !std::mem::replace(&mut self.verdict_given, true) {
            self.table.open_verdicts.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Removes a delivery whose settlement found that another consumer has the entry. Returns
    /// `true` if the loss was not known before.
    pub(super) fn lose(&self) -> bool {
        let is_news = !self.lease.is_lost();
        if is_news {
            self.table.lock().remove(self);
        }
        is_news
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        if !self.removed {
            let table = self.table.clone();
            table.remove_all([self]);
        }
    }
}

impl fmt::Debug for LeaseGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LeaseGuard")
            .field(&self.delivery_key)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> DeliveryKey {
        (
            WhichStream::Primary(0),
            StreamEntryId::parse(id.as_bytes()).unwrap(),
        )
    }

    fn add(table: &Arc<InFlightTable>, id: &str) -> LeaseGuard {
        let guards = table.add([key(id)].into_iter(), Instant::now());
        guards.into_iter().next().unwrap()
    }

    #[test]
    fn a_loss_is_reported_once_and_not_for_a_delivery_that_is_settling() {
        let table = Arc::default();
        let (_running, settling) = (add(&table, "1-1"), add(&table, "1-2"));
        table.mark_settling([&settling]);
        assert!(table.lose(key("1-1")).is_some());
        assert!(table.lose(key("1-1")).is_none(), "the loss is known");
        assert!(table.lose(key("1-2")).is_none(), "it may have settled");
        assert!(table.contains(key("1-2")));
    }

    #[test]
    fn a_delivery_is_running_until_it_is_settling_or_removed() {
        let table = Arc::default();
        let first = add(&table, "1-1");
        assert!(table.has_running());
        table.mark_settling([&first]);
        table.mark_settling([&first]);
        assert!(!table.has_running());
        let second = add(&table, "1-2");
        drop(first);
        assert!(table.has_running() && !table.contains(key("1-1")));
        drop(second);
        assert!(!table.has_running());
    }

    #[test]
    fn a_guard_of_a_lost_delivery_leaves_the_delivery_that_was_fetched_after_it() {
        let table = Arc::default();
        let lost = add(&table, "1-1");
        table.lose(key("1-1")).unwrap().0.lose();
        let again = add(&table, "1-1");
        table.mark_settling([&lost]);
        assert!(table.has_running(), "the verdict was another delivery's");
        drop(lost);
        assert!(table.contains(key("1-1")));
        drop(again);
        assert!(!table.contains(key("1-1")));
    }

    #[test]
    fn a_delivery_that_is_fetched_again_loses_its_lease() {
        let table = Arc::default();
        let before = add(&table, "1-1");
        let again = add(&table, "1-1");
        assert!(before.lease.is_lost());
        assert!(!again.lease.is_lost() && table.contains(key("1-1")));
    }

    #[tokio::test(start_paused = true)]
    async fn all_is_settled_once_the_guards_of_all_verdicts_are_released() {
        let table = Arc::default();
        let (mut first, mut second) = (add(&table, "1-1"), add(&table, "1-2"));
        first.give_verdict();
        second.give_verdict();
        second.give_verdict();
        table.remove_all([&mut first]);
        let wait = Duration::from_secs(1);
        let settled = tokio::time::timeout(wait, table.all_settled()).await;
        settled.expect_err("the second verdict is not confirmed");
        drop(second);
        table.all_settled().await;
    }

    #[test]
    fn only_old_deliveries_are_due_for_renewal() {
        let table = Arc::<InFlightTable>::default();
        let long_ago = Instant::now() - Duration::from_secs(5);
        let id = key("1-1").1;
        let _guards = table.add([(WhichStream::Primary(0), id)].into_iter(), long_ago);
        let due = || table.due_for_renewal(Duration::from_secs(3));
        assert_eq!(due(), [(WhichStream::Primary(0), vec![id])]);
        table.mark_renewed(WhichStream::Primary(0), &[id], Instant::now());
        assert_eq!(due(), []);
    }
}
