//! Checks with many concurrent senders and workers, with workers that start and stop, and with a
//! server that restarts.

use std::{collections::HashSet, time::Duration};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Factory,
    scene::{QUIET, Scene, assert_same, attempt, call, done, id, message, must, send},
};
use crate::message::{Message, MessageId};

/// Workers that handle messages until they are stopped, and the ids of the handled messages.
struct RunningWorkers {
    workers: JoinSet<()>,
    handled: mpsc::UnboundedReceiver<MessageId>,
    stop: CancellationToken,
}

impl RunningWorkers {
    async fn of<F: Factory>(workers: usize, scene: &Scene<'_, F>) -> Self {
        let (sender, handled) = mpsc::unbounded_channel();
        let mut running = Self {
            workers: JoinSet::new(),
            handled,
            stop: CancellationToken::new(),
        };
        for number in 0..workers {
            let mut worker = scene.worker().await;
            let (sender, stop) = (sender.clone(), running.stop.clone());
            running.workers.spawn(async move {
                let max = 1 + number % 10;
                while let Some(batch) = stop.run_until_cancelled(worker.batch(max)).await {
                    for delivery in batch {
                        let _ = sender.send(id(&delivery).clone());
                        done(delivery).await;
                    }
                }
                worker.close().await;
            });
        }
        running
    }

    /// Waits until this number of different messages was handled, and then a little longer for
    /// duplicates. Returns the ids of all deliveries.
    async fn finish(mut self, expected: usize) -> Vec<MessageId> {
        let mut all = Vec::new();
        let mut different = HashSet::new();
        while different.len() < expected
            && let Ok(Some(id)) = timeout(Duration::from_secs(20), self.handled.recv()).await
        {
            different.insert(id.clone());
            all.push(id);
        }
        sleep(QUIET).await;
        self.stop.cancel();
        while let Some(worker) = self.workers.join_next().await {
            worker.expect("a worker does not panic");
        }
        while let Ok(id) = self.handled.try_recv() {
            all.push(id);
        }
        all
    }
}

/// Checks that with fifty concurrent senders and fifty workers every message is handled exactly
/// once.
pub async fn fifty_senders_and_fifty_workers_lose_and_repeat_nothing<F: Factory>(factory: &F) {
    const MANY: usize = 50;
    const TASKS_EACH: usize = 20;
    let scene = Scene::new(factory);
    let mut senders = JoinSet::new();
    for _ in 0..MANY {
        let handle = scene.handle().await;
        senders.spawn(async move {
            let mut receipts = Vec::new();
            for _ in 0..TASKS_EACH {
                receipts.push(send(&handle, Message::task("task", "")).await);
            }
            receipts
        });
    }
    let running = RunningWorkers::of(MANY, &scene).await;
    let mut receipts = Vec::new();
    while let Some(sent) = senders.join_next().await {
        receipts.extend(sent.expect("sending does not panic"));
    }
    let handled = running.finish(receipts.len()).await;
    assert_same(handled, receipts);
}

/// Checks that a sequence of workers handles a backlog. Each worker handles some batches and is
/// then closed. Every message is handled once, in order.
pub async fn a_backlog_is_worked_off_in_batches_by_workers_that_come_and_go<F: Factory>(
    factory: &F,
) {
    const BACKLOG: usize = 60;
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    for number in 0..BACKLOG {
        send(&handle, Message::task("task", number.to_string())).await;
    }
    let mut number = 0;
    while number < BACKLOG {
        let mut worker = scene.worker().await;
        for max in [7, 3] {
            for delivery in worker.exactly(max.min(BACKLOG - number)).await {
                assert_eq!(message(&delivery).payload(), &number.to_string());
                assert_eq!(
                    attempt(&delivery),
                    1,
                    "a delivery that was not started was counted"
                );
                done(delivery).await;
                number += 1;
            }
            if number == BACKLOG {
                break;
            }
        }
        worker.close().await;
    }
    let mut worker = scene.worker().await;
    worker
        .nothing_for(QUIET, "a handled message came back")
        .await;
    worker.close().await;
}

/// Checks that no message is lost or handled twice while workers open and close at the same time.
/// In the first round, their group does not exist yet.
pub async fn workers_that_open_and_close_at_the_same_time_lose_and_repeat_nothing<F: Factory>(
    factory: &F,
) {
    const WORKERS: usize = 8;
    const TASKS_EACH: usize = 5;
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let mut receipts = Vec::new();
    let mut handled = Vec::new();
    for round in 0..3 {
        for _ in 0..WORKERS * TASKS_EACH {
            receipts.push(send(&handle, Message::task("task", round.to_string())).await);
        }
        let workers = (0..WORKERS).map(async |_| {
            let mut worker = scene.worker().await;
            let mut ids = Vec::new();
            for delivery in worker.exactly(TASKS_EACH).await {
                assert_eq!(attempt(&delivery), 1, "a closing worker cost an attempt");
                ids.push(id(&delivery).clone());
                done(delivery).await;
            }
            worker.close().await;
            ids
        });
        let ids = futures_util::future::join_all(workers).await;
        handled.extend(ids.into_iter().flatten());
    }
    assert_same(handled, receipts);
    let mut worker = scene.worker().await;
    worker
        .nothing_for(QUIET, "a handled message came back")
        .await;
    worker.close().await;
}

/// Checks that all accepted messages are handled although the server restarts under load, and that
/// neither senders nor workers have to be started again.
pub async fn a_restart_of_the_server_loses_nothing_that_was_accepted<F: Factory>(factory: &F) {
    const SENDERS: usize = 5;
    const TASKS_EACH: usize = 60;
    if !factory.capabilities().restart {
        return;
    }
    let scene = Scene::new(factory);
    let running = RunningWorkers::of(3, &scene).await;
    let mut senders = JoinSet::new();
    for _ in 0..SENDERS {
        let handle = scene.handle().await;
        senders.spawn(async move {
            let mut receipts = Vec::new();
            for _ in 0..TASKS_EACH {
                // A send may fail during the restart. Only accepted messages must be handled.
                if let Ok(reply) = call(&handle, Message::task("task", "")).await {
                    receipts.extend(reply.receipt().cloned());
                }
                sleep(Duration::from_millis(5)).await;
            }
            receipts
        });
    }
    sleep(Duration::from_millis(100)).await;
    must("restarting the server", factory.restart()).await;
    let mut receipts = HashSet::new();
    while let Some(sent) = senders.join_next().await {
        receipts.extend(sent.expect("sending does not panic"));
    }
    assert!(
        receipts.len() >= SENDERS * TASKS_EACH / 2,
        "only {} of {} were accepted",
        receipts.len(),
        SENDERS * TASKS_EACH
    );
    let last = scene.send_task("after the restart").await;
    receipts.insert(last);
    let handled: HashSet<_> = running.finish(receipts.len()).await.into_iter().collect();
    let lost: Vec<_> = receipts.difference(&handled).collect();
    assert!(lost.is_empty(), "accepted and lost: {lost:?}");
}
