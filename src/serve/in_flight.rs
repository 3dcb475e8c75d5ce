//! The deliveries in flight: how many there are, and the tokio tasks that handle them. In this
//! file, a *task* is a tokio task.
//!
//! One task at a time starts deliveries, the oldest first. If a handler has to wait, the task stays
//! with this handler, and wakes another task to start the next deliveries. If a task has started
//! deliveries for [`ALONE_FOR`], and no handler had to wait, the task wakes two tasks, so that a
//! second thread helps with handlers that compute.
//!
//! This avoids two costs. Spawning a task is expensive, so idle tasks are kept for later
//! deliveries. Waking another thread is expensive too: two threads end their deliveries at
//! different times, so each read and each acknowledgement covers fewer deliveries. In
//! `benches/redis.rs`, `task-64` and `drain` at the default settings show the difference.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, Semaphore, SemaphorePermit},
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::log::Tally;
use crate::{ablation::Mechanism, sync::lock};

/// The time for which one task starts deliveries alone: about the time that waking a thread takes.
const ALONE_FOR: Duration = Duration::from_micros(20);
/// The maximum number of idle tasks. They are kept because spawning a task takes longer than most
/// handlers.
const MAX_IDLE: usize = 64;

/// Handles and settles one delivery.
pub(super) trait HandleDelivery: Send + 'static {
    /// Returns the number of bytes of the delivery.
    fn bytes(&self) -> usize;

    /// Handles and settles the delivery. It is in flight until the guard is dropped.
    fn handle(self, guard: InFlightGuard) -> impl Future<Output = ()> + Send;
}

/// The deliveries in flight, and the tasks that handle them. Dropping this value aborts the tasks.
pub(super) struct InFlight<D>(Arc<DeliveryTasks<D>>);

/// The tasks, and the deliveries that wait for a task.
struct DeliveryTasks<D> {
    spawned_tasks: Mutex<JoinSet<()>>,
    waiting_deliveries: Mutex<VecDeque<(D, InFlightGuard)>>,
    /// The number of idle tasks that are not woken yet.
    idle_count: AtomicUsize,
    /// Has one permit for each idle task that was woken.
    wakeups: Semaphore,
    count: Arc<Count>,
}

#[derive(Default)]
struct Count {
    deliveries: AtomicUsize,
    bytes: AtomicUsize,
    /// The number of deliveries with a verdict that is not confirmed yet.
    settling: AtomicUsize,
    /// Notified when a delivery has ended.
    ended: Notify,
    /// Cancelled by [`InFlight::stop`].
    stopping: CancellationToken,
    tally: Arc<Tally>,
}

impl<D: HandleDelivery> InFlight<D> {
    pub(super) fn new() -> Self {
        Self(Arc::new(DeliveryTasks {
            spawned_tasks: Mutex::default(),
            waiting_deliveries: Mutex::default(),
            idle_count: AtomicUsize::new(0),
            wakeups: Semaphore::new(0),
            count: Arc::default(),
        }))
    }

    /// Returns the number of deliveries in flight.
    pub(super) fn delivery_count(&self) -> usize {
        self.0.count.deliveries.load(Ordering::Acquire)
    }

    /// Returns the number of deliveries in flight with a verdict that is not confirmed yet.
    pub(super) fn settling_count(&self) -> usize {
        self.0.count.settling.load(Ordering::Acquire)
    }

    /// Returns the number of deliveries in flight without a verdict.
    pub(super) fn running_count(&self) -> usize {
        self.delivery_count().saturating_sub(self.settling_count())
    }

    /// Returns the number of bytes in flight.
    pub(super) fn bytes(&self) -> usize {
        self.0.count.bytes.load(Ordering::Acquire)
    }

    /// Returns the counters of verdicts.
    pub(super) fn tally(&self) -> Arc<Tally> {
        self.0.count.tally.clone()
    }

