//! The buffer between the tasks that fetch and `Source::next`, with the demand for more.

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

/// How long a surplus waits for somebody to ask for it before it is given back.
const PATIENCE: Duration = Duration::from_millis(100);

/// How long the stream may take to answer before waiting events go first.
const TURN: Duration = Duration::from_millis(5);

/// Deliveries and events that were fetched and not handed out yet.
#[derive(Debug)]
pub(super) struct PrefetchBuffer {
    state: Mutex<State>,
    /// How many events may wait.
    event_buffer: usize,
    /// Wakes the reader: something is asked for, or nothing will be any more.
    wanted: Notify,
    /// Wakes `next`: something has come.
    arrived: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// From the stream: more than was asked for only where an answer held more than it should.
    ready: VecDeque<Delivery<RedisSettle>>,
    events: VecDeque<Delivery<RedisSettle>>,
    /// How many deliveries are asked for right now.
    demand: usize,
    /// Whose turn it is to be handed out first.
    events_first: bool,
    /// Whether the reader waits for the stream: what comes will be here without being asked for.
    reading: bool,
    stopped: bool,
}

/// The next step of the task that fetches.
pub(super) enum Demand {
    /// Fetch this many.
    Deliveries(usize),
    /// Give these back: nobody wants them.
    Nothing(Deliveries),
    /// End.
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

    /// Waits until something is asked for.
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

    /// How many deliveries are asked for right now.
    pub(super) fn demand(&self) -> usize {
        self.lock().demand
    }

    /// Adds what was fetched.
    pub(super) fn put(&self, deliveries: Deliveries) {
        if deliveries.is_empty() {
            return;
        }
        let mut state = self.lock();
        state.demand = state.demand.saturating_sub(deliveries.len());
        if state.ready.is_empty() {
            // A conversion in place: a delivery is large, and moving hundreds is felt.
            state.ready = deliveries.into();
        } else {
            state.ready.extend(deliveries);
        }
        drop(state);
        self.arrived.notify_one();
    }

    /// Takes events out of this list, the first first, as many as there is room for.
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

    /// Waits for deliveries, at most `max`. When it is dropped nothing is asked for any more, and
    /// what comes nevertheless is kept.
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

    /// Where events wait, and it is the stream's turn and nobody has asked it: asks, and waits for
    /// the answer that comes at once if there is one. Otherwise events that come faster than they
    /// are handled would be all that is ever handed out.
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

    /// Whether the reader waits for the stream.
    pub(super) fn set_reading(&self, reading: bool) {
        self.lock().reading = reading;
    }

    /// Ends the fetching.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.wanted.notify_waiters();
        self.wanted.notify_one();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Sleeps, and no longer than until the fetching ends.
    pub(super) async fn pause(&self, wait: Duration) {
        tokio::select! {
            biased;
            () = sleep(wait) => {}
            () = self.stopped() => {}
        }
    }

    /// Waits until the fetching ends.
    pub(super) async fn stopped(&self) {
        loop {
            let woken = self.wanted.notified();
            if self.is_stopped() {
                return;
            }
            woken.await;
        }
    }

    /// What was not handed out: deliveries, and how many events.
    pub(super) fn rest(&self) -> (Deliveries, usize) {
        let mut state = self.lock();
        let events = state.events.len();
        state.events.clear();
        (state.ready.drain(..).collect(), events)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn take(&mut self, max: usize) -> Deliveries {
        if self.events.is_empty() && self.ready.len() <= max {
            return std::mem::take(&mut self.ready).into();
        }
        let mut taken = Vec::new();
        // Neither may starve the other where both always have something.
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

/// Withdraws what `next` asked for.
struct Asked<'a>(&'a PrefetchBuffer);

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.0.lock().demand = 0;
    }
}
