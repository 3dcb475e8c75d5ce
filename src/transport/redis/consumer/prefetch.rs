//! The buffer between the task that fetches and `Source::next`, and the demand for more.

use std::{
    collections::VecDeque,
    future,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::settle::RedisSettle;
use crate::{message::Message, sync::lock, transport::Delivery};

type Deliveries = Vec<Delivery<RedisSettle>>;

/// The time after which deliveries that were not asked for are released.
const PATIENCE: Duration = Duration::from_millis(100);

/// The time for which `next` waits for the stream before it returns events.
const TURN: Duration = Duration::from_millis(5);

/// Deliveries and events that were fetched and not handed out yet.
#[derive(Debug)]
pub(super) struct PrefetchBuffer {
    state: Mutex<PrefetchState>,
    /// The most events in the buffer.
    event_buffer: usize,
    /// Wakes the task that fetches: there is demand, or the buffer was stopped.
    wanted: Notify,
    /// Wakes `next`: something has arrived.
    arrived: Notify,
}

#[derive(Debug, Default)]
struct PrefetchState {
    /// Deliveries from the stream. There are more than the demand only if a response had too many,
    /// or the call of `next` was dropped.
    ready: VecDeque<Delivery<RedisSettle>>,
    events: VecDeque<Delivery<RedisSettle>>,
    /// The number of deliveries that `next` waits for.
    demand: usize,
    /// Set if events are handed out first next time. It alternates.
    events_first: bool,
    /// Set while a read waits on the stream: what arrives there needs no demand.
    reading: bool,
    stopped: bool,
}

/// The next step of the task that fetches.
pub(super) enum Demand {
    /// Fetch this many.
    Deliveries(usize),
    /// Release these, for which there was no demand.
    Nothing(Deliveries),
    Stop,
}

impl PrefetchBuffer {
    pub(super) fn new(event_buffer: usize) -> Self {
        Self {
            state: Mutex::default(),
            event_buffer,
            wanted: Notify::new(),
            arrived: Notify::new(),
        }
    }

    /// Waits until the task that fetches has something to do.
    pub(super) async fn demanded(&self) -> Demand {
        loop {
            let surplus = {
                let state = self.lock();
                if state.stopped {
                    return Demand::Stop;
                }
                if state.demand > 0 {
                    return Demand::Deliveries(state.demand);
                }
                !state.ready.is_empty()
            };
            if !surplus {
                self.wanted.notified().await;
            } else if timeout(PATIENCE, self.wanted.notified()).await.is_err() {
                let mut state = self.lock();
                if state.demand == 0 && !state.stopped {
                    return Demand::Nothing(state.ready.drain(..).collect());
                }
            }
        }
    }

    /// The number of deliveries that `next` waits for.
    pub(super) fn demand(&self) -> usize {
        self.lock().demand
    }

    /// Adds fetched deliveries.
    pub(super) fn put(&self, deliveries: Deliveries) {
        if deliveries.is_empty() {
            return;
        }
        let mut state = self.lock();
        state.demand = state.demand.saturating_sub(deliveries.len());
        if state.ready.is_empty() {
            // Converts in place, since moving hundreds of deliveries is measurable.
            state.ready = deliveries.into();
        } else {
            state.ready.extend(deliveries);
        }
        drop(state);
        self.arrived.notify_one();
    }

    /// Takes events from the front of the list while there is room.
    pub(super) fn offer(&self, events: &mut Vec<Message>) {
        let mut state = self.lock();
        if state.stopped {
            return;
        }
        let room = self.event_buffer.saturating_sub(state.events.len());
        let taken = events.drain(..events.len().min(room));
        let deliveries = taken.map(|event| Delivery::new(Ok(event), RedisSettle::event()));
        state.events.extend(deliveries);
        drop(state);
        self.arrived.notify_one();
    }

    /// Waits for at most `max` deliveries. When it is dropped the demand ends, and what arrives
    /// later is kept.
    pub(super) async fn take(&self, max: usize) -> Deliveries {
        let _asked = Asked(self);
        self.give_the_stream_its_turn(max).await;
        loop {
            let stopped = {
                let mut state = self.lock();
                let deliveries = state.take(max);
                if !deliveries.is_empty() {
                    return deliveries;
                }
                state.demand = max;
                state.stopped
            };
            if stopped {
                return future::pending().await;
            }
            self.wanted.notify_one();
            self.arrived.notified().await;
        }
    }

    /// If only events are ready, and it is the stream's turn, asks the stream and waits for a
    /// moment. Otherwise a steady flow of events would starve the stream.
    async fn give_the_stream_its_turn(&self, max: usize) {
        {
            let mut state = self.lock();
            let known = state.reading || state.stopped || !state.ready.is_empty();
            if known || state.events_first || state.events.is_empty() {
                return;
            }
            state.demand = max;
        }
        self.wanted.notify_one();
        let answered = async {
            while self.lock().ready.is_empty() {
                self.arrived.notified().await;
            }
        };
        let _ = timeout(TURN, answered).await;
    }

    /// Sets whether a read waits on the stream.
    pub(super) fn set_reading(&self, reading: bool) {
        self.lock().reading = reading;
    }

    /// Stops the fetching.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.wanted.notify_waiters();
        self.wanted.notify_one();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Sleeps until then, or until the buffer is stopped.
    pub(super) async fn pause(&self, wait: Duration) {
        tokio::select! {
            biased;
            () = sleep(wait) => {}
            () = self.stopped() => {}
        }
    }

    /// Waits until the buffer is stopped.
    pub(super) async fn stopped(&self) {
        loop {
            let woken = self.wanted.notified();
            if self.is_stopped() {
                return;
            }
            woken.await;
        }
    }

    /// Takes the deliveries that were not handed out, and the number of such events.
    pub(super) fn rest(&self) -> (Deliveries, usize) {
        let mut state = self.lock();
        let events = state.events.len();
        state.events.clear();
        (state.ready.drain(..).collect(), events)
    }

    fn lock(&self) -> MutexGuard<'_, PrefetchState> {
        lock(&self.state)
    }
}

impl PrefetchState {
    fn take(&mut self, max: usize) -> Deliveries {
        if self.events.is_empty() && self.ready.len() <= max {
            return std::mem::take(&mut self.ready).into();
        }
        let mut taken = Vec::new();
        // Alternates, so that neither starves the other.
        let order = match self.events_first {
            true => [&mut self.events, &mut self.ready],
            false => [&mut self.ready, &mut self.events],
        };
        for queue in order {
            let count = queue.len().min(max - taken.len());
            taken.extend(queue.drain(..count));
        }
        self.events_first = !self.events_first;
        taken
    }
}

/// Withdraws the demand of `next` when it is dropped.
struct Asked<'a>(&'a PrefetchBuffer);

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.0.lock().demand = 0;
    }
}
