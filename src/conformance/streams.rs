//! Checks of sets of streams, and of calls that choose their stream.

use std::{collections::HashMap, time::Duration};

use super::{
    Factory,
    scene::{
        QUIET, Scene, answer, assert_same, attempt, call, done, message, outcome, redeliver_after,
        send, settle, spawn_request, stream_of,
    },
};
use crate::{
    message::{Message, Name},
    reply::IntoReply,
    transport::{Streams, Verdict},
};

/// Returns a scene whose worker serves these streams, and their names.
fn scene_of<F: Factory>(
    factory: &F,
    streams: impl FnOnce(&[Name]) -> Streams,
) -> (Scene<'_, F>, Vec<Name>) {
    let scene = Scene::new(factory);
    let names: Vec<_> = ["a", "b", "c"].map(|name| scene.name(name)).to_vec();
    let streams = streams(&names);
    (
        scene.with(|settings| settings.streams = Some(streams)),
        names,
    )
}

/// Returns a task for this stream.
fn task_to(stream: &Name, payload: impl ToString) -> Message {
    let mut task = Message::task("task", payload.to_string());
    task.parts_mut().to = Some(stream.clone());
    task
}

/// Checks that a task and a request reach the chosen stream, and no other.
pub async fn a_call_can_choose_its_stream<F: Factory>(factory: &F) {
    if !factory.capabilities().stream_sets {
        return;
    }
    let scene = Scene::new(factory);
    let other = scene.name("other");
    let handle = scene.handle().await;
    let mut default = scene.worker().await;
    let at_other = Scene::new(factory).with(|settings| settings.stream = other.clone());
    let mut chosen = at_other.worker().await;
    send(&handle, task_to(&other, "1")).await;
    let delivery = chosen.one().await;
    assert_eq!(stream_of(&delivery), other);
    assert!(
        message(&delivery).parts().to.is_none(),
        "a delivery has no target stream"
    );
    done(delivery).await;
    let mut query = Message::rpc("ask", "2");
    query.parts_mut().to = Some(other.clone());
    let pending = spawn_request(&handle, query);
    answer(
        chosen.one().await,
        Ok("3".into_reply().expect("a text is a reply")),
    )
    .await;
    assert_eq!(outcome(pending).await.expect("a reply").payload, "3");
    default
        .nothing_for(QUIET, "a message came from another stream")
        .await;
    let mut event = Message::event("event", "4");
    event.parts_mut().to = Some(other);
    let refused = call(&handle, event)
        .await
        .expect_err("events have no stream");
    assert!(refused.is_invalid(), "{refused:?}");
    chosen.close().await;
    default.close().await;
}

/// Checks that with strict priority the messages of a stream are delivered only while the streams
/// before it are empty.
pub async fn a_stream_with_priority_is_emptied_first<F: Factory>(factory: &F) {
    if !factory.capabilities().stream_sets {
        return;
    }
    let (scene, streams) = scene_of(factory, |names| Streams::strict(names.to_vec()));
    let handle = scene.handle().await;
    for n in 0..20 {
        for stream in streams.iter().rev() {
            send(&handle, task_to(stream, n)).await;
        }
    }
    let mut worker = scene.worker().await;
    for stream in &streams {
        for _ in 0..20 {
            let delivery = worker.one().await;
            assert_eq!(stream_of(&delivery), *stream);
            done(delivery).await;
        }
    }
    send(&handle, task_to(&streams[2], "later")).await;
    let delivery = worker.one().await;
    assert_eq!(stream_of(&delivery), streams[2]);
    done(delivery).await;
    worker.close().await;
}

/// Checks that streams with backlogs share the slots by their weights, and that a stream gets all
/// slots if it is the only one with a backlog.
pub async fn streams_share_by_their_weights<F: Factory>(factory: &F) {
    if !factory.capabilities().stream_sets {
        return;
    }
    let (scene, streams) = scene_of(factory, |names| {
        Streams::weighted([
            (names[0].clone(), 6),
            (names[1].clone(), 3),
            (names[2].clone(), 1),
        ])
    });
    let handle = scene.handle().await;
    for stream in &streams {
        for n in 0..100 {
            send(&handle, task_to(stream, n)).await;
        }
    }
    let mut worker = scene.worker().await;
    let mut counts = HashMap::<Name, usize>::new();
    for _ in 0..10 {
        for delivery in worker.exactly(10).await {
            *counts.entry(stream_of(&delivery)).or_default() += 1;
            done(delivery).await;
        }
    }
    let shares: Vec<_> = streams
        .iter()
        .map(|stream| counts.get(stream).copied().unwrap_or(0))
        .collect();
    let is_near = |share: usize, wanted: usize| share.abs_diff(wanted) <= 12;
    assert!(
        is_near(shares[0], 60) && is_near(shares[1], 30) && is_near(shares[2], 10) && shares[2] > 0,
        "{shares:?} of 100 instead of about 60, 30 and 10"
    );
    for delivery in worker.exactly(200).await {
        done(delivery).await;
    }
    worker
        .nothing_for(QUIET, "more messages came than were sent")
        .await;
    worker.close().await;
}

