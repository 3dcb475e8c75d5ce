//! Checks that workers announce themselves, answer questions, and follow orders.

use std::{future::Future, time::Duration};

use tokio::time::sleep;

use super::{
    Factory,
    scene::{Scene, WorkerOf, call, done, in_time, message, must, redeliver_after, settle},
};
use crate::{
    message::Message,
    reply::Reply,
    transport::{Verdict, WorkerInfo, WorkerOrder, WorkerState, Workers},
};

/// Returns a sender's handle for a scene, and the workers of its group.
async fn connect<F: Factory>(factory: &F, scene: &Scene<'_, F>) -> (F::Handle, Workers) {
    let handle = scene.handle().await;
    let workers = factory.workers(&handle);
    let workers = workers.expect("the factory declares `workers` and gives none");
    (handle, workers)
}

/// Waits until the list of workers meets the condition, and returns the list.
async fn until(workers: &Workers, wanted: impl Fn(&[WorkerInfo]) -> bool) -> Vec<WorkerInfo> {
    let found = async {
        loop {
            let found = must("listing workers", workers.list()).await;
            if wanted(&found) {
                return found;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    in_time("waiting for the list of workers", found).await
}

/// Waits until the condition is true. `what` names the wait in the panic if it takes too long.
async fn until_true<W: Future<Output = bool>>(what: &str, condition: impl Fn() -> W) {
    let met = async {
        while !condition().await {
            sleep(Duration::from_millis(50)).await;
        }
    };
    in_time(what, met).await;
}

/// Returns `true` if all workers are announced.
fn are_announced(found: &[WorkerInfo]) -> bool {
    found.iter().all(|worker| worker.fault.is_none())
}

/// Checks that a worker is listed from its announcement until it is closed.
pub async fn workers_are_listed_from_their_start_to_their_end<F: Factory>(factory: &F) {
    if !factory.capabilities().workers {
        return;
    }
    let scene = Scene::new(factory);
    let (_handle, workers) = connect(factory, &scene).await;
    assert_eq!(must("listing workers", workers.list()).await, []);
    let (mut first, mut second) = (scene.worker().await, scene.worker().await);
    let monitor = first.announce("orders", &["task orders.create", "rpc orders.get"]);
    second.announce("orders-old", &[]);
    let found = until(&workers, |found| found.len() == 2 && are_announced(found)).await;
    let info = &found[0];
    assert_eq!((&*info.service, &*info.version), ("orders", "1.2.3"));
    assert_eq!(info.worker, monitor.worker());
    assert_eq!(info.routes, ["task orders.create", "rpc orders.get"]);
    assert_eq!(info.streams, [scene.settings.stream.to_string()]);
    assert_eq!(info.group, scene.settings.group.as_str());
    assert_eq!(info.pid, std::process::id());
    assert_eq!(info.max_in_flight, scene.settings.max_in_flight);
    assert_eq!(info.lease, scene.settings.lease);
    assert!(info.alive && !info.transport.is_empty() && !info.campanile.is_empty());
    assert_eq!((info.state, info.limit), (WorkerState::Running, None));

    first.close().await;
    let found = until(&workers, |found| found.len() == 1).await;
    assert_eq!(found[0].service, "orders-old");
    second.close().await;
    until(&workers, <[_]>::is_empty).await;
}

/// Checks that workers answer pings, and answer questions about their statistics and routes.
pub async fn workers_answer_what_they_have_done_and_what_runs<F: Factory>(factory: &F) {
    if !factory.capabilities().workers {
        return;
    }
    let scene = Scene::new(factory);
    let (_handle, workers) = connect(factory, &scene).await;
    // Of three tasks, one succeeds, one fails, and one still runs. Another worker is idle.
    let (mut worker, mut idle) = (scene.worker().await, scene.worker().await);
    let idle_monitor = idle.announce("idle", &[]);
    idle.stop().await;
    let monitor = worker.announce("busy", &["task task"]);
    for payload in ["done", "fails", "runs"] {
        scene.send_task(payload).await;
    }
    let mut running = Vec::new();
    for delivery in worker.exactly(3).await {
        let counted = monitor.clone().start(message(&delivery));
        let verdict = match &message(&delivery).payload()[..] {
            b"done" => Verdict::Done(Ok(Reply::default())),
            b"fails" => redeliver_after(Duration::from_secs(60)),
            _ => {
                running.push((delivery, counted));
                continue;
            }
        };
        counted.end(&verdict);
        settle(delivery, verdict).await;
    }
    until(&workers, |found| found.len() == 2 && are_announced(found)).await;
    // Both workers answer with their statistics and with their routes.
    let found = must("asking for statistics", workers.stats()).await;
    assert_eq!(found.silent, [""; 0]);
    let stats = found
        .answers
        .iter()
        .find(|it| it.worker == monitor.worker());
    let stats = stats.expect("the worker answers");
    assert_eq!((stats.done, stats.failed, stats.dead), (1, 1, 0));
    assert_eq!((stats.in_flight, stats.running.len()), (1, 1));
    let described = must("asking for descriptions", workers.describe()).await;
    let described: Vec<_> = (described.answers.iter())
        .map(|it| (&*it.service, &*it.version, it.description.as_deref()))
        .collect();
    let expected = [
        ("busy", "1.2.3", Some("routes of busy")),
        ("idle", "1.2.3", Some("routes of idle")),
    ];
    assert_eq!(described, expected);
    let (delivery, counted) = running.remove(0);
    let shown = &stats.running[0];
    assert_eq!(
        (&*shown.kind, &*shown.name, shown.attempt),
        ("task", "task", 1)
    );
    let id = message(&delivery).parts().id.clone();
    assert_eq!(Some(shown.id.as_str()), id.as_deref());
    assert_eq!(stats.routes.len(), 1);
    assert_eq!(stats.routes[0].latency.count, 2);
    let last_error = stats.routes[0].last_error.as_ref();
    assert_eq!(
        last_error.expect("one has failed").reason,
        "it failed in a check"
    );
    let idle_stats = found
        .answers
        .iter()
        .find(|it| it.worker == idle_monitor.worker());
    let idle_stats = idle_stats.expect("the idle worker answers");
    assert_eq!((idle_stats.in_flight, idle_stats.done), (0, 0));
    drop(counted);
    done(delivery).await;

    let pongs = must("asking for a sign of life", workers.ping()).await;
    assert_eq!((pongs.answers.len(), pongs.silent.len()), (2, 0));
    worker.close().await;
    idle.close().await;
}

/// Checks that a worker follows the orders to it, and no orders to other workers.
pub async fn a_worker_follows_the_orders_to_it<F: Factory>(factory: &F) {
    if !factory.capabilities().workers {
        return;
    }
    let scene = Scene::new(factory);
    let (_handle, workers) = connect(factory, &scene).await;
    let (mut worker, mut other) = (scene.worker().await, scene.worker().await);
    let monitor = worker.announce("ordered", &[]);
    let other_monitor = other.announce("other", &[]);
    until(&workers, |found| found.len() == 2 && are_announced(found)).await;
    let give = async |order| {
        let given = workers.order(monitor.worker(), order, "ada");
        assert!(must("giving an order", given).await);
    };
    // The worker announces its limit, its paused name and the two orders.
    give(WorkerOrder::Limit(Some(3))).await;
    give(WorkerOrder::PauseName("mail.send".into())).await;
    let has_paused_name = |found: &[WorkerInfo]| found.iter().any(|it| it.paused == ["mail.send"]);
    let found = until(&workers, has_paused_name).await;
    let info = found.iter().find(|it| it.service == "ordered");
    let info = info.expect("the worker is listed");
    assert_eq!((info.limit, info.state), (Some(3), WorkerState::Running));
    let orders = info.orders.iter().map(|order| (&*order.order, &*order.by));
    let orders: Vec<_> = orders.collect();
    assert_eq!(
        orders,
        [("limit 3", "ada"), ("pause-name mail.send", "ada")]
    );
    assert_eq!(monitor.max_in_flight(), 3);
    assert!(monitor.has_paused(&"mail.send".into()));
    assert!(!monitor.has_paused(&"mail.read".into()));

    // The worker returns to its configured limit, and is paused, resumed and drained.
    give(WorkerOrder::ResumeName("mail.send".into())).await;
    give(WorkerOrder::Limit(None)).await;
    give(WorkerOrder::Pause).await;
    let is_paused = |found: &[WorkerInfo]| found.iter().any(|it| it.state == WorkerState::Paused);
    until(&workers, is_paused).await;
    assert_eq!(monitor.max_in_flight(), 0);
    give(WorkerOrder::Resume).await;
    let max = scene.settings.max_in_flight;
    until_true("resuming", async || monitor.max_in_flight() == max).await;
    assert!(!monitor.has_paused(&"mail.send".into()));
    give(WorkerOrder::Drain).await;
    in_time("draining", monitor.clone().wait_until_drained()).await;
    assert_eq!(other_monitor.info("").orders, []);

    // An order to an unknown worker has no effect, and invalid orders are refused.
    let unknown = workers.order("nobody", WorkerOrder::Pause, "ada").await;
    assert!(!unknown.expect("the order is valid"));
    for (order, by) in [
        (WorkerOrder::Pause, ""),
        (WorkerOrder::Limit(Some(0)), "ada"),
        (WorkerOrder::PauseName("".into()), "ada"),
    ] {
        let refused = workers.order(monitor.worker(), order, by).await;
        assert!(refused.is_err_and(|error| error.is_invalid()));
    }
    worker.close().await;
    other.close().await;
}

/// Checks that the history of a group counts the messages that its workers handled.
pub async fn the_history_of_a_group_has_what_its_workers_did<F: Factory>(factory: &F) {
    if !factory.capabilities().workers {
        return;
    }
    let scene = Scene::new(factory);
    let (handle, _workers) = connect(factory, &scene).await;
    let sums = async || {
        let history = must("reading the history", factory.history(&handle)).await;
        assert_eq!(history.len(), 60);
        assert!(history.is_sorted_by_key(|minute| minute.start));
        let sums = history.iter().map(|minute| {
            let latencies = minute.latency.count;
            [
                minute.done,
                minute.failed,
                minute.dead,
                latencies,
                minute.waiting.count,
            ]
        });
        sums.fold([0; 5], |sum, of| std::array::from_fn(|at| sum[at] + of[at]))
    };
    assert_eq!(sums().await, [0; 5]);
    let mut worker = scene.worker().await;
    let monitor = worker.announce("busy", &[]);
    for payload in ["1", "2", "3"] {
        let sent = call(&handle, Message::task("task", payload)).await;
        sent.expect("the task is accepted");
    }
    let handle_all = async |worker: &mut WorkerOf<F>, count| {
        for delivery in worker.exactly(count).await {
            let counted = monitor.clone().start(message(&delivery));
            let verdict = match &message(&delivery).payload()[..] {
                b"3" => Verdict::DeadLetter {
                    reason: "it failed in a check".into(),
                    answer: None,
                },
                _ => Verdict::Done(Ok(Reply::default())),
            };
            counted.end(&verdict);
            settle(delivery, verdict).await;
        }
    };
    handle_all(&mut worker, 3).await;
    until_true("the history", async || sums().await == [2, 0, 1, 3, 3]).await;
    // The history includes the last messages of a worker that was closed.
    scene.send_task("4").await;
    handle_all(&mut worker, 1).await;
    worker.close().await;
    assert_eq!(sums().await, [3, 0, 1, 4, 4]);
}
