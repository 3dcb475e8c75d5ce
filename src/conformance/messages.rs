//! Checks that messages arrive as they were sent.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;

use super::{
    Factory,
    scene::{
        Scene, assert_same, call, done, id, message, must, outcome, redeliver_after, send, settle,
        spawn_request,
    },
};
use crate::{
    message::{Kind, Message, Name},
    transport::{Page, Verdict},
};

/// Checks that payloads may be empty, binary or JSON.
pub async fn payloads_of_any_bytes_arrive_intact<F: Factory>(factory: &F) {
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let mut worker = scene.worker().await;
    let every_byte: Vec<u8> = (0..=255).collect();
    let payloads = [
        Bytes::new(),
        Bytes::from(every_byte),
        Bytes::from_static(b"\r\n$-1\r\n"),
        Bytes::from_static(b"{\"id\":7}"),
        Bytes::from(vec![0; 100_000]),
    ];
    for payload in &payloads {
        send(&handle, Message::task("task", payload.clone())).await;
        let delivery = worker.one().await;
        assert_eq!(message(&delivery).payload(), payload);
        done(delivery).await;
    }
    worker.close().await;
}

/// Checks that a payload of 16 MiB arrives intact.
pub async fn a_payload_of_16_mib_arrives_intact<F: Factory>(factory: &F) {
    let scene = Scene::new(factory);
    let mut worker = scene.worker().await;
    let payload: Bytes = (0..16_usize << 20).map(|i| (i % 251) as u8).collect();
    scene.send_task(payload.clone()).await;
    let delivery = worker.one().await;
    assert!(
        message(&delivery).payload() == &payload,
        "the payload changed on its way"
    );
    done(delivery).await;
    worker.close().await;
}

/// Checks that headers arrive in order, including repeated headers and values that are not UTF-8.
pub async fn headers_arrive_with_repeats_and_binary_values<F: Factory>(factory: &F) {
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let mut worker = scene.worker().await;
    let mut task = Message::task("task", "");
    let headers = task.headers_mut();
    for value in [&b"one"[..], b"two", b"", b"\xfe\xff"] {
        let value = HeaderValue::from_bytes(value).expect("a valid value");
        headers.append("x-repeated", value);
    }
    headers.insert("traceparent", HeaderValue::from_static("00-1-2-01"));
    let sent = task.headers().clone();
    send(&handle, task).await;
    let delivery = worker.one().await;
    assert_eq!(message(&delivery).headers(), &sent);
    done(delivery).await;
    worker.close().await;
}

/// Checks that the receipt has the id of the delivered message.
pub async fn a_message_has_the_id_of_its_receipt<F: Factory>(factory: &F) {
    let scene = Scene::new(factory);
    let mut worker = scene.worker().await;
    let first = scene.send_task("1").await;
    let second = scene.send_task("2").await;
    assert_ne!(first, second, "an id was given twice");
    for receipt in [first, second] {
        let delivery = worker.one().await;
        assert_eq!(id(&delivery), &receipt);
        done(delivery).await;
    }
    worker.close().await;
}

/// Checks that a message names its stream and its group at each delivery and as a dead letter. Only
/// together with its stream does the id of a message identify it.
pub async fn a_message_names_its_stream_and_group<F: Factory>(factory: &F) {
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let mut worker = scene.worker().await;
    let expected = StreamAndGroup {
        stream: Some(scene.settings.stream.clone()),
        group: Some(scene.settings.group.clone()),
    };
    scene.send_task("").await;
    for (delivery, delay_millis) in [("first", 0), ("second", 20)] {
        let task = worker.one().await;
        assert_eq!(
            StreamAndGroup::of(message(&task)),
            expected,
            "{delivery} delivery"
        );
        settle(task, redeliver_after(Duration::from_millis(delay_millis))).await;
    }
    let task = worker.one().await;
    assert_eq!(
        StreamAndGroup::of(message(&task)),
        expected,
        "third delivery"
    );
    let verdict = Verdict::DeadLetter {
        reason: "it failed in a check".into(),
        answer: None,
    };
    settle(task, verdict).await;
    if let Some(dead) = scene.dead_letters().await {
        let listed = must("listing", dead.list(Page::first(10))).await.letters;
        let found = must("getting", dead.get(&listed[0].id)).await;
        for letter in [&listed[0], &found.expect("it was listed")] {
            let (stream, group) = (letter.stream.clone(), letter.group.clone());
            assert_eq!(StreamAndGroup { stream, group }, expected, "dead letter");
            let message = letter.message().expect("it was a message");
            assert_eq!(
                StreamAndGroup::of(&message),
                expected,
                "message of a dead letter"
            );
        }
    }
    if factory.capabilities().reliable_rpc {
        let request = spawn_request(&handle, Message::rpc("a", ""));
        let delivery = worker.one().await;
        assert_eq!(StreamAndGroup::of(message(&delivery)), expected, "request");
        done(delivery).await;
        outcome(request).await.expect("it is answered");
    }
    worker.close().await;
}

/// The stream and the group of a message.
#[derive(Debug, PartialEq)]
struct StreamAndGroup {
    stream: Option<Name>,
    group: Option<Name>,
}

impl StreamAndGroup {
    fn of(message: &Message) -> Self {
        let parts = message.parts();
        Self {
            stream: parts.stream.clone(),
            group: parts.group.clone(),
        }
    }
}

/// Checks that a task arrives as a task, a request as a request, and a first delivery as the first
/// attempt.
pub async fn tasks_and_requests_keep_their_kinds<F: Factory>(factory: &F) {
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let mut worker = scene.worker().await;
    send(&handle, Message::task("a", "")).await;
    let delivery = worker.one().await;
    assert_eq!(message(&delivery).kind(), Kind::Task);
    assert!(!message(&delivery).parts().attempt.is_retry());
    done(delivery).await;
    if factory.capabilities().reliable_rpc {
        let request = spawn_request(&handle, Message::rpc("a", ""));
        let delivery = worker.one().await;
        assert_eq!(message(&delivery).kind(), Kind::Rpc);
        done(delivery).await;
        outcome(request).await.expect("the request was answered");
    }
    worker.close().await;
}

/// Checks that any text without control characters can be a name. The names have spaces, glob
/// characters, braces, other scripts, or 1,024 bytes.
pub async fn names_of_any_text_arrive_intact<F: Factory>(factory: &F) {
    let scene = Scene::new(factory);
    let handle = scene.handle().await;
    let mut worker = scene.worker().await;
    let longest = "n".repeat(Name::MAX_LEN);
    let names = ["a b", "*", "a[b]?\\", "{a}", "größe.цена", " ", &longest];
    for name in names {
        send(&handle, Message::task(name, "")).await;
    }
    let deliveries = worker.exactly(names.len()).await;
    assert_same(
        deliveries
            .iter()
            .map(|delivery| message(delivery).name().as_str()),
        names,
    );
    for delivery in deliveries {
        done(delivery).await;
    }
    worker.close().await;
}

/// Checks that a message of any kind is refused if its name is empty, too long, or has control
/// characters.
pub async fn a_name_that_cannot_be_used_is_refused<F: Factory>(factory: &F) {
    let handle = Scene::new(factory).handle().await;
    let too_long = "n".repeat(Name::MAX_LEN + 1);
    for kind in [Kind::Task, Kind::Event, Kind::Rpc] {
        for name in ["", &too_long, "a\n", "\0", "\u{1b}[2J"] {
            let error = call(&handle, Message::new(kind, name, ""))
                .await
                .expect_err("a name that cannot be used was accepted");
            assert!(error.is_invalid(), "{kind}: {error:?}");
        }
    }
}
