//! The open loop: messages are sent when they are due, even if earlier messages are late.
//!
//! The latency of a message is measured from the time at which it was *due*. So a stall counts for
//! all messages that were due during the stall. A closed loop counts a stall only for the messages
//! that waited for an answer ("coordinated omission"). A separate thread sleeps until the next
//! message is due, and sends all messages that are due. The time to wake this thread, some 60 µs,
//! is in the figures of both sides.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// The arrival times of messages, by their numbers.
#[derive(Debug, Clone)]
pub(crate) struct Arrivals {
    epoch: Instant,
    /// In nanoseconds after the epoch; 0 before the arrival.
    arrived_at: Arc<[AtomicU64]>,
}

impl Arrivals {
    pub(crate) fn new(count: usize) -> Self {
        Self {
            epoch: Instant::now(),
            arrived_at: (0..count).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.arrived_at.len()
    }

    /// Records that a message arrives now.
    pub(crate) fn mark(&self, message: usize) {
        self.arrived_at[message].store(self.epoch.elapsed().as_nanos() as u64, Relaxed);
    }

    fn arrived_at(&self, message: usize) -> Option<Instant> {
        let nanoseconds = self.arrived_at[message].load(Relaxed);
        (nanoseconds > 0).then(|| self.epoch + Duration::from_nanos(nanoseconds))
    }

    /// Waits until a message has arrived. Returns the time of its arrival.
    pub(crate) async fn wait(&self, message: usize) -> Instant {
        loop {
            match self.arrived_at(message) {
                Some(arrived_at) => break arrived_at,
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }
}

/// Calls `send` for each message when it is due, and waits until all messages have arrived. Returns
/// the latency of each message.
pub(crate) async fn send_paced<F>(
    rate: usize,
    arrivals: &Arrivals,
    send: impl Fn(usize) -> F + Send + 'static,
) -> Vec<Duration>
where
    F: Future<Output = ()> + Send + 'static,
{
    let count = arrivals.count();
    let started = Instant::now();
    let due = move |message| started + Duration::from_secs_f64(message as f64 / rate as f64);
    let pacing = tokio::task::spawn_blocking(move || {
        for message in 0..count {
            if let Some(wait) = due(message).checked_duration_since(Instant::now()) {
                std::thread::sleep(wait);
            }
            tokio::spawn(send(message));
        }
    });
    pacing.await.expect("everything is sent");
    let mut latencies = Vec::with_capacity(count);
    for message in 0..count {
        latencies.push(arrivals.wait(message).await.duration_since(due(message)));
    }
    latencies
}
