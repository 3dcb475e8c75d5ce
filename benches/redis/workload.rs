//! What is measured.

use std::time::{Duration, Instant};

/// One workload, and how many messages a round of it has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) work: Work,
    pub(crate) full: usize,
    pub(crate) quick: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// So many concurrent senders enqueue while one worker handles.
    Task { senders: usize },
    /// One worker handles what was enqueued before.
    Drain,
    /// So many concurrent senders publish to one subscriber.
    Event { senders: usize },
    /// So many requests are in flight.
    Rpc { in_flight: usize, reliable: bool },
}

const fn workload(name: &'static str, work: Work, full: usize, quick: usize) -> Workload {
    Workload {
        name,
        work,
        full,
        quick,
    }
}

const fn rpc(in_flight: usize, reliable: bool) -> Work {
    Work::Rpc {
        in_flight,
        reliable,
    }
}

pub(crate) const ALL: [Workload; 9] = [
    workload("task-1", Work::Task { senders: 1 }, 30_000, 4_000),
    workload("task-64", Work::Task { senders: 64 }, 300_000, 40_000),
    workload("task-512", Work::Task { senders: 512 }, 300_000, 40_000),
    workload("drain", Work::Drain, 500_000, 60_000),
    workload("event-64", Work::Event { senders: 64 }, 300_000, 40_000),
    workload("rpc-fast-1", rpc(1, false), 15_000, 2_500),
    workload("rpc-fast-64", rpc(64, false), 150_000, 25_000),
    workload("rpc-fast-512", rpc(512, false), 200_000, 30_000),
    workload("rpc-reliable-64", rpc(64, true), 150_000, 25_000),
];

/// What one round took.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) count: usize,
    pub(crate) elapsed: Duration,
    /// Of each request; empty for other work.
    pub(crate) latencies: Vec<Duration>,
}

impl Round {
    pub(crate) fn since(started: Instant, count: usize) -> Self {
        Self {
            count,
            elapsed: started.elapsed(),
            latencies: Vec::new(),
        }
    }

    pub(crate) fn rate(&self) -> f64 {
        self.count as f64 / self.elapsed.as_secs_f64()
    }
}

/// Runs `senders` tasks at once that do `work` `count` times between them, and collects what they
/// give.
pub(crate) async fn concurrently<F, T>(
    senders: usize,
    count: usize,
    work: impl Fn() -> F + Clone + Send + 'static,
) -> Vec<T>
where
    F: Future<Output = T> + Send,
    T: Send + 'static,
{
    let mut tasks = tokio::task::JoinSet::new();
    for sender in 0..senders {
        let share = count / senders + usize::from(sender < count % senders);
        let work = work.clone();
        tasks.spawn(async move {
            let mut results = Vec::with_capacity(share);
            for _ in 0..share {
                results.push(work().await);
            }
            results
        });
    }
    tasks.join_all().await.into_iter().flatten().collect()
}
