//! The shared limits of a group: their permits, their bookings, and the messages that are parked.

use std::{
    collections::{BTreeSet, VecDeque},
    future::ready,
    time::Duration,
};

use foldhash::HashMap;
use tokio::time::Instant;

use super::{
    broker::Broker,
    clock::instant_after,
    group::{Holder, QueuedMessage},
};
use crate::{
    message::PermitRequest,
    transport::{LimitStore, ParkedKey, Settings, StoreFuture},
};

/// Unused keys are removed once in this number of bookings.
const BOOKINGS_BETWEEN_SWEEPS: usize = 1024;

/// The limits of a group.
#[derive(Debug, Default)]
pub(super) struct Limits {
    keys: HashMap<String, KeyState>,
    /// The holders for which a permit is reserved, each with the key of its permit. A parked
    /// message is delivered when it gets a permit. The permit is reserved until that delivery takes
    /// it.
    reserved: HashMap<String, String>,
    /// The number of bookings so far.
    bookings: usize,
}

/// The state of one key of a limit.
#[derive(Debug, Default)]
struct KeyState {
    /// The number of permits, free or not. Zero for a paused name.
    permits: usize,
    /// The holders of permits, each with the number of times that it has taken its permit. Zero if
    /// the permit is only reserved.
    holders: HashMap<String, usize>,
    parked: VecDeque<QueuedMessage>,
    /// The past and booked start times, each with its holder.
    starts: BTreeSet<(Instant, String)>,
    /// The time for which a start counts towards the limit.
    period: Duration,
}

impl Limits {
    /// Takes a permit. Returns `false` if all are taken.
    pub(super) fn acquire(&mut self, permit: &PermitRequest) -> bool {
        if self.reserved.get(&permit.holder) == Some(&permit.key) {
            self.reserved.remove(&permit.holder);
        }
        let state = self.keys.entry(permit.key.clone()).or_default();
        state.permits = permit.permits;
        if let Some(times) = state.holders.get_mut(&permit.holder) {
            *times += 1;
            return true;
        }
        let is_free = state.holders.len() < state.permits;
        if is_free {
            state.holders.insert(permit.holder.clone(), 1);
        }
        is_free
    }

    /// Frees a permit. Returns the parked messages that are delivered now, each with a permit.
    pub(super) fn release(&mut self, key: &str, holder: &str) -> Vec<QueuedMessage> {
        if let Some(state) = self.keys.get_mut(key)
            && let Some(times) = state.holders.get_mut(holder)
        {
            *times = times.saturating_sub(1);
            if *times == 0 {
                state.holders.remove(holder);
            }
        }
        self.hand_over(key)
    }

    /// Frees the permit that is reserved for a delivery, unless the delivery has taken it. Returns
    /// the parked messages that are delivered now.
    pub(super) fn end_reservation(
        &mut self,
        holder: impl FnOnce() -> String,
    ) -> Vec<QueuedMessage> {
        if self.reserved.is_empty() {
            return Vec::new();
        }
        let holder = holder();
        match self.reserved.remove(&holder) {
            Some(key) => self.release(&key, &holder),
            None => Vec::new(),
        }
    }

    /// Parks a message. Returns the parked messages that are delivered now: a permit may have
    /// become free since this message was refused.
    pub(super) fn park(
        &mut self,
        key: String,
        permits: usize,
        message: QueuedMessage,
    ) -> Vec<QueuedMessage> {
        let state = self.keys.entry(key.clone()).or_default();
        state.permits = permits;
        state.parked.push_back(message);
        self.hand_over(&key)
    }

    /// Hands free permits to parked messages, and returns these messages.
    fn hand_over(&mut self, key: &str) -> Vec<QueuedMessage> {
        let Some(state) = self.keys.get_mut(key) else {
            return Vec::new();
        };
        let mut delivered = Vec::new();
        while state.holders.len() < state.permits
            && let Some(message) = state.parked.pop_front()
        {
            let holder = message.holder();
            state.holders.entry(holder.clone()).or_default();
            self.reserved.insert(holder, key.to_owned());
            delivered.push(message);
        }
        if state.is_unused(Instant::now()) {
            self.keys.remove(key);
        }
        delivered
    }

