//! Checks of the lists of messages.

use std::time::Duration;

use super::{
    Factory,
    scene::{Scene, done, must, redeliver_after, send, settle},
};
use crate::{
    message::{Due, Message},
    transport::{ListedMessage, MessageQuery, MessageState, Messages, PauseTarget},
};

/// Lists all messages in a state, in pages of two.
async fn list_all(messages: &Messages, state: MessageState) -> Vec<ListedMessage> {
    let mut query = Some(MessageQuery::of(state).max(2));
    let mut listed = Vec::new();
    while let Some(next) = query {
        let page = must("listing", messages.list(next)).await;
        assert!(
            page.messages.len() <= 2,
            "a page has more than two messages"
        );
        listed.extend(page.messages);
        let next = page.next;
        query = next.map(|next| MessageQuery::of(state).max(2).after(next));
    }
    listed
}

fn payloads(listed: &[ListedMessage]) -> Vec<String> {
    let payloads = listed.iter().map(|message| {
        let message = message.content.as_ref().expect("it was a message");
        String::from_utf8_lossy(message.payload()).into_owned()
    });
    payloads.collect()
}

/// Checks that messages are listed by their state, in pages and in their order, and that listing
/// does not change them.
pub async fn messages_are_listed_by_their_state<F: Factory>(factory: &F) {
    if !factory.capabilities().messages {
        return;
    }
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let messages = factory.messages(&handle);
    let messages = messages.expect("the factory declares `messages` and gives none");
    for state in [
        MessageState::Waiting,
        MessageState::Running,
        MessageState::Delayed,
    ] {
        assert!(
            list_all(&messages, state).await.is_empty(),
            "before the first message"
        );
    }
    let mut worker = scene.worker().await;
    let mut ids = Vec::new();
    for payload in ["0", "1", "2", "3", "4"] {
        ids.push(scene.send_task(payload).await);
    }
    if factory.capabilities().delayed_tasks {
        let mut later = Message::task("later", "later");
        later.parts_mut().due = Some(Due::After(Duration::from_secs(3600)));
        send(&handle, later).await;
        let listed = list_all(&messages, MessageState::Delayed).await;
        assert_eq!(payloads(&listed), ["later"]);
        let due = listed[0].due.expect("a delayed message has a time");
        let time_left = due.elapsed().err().map(|ahead| ahead.duration());
        assert!(time_left.is_some_and(|left| left > Duration::from_secs(3000)));
    }

    let waiting = list_all(&messages, MessageState::Waiting).await;
    assert_eq!(payloads(&waiting), ["0", "1", "2", "3", "4"]);
    assert_eq!(
        waiting.iter().map(|it| it.id.clone()).collect::<Vec<_>>(),
        ids
    );
    assert!(waiting.iter().all(|it| it.on_stream && it.attempt.0 == 1));

    // The worker takes three of the five messages.
    let mut held = worker.exactly(3).await;
    let running = list_all(&messages, MessageState::Running).await;
    assert_eq!(payloads(&running), ["0", "1", "2"]);
    assert!(running.iter().all(|it| it.consumer.is_some()));
    let waiting = list_all(&messages, MessageState::Waiting).await;
    assert_eq!(payloads(&waiting), ["3", "4"]);

    // One message is redelivered later, and one at once.
    settle(held.remove(0), redeliver_after(Duration::from_secs(3600))).await;
    settle(held.remove(0), redeliver_after(Duration::ZERO)).await;
    let waiting = list_all(&messages, MessageState::Waiting).await;
    assert_eq!(payloads(&waiting), ["1", "3", "4"], "redeliveries first");
    let redelivered = (waiting[0].on_stream, waiting[0].attempt.0, &waiting[0].id);
    assert_eq!(redelivered, (false, 2, &ids[1]));
    let delayed = list_all(&messages, MessageState::Delayed).await;
    assert_eq!((&*payloads(&delayed)[0], delayed[0].attempt.0), ("0", 2));

    done(held.remove(0)).await;
    assert!(list_all(&messages, MessageState::Running).await.is_empty());
    for delivery in worker.exactly(3).await {
        done(delivery).await;
    }
    assert!(list_all(&messages, MessageState::Waiting).await.is_empty());
    for position in ["", "x", "stream/x", "again/x", "7/7"] {
        let query = MessageQuery::of(MessageState::Waiting).after(position);
        let refused = messages.list(query).await.expect_err("it is no position");
        assert!(refused.is_invalid(), "{position}: {refused}");
    }
    worker.close().await;
}

/// Checks that messages that are parked because their name is paused are counted under this name.
pub async fn parked_messages_are_listed_by_their_key<F: Factory>(factory: &F) {
    let capabilities = factory.capabilities();
    if !capabilities.messages || !capabilities.control {
        return;
    }
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let messages = factory.messages(&handle);
    let messages = messages.expect("the factory declares `messages` and gives none");
    let control = factory.control(&handle);
    let control = control.expect("the factory declares `control` and gives none");
    let mut worker = scene.worker().await;
    assert_eq!(must("listing", messages.parked()).await, []);
    must(
        "pausing",
        control.pause(PauseTarget::Name("paused".into()), ""),
    )
    .await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let mut sent = 0;
    // A worker follows a pause within about a second. Until then, it gets the messages.
    let parked = loop {
        send(&handle, Message::task("paused", "x")).await;
        sent += 1;
        if let Some(delivery) = worker.within(Duration::from_millis(200)).await {
            done(delivery).await;
        }
        if let [key] = &must("listing", messages.parked()).await[..] {
            break key.clone();
        }
        assert!(tokio::time::Instant::now() < deadline, "nothing was parked");
    };
    assert_eq!(
        (parked.name.as_deref(), parked.limit),
        (Some("paused"), None)
    );
    assert!(
        (1..=sent).contains(&parked.parked),
        "{} of {sent}",
        parked.parked
    );
    worker.close().await;
}
