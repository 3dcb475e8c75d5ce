//! Subscriptions and buffered events.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex},
};

use tokio::sync::Notify;

use super::group::SourceNumber;
use crate::{
    message::{EscapedText, Message, Name},
    sync::lock,
    transport::{Counters, Interest, glob},
};

/// The subscribers of a broker.
#[derive(Debug, Default)]
pub(super) struct Subscribers(Mutex<HashMap<SourceNumber, Subscriber>>);

/// The subscriptions of a source, and its buffered events.
#[derive(Debug)]
struct Subscriber {
    events: BTreeSet<Name>,
    patterns: BTreeSet<Name>,
    sharded: BTreeSet<Name>,
    buffer: VecDeque<Message>,
    max_buffered: usize,
    wake: Arc<Notify>,
}

impl Subscribers {
    pub(super) fn add(
        &self,
        consumer: SourceNumber,
        interest: Interest,
        max_buffered: usize,
        wake: Arc<Notify>,
    ) {
        let subscriber = Subscriber {
            events: interest.events.into_iter().collect(),
            patterns: interest.patterns.into_iter().collect(),
            sharded: interest.sharded.into_iter().collect(),
            buffer: VecDeque::new(),
            max_buffered,
            wake,
        };
        lock(&self.0).insert(consumer, subscriber);
    }

    /// Removes the subscriptions of a source, and drops and counts its buffered events.
    pub(super) fn remove(&self, consumer: SourceNumber, counters: &Counters) {
        if let Some(subscriber) = lock(&self.0).remove(&consumer) {
            counters.events_dropped.add(subscriber.buffer.len() as u64);
        }
    }

    /// Adds an event to the buffers of subscribers, once for each matching subscription.
    pub(super) fn publish(&self, event: &Message, counters: &Counters) {
        let (name, sharded) = (event.name(), event.parts().sharded);
        for subscriber in lock(&self.0).values_mut() {
            let names = match sharded {
                true => &subscriber.sharded,
                false => &subscriber.events,
            };
            let exact = names.contains(name).then_some(None);
            let patterns = subscriber
                .patterns
                .iter()
                .filter(|pattern| !sharded && glob::matches(pattern.as_bytes(), name.as_bytes()))
                .map(|pattern| Some(pattern.clone()));
            for pattern in exact.into_iter().chain(patterns) {
                counters.events.increment();
                if subscriber.buffer.len() >= subscriber.max_buffered {
                    counters.events_dropped.increment();
                    let name = EscapedText::new(name);
                    tracing::warn!(%name, "an event was dropped: the buffer of events is full");
                    continue;
                }
                let mut message = Message::event(name, event.payload().clone());
                message.parts_mut().pattern = pattern;
                message.parts_mut().sharded = sharded;
                subscriber.buffer.push_back(message);
            }
            subscriber.wake.notify_one();
        }
    }

    /// Removes up to `max` buffered events of a source, and converts each with `hand_out`. The lock
    /// is held until all are converted, so the observer of the test kit sees each event either in
    /// the buffer or in flight.
    pub(super) fn take<T>(
        &self,
        consumer: SourceNumber,
        max: usize,
        hand_out: impl FnMut(Message) -> T,
    ) -> Vec<T> {
        let mut subscribers = lock(&self.0);
        let Some(subscriber) = subscribers.get_mut(&consumer) else {
            return Vec::new();
        };
        let max = max.min(subscriber.buffer.len());
        subscriber.buffer.drain(..max).map(hand_out).collect()
    }

    /// Returns the number of buffered events of all subscribers.
    #[cfg(feature = "testing")]
    pub(super) fn buffered_events(&self) -> usize {
        let subscribers = lock(&self.0);
        subscribers.values().map(|one| one.buffer.len()).sum()
    }
}