    /// Books the next free start time of a key. Returns the wait until that time.
    pub(super) fn book(&mut self, permit: &PermitRequest, period: Duration) -> Duration {
        let now = Instant::now();
        self.bookings += 1;
        if self.bookings.is_multiple_of(BOOKINGS_BETWEEN_SWEEPS) {
            self.sweep();
        }
        let state = self.keys.entry(permit.key.clone()).or_default();
        state.period = period;
        state.forget_past(now);
        let own_start = state
            .starts
            .iter()
            .find(|(_, holder)| *holder == permit.holder);
        let own_start = own_start.cloned();
        let is_booked = own_start.is_some_and(|own_start| state.starts.remove(&own_start));
        // A message that has a booking has waited for its time. So it is checked only against
        // starts in the past, not against later bookings.
        let starts_before = state.starts.iter();
        let starts_before = starts_before
            .filter(|(at, _)| !is_booked || *at <= now)
            .count();
        let at = match state.starts.iter().rev().nth(permit.permits - 1) {
            Some((last, _)) if starts_before >= permit.permits => {
                end_of_period(*last, period).max(now)
            }
            _ => now,
        };
        state.starts.insert((at, permit.holder.clone()));
        at - now
    }

    /// Removes and returns the messages that are parked for a key.
    pub(super) fn take_parked(&mut self, key: &str) -> VecDeque<QueuedMessage> {
        let parked = self.keys.get_mut(key).map(|key| &mut key.parked);
        let parked = parked.map(std::mem::take).unwrap_or_default();
        self.sweep();
        parked
    }

    /// Removes and returns all parked messages.
    pub(super) fn take_all_parked(&mut self) -> Vec<QueuedMessage> {
        let parked = self.keys.values_mut().flat_map(|key| key.parked.drain(..));
        let parked = parked.collect();
        self.sweep();
        parked
    }

    /// Removes parked messages that `is_it` selects. Returns `true` if there were any.
    pub(super) fn remove_parked(&mut self, is_it: impl Fn(&QueuedMessage) -> bool) -> bool {
        let mut removed = false;
        for key in self.keys.values_mut() {
            let before = key.parked.len();
            key.parked.retain(|message| !is_it(message));
            removed |= key.parked.len() < before;
        }
        self.sweep();
        removed
    }

    /// Removes the keys that are not in use.
    fn sweep(&mut self) {
        let now = Instant::now();
        self.keys.retain(|_, key| !key.is_unused(now));
    }

    /// Returns the keys with parked messages, in order.
    pub(super) fn parked_keys(&self) -> Vec<ParkedKey> {
        let keys = self
            .keys
            .iter()
            .filter(|(_, state)| !state.parked.is_empty());
        let keys = keys.map(|(key, state)| {
            // A paused name has no permits.
            let permits = Some(state.permits as u64).filter(|permits| *permits > 0);
            ParkedKey::new(
                key,
                state.parked.len() as u64,
                state.holders.len() as u64,
                permits,
            )
        });
        let mut keys: Vec<_> = keys.collect();
        keys.sort_by(|a, b| (&a.limit, &a.name).cmp(&(&b.limit, &b.name)));
        keys
    }

    /// Returns the number of parked messages.
    pub(super) fn parked_count(&self) -> usize {
        self.keys.values().map(|key| key.parked.len()).sum()
    }
}

impl KeyState {
    fn forget_past(&mut self, now: Instant) {
        self.starts
            .retain(|(at, _)| end_of_period(*at, self.period) > now);
    }

    fn is_unused(&mut self, now: Instant) -> bool {
        self.forget_past(now);
        self.holders.is_empty() && self.parked.is_empty() && self.starts.is_empty()
    }
}

fn end_of_period(at: Instant, period: Duration) -> Instant {
    at.checked_add(period)
        .unwrap_or_else(|| instant_after(Duration::MAX))
}

/// The limits of a handle's group, on any of its streams.
pub(super) struct MemoryLimits {
    pub(super) broker: Broker,
    pub(super) settings: Settings,
}

impl LimitStore for MemoryLimits {
    fn acquire<'a>(&'a self, permit: &'a PermitRequest) -> StoreFuture<'a, bool> {
        let settings = self.settings.of_stream(&permit.stream);
        let acquired = self
            .broker
            .with_group(&settings, |group, _| group.limits.acquire(permit));
        // A group that does not exist has nothing to limit.
        Box::pin(ready(Ok(acquired.unwrap_or(true))))
    }

    fn release(&self, permit: &PermitRequest) {
        let settings = self.settings.of_stream(&permit.stream);
        self.broker
            .with_group(&settings, |group, _| group.release_permit(permit));
    }

    fn book<'a>(
        &'a self,
        permit: &'a PermitRequest,
        period: Duration,
    ) -> StoreFuture<'a, Duration> {
        let settings = self.settings.of_stream(&permit.stream);
        let wait = self
            .broker
            .with_group(&settings, |group, _| group.limits.book(permit, period));
        Box::pin(ready(Ok(wait.unwrap_or_default())))
    }
}
