//! The buffer between the fetch tasks and `Source::next`, and the demand of `next`.
//!
//! Several fetch tasks, one for each slot of a cluster, share the demand. A task is *busy* if its
//! next read will probably return deliveries ([`ExpectedEntries`]). The busy task whose last turn
//! is longest ago reserves all or a part of the demand that no task has reserved yet. So the busy
//! tasks together never fetch more than the demand. A task that is not busy reserves nothing. If
//! its reads block, it fetches at most one delivery, which may exceed the demand. Surplus
//! deliveries stay in the buffer for the next call of `next`, or are released.
//!
//! With a [`StreamSchedule`] over the tasks, the schedule decides which busy task is next. The
//! other busy tasks wait for that task, even while it still reads.

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

use super::settle::RedisSettler;
use crate::{
    message::Message,
    sync::lock,
    transport::{Delivery, StreamSchedule},
};

type Deliveries = Vec<Delivery<RedisSettler>>;

/// Surplus deliveries are released after this time without demand.
const SURPLUS_KEPT_FOR: Duration = Duration::from_millis(100);

/// On the streams' turn, `next` waits this long for deliveries before it returns events.
const STREAM_TURN_WAIT: Duration = Duration::from_millis(5);

/// Deliveries and events that were fetched and not handed out yet.
#[derive(Debug)]
pub(super) struct PrefetchBuffer {
    state: Mutex<PrefetchState>,
    /// The maximum number of events in the buffer.
    max_events: usize,
    /// One for each fetch task: wakes the task when there is demand, or when the task must stop.
    fetch_wakeups: Vec<Notify>,
    /// Wakes `next` when something has arrived.
    arrived: Notify,
}

#[derive(Debug, Default)]
struct PrefetchState {
    /// Deliveries from the streams. Surplus deliveries stay here, see the [module](self).
    ready: VecDeque<Delivery<RedisSettler>>,
    events: VecDeque<Delivery<RedisSettler>>,
    /// The number of deliveries that `next` waits for.
    demand: usize,
    /// Set if the next call hands out events before deliveries. Alternates.
    events_first: bool,
    fetches: Vec<FetchState>,
    /// The number of turns so far. A task has a turn when it reserves demand.
    turns: u64,
    /// The priority or the weights of the tasks, by their numbers. `None` if they take turns.
    schedule: Option<StreamSchedule>,
    stopped: bool,
}

/// The maximum demand that a task reserves if it expects [`Some`](ExpectedEntries::Some) entries,
/// or if the tasks have weights. Small, so that several tasks can read at the same time.
const SMALL_RESERVATION: usize = 16;

/// The deliveries that the next read of a fetch task will probably return.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum ExpectedEntries {
    #[default]
    None,
    /// At least one.
    Some,
    /// As many as the read requests.
    Many,
}

/// The state of a fetch task.
#[derive(Debug, Clone, Default)]
struct FetchState {
    /// The part of the demand that the task is fetching.
    reserved: usize,
    expected: ExpectedEntries,
    /// Set while a read of the task blocks on the streams. New entries end such a read, so the task
    /// need not be woken.
    is_reading: bool,
    /// Set while the task waits for demand.
    is_waiting: bool,
    /// Set if this task must stop while the others go on.
    is_stopped: bool,
    /// The number of the task's last turn.
    turn: u64,
}

impl FetchState {
    fn is_busy(&self) -> bool {
        self.expected != ExpectedEntries::None
    }
}

/// The next step of a fetch task.
pub(super) enum Demand {
    /// Fetch at most this many deliveries.
    Deliveries(usize),
    /// Release these deliveries, for which there is no demand.
    Release(Deliveries),
    /// Stop fetching.
    Stop,
}

impl PrefetchBuffer {
    /// Makes a buffer for `tasks` fetch tasks, with room for `max_events` events. If there is a
    /// `schedule`, the reads of the tasks must not block.
    pub(super) fn new(max_events: usize, tasks: usize, schedule: Option<StreamSchedule>) -> Self {
        let state = PrefetchState {
            schedule,
            fetches: vec![FetchState::default(); tasks],
            ..PrefetchState::default()
        };
        Self {
            state: Mutex::new(state),
            max_events,
            fetch_wakeups: (0..tasks).map(|_| Notify::new()).collect(),
            arrived: Notify::new(),
        }
    }

