//! Checks of statistics.

use std::time::Duration;

use tokio::time::sleep;

use super::{
    Factory,
    scene::{LEASE, Scene, done, must, redeliver_after, send, settle},
};
use crate::{
    message::{Due, Message},
    transport::{Backlog, GroupStats, Start, StreamStats, Verdict},
};

/// Checks that the statistics of each group change with its messages.
pub async fn statistics_follow_what_happens_to_messages<F: Factory>(factory: &F) {
    if !factory.capabilities().statistics {
        return;
    }
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let stats = async || must("reading statistics", factory.stats(&handle)).await;
    let found = stats().await;
    assert_eq!((found.entries, found.groups.len()), (0, 0), "{found:?}");
    assert_eq!(found.stream, scene.settings.stream);

    // Ten tasks wait, and the worker has taken none.
    let mut worker = scene.worker().await;
    for _ in 0..10 {
        scene.send_task("x").await;
    }
    let mut expected = StreamStats::new(&scene.settings.stream, 10, 0);
    expected.groups = vec![GroupStats::new("workers")];
    expected.groups[0].lag = Some(10);
    expected.groups[0].consumers = 1;
    let mut found = stats().await;
    let group = &mut found.groups[0];
    // A transport may not know when a worker was last seen.
    let idle = group.idle.take();
    assert!(
        idle.is_none_or(|idle| idle < Duration::from_secs(60)),
        "{idle:?}"
    );
    expected.groups[0].unfinished = Some(10);
    expected.groups[0].kept_entries = Some(10);
    assert_eq!(found, expected);

    // The worker takes six tasks.
    let mut held = worker.exactly(6).await;
    sleep(Duration::from_millis(50)).await;
    let found = stats().await;
    let group = found.group("workers").expect("it is there");
    let known_lag = |lag: u64| factory.capabilities().unread_lag.then_some(lag);
    assert_eq!(group.lag, known_lag(4), "{found:?}");
    assert_eq!(group.pending, 6, "{found:?}");
    let last_delivered = group.last_delivered.clone();
    assert!(last_delivered.is_some(), "{found:?}");
    let oldest = group.oldest_pending.expect("some are pending");
    assert!(
        oldest >= Duration::from_millis(50) && oldest < Duration::from_secs(60),
        "{oldest:?}"
    );

    // One task is done, one is redelivered in an hour, one at once, and one becomes a dead letter.
    let mut take = || held.pop().expect("six are held");
    done(take()).await;
    settle(take(), redeliver_after(Duration::from_secs(3600))).await;
    settle(take(), redeliver_after(Duration::ZERO)).await;
    let verdict = Verdict::DeadLetter {
        reason: "it failed in a check".into(),
        answer: None,
    };
    settle(take(), verdict).await;
    if factory.capabilities().delayed_tasks {
        let mut later = Message::task("task", "");
        later.parts_mut().due = Some(Due::After(Duration::from_secs(3600)));
        send(&handle, later).await;
        assert_eq!(stats().await.delayed, 1);
    }
    if factory.capabilities().groups {
        let _other = scene.with_group("another", Start::Beginning).worker().await;
        let found = stats().await;
        let names: Vec<_> = found
            .groups
            .iter()
            .map(|group| group.group.as_str())
            .collect();
        assert_eq!(names, ["another", "workers"]);
        assert_eq!(found.groups[0].pending, 0);
        // The group `another` has handled nothing and needs all entries. So no entry is kept for
        // `workers` alone.
        let kept_entries = found.groups[1].kept_entries;
        assert!(kept_entries.is_none_or(|count| count == 0), "{found:?}");
        assert!(found.groups[0].lag.is_none_or(|lag| lag > 0), "{found:?}");
    }
    let found = stats().await;
    let group = found.group("workers").expect("it is there");
    assert_eq!(group.lag, known_lag(5), "{found:?}");
    let numbers = (group.pending, group.delayed, group.dead, group.consumers);
    assert_eq!(numbers, (2, 1, 1, 1), "{found:?}");
    assert_eq!(group.last_delivered, last_delivered, "none was read since");

    // The worker handles all tasks that are due, and leaves.
    for delivery in held {
        done(delivery).await;
    }
    for delivery in worker.exactly(5).await {
        done(delivery).await;
    }
    let found = stats().await;
    let group = found.group("workers").expect("it is there");
    assert_eq!((group.lag, group.pending), (Some(0), 0), "{found:?}");
    assert_eq!(group.oldest_pending, None);
    worker.close().await;
    let found = stats().await;
    let group = found.group("workers").expect("it is there");
    assert_eq!((group.consumers, group.delayed, group.dead), (0, 1, 1));
}

/// Checks that the backlog counts each message once, by the reason of its wait. The backlog can be
/// read before the stream and the group exist.
pub async fn a_backlog_counts_each_message_by_what_it_waits_for<F: Factory>(factory: &F) {
    if !factory.capabilities().backlog {
        return;
    }
    let scene = Scene::new(factory).with(|settings| settings.lease = LEASE);
    let handle = scene.handle().await;
    let backlog = async || must("reading the backlog", factory.backlog(&handle)).await;
    assert_eq!(backlog().await, Backlog::default(), "there is no stream");
    for _ in 0..4 {
        scene.send_task("x").await;
    }
    let found = backlog().await;
    assert_eq!((found.waiting, found.workers), (4, 0), "there is no group");

    // One task waits, one runs, and two wait for their next attempt.
    let mut worker = scene.worker().await;
    let mut held = worker.exactly(3).await;
    settle(
        held.pop().expect("three are held"),
        redeliver_after(Duration::from_secs(10)),
    )
    .await;
    settle(
        held.pop().expect("two are held"),
        redeliver_after(Duration::from_secs(3600)),
    )
    .await;
    // Of the delayed tasks, one is due soon, and one in an hour.
    let mut delayed = 0;
    if factory.capabilities().delayed_tasks {
        for seconds in [10, 3600] {
            let mut later = Message::task("task", "");
            later.parts_mut().due = Some(Due::After(Duration::from_secs(seconds)));
            send(&handle, later).await;
            delayed += 1;
        }
    }
    sleep(Duration::from_millis(50)).await;
    let mut found = backlog().await;
    let oldest = found.oldest_waiting.take().expect("one waits");
    assert!(oldest >= Duration::from_millis(50), "{oldest:?}");
    let expected = Backlog {
        waiting: 1,
        running: 1,
        retrying: 2,
        delayed,
        due_soon: 1 + delayed / 2,
        workers: 1,
        ..Backlog::default()
    };
    assert_eq!(found, expected);
    assert_eq!(found.total(), 3 + delayed / 2);
    assert!(!found.is_empty());

    // After the crash of the worker, its delivery counts as unclaimed.
    if factory.capabilities().claim {
        worker.vanish();
        drop(held);
        let end = tokio::time::Instant::now() + 2 * scene.settings.lease;
        loop {
            let found = backlog().await;
            if (found.unclaimed, found.running, found.workers) == (1, 0, 0) {
                break;
            }
            assert!(tokio::time::Instant::now() < end, "{found:?}");
            sleep(Duration::from_millis(100)).await;
        }
    }
}