/// Checks that redeliveries and dead letters stay on the stream of their message.
pub async fn a_redelivery_in_a_set_stays_on_its_stream<F: Factory>(factory: &F) {
    if !factory.capabilities().stream_sets {
        return;
    }
    let (scene, streams) = scene_of(factory, |names| Streams::in_turn(names.to_vec()));
    let mut worker = scene.worker().await;
    let handle = scene.handle().await;
    for stream in &streams {
        send(&handle, task_to(stream, "x")).await;
    }
    for delivery in worker.exactly(3).await {
        settle(delivery, redeliver_after(Duration::ZERO)).await;
    }
    let second = worker.exactly(3).await;
    assert_same(second.iter().map(stream_of), streams.clone());
    for delivery in second {
        assert_eq!(attempt(&delivery), 2);
        let verdict = Verdict::DeadLetter {
            reason: "bad".into(),
            answer: None,
        };
        settle(delivery, verdict).await;
    }
    for stream in &streams {
        let one_stream = Scene::new(factory).with(|settings| settings.stream = stream.clone());
        if let Some(letters) = one_stream.list_dead_letters().await {
            assert_eq!(letters.len(), 1, "the dead letters of {stream}");
        }
    }
    worker.nothing_for(QUIET, "a dead letter came back").await;
    worker.close().await;
}

/// Checks that an invalid set is refused when it is opened.
pub async fn a_set_that_cannot_be_served_is_refused<F: Factory>(factory: &F) {
    if !factory.capabilities().stream_sets {
        return;
    }
    let nothing = |_: &[Name]| Streams::in_turn(Vec::<Name>::new());
    let twice =
        |names: &[Name]| Streams::strict([names[0].clone(), names[1].clone(), names[0].clone()]);
    let weightless =
        |names: &[Name]| Streams::weighted([(names[0].clone(), 1), (names[1].clone(), 0)]);
    for (scene, names) in [
        scene_of(factory, nothing),
        scene_of(factory, twice),
        scene_of(factory, weightless),
    ] {
        let error = scene.refused_worker().await;
        assert!(error.is_config(), "{error:?}");
        // A handle with a set of streams refuses a message that names no stream.
        let task = Message::task("task", "x");
        let refused = call(&scene.handle().await, task).await;
        let refused = refused.expect_err("no stream is named");
        assert!(
            refused.is_invalid() && refused.to_string().contains("stream"),
            "{refused}"
        );
        drop(names);
    }
}

/// Checks that a running worker finds newly registered streams, and serves all registered streams
/// in turn.
pub async fn registered_streams_are_found_while_they_are_served<F: Factory>(factory: &F) {
    if !factory.capabilities().stream_sets {
        return;
    }
    let scene = Scene::new(factory);
    let registry = scene.name("tenants");
    let sender = Scene::new(factory).with(|settings| settings.registry = Some(registry.clone()));
    let handle = sender.handle().await;
    let streams: Vec<_> = (0..12)
        .map(|n| scene.name(&format!("tenant-{n}")))
        .collect();
    let (early, late) = streams.split_at(4);
    for stream in early {
        send(&handle, task_to(stream, "early")).await;
    }
    let scene = scene.with(|settings| settings.streams = Some(Streams::registered(registry)));
    let mut worker = scene.worker().await;
    let mut take = async |expected: &[Name]| {
        let deliveries = worker.exactly(expected.len()).await;
        assert_same(deliveries.iter().map(stream_of), expected.to_vec());
        for delivery in deliveries {
            done(delivery).await;
        }
    };
    take(early).await;
    for streams in [late, early, &streams] {
        for stream in streams {
            send(&handle, task_to(stream, "late")).await;
        }
        take(streams).await;
    }
    worker
        .nothing_for(QUIET, "a handled message came back")
        .await;
    worker.close().await;
}