    /// Wakes the fetch tasks that may fetch now. A task that is not waiting need not be woken: it
    /// checks the demand before it waits.
    fn wake(&self, state: &PrefetchState) {
        let next = state.next_busy();
        for (number, wakeup) in self.fetch_wakeups.iter().enumerate() {
            let fetch = &state.fetches[number];
            let has_turn = !fetch.is_busy() || Some(number) == next;
            if fetch.is_waiting && has_turn {
                wakeup.notify_one();
            }
        }
    }

    /// Moves events from the front of the list into the buffer while there is room. Moves none
    /// after a stop.
    pub(super) fn offer(&self, events: &mut Vec<Message>) {
        let mut state = self.lock();
        if state.stopped {
            return;
        }
        let room = self.max_events.saturating_sub(state.events.len());
        let taken = events.drain(..events.len().min(room));
        let deliveries = taken.map(|event| Delivery::new(Ok(event), RedisSettler::event()));
        state.events.extend(deliveries);
        drop(state);
        self.arrived.notify_one();
    }

    /// Waits for deliveries and events, and returns at most `max`. After a stop, never resolves if
    /// the buffer is empty. When the future is dropped, the demand ends, and deliveries that arrive
    /// later stay in the buffer.
    pub(super) async fn take(&self, max: usize) -> Deliveries {
        let _demand = DemandGuard(self);
        self.give_the_stream_its_turn(max).await;
        loop {
            let stopped = {
                let mut state = self.lock();
                let deliveries = state.take(max);
                if !deliveries.is_empty() {
                    return deliveries;
                }
                state.demand = max;
                self.wake(&state);
                state.stopped
            };
            if stopped {
                return future::pending().await;
            }
            self.arrived.notified().await;
        }
    }

    /// If only events are ready, and it is the streams' turn, requests deliveries and waits for
    /// them for a moment. Without this wait, a steady flow of events would starve the streams.
    async fn give_the_stream_its_turn(&self, max: usize) {
        {
            let mut state = self.lock();
            let is_read = state.fetches.iter().all(|fetch| fetch.is_reading);
            let needs_no_wait = is_read || state.stopped || !state.ready.is_empty();
            if needs_no_wait || state.events_first || state.events.is_empty() {
                return;
            }
            state.demand = max;
            self.wake(&state);
        }
        let wait_for_deliveries = async {
            while self.lock().ready.is_empty() {
                self.arrived.notified().await;
            }
        };
        let _ = timeout(STREAM_TURN_WAIT, wait_for_deliveries).await;
    }

    /// Stops all fetch tasks.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.fetch_wakeups.iter().for_each(Notify::notify_waiters);
        self.fetch_wakeups.iter().for_each(Notify::notify_one);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Takes the deliveries and drops the events that were not handed out. Returns the deliveries
    /// and the number of events.
    pub(super) fn take_rest(&self) -> (Deliveries, usize) {
        let mut state = self.lock();
        let events = state.events.len();
        state.events.clear();
        (state.ready.drain(..).collect(), events)
    }

    fn lock(&self) -> MutexGuard<'_, PrefetchState> {
        lock(&self.state)
    }
}

/// The writing end of the buffer, one for each fetch task.
#[derive(Debug, Clone)]
pub(super) struct PrefetchWriter {
    buffer: Arc<PrefetchBuffer>,
    /// The number of the task, from 0.
    number: usize,
}

impl PrefetchWriter {
    /// Makes the writer of the task with this number, and resets the task's state.
    pub(super) fn new(buffer: Arc<PrefetchBuffer>, number: usize) -> Self {
        buffer.lock().fetches[number] = FetchState::default();
        Self { buffer, number }
    }

    pub(super) fn buffer(&self) -> &Arc<PrefetchBuffer> {
        &self.buffer
    }

    fn wakeup(&self) -> &Notify {
        &self.buffer.fetch_wakeups[self.number]
    }

