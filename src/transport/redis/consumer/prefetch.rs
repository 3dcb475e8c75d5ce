//! The buffer between the tasks that fetch and `Source::next`, and the demand for more.
//!
//! Several tasks, one for each slot of a cluster, share the demand. A task is busy if its last read
//! brought deliveries. Of the busy tasks, the one whose turn is longest ago reserves all demand
//! that is not reserved yet, so the busy tasks together fetch no more than is wanted. Each other
//! task reads at most one delivery. That delivery may be more than is wanted: then it waits for the
//! next call, or is released.

use std::{
    collections::VecDeque,
    future,
    sync::{Arc, Mutex, MutexGuard},
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
    /// Wakes a task that fetches, if there is demand or the buffer was stopped. One for each task.
    wanted: Vec<Notify>,
    /// Wakes `next` when something has arrived.
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
    /// Set if the next call hands out events first. It alternates.
    events_first: bool,
    fetches: Vec<FetchState>,
    /// The number of turns so far.
    turns: u64,
    stopped: bool,
}

/// The state of a task that fetches.
#[derive(Debug, Clone, Default)]
struct FetchState {
    /// The part of the demand that the task is fetching.
    reserved: usize,
    /// Set if its last read brought deliveries.
    is_busy: bool,
    /// Set while a read of the task blocks on the stream. New entries end that read, without new
    /// demand.
    is_reading: bool,
    /// Set while it waits for demand.
    is_waiting: bool,
    /// Set if the task must stop, although the buffer goes on.
    is_stopped: bool,
    /// The number of its last turn.
    turn: u64,
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
    /// Makes a buffer that this many tasks fetch for.
    pub(super) fn new(event_buffer: usize, fetches: usize) -> Self {
        let state = PrefetchState {
            fetches: vec![FetchState::default(); fetches],
            ..PrefetchState::default()
        };
        Self {
            state: Mutex::new(state),
            event_buffer,
            wanted: (0..fetches).map(|_| Notify::new()).collect(),
            arrived: Notify::new(),
        }
    }

    /// Wakes the tasks that fetch.
    fn wake(&self) {
        self.wanted.iter().for_each(Notify::notify_one);
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

    /// Waits for at most `max` deliveries. When the future is dropped the demand ends, and
    /// deliveries that arrive later stay in the buffer.
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
            self.wake();
            self.arrived.notified().await;
        }
    }

    /// If only events are ready, and it is the stream's turn, asks the stream and waits for a
    /// moment. Otherwise a steady flow of events would starve the stream.
    async fn give_the_stream_its_turn(&self, max: usize) {
        {
            let mut state = self.lock();
            let is_read = state.fetches.iter().all(|fetch| fetch.is_reading);
            let known = is_read || state.stopped || !state.ready.is_empty();
            if known || state.events_first || state.events.is_empty() {
                return;
            }
            state.demand = max;
        }
        self.wake();
        let answered = async {
            while self.lock().ready.is_empty() {
                self.arrived.notified().await;
            }
        };
        let _ = timeout(TURN, answered).await;
    }

    /// Stops the fetching.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.wanted.iter().for_each(Notify::notify_waiters);
        self.wake();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Takes the deliveries and drops the events that were not handed out. Returns the deliveries
    /// and the number of events.
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

/// The writing end of the buffer, one for each task that fetches.
#[derive(Debug, Clone)]
pub(super) struct PrefetchWriter {
    buffer: Arc<PrefetchBuffer>,
    /// The number of the task, from 0.
    number: usize,
}

impl PrefetchWriter {
    pub(super) fn new(buffer: Arc<PrefetchBuffer>, number: usize) -> Self {
        buffer.lock().fetches[number] = FetchState::default();
        Self { buffer, number }
    }

    pub(super) fn buffer(&self) -> &Arc<PrefetchBuffer> {
        &self.buffer
    }

    fn wanted(&self) -> &Notify {
        &self.buffer.wanted[self.number]
    }

