//! Checks of events.

use super::{
    Factory,
    scene::{OpenSource, QUIET, Scene, assert_same, call, done, message},
};
use crate::{
    message::{Kind, Message, Name},
    transport::{Interest, Source},
};

/// Returns the interest of a worker that wants events and nothing else.
fn event_interest(events: &[Name], patterns: &[Name]) -> Interest {
    Interest {
        stream: false,
        events: events.to_vec(),
        patterns: patterns.to_vec(),
        ..Interest::default()
    }
}

async fn publish<F: Factory>(handle: &F::Handle, name: &Name, payload: &'static str) {
    call(handle, Message::event(name, payload))
        .await
        .unwrap_or_else(|error| panic!("publishing failed: {}", error.chain()));
}

/// Takes one event and returns its name, its pattern and its payload.
async fn next_event<S: Source>(worker: &mut OpenSource<S>) -> (Name, Option<Name>, String) {
    let delivery = worker.one().await;
    let event = message(&delivery);
    assert_eq!(event.kind(), Kind::Event);
    let payload = String::from_utf8(event.payload().to_vec()).expect("text was sent");
    let received = (event.name().clone(), event.parts().pattern.clone(), payload);
    done(delivery).await;
    received
}

/// Checks that every subscriber to a name gets all events of this name, in order, and no event of
/// another name.
pub async fn an_event_reaches_every_subscriber<F: Factory>(factory: &F) {
    if !factory.capabilities().events {
        return;
    }
    let scene = Scene::new(factory);
    let (name, other) = (scene.name("created"), scene.name("deleted"));
    let handle = scene.handle().await;
    let mut workers = Vec::new();
    for _ in 0..3 {
        let interest = event_interest(std::slice::from_ref(&name), &[]);
        workers.push(scene.worker_for(interest).await);
    }
    publish::<F>(&handle, &name, "1").await;
    publish::<F>(&handle, &other, "not for them").await;
    publish::<F>(&handle, &name, "2").await;
    for mut worker in workers {
        for payload in ["1", "2"] {
            let expected = (name.clone(), None, payload.to_owned());
            assert_eq!(next_event(&mut worker).await, expected);
        }
        worker
            .nothing_for(QUIET, "an event came that has another name")
            .await;
        worker.close().await;
    }
}

/// Checks that an event without listeners is not stored.
pub async fn an_event_is_not_kept_for_later<F: Factory>(factory: &F) {
    if !factory.capabilities().events {
        return;
    }
    let scene = Scene::new(factory);
    let name = scene.name("created");
    let handle = scene.handle().await;
    publish::<F>(&handle, &name, "missed").await;
    let interest = event_interest(std::slice::from_ref(&name), &[]);
    let mut worker = scene.worker_for(interest).await;
    publish::<F>(&handle, &name, "received").await;
    assert_eq!(next_event(&mut worker).await.2, "received");
    worker.close().await;
}

/// Checks that a subscription by pattern receives the events that match, and that each delivery
/// names the pattern.
pub async fn a_pattern_gets_the_events_that_it_matches<F: Factory>(factory: &F) {
    if !factory.capabilities().patterns {
        return;
    }
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let pattern = scene.name("*.h[ae]?rd");
    let mut worker = scene
        .worker_for(event_interest(&[], std::slice::from_ref(&pattern)))
        .await;
    publish::<F>(&handle, &scene.name("it.hxard"), "no").await;
    publish::<F>(&handle, &scene.name("heard"), "no").await;
    for name in ["it.hoard", "it.heard", "that.was.haxrd"] {
        publish::<F>(&handle, &scene.name(name), "event").await;
    }
    for name in ["it.heard", "that.was.haxrd"] {
        let expected = (scene.name(name), Some(pattern.clone()), "event".to_owned());
        assert_eq!(next_event(&mut worker).await, expected);
    }
    worker
        .nothing_for(QUIET, "an event came that does not match")
        .await;
    worker.close().await;
}

/// Checks that an event is delivered once for each subscription that it matches.
pub async fn an_event_is_delivered_once_for_each_matching_subscription<F: Factory>(factory: &F) {
    if !factory.capabilities().patterns {
        return;
    }
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let name = scene.name("created");
    let (all, some) = (scene.name("*"), scene.name("c*"));
    let interest = event_interest(
        std::slice::from_ref(&name),
        &[all.clone(), some.clone(), scene.name("x*")],
    );
    let mut worker = scene.worker_for(interest).await;
    publish::<F>(&handle, &name, "event").await;
    let mut patterns = Vec::new();
    for _ in 0..3 {
        patterns.push(next_event(&mut worker).await.1);
    }
    assert_same(patterns, [None, Some(all), Some(some)]);
    worker
        .nothing_for(QUIET, "one subscription got the event twice")
        .await;
    worker.close().await;
}