    /// Waits for the next step of the task.
    pub(super) async fn next_step(&self) -> Demand {
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
                self.wakeup().notified().await;
            } else if timeout(SURPLUS_KEPT_FOR, self.wakeup().notified())
                .await
                .is_err()
            {
                let mut state = self.buffer.lock();
                if state.demand == 0 && !state.is_stopped(self.number) {
                    return Demand::Release(state.ready.drain(..).collect());
                }
            }
        }
    }

    /// Returns the part of the demand that this task may fetch.
    pub(super) fn demand(&self) -> usize {
        self.buffer.lock().unreserved(self.number)
    }

    /// Returns `true` if the task has reserved demand that other tasks could fetch.
    pub(super) fn shares_demand(&self) -> bool {
        let state = self.buffer.lock();
        state.fetches.len() > 1 && state.fetches[self.number].reserved > 0
    }

    /// Adds the deliveries of a fetch, which may be none, and ends the task's reservation.
    pub(super) fn put(&self, deliveries: Deliveries) {
        let expected = match deliveries.is_empty() {
            true => ExpectedEntries::None,
            false => ExpectedEntries::Many,
        };
        self.put_and_expect(deliveries, expected);
    }

    /// Like [`put`](Self::put), for a task that knows what its next read will probably return.
    pub(super) fn put_and_expect(&self, deliveries: Deliveries, expected: ExpectedEntries) {
        let mut state = self.buffer.lock();
        let fetch = &mut state.fetches[self.number];
        let had_reserved = std::mem::take(&mut fetch.reserved) > 0;
        fetch.expected = expected;
        if let Some(schedule) = &mut state.schedule {
            schedule.record_fetched(self.number as u32, deliveries.len());
        }
        state.demand = state.demand.saturating_sub(deliveries.len());
        // Other tasks may fetch the part that this task had reserved and did not fetch.
        let is_shared = state.fetches.len() > 1 && had_reserved && state.demand > 0;
        let has_some = !deliveries.is_empty();
        if state.ready.is_empty() {
            // Converts in place, since moving hundreds of deliveries takes measurable time.
            state.ready = deliveries.into();
        } else {
            state.ready.extend(deliveries);
        }
        if is_shared {
            self.buffer.wake(&state);
        }
        drop(state);
        if has_some {
            self.buffer.arrived.notify_one();
        }
    }

    /// Adds deliveries outside of a fetch. The task keeps its reservation.
    pub(super) fn add(&self, deliveries: Deliveries) {
        let mut state = self.buffer.lock();
        state.demand = state.demand.saturating_sub(deliveries.len());
        state.ready.extend(deliveries);
        drop(state);
        self.buffer.arrived.notify_one();
    }

    /// Stops only this task. [`new`](Self::new) with the same number undoes the stop.
    pub(super) fn stop(&self) {
        self.buffer.lock().fetches[self.number].is_stopped = true;
        self.wakeup().notify_waiters();
        self.wakeup().notify_one();
    }

    /// Records whether a read of the task blocks on the streams.
    pub(super) fn set_reading(&self, is_reading: bool) {
        self.buffer.lock().fetches[self.number].is_reading = is_reading;
    }

    /// Returns `true` if no other task fetches for the buffer.
    pub(super) fn is_alone(&self) -> bool {
        self.buffer.fetch_wakeups.len() == 1
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.buffer.lock().is_stopped(self.number)
    }

    /// Sleeps for this time, or until the task or the buffer is stopped.
    pub(super) async fn wait_unless_stopped(&self, wait: Duration) {
        tokio::select! {
            biased;
            () = sleep(wait) => {}
            () = self.stopped() => {}
        }
    }

    /// Waits until the task or the buffer is stopped.
    pub(super) async fn stopped(&self) {
        loop {
            let woken = self.wakeup().notified();
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

    /// Returns the part of the demand that no other task has reserved.
    fn unreserved(&self, number: usize) -> usize {
        let others = self.fetches.iter().enumerate();
        let others = others.filter(|(other, _)| *other != number);
        let reserved: usize = others.map(|(_, fetch)| fetch.reserved).sum();
        self.demand.saturating_sub(reserved)
    }

    /// Reserves demand for a busy task. Returns how many deliveries the task may fetch: zero if
    /// there is no demand, or if it is another task's turn.
    fn reserve(&mut self, number: usize) -> usize {
        let own = &self.fetches[number];
        let is_alone = self.fetches.len() == 1;
        if !is_alone && !own.is_busy() {
            // The read will probably return nothing, so the task reserves nothing.
            return self.demand.min(1);
        }
        let next = self.next_busy();
        let is_before = |next: usize| match self.schedule {
            Some(_) => next != number,
            None => self.fetches[next].turn < own.turn,
        };
        if next.is_some_and(is_before) {
            return 0;
        }
        let mut reserved = self.unreserved(number);
        let is_weighted = self.schedule.as_ref().is_some_and(|it| !it.is_strict());
        if own.expected == ExpectedEntries::Some && self.schedule.is_none() || is_weighted {
            reserved = reserved.min(SMALL_RESERVATION);
        }
        if reserved > 0 {
            self.turns += 1;
            let own = &mut self.fetches[number];
            (own.reserved, own.turn) = (reserved, self.turns);
        }
        reserved
    }

    /// Returns the number of the busy task that is next.
    fn next_busy(&self) -> Option<usize> {
        let Some(schedule) = &self.schedule else {
            let waiting = self.fetches.iter().enumerate();
            let waiting = waiting.filter(|(_, it)| it.is_waiting && it.is_busy());
            return waiting
                .min_by_key(|(_, it)| it.turn)
                .map(|(number, _)| number);
        };
        let reserved = |number: u32| {
            let fetch = &self.fetches[number as usize];
            fetch.is_busy().then_some(fetch.reserved)
        };
        schedule.next(reserved).map(|number| number as usize)
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

/// On drop, records that a task no longer waits for demand.
struct WaitGuard<'a>(&'a PrefetchWriter);

impl Drop for WaitGuard<'_> {
    fn drop(&mut self) {
        let PrefetchWriter { buffer, number } = self.0;
        let mut state = buffer.lock();
        state.fetches[*number].is_waiting = false;
        if state.fetches.len() > 1 && state.demand > 0 {
            // Another task may have left the demand to this task while this task waited.
            buffer.wake(&state);
        }
    }
}

/// On drop, withdraws the demand of `next`.
struct DemandGuard<'a>(&'a PrefetchBuffer);