    /// Waits until the task has something to do.
    pub(super) async fn demanded(&self) -> Demand {
        let _waiting = WaitGuard(self);
        loop {
            let surplus = {
                let mut state = self.buffer.lock();
                if state.is_stopped(self.number) {
                    return Demand::Stop;
                }
                let max = state.reserve(self.number);
                if max > 0 {
                    return Demand::Deliveries(max);
                }
                state.fetches[self.number].is_waiting = true;
                state.demand == 0 && !state.ready.is_empty()
            };
            if !surplus {
                self.wanted().notified().await;
            } else if timeout(PATIENCE, self.wanted().notified()).await.is_err() {
                let mut state = self.buffer.lock();
                if state.demand == 0 && !state.is_stopped(self.number) {
                    return Demand::Nothing(state.ready.drain(..).collect());
                }
            }
        }
    }

    /// The number of deliveries that this task may fetch.
    pub(super) fn demand(&self) -> usize {
        self.buffer.lock().free(self.number)
    }

    /// Adds the deliveries that the task has fetched, perhaps none.
    pub(super) fn put(&self, deliveries: Deliveries) {
        let mut state = self.buffer.lock();
        let fetch = &mut state.fetches[self.number];
        let had_reserved = std::mem::take(&mut fetch.reserved) > 0;
        fetch.is_busy = !deliveries.is_empty();
        state.demand = state.demand.saturating_sub(deliveries.len());
        // Other tasks may fetch the part that this task had reserved and did not fetch.
        let is_shared = state.fetches.len() > 1 && had_reserved && state.demand > 0;
        let has_some = !deliveries.is_empty();
        if state.ready.is_empty() {
            // Converts in place, since moving hundreds of deliveries is measurable.
            state.ready = deliveries.into();
        } else {
            state.ready.extend(deliveries);
        }
        drop(state);
        if has_some {
            self.buffer.arrived.notify_one();
        }
        if is_shared {
            self.buffer.wake();
        }
    }

    /// Adds deliveries that the task did not fetch now.
    pub(super) fn add(&self, deliveries: Deliveries) {
        let mut state = self.buffer.lock();
        state.demand = state.demand.saturating_sub(deliveries.len());
        state.ready.extend(deliveries);
        drop(state);
        self.buffer.arrived.notify_one();
    }

    /// Stops this task, and no other. A new task with the same number undoes it.
    pub(super) fn stop(&self) {
        self.buffer.lock().fetches[self.number].is_stopped = true;
        self.wanted().notify_waiters();
        self.wanted().notify_one();
    }

    /// Sets whether the task's read waits on the stream.
    pub(super) fn set_reading(&self, is_reading: bool) {
        self.buffer.lock().fetches[self.number].is_reading = is_reading;
    }

    /// Returns `true` if no other task fetches for the buffer.
    pub(super) fn is_alone(&self) -> bool {
        self.buffer.wanted.len() == 1
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.buffer.lock().is_stopped(self.number)
    }

    /// Sleeps for this time, or until the buffer is stopped.
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
            let woken = self.wanted().notified();
            if self.is_stopped() {
                return;
            }
            woken.await;
        }
    }
}

impl PrefetchState {
    fn is_stopped(&self, number: usize) -> bool {
        self.stopped || self.fetches[number].is_stopped
    }

    /// The part of the demand that no other task is fetching.
    fn free(&self, number: usize) -> usize {
        let others = self.fetches.iter().enumerate();
        let others = others.filter(|(other, _)| *other != number);
        let reserved: usize = others.map(|(_, fetch)| fetch.reserved).sum();
        self.demand.saturating_sub(reserved)
    }

    /// Reserves a part of the demand for a task.
    fn reserve(&mut self, number: usize) -> usize {
        let own = &self.fetches[number];
        let is_alone = self.fetches.len() == 1;
        if !is_alone && !own.is_busy {
            // The read will probably bring nothing, so it reserves nothing.
            return self.demand.min(1);
        }
        let is_before = |it: &FetchState| it.is_busy && it.is_waiting && it.turn < own.turn;
        if self.fetches.iter().any(is_before) {
            return 0;
        }
        let free = self.free(number);
        if free > 0 {
            self.turns += 1;
            let own = &mut self.fetches[number];
            (own.reserved, own.turn) = (free, self.turns);
        }
        free
    }

