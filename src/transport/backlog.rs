//! The backlog of a group: the messages that wait for its workers.

use std::time::Duration;

/// The number of messages of a stream that a group still has to handle, by the reason why they
/// wait. Each message counts in one field, and perhaps also in [`due_soon`](Self::due_soon). A
/// program that scales workers uses [`total`](Self::total).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Backlog {
    /// The messages that could be delivered now. For a group that does not exist, all entries of
    /// the stream: a new group starts at the oldest entry if the stream has no other group.
    ///
    /// Redis before 7.0 does not report this number. Newer versions do not report it after an entry
    /// inside the stream was deleted. Without the number, the messages are counted one by one, up
    /// to 10,000.
    pub waiting: u64,
    /// The deliveries of workers that have died. Live workers claim them.
    pub unclaimed: u64,
    /// The deliveries of live workers that are not settled.
    pub running: u64,
    /// The messages that wait for their next attempt, in the back-off after a failure.
    pub retrying: u64,
    /// The tasks that their senders have delayed. When they are due, every group of the stream gets
    /// them.
    pub delayed: u64,
    /// The part of [`retrying`](Self::retrying) and [`delayed`](Self::delayed) that is due within
    /// the horizon.
    pub due_soon: u64,
    /// The messages that wait for a permit of a [`Limit`](super::Limit), or for the end of their
    /// name's [pause](super::PauseTarget::Name). More workers do not start them sooner. On Redis,
    /// the messages of at most 1,000 keys and names are counted.
    pub parked: u64,
    /// The time for which the oldest of the [`waiting`](Self::waiting) messages has waited. The
    /// wait of a redelivery starts when it is due.
    pub oldest_waiting: Option<Duration>,
    /// The number of live workers.
    pub workers: u64,
}

impl Backlog {
    /// The default horizon of [`due_soon`](Self::due_soon).
    pub const HORIZON: Duration = Duration::from_secs(30);

    /// Returns the number of messages that need workers now or soon: the sum of `waiting`,
    /// `unclaimed`, `running` and `due_soon`. To get the number of workers to run, divide this sum
    /// by the number of messages for each worker.
    pub fn total(&self) -> u64 {
        self.waiting + self.unclaimed + self.running + self.due_soon
    }

    /// Returns `true` if there is nothing to do, now or later.
    pub fn is_empty(&self) -> bool {
        self.waiting + self.unclaimed + self.running == 0
            && self.retrying + self.delayed + self.parked == 0
    }

    /// Adds the backlog of another stream that the same workers serve.
    pub(crate) fn join(self, other: Self) -> Self {
        Self {
            waiting: self.waiting + other.waiting,
            unclaimed: self.unclaimed + other.unclaimed,
            running: self.running + other.running,
            retrying: self.retrying + other.retrying,
            delayed: self.delayed + other.delayed,
            due_soon: self.due_soon + other.due_soon,
            parked: self.parked + other.parked,
            oldest_waiting: self.oldest_waiting.max(other.oldest_waiting),
            // Each worker serves all streams.
            workers: self.workers.max(other.workers),
        }
    }
}