/// Checks that a sharded event reaches only the subscribers of sharded events with its name, and
/// that these subscribers get no other events.
pub async fn sharded_events_have_their_own_audience<F: Factory>(factory: &F) {
    if !factory.capabilities().sharded_events {
        return;
    }
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    // In a sharded name, `*` is a character like any other.
    let names = ["created", "dele*ed"].map(|name| scene.name(name));
    let mut sharded = Vec::new();
    for _ in 0..2 {
        let mut interest = event_interest(&[], &[]);
        interest.sharded = names.to_vec();
        sharded.push(scene.worker_for(interest).await);
    }
    let mut others = scene
        .worker_for(event_interest(&names[..1], &[scene.name("*")]))
        .await;
    for name in ["created", "deleted", "dele*ed"] {
        let mut event = Message::event(scene.name(name), "sharded");
        event.parts_mut().sharded = true;
        call(&handle, event).await.expect("it is published");
    }
    publish::<F>(&handle, &names[0], "to all").await;
    for worker in &mut sharded {
        let mut received = Vec::new();
        for _ in &names {
            let delivery = worker.one().await;
            assert!(message(&delivery).parts().sharded);
            assert_eq!(message(&delivery).payload(), "sharded");
            received.push(message(&delivery).name().clone());
            done(delivery).await;
        }
        assert_same(received, names.clone());
        let extra = "an event came that is not sharded, or has another name";
        worker.nothing_for(QUIET, extra).await;
    }
    for _ in 0..2 {
        let delivery = others.one().await;
        assert!(!message(&delivery).parts().sharded);
        assert_eq!(message(&delivery).payload(), "to all");
        done(delivery).await;
    }
    others.nothing_for(QUIET, "a sharded event came").await;
    for worker in sharded.into_iter().chain([others]) {
        worker.close().await;
    }
}

/// Checks that the headers of an event arrive, or the event is refused.
pub async fn headers_of_an_event_arrive_or_are_refused<F: Factory>(factory: &F) {
    if !factory.capabilities().events {
        return;
    }
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let name = scene.name("created");
    let interest = event_interest(std::slice::from_ref(&name), &[]);
    let mut worker = scene.worker_for(interest).await;
    let mut event = Message::event(&name, "event");
    event
        .headers_mut()
        .insert("x-tenant", http::HeaderValue::from_static("acme"));
    match call(&handle, event).await {
        Err(error) => assert!(error.is_invalid(), "{error:?}"),
        Ok(_) => {
            let delivery = worker.one().await;
            assert_eq!(message(&delivery).headers()["x-tenant"], "acme");
            done(delivery).await;
        }
    }
    worker.close().await;
}

/// Checks that a worker that wants only events leaves the stream to other workers.
pub async fn a_listener_leaves_the_stream_to_others<F: Factory>(factory: &F) {
    if !factory.capabilities().events {
        return;
    }
    let scene = Scene::new(factory);
    let name = scene.name("created");
    let interest = event_interest(std::slice::from_ref(&name), &[]);
    let mut listener = scene.worker_for(interest).await;
    scene.send_task("work").await;
    listener.nothing_for(QUIET, "a listener got a task").await;
    let mut worker = scene.worker().await;
    done(worker.one().await).await;
    worker.close().await;
    listener.close().await;
}

/// Checks that one worker receives tasks and events, and neither starves the other.
pub async fn a_worker_receives_tasks_and_events_together<F: Factory>(factory: &F) {
    if !factory.capabilities().events {
        return;
    }
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let name = scene.name("created");
    let mut interest = event_interest(std::slice::from_ref(&name), &[]);
    interest.stream = true;
    let mut worker = scene.worker_for(interest).await;
    for _ in 0..10 {
        publish::<F>(&handle, &name, "event").await;
        scene.send_task("task").await;
    }
    let mut kinds = Vec::new();
    while kinds.len() < 20 {
        for delivery in worker.batch(3).await {
            kinds.push(message(&delivery).kind());
            done(delivery).await;
        }
    }
    assert_eq!(
        kinds.iter().filter(|kind| **kind == Kind::Event).count(),
        10
    );
    worker.close().await;
}