    /// Starts deliveries in tasks, in their order.
    pub(super) fn start(&self, deliveries: impl Iterator<Item = D>) {
        let count = &self.0.count;
        let guarded = |delivery: D| {
            let guard = InFlightGuard::new(delivery.bytes(), count.clone());
            (delivery, guard)
        };
        // Collected before the lock is taken, so that the lock is held only briefly.
        let deliveries: VecDeque<_> = deliveries.map(guarded).collect();
        if Mechanism::KeptTasks.is_off() {
            let mut tasks = lock(&self.0.spawned_tasks);
            for (delivery, guard) in deliveries {
                tasks.spawn(delivery.handle(guard));
            }
            return;
        }
        let mut waiting = lock(&self.0.waiting_deliveries);
        match waiting.is_empty() {
            true => *waiting = deliveries,
            false => waiting.extend(deliveries),
        }
        drop(waiting);
        self.0.wake();
    }

    /// Returns `true` if deliveries wait for a task to start them.
    pub(super) fn has_unstarted(&self) -> bool {
        !lock(&self.0.waiting_deliveries).is_empty()
    }

    /// Wakes two tasks if deliveries wait to start, because a handler may block the thread of the
    /// task that should start them.
    pub(super) fn start_on_another_thread(&self) {
        if self.has_unstarted() {
            self.0.wake_two();
        }
    }

    /// Waits for a delivery to end. May return early.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(super) async fn ended(&self) {
        self.0.count.ended.notified().await;
    }

    /// Removes finished tasks up to the next one that panicked, and returns the panic.
    pub(super) fn next_panic(&self) -> Option<JoinError> {
        let mut tasks = lock(&self.0.spawned_tasks);
        loop {
            if let Err(panic) = tasks.try_join_next()? {
                return Some(panic);
            }
        }
    }

    /// Completes [`InFlightGuard::stopping`] for all deliveries.
    pub(super) fn stop(&self) {
        self.0.count.stopping.cancel();
    }

    /// Drops all deliveries, started or not, and ends the tasks. Returns the number of deliveries
    /// that were in flight.
    pub(super) async fn shut_down(&self) -> usize {
        let deliveries = self.delivery_count();
        self.0.clear();
        let mut tasks = std::mem::take(&mut *lock(&self.0.spawned_tasks));
        tasks.shutdown().await;
        deliveries
    }
}

impl<D> Drop for InFlight<D> {
    fn drop(&mut self) {
        self.0.clear();
        lock(&self.0.spawned_tasks).abort_all();
    }
}

impl<D> DeliveryTasks<D> {
    /// Drops the deliveries that have not started.
    fn clear(&self) {
        let deliveries = std::mem::take(&mut *lock(&self.waiting_deliveries));
        drop(deliveries);
    }
}

impl<D: HandleDelivery> DeliveryTasks<D> {
    /// Wakes an idle task to start deliveries. Spawns a task if none is idle.
    fn wake(self: &Arc<Self>) {
        let one_less = |idle: usize| idle.checked_sub(1);
        match (self.idle_count).fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less) {
            Ok(_) => self.wakeups.add_permits(1),
            Err(_) => drop(lock(&self.spawned_tasks).spawn(run(self.clone()))),
        }
    }

    /// Wakes two tasks, so that another thread can take one of them. A tokio thread keeps for
    /// itself the task that it woke or spawned last (its LIFO slot), so another thread can take
    /// only the first of the two tasks.
    fn wake_two(self: &Arc<Self>) {
        self.wake();
        self.wake();
    }

    /// Waits until this task is woken. Returns `false` without waiting if [`MAX_IDLE`] tasks are
    /// idle already. The task should end in this case.
    async fn wait_for_wakeup(&self) -> bool {
        let one_more = |idle: usize| (idle < MAX_IDLE).then_some(idle + 1);
        let kept = (self.idle_count).fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
        kept.is_ok()
            && self
                .wakeups
                .acquire()
                .await
                .map(SemaphorePermit::forget)
                .is_ok()
    }
}

