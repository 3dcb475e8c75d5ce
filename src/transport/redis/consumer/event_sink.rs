//! Decodes events, hands them over to the source, and reports gaps.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{prefetch::PrefetchBuffer, state::SubscriptionState};
use crate::{
    message::{Kind, Message, Name, Parts},
    transport::{
        Counters, Interest, glob,
        redis::{
            connection::{PubSub, Published, copy_if_small},
            state::EventGapHook,
        },
    },
};

/// The maximum number of events that are handed over at once.
const MAX_HANDED_OVER: usize = 256;
/// The shortest time between two warnings about dropped events.
const WARNING_PERIOD: Duration = Duration::from_secs(5);

/// The channels of a source, with the names of their events.
pub(super) struct EventChannels {
    /// The prefix of every channel.
    prefix: Name,
    /// Event names by channel.
    pub(super) events: HashMap<Vec<u8>, Name>,
    /// Patterns of event names by channel pattern.
    pub(super) patterns: HashMap<Vec<u8>, Name>,
    /// Names of sharded events by channel.
    pub(super) sharded: HashMap<Vec<u8>, Name>,
}

impl EventChannels {
    pub(super) fn new(interest: &Interest, prefix: Name) -> Self {
        let by_channel = |prefix: &str, names: &[Name]| -> HashMap<_, _> {
            let with_channel = |name: &Name| (format!("{prefix}{name}").into_bytes(), name.clone());
            names.iter().map(with_channel).collect()
        };
        Self {
            events: by_channel(&prefix, &interest.events),
            patterns: by_channel(&glob::escape(&prefix), &interest.patterns),
            sharded: by_channel(&prefix, &interest.sharded),
            prefix,
        }
    }

    fn message(&self, event: Published) -> Message {
        let exact = match event.sharded {
            true => &self.sharded,
            false => &self.events,
        };
        // A pattern matches channels with any bytes, so the name may be invalid UTF-8.
        let known = (event.pattern.is_none()).then(|| exact.get(&event.channel[..]));
        let name = match known.flatten() {
            Some(name) => name.clone(),
            None => {
                let name = event.channel.strip_prefix(self.prefix.as_bytes());
                Name::from(String::from_utf8_lossy(name.unwrap_or(&event.channel)).as_ref())
            }
        };
        let mut parts = Parts::new(Kind::Event, name);
        parts.sharded = event.sharded;
        if let Some(pattern) = event.pattern {
            parts.pattern = self.patterns.get(&pattern[..]).cloned();
        }
        let mut payload = event.payload;
        copy_if_small(&mut payload);
        Message::from_parts(parts, payload)
    }
}

/// Passes received events to the source. Each connection has a separate sink.
#[derive(Clone)]
pub(super) struct EventSink {
    channels: Arc<EventChannels>,
    buffer: Arc<PrefetchBuffer>,
    counters: Arc<Counters>,
    /// The events of the next hand-over.
    batch: Vec<Message>,
    /// The number of dropped events that no warning has reported yet.
    dropped: usize,
    /// The time of the last warning about dropped events.
    last_warning: Option<Instant>,
}

impl EventSink {
    pub(super) fn new(
        channels: Arc<EventChannels>,
        buffer: Arc<PrefetchBuffer>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            channels,
            buffer,
            counters,
            batch: Vec::new(),
            dropped: 0,
            last_warning: None,
        }
    }

    /// Hands over `first` together with the events that `connection` has already received, so that
    /// the receiving task is woken once for all of them. Never waits: if the buffer is full, drops
    /// and counts events.
    pub(super) fn hand_over(&mut self, first: Published, connection: &mut PubSub) {
        let mut next = Some(first);
        while let Some(event) = next {
            self.batch.push(self.channels.message(event));
            let more = self.batch.len() < MAX_HANDED_OVER;
            next = more.then(|| connection.next_if_arrived()).flatten();
        }
        self.counters.events.add(self.batch.len() as u64);
        self.buffer.offer(&mut self.batch);
        if !self.batch.is_empty() {
            self.counters.events_dropped.add(self.batch.len() as u64);
            self.dropped += self.batch.len();
            self.batch.clear();
            if self
                .last_warning
                .is_none_or(|last| last.elapsed() >= WARNING_PERIOD)
            {
                self.last_warning = Some(Instant::now());
                let events = std::mem::take(&mut self.dropped);
                tracing::warn!(events, "dropped events: more came than are handled");
            }
        }
    }
}

/// Reports the gaps in the events of a source.
#[derive(Clone)]
pub(super) struct EventGaps {
    state: Arc<SubscriptionState>,
    counters: Arc<Counters>,
    on_gap: EventGapHook,
}

impl EventGaps {
    pub(super) fn new(
        state: Arc<SubscriptionState>,
        counters: Arc<Counters>,
        on_gap: EventGapHook,
    ) -> Self {
        Self {
            state,
            counters,
            on_gap,
        }
    }

    /// Records the loss of `count` subscriptions.
    pub(super) fn begin(&self, count: usize) {
        self.state.add_lost(count);
    }

    /// Reports that `count` subscriptions are restored after a gap of this length.
    pub(super) fn end(&self, count: usize, gap: Duration) {
        self.counters.reconnects.increment();
        tracing::warn!(
            gap = ?gap,
            "subscribed to the events again; those published in between are lost"
        );
        self.state.remove_lost(count);
        self.on_gap.call(gap);
    }
}
