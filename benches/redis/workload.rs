//! The measured workloads.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{probe::Commands, setup::Setup};

/// A named workload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) work: Work,
    /// The number of messages in a round of a full run.
    pub(crate) full_count: usize,
    /// The number of messages in a round of a quick run.
    pub(crate) quick_count: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Concurrent senders enqueue while one worker handles.
    Task { senders: usize },
    /// Tasks are enqueued in bulk and not handled. `in_flight` is the number of senders on the raw
    /// side.
    EnqueueAll { in_flight: usize },
    /// One worker handles messages that were enqueued before.
    Drain { handler: Handler },
    /// Concurrent senders publish to one subscriber.
    Event { senders: usize },
    /// Senders make requests, `in_flight` at a time.
    Rpc { in_flight: usize, reliable: bool },
}

/// The handler of Campanile's worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Handler {
    Single,
    Batch,
}

impl Work {
    /// The same workload with this number of senders, or of requests in flight. A drain has
    /// neither.
    pub(crate) fn with_senders(mut self, count: usize) -> Self {
        match &mut self {
            Work::Task { senders: it } | Work::Event { senders: it } => *it = count,
            Work::EnqueueAll { in_flight: it } | Work::Rpc { in_flight: it, .. } => *it = count,
            Work::Drain { .. } => {}
        }
        self
    }

    /// Returns whether the worker can run in other processes. In that case only the server shows
    /// when all messages are done.
    pub(crate) fn allows_distant_worker(self) -> bool {
        matches!(self, Work::Task { .. } | Work::Drain { .. })
    }

    /// Returns whether the messages can be sent at a fixed rate.
    pub(crate) fn allows_rate(self) -> bool {
        matches!(self, Work::Task { .. } | Work::Rpc { .. })
    }
}

pub(crate) const fn workload(
    name: &'static str,
    work: Work,
    full_count: usize,
    quick_count: usize,
) -> Workload {
    Workload {
        name,
        work,
        full_count,
        quick_count,
    }
}

const fn task(senders: usize) -> Work {
    Work::Task { senders }
}

pub(crate) const fn drain(handler: Handler) -> Work {
    Work::Drain { handler }
}

pub(crate) const fn rpc(in_flight: usize, reliable: bool) -> Work {
    Work::Rpc {
        in_flight,
        reliable,
    }
}

const ENQUEUE_ALL: Work = Work::EnqueueAll { in_flight: 512 };

pub(crate) const ALL: [Workload; 13] = [
    workload("task-1", task(1), 30_000, 4_000),
    workload("task-64", task(64), 300_000, 40_000),
    workload("task-512", task(512), 300_000, 40_000),
    workload("enqueue-all", ENQUEUE_ALL, 100_000, 50_000),
    workload("drain", drain(Handler::Single), 500_000, 60_000),
    workload("drain-batch", drain(Handler::Batch), 500_000, 60_000),
    workload("event-64", Work::Event { senders: 64 }, 300_000, 40_000),
    workload("rpc-fast-1", rpc(1, false), 15_000, 2_500),
    workload("rpc-fast-64", rpc(64, false), 150_000, 25_000),
    workload("rpc-fast-512", rpc(512, false), 200_000, 30_000),
    workload("rpc-reliable-1", rpc(1, true), 15_000, 2_000),
    workload("rpc-reliable-64", rpc(64, true), 150_000, 25_000),
    workload("rpc-reliable-512", rpc(512, true), 200_000, 30_000),
];

/// Finds the workload with this name. The error lists all names.
pub(crate) fn find_workload(name: &str) -> Result<Workload, String> {
    let found = ALL.into_iter().find(|known| known.name == name);
    found.ok_or_else(|| {
        let names = ALL.map(|known| known.name).join(", ");
        format!("no workload is named {name}; there are {names}")
    })
}

/// The parameters of one round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    pub(crate) name: &'static str,
    pub(crate) work: Work,
    pub(crate) count: usize,
    /// The number of messages sent per second; `None` sends as fast as possible.
    pub(crate) rate: Option<usize>,
    pub(crate) setup: Setup,
}

/// The measurements of one round.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) count: usize,
    pub(crate) elapsed: Duration,
    /// The CPU time of senders and workers.
    pub(crate) client_cpu: Duration,
    /// The CPU time of the servers.
    pub(crate) server_cpu: Duration,
    /// The number of times that the servers have read from a connection. A batch of commands is one
    /// read.
    pub(crate) reads: u64,
    /// The commands that the servers ran, without the bench's own queries.
    pub(crate) commands: Commands,
    /// The memory peak of senders and workers, in KiB.
    pub(crate) peak_kib: u64,
    /// The latencies of requests, or of messages that are sent at a fixed rate. Empty for other
    /// workloads.
    pub(crate) latencies: Vec<Duration>,
}

/// Runs `senders` tasks concurrently, which together call `work` with each number below `count`.
/// Returns the results.
pub(crate) async fn concurrently<F, T>(
    senders: usize,
    count: usize,
    work: impl Fn(usize) -> F + Clone + Send + 'static,
) -> Vec<T>
where
    F: Future<Output = T> + Send,
    T: Send + 'static,
{
    let mut tasks = tokio::task::JoinSet::new();
    for sender in 0..senders {
        let work = work.clone();
        tasks.spawn(async move {
            let mut results = Vec::with_capacity(count / senders + 1);
            for number in (sender..count).step_by(senders) {
                results.push(work(number).await);
            }
            results
        });
    }
    tasks.join_all().await.into_iter().flatten().collect()
}
