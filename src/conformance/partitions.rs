//! Checks of partitioned streams.

use std::{collections::HashMap, time::Duration};

use super::{
    Factory,
    dead::list_in_pages,
    scene::{
        QUIET, Scene, answer, attempt, call, done, message, must, outcome, redeliver_after, send,
        settle, spawn_request, stream_of,
    },
};
use crate::{
    message::{Due, Message, Name},
    reply::IntoReply,
    transport::{Selection, Streams, Verdict},
};

/// Returns a scene whose stream has this number of partitions.
pub(super) fn partitioned_scene<F: Factory>(
    factory: &F,
    partitions: usize,
) -> (Scene<'_, F>, Name) {
    let scene = Scene::new(factory);
    let stream = scene.name("partitioned");
    let scene = with_partitions(scene, &stream, partitions);
    (scene, stream)
}

fn with_partitions<'a, F: Factory>(
    scene: Scene<'a, F>,
    stream: &Name,
    partitions: usize,
) -> Scene<'a, F> {
    let streams = Streams::partitioned(stream, partitions);
    scene.with(|settings| settings.streams = Some(streams))
}

/// Returns a task with this partition key.
pub(super) fn keyed_task(key: &str, payload: impl ToString) -> Message {
    let mut task = Message::task("task", payload.to_string());
    task.parts_mut().partition_key = Some(key.into());
    task
}

/// Checks that messages with the same key go to the same partition and keep their order. A
/// redelivery stays in its partition. Messages without a key go to all partitions in turn.
pub async fn a_key_has_one_partition<F: Factory>(factory: &F) {
    if !factory.capabilities().partitions {
        return;
    }
    let (scene, stream) = partitioned_scene(factory, 4);
    let handle = scene.handle().await;
    for n in 0..10 {
        for key in ["a", "b", "c"] {
            send(&handle, keyed_task(key, n)).await;
        }
    }
    let mut worker = scene.worker().await;
    let mut partition_of = HashMap::<String, Name>::new();
    let mut next_of_key = HashMap::<String, u32>::new();
    for _ in 0..30 {
        let delivery = worker.one().await;
        let message = message(&delivery);
        let key = message.parts().partition_key.clone();
        let key = key.expect("the key is sent").to_string();
        let next = next_of_key.entry(key.clone()).or_default();
        assert_eq!(message.payload(), &next.to_string(), "the order of `{key}`");
        *next += 1;
        let partition = stream_of(&delivery);
        assert!(partition.starts_with(&format!("{stream}:")), "{partition}");
        let first = partition_of.entry(key).or_insert_with(|| partition.clone());
        assert_eq!(*first, partition);
        done(delivery).await;
    }

    send(&handle, keyed_task("a", "again")).await;
    settle(worker.one().await, redeliver_after(Duration::ZERO)).await;
    let delivery = worker.one().await;
    assert_eq!(attempt(&delivery), 2);
    assert_eq!(stream_of(&delivery), partition_of["a"]);
    let key = message(&delivery).parts().partition_key.as_deref();
    assert_eq!(key, Some("a"), "a redelivery keeps the key");
    done(delivery).await;

    for n in 0..8 {
        send(&handle, Message::task("task", n.to_string())).await;
    }
    let mut counts = HashMap::<Name, u32>::new();
    for delivery in worker.exactly(8).await {
        *counts.entry(stream_of(&delivery)).or_default() += 1;
        done(delivery).await;
    }
    assert_eq!(counts.len(), 4, "{counts:?}");
    assert!(counts.values().all(|count| *count == 2), "{counts:?}");
    worker
        .nothing_for(QUIET, "a handled message came back")
        .await;
    worker.close().await;
}