impl Drop for DemandGuard<'_> {
    fn drop(&mut self) {
        self.0.lock().demand = 0;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::transport::StreamPolicy;

    fn writers(fetches: usize) -> (Arc<PrefetchBuffer>, Vec<PrefetchWriter>) {
        scheduled(fetches, None)
    }

    fn scheduled(
        fetches: usize,
        schedule: Option<StreamSchedule>,
    ) -> (Arc<PrefetchBuffer>, Vec<PrefetchWriter>) {
        let buffer = Arc::new(PrefetchBuffer::new(10, fetches, schedule));
        let writer = |number| PrefetchWriter::new(buffer.clone(), number);
        let writers = (0..fetches).map(writer).collect();
        (buffer, writers)
    }

    fn deliveries(count: usize) -> Deliveries {
        let delivery = || Delivery::new(Ok(Message::event("e", "")), RedisSettler::event());
        std::iter::repeat_with(delivery).take(count).collect()
    }

    /// The number of deliveries that a task is to fetch now, if any.
    fn asked(writer: &PrefetchWriter) -> Option<usize> {
        match writer.next_step().now_or_never()? {
            Demand::Deliveries(count) => Some(count),
            Demand::Release(_) | Demand::Stop => None,
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
        let mut first = Box::pin(writers[0].next_step());
        let mut second = Box::pin(writers[1].next_step());
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

    #[tokio::test]
    async fn tasks_that_expect_a_few_deliveries_fetch_at_the_same_time() {
        let (buffer, writers) = writers(3);
        for writer in &writers {
            writer.put_and_expect(Vec::new(), ExpectedEntries::Some);
        }
        let mut taking = Box::pin(buffer.take(SMALL_RESERVATION + 4));
        assert!((&mut taking).now_or_never().is_none());
        assert_eq!(asked(&writers[0]), Some(SMALL_RESERVATION));
        assert_eq!(asked(&writers[1]), Some(4));
        assert_eq!(asked(&writers[2]), None, "all demand is reserved");
        writers[0].put_and_expect(deliveries(2), ExpectedEntries::None);
        assert_eq!(taking.await.len(), 2);
    }

    #[tokio::test]
    async fn a_task_waits_for_a_busy_task_of_higher_priority() {
        let mut schedule = StreamSchedule::new(StreamPolicy::Strict);
        schedule.add(0, 1);
        schedule.add(1, 1);
        let (buffer, writers) = scheduled(2, Some(schedule));
        for writer in &writers {
            writer.put_and_expect(Vec::new(), ExpectedEntries::Some);
        }
        let mut taking = Box::pin(buffer.take(10));
        assert!((&mut taking).now_or_never().is_none());
        let mut second = Box::pin(writers[1].next_step());
        assert!((&mut second).now_or_never().is_none());
        assert_eq!(asked(&writers[0]), Some(10));
        writers[0].put_and_expect(deliveries(3), ExpectedEntries::Many);
        assert_eq!(taking.await.len(), 3);
        let mut taking = Box::pin(buffer.take(10));
        assert!((&mut taking).now_or_never().is_none());
        assert!((&mut second).now_or_never().is_none());
        assert_eq!(asked(&writers[0]), Some(10));
        writers[0].put_and_expect(Vec::new(), ExpectedEntries::None);
        assert!(matches!(second.await, Demand::Deliveries(10)));
    }
}