    fn take(&mut self, max: usize) -> Deliveries {
        if self.events.is_empty() && self.ready.len() <= max {
            return std::mem::take(&mut self.ready).into();
        }
        let mut taken = Vec::new();
        // Alternates, so that neither queue starves the other.
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

/// Records, when it is dropped, that a task no longer waits for demand.
struct WaitGuard<'a>(&'a PrefetchWriter);

impl Drop for WaitGuard<'_> {
    fn drop(&mut self) {
        let PrefetchWriter { buffer, number } = self.0;
        let mut state = buffer.lock();
        state.fetches[*number].is_waiting = false;
        let is_left = state.fetches.len() > 1 && state.demand > 0;
        drop(state);
        if is_left {
            // Another task may have left the demand to this one while it waited.
            buffer.wake();
        }
    }
}

/// Withdraws the demand of `next` when it is dropped.
struct Asked<'a>(&'a PrefetchBuffer);

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.0.lock().demand = 0;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn writers(fetches: usize) -> (Arc<PrefetchBuffer>, Vec<PrefetchWriter>) {
        let buffer = Arc::new(PrefetchBuffer::new(10, fetches));
        let writer = |number| PrefetchWriter::new(buffer.clone(), number);
        let writers = (0..fetches).map(writer).collect();
        (buffer, writers)
    }

    fn deliveries(count: usize) -> Deliveries {
        let delivery = || Delivery::new(Ok(Message::event("e", "")), RedisSettle::event());
        std::iter::repeat_with(delivery).take(count).collect()
    }

    /// The number of deliveries that a task is to fetch now, if any.
    fn asked(writer: &PrefetchWriter) -> Option<usize> {
        match writer.demanded().now_or_never()? {
            Demand::Deliveries(count) => Some(count),
            Demand::Nothing(_) | Demand::Stop => None,
        }
    }

    #[tokio::test]
    async fn one_task_fetches_all_that_is_wanted() {
        let (buffer, writers) = writers(1);
        assert_eq!(asked(&writers[0]), None);
        let mut taking = Box::pin(buffer.take(10));
        assert!((&mut taking).now_or_never().is_none());
        assert_eq!(asked(&writers[0]), Some(10));
        writers[0].put(deliveries(10));
        assert_eq!(taking.await.len(), 10);
    }

    #[tokio::test]
    async fn tasks_whose_reads_bring_deliveries_fetch_no_more_than_is_wanted_together() {
        let (buffer, writers) = writers(2);
        for writer in &writers {
            writer.put(deliveries(1));
        }
        assert_eq!(buffer.take(2).await.len(), 2);
        let mut taking = Box::pin(buffer.take(10));
        assert!((&mut taking).now_or_never().is_none());
        assert_eq!(asked(&writers[0]), Some(10));
        assert_eq!(asked(&writers[1]), None, "the other one fetches them");
        writers[0].put(Vec::new());
        assert_eq!(asked(&writers[1]), Some(10), "the other one found nothing");
    }

    #[tokio::test]
    async fn tasks_whose_reads_bring_deliveries_take_turns() {
        let (buffer, writers) = writers(2);
        for writer in &writers {
            writer.put(deliveries(1));
        }
        assert_eq!(buffer.take(2).await.len(), 2);
        let mut first = Box::pin(writers[0].demanded());
        let mut second = Box::pin(writers[1].demanded());
        assert!((&mut first).now_or_never().is_none());
        assert!((&mut second).now_or_never().is_none());
        let mut taking = Box::pin(buffer.take(10));
        assert!((&mut taking).now_or_never().is_none());
        assert!(matches!(first.await, Demand::Deliveries(10)));
        writers[0].put(deliveries(10));
        assert_eq!(taking.await.len(), 10);
        let mut taking = Box::pin(buffer.take(10));
        assert!((&mut taking).now_or_never().is_none());
        assert_eq!(asked(&writers[0]), None, "it is the turn of the other one");
        assert!(matches!(second.await, Demand::Deliveries(10)));
    }

    #[tokio::test]
    async fn a_task_whose_last_read_brought_nothing_looks_for_one_delivery() {
        let (buffer, writers) = writers(3);
        let mut taking = Box::pin(buffer.take(10));
        assert!((&mut taking).now_or_never().is_none());
        for writer in &writers {
            assert_eq!(asked(writer), Some(1));
        }
        writers[2].put(deliveries(1));
        assert_eq!(taking.await.len(), 1);
        let mut taking = Box::pin(buffer.take(9));
        assert!((&mut taking).now_or_never().is_none());
        assert_eq!(asked(&writers[2]), Some(9));
        assert_eq!(asked(&writers[0]), Some(1));
    }
}