/// Checks that requests, replies and cancellations work on each partition, and that statistics and
/// dead letters include all partitions.
pub async fn a_partitioned_stream_is_used_as_one_stream<F: Factory>(factory: &F) {
    let capabilities = factory.capabilities();
    if !capabilities.partitions {
        return;
    }
    let (scene, stream) = partitioned_scene(factory, 3);
    let handle = scene.handle().await;
    let mut worker = scene.worker().await;
    // One request and one delayed task for each of the three partitions.
    if capabilities.reliable_rpc {
        for n in 0..3 {
            let pending = spawn_request(&handle, Message::rpc("ask", n.to_string()));
            let reply = "yes".into_reply().expect("a text is a reply");
            answer(worker.one().await, Ok(reply)).await;
            assert_eq!(outcome(pending).await.expect("a reply").payload, "yes");
        }
    }
    if capabilities.delayed_tasks {
        for n in 0..3 {
            let mut later = Message::task("task", n.to_string());
            later.parts_mut().due = Some(Due::After(Duration::from_secs(3600)));
            let id = send(&handle, later).await;
            assert!(scene.cancel(&handle, &id).await, "{id}");
        }
    }
    // The statistics count the tasks of all partitions.
    let mut sent = Vec::new();
    for n in 0..7 {
        sent.push(n.to_string());
        send(&handle, Message::task("task", n.to_string())).await;
    }
    if capabilities.statistics {
        let stats = must("reading statistics", factory.stats(&handle)).await;
        assert_eq!(stats.stream, stream);
        let group = stats.group("workers").expect("it has a worker");
        let lag = capabilities.unread_lag.then_some(7);
        assert_eq!((group.lag, group.consumers), (lag, 1), "{stats:?}");
    }
    // The dead letters of all partitions are listed, purged and replayed together.
    for delivery in worker.exactly(7).await {
        let verdict = Verdict::DeadLetter {
            reason: "bad".into(),
            answer: None,
        };
        settle(delivery, verdict).await;
    }
    let Some(dead) = scene.dead_letters().await else {
        return;
    };
    assert_eq!(must("counting", dead.count()).await, 7);
    let listed = list_in_pages(&dead).await;
    let mut payloads: Vec<_> = listed
        .iter()
        .map(|letter| {
            letter
                .message()
                .expect("it was a message")
                .payload()
                .clone()
        })
        .collect();
    payloads.sort();
    assert_eq!(payloads, sent);
    let found = must("getting", dead.get(&listed[4].id)).await;
    assert_eq!(found.as_ref(), Some(&listed[4]));
    let chosen = Selection::ids([listed[0].id.clone(), listed[6].id.clone()]);
    assert_eq!(must("purging", dead.purge(chosen)).await, 2);
    assert_eq!(must("replaying", dead.replay(Selection::All)).await, 5);
    for delivery in worker.exactly(5).await {
        done(delivery).await;
    }
    assert_eq!(must("counting", dead.count()).await, 0);
    let unknown = dead.get(&"3/1-1".into()).await;
    assert!(unknown.is_err_and(|error| error.is_invalid()));
    worker.close().await;
}

/// Checks that a worker is refused if its settings give fewer partitions than the stream has, and
/// that a worker whose settings give more makes the stream grow.
pub async fn numbers_of_partitions_that_differ_are_refused<F: Factory>(factory: &F) {
    if !factory.capabilities().partitions {
        return;
    }
    let (scene, stream) = partitioned_scene(factory, 4);
    let scene_with = |partitions| with_partitions(Scene::new(factory), &stream, partitions);
    let send_with = async |partitions| {
        let handle = scene_with(partitions).handle().await;
        call(&handle, Message::task("task", partitions.to_string())).await
    };
    send_with(4).await.expect("the first number");
    let refused = scene_with(2).refused_worker().await;
    assert!(refused.is_config(), "{refused:?}");
    for other in [2, 8] {
        let refused = send_with(other).await.expect_err("another number");
        assert!(
            refused.is_invalid() && refused.to_string().contains("4 partitions"),
            "{refused}"
        );
    }
    let old = scene.worker().await;
    let mut grown = scene_with(8).worker().await;
    old.close().await;
    send_with(8).await.expect("the new number");
    send_with(4).await.expect("the number from before");
    let refused = send_with(2).await.expect_err("a number that never was");
    assert!(refused.is_invalid(), "{refused:?}");
    let refused = scene_with(4).refused_worker().await;
    assert!(refused.is_config(), "{refused:?}");
    for delivery in grown.exactly(3).await {
        done(delivery).await;
    }
    grown.close().await;
    for wrong in [0, 5_000] {
        let refused = scene_with(wrong).refused_worker().await;
        assert!(refused.is_config(), "{refused:?}");
        send_with(wrong)
            .await
            .expect_err("the number of partitions is invalid");
    }
}