/// The loop of a task that handles deliveries.
async fn run<D: HandleDelivery>(tasks: Arc<DeliveryTasks<D>>) {
    loop {
        start_deliveries(&tasks).await;
        if !tasks.wait_for_wakeup().await {
            return;
        }
    }
}

/// Starts deliveries, the oldest first, until a handler waits. Then wakes another task to start the
/// next deliveries, and runs that handler to its end. If no handler has waited for [`ALONE_FOR`],
/// wakes two tasks and returns.
async fn start_deliveries<D: HandleDelivery>(tasks: &Arc<DeliveryTasks<D>>) {
    let began = Instant::now();
    loop {
        let oldest = lock(&tasks.waiting_deliveries).pop_front();
        let Some((delivery, guard)) = oldest else {
            return;
        };
        let mut handling = pin!(delivery.handle(guard));
        let first_poll = poll_fn(|cx| Poll::Ready(handling.as_mut().poll(cx))).await;
        if first_poll.is_pending() {
            if !lock(&tasks.waiting_deliveries).is_empty() {
                tasks.wake();
            }
            return handling.await;
        }
        if began.elapsed() >= ALONE_FOR && !lock(&tasks.waiting_deliveries).is_empty() {
            return tasks.wake_two();
        }
    }
}

/// Counts one delivery as in flight until the guard is dropped.
pub(super) struct InFlightGuard {
    bytes: usize,
    is_settling: bool,
    count: Arc<Count>,
}

impl InFlightGuard {
    fn new(bytes: usize, count: Arc<Count>) -> Self {
        count.deliveries.fetch_add(1, Ordering::AcqRel);
        count.bytes.fetch_add(bytes, Ordering::AcqRel);
        Self {
            bytes,
            is_settling: false,
            count,
        }
    }

    /// Counts the delivery as settling: its verdict is not confirmed yet.
    pub(super) fn mark_settling(mut self) -> Self {
        if !std::mem::replace(&mut self.is_settling, true) {
            self.count.settling.fetch_add(1, Ordering::AcqRel);
        }
        self
    }

    /// Returns the counters of verdicts, to count the verdict on this delivery.
    pub(super) fn tally(&self) -> &Tally {
        &self.count.tally
    }

