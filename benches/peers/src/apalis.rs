//! The workloads with apalis and its Redis storage: its own `push`, and one worker.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use apalis::prelude::{BackendExt, Data, TaskSink, WorkerBuilder};
use apalis_redis::{Config, RedisStorage};
use futures_util::FutureExt;
use tokio::{sync::oneshot, task::JoinHandle};

use crate::{
    PAYLOAD, STREAM,
    clock::Clock,
    probe::Probe,
    workload::{Job, Round, Work, concurrently},
};

/// The number of tasks in one read. apalis's documentation recommends large reads for throughput.
/// Reads larger than this are not faster.
const BATCH: usize = 1000;

/// The time between two polls of an idle worker: there is no blocking read.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

pub(crate) async fn round(probe: &Probe, job: &Job) -> Round {
    match job.work {
        Work::Task { senders } => task(probe, senders, job.count).await,
        Work::Drain { .. } => drain(probe, job.count).await,
        _ => unreachable!("it is not asked to do that"),
    }
}

async fn task(probe: &Probe, senders: usize, count: usize) -> Round {
    let storage = storage(probe).await;
    let worker = Worker::start(storage.clone());
    storage
        .clone()
        .push(PAYLOAD.to_owned())
        .await
        .expect("a task");
    worker.wait_until_done(probe, 1).await;
    let clock = Clock::start(probe, &[]).await;
    concurrently(senders, count, move |_| {
        let mut storage = storage.clone();
        async move { storage.push(PAYLOAD.to_owned()).await.expect("a task") }
    })
    .await;
    worker.wait_until_done(probe, 1 + count).await;
    let round = clock.stop(count, Vec::new()).await;
    worker.stop().await;
    round
}

async fn drain(probe: &Probe, count: usize) -> Round {
    let storage = storage(probe).await;
    preload(probe, storage.clone(), count).await;
    let clock = Clock::start(probe, &[]).await;
    let worker = Worker::start(storage);
    worker.wait_until_done(probe, count).await;
    let round = clock.stop(count, Vec::new()).await;
    worker.stop().await;
    round
}

async fn storage(probe: &Probe) -> RedisStorage<String> {
    let connection = apalis_redis::connect(probe.server().url())
        .await
        .expect("a connection");
    RedisStorage::new(connection).with_config(
        Config::default()
            .queue(STREAM)
            .batch_size(BATCH)
            // apalis's documentation says to turn this off for tasks shorter than a heartbeat.
            .lock_tasks(false)
            // The bench does not listen to events.
            .emit_events(false),
    )
}

async fn preload(probe: &Probe, mut storage: RedisStorage<String>, count: usize) {
    let waiting = format!("{STREAM}:scheduled");
    let mut left = count;
    while left > 0 {
        let tasks = left.min(1000);
        storage
            .push_bulk(vec![PAYLOAD.to_owned(); tasks])
            .await
            .expect("tasks");
        left -= tasks;
        // Moves the waiting tasks to the active list. A worker moves them itself before it takes
        // tasks, but its script fails for more than some 8,000 waiting tasks.
        let due: Vec<String> = probe.query(&["ZRANGE", &waiting, "0", "-1"]).await;
        let ready = [vec!["RPUSH".to_owned(), format!("{STREAM}:active")], due].concat();
        probe.server().command(&ready).await;
        probe.server().command(&["DEL", &waiting]).await;
    }
}

async fn handle(task: String, handled: Data<Arc<AtomicUsize>>) {
    black_box(task);
    handled.fetch_add(1, Ordering::Relaxed);
}

/// A running worker.
struct Worker {
    handled: Arc<AtomicUsize>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Worker {
    fn start(storage: RedisStorage<String>) -> Self {
        let handled = Arc::new(AtomicUsize::new(0));
        let (stop, stopped) = oneshot::channel::<()>();
        let worker = WorkerBuilder::new("bench")
            .backend(storage.poll_with_interval(POLL_INTERVAL))
            .data(handled.clone())
            .build(handle);
        // Boxed here: within another future the compiler cannot see that it is `Send`.
        let running = worker
            .run_until(async {
                let _ = stopped.await;
                Ok::<_, std::io::Error>(())
            })
            .boxed();
        let served = tokio::spawn(async move { running.await.expect("the worker ends well") });
        Self {
            handled,
            stop,
            served,
        }
    }

    /// Waits until Redis lists this number of tasks as done.
    async fn wait_until_done(&self, probe: &Probe, count: usize) {
        let set = format!("{STREAM}:done");
        while self.handled.load(Ordering::Relaxed) < count
            || probe.query::<usize>(&["SCARD", &set]).await < count
        {
            assert!(!self.served.is_finished(), "the worker ended early");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        self.served.await.expect("the worker does not panic");
    }
}