    /// Waits until [`InFlight::stop`] is called. A delivery whose service is not ready at that time
    /// is released.
    pub(super) async fn stopping(&self) {
        self.count.stopping.cancelled().await;
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.count.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        if self.is_settling {
            self.count.settling.fetch_sub(1, Ordering::AcqRel);
        }
        self.count.deliveries.fetch_sub(1, Ordering::AcqRel);
        self.count.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::BoxFuture;
    use tokio::sync::{mpsc, oneshot};

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    struct TestDelivery(BoxFuture<'static, ()>);

    impl HandleDelivery for TestDelivery {
        fn bytes(&self) -> usize {
            8
        }

        async fn handle(self, guard: InFlightGuard) {
            self.0.await;
            drop(guard);
        }
    }

    fn test_delivery(delivery: impl Future<Output = ()> + Send + 'static) -> TestDelivery {
        TestDelivery(Box::pin(delivery))
    }

    impl InFlight<TestDelivery> {
        fn deliver(&self, delivery: impl Future<Output = ()> + Send + 'static) {
            self.start([test_delivery(delivery)].into_iter());
        }

        fn counts(&self) -> (usize, usize) {
            (self.delivery_count(), self.bytes())
        }

        async fn finish(&self) {
            while self.delivery_count() > 0 {
                self.ended().await;
            }
        }
    }

    /// Returns a delivery that lasts until the sender is dropped.
    fn delivery_until_dropped() -> (oneshot::Sender<()>, impl Future<Output = ()>) {
        let (end, ended) = oneshot::channel();
        (end, async { drop(ended.await) })
    }

    #[tokio::test]
    async fn deliveries_run_side_by_side_and_are_counted_until_they_end() {
        let in_flight = InFlight::new();
        let (first, one) = delivery_until_dropped();
        let (second, other) = delivery_until_dropped();
        in_flight.deliver(one);
        in_flight.deliver(other);
        assert_eq!(in_flight.counts(), (2, 16));
        drop(second);
        while in_flight.delivery_count() > 1 {
            in_flight.ended().await;
        }
        drop(first);
        in_flight.finish().await;
        assert_eq!(in_flight.counts(), (0, 0));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn deliveries_start_in_their_order() {
        // A tokio thread first runs the task that it spawned last.
        let numbers = tokio::spawn(async {
            let in_flight = InFlight::new();
            let (sender, mut started) = mpsc::unbounded_channel();
            let deliveries = (0..100).map(|number| {
                let sender = sender.clone();
                test_delivery(async move {
                    sender.send(number).unwrap();
                    if number % 3 == 0 {
                        tokio::task::yield_now().await;
                    }
                })
            });
            in_flight.start(deliveries);
            in_flight.finish().await;
            let mut numbers = Vec::new();
            started.recv_many(&mut numbers, 100).await;
            numbers
        });
        assert_eq!(numbers.await.unwrap(), Vec::from_iter(0..100));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn handlers_that_compute_use_all_threads() {
        let in_flight = InFlight::new();
        let (sender, mut threads) = mpsc::unbounded_channel();
        let deliveries = (0..100).map(|_| {
            let sender = sender.clone();
            test_delivery(async move {
                std::thread::sleep(Duration::from_millis(1));
                sender.send(std::thread::current().id()).unwrap();
            })
        });
        in_flight.start(deliveries);
        in_flight.finish().await;
        let mut seen = std::collections::HashSet::new();
        while let Ok(thread) = threads.try_recv() {
            seen.insert(thread);
        }
        assert_eq!(seen.len(), 2);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn deliveries_start_beside_a_handler_that_blocks_its_thread() {
        let in_flight = InFlight::new();
        let (unblock, blocked) = std::sync::mpsc::channel();
        let (sender, mut ended) = mpsc::unbounded_channel();
        let block = test_delivery(async move { blocked.recv().unwrap() });
        let others = (0..3).map(|number| {
            let sender = sender.clone();
            test_delivery(async move { sender.send(number).unwrap() })
        });
        in_flight.start([block].into_iter().chain(others));
        let others = async {
            for _ in 0..3 {
                while ended.try_recv().is_err() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    in_flight.start_on_another_thread();
                }
            }
        };
        let others = tokio::time::timeout(LONG, others).await;
        others.expect("the other thread starts them");
        unblock.send(()).unwrap();
        in_flight.finish().await;
    }

    #[tokio::test]
    async fn a_delivery_that_panics_is_not_in_flight_and_is_reported_once() {
        let in_flight = InFlight::new();
        in_flight.deliver(async { panic!("a settlement that panics") });
        in_flight.deliver(async {});
        in_flight.finish().await;
        assert_eq!(in_flight.counts(), (0, 0));
        tokio::task::yield_now().await;
        assert!(in_flight.next_panic().expect("it is reported").is_panic());
        assert!(in_flight.next_panic().is_none());
    }

    #[tokio::test]
    async fn deliveries_are_dropped_started_or_not() {
        for shut_down in [true, false] {
            let in_flight = InFlight::new();
            let (mut started, delivery) = delivery_until_dropped();
            in_flight.deliver(delivery);
            tokio::task::yield_now().await;
            let (mut not_started, delivery) = delivery_until_dropped();
            in_flight.deliver(delivery);
            if shut_down {
                assert_eq!(in_flight.shut_down().await, 2);
                assert_eq!(in_flight.counts(), (0, 0));
            }
            drop(in_flight);
            let dropped = async {
                started.closed().await;
                not_started.closed().await;
            };
            let dropped = tokio::time::timeout(LONG, dropped);
            dropped.await.expect("both are dropped");
        }
    }
}
