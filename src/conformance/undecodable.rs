//! Checks of entries that cannot be decoded, and of requests that cannot be answered.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::{
    Factory,
    scene::{Scene, done, id, message, redeliver_after, settle},
};
use crate::{message::Kind, transport::Verdict};

/// Checks that an undecodable entry is delivered with its fields and a reason, can become a dead
/// letter, and does not hold up other entries.
pub async fn an_undecodable_entry_does_not_hold_up_others<F: Factory>(factory: &F) {
    if !factory.capabilities().raw_entries {
        return;
    }
    let entries: [&[(&str, &[u8])]; 10] = [
        // A field is missing.
        &[("hello", b"world")],
        &[("name", b"a"), ("payload", b"")],
        &[("type", b"task"), ("payload", b"")],
        &[("type", b"task"), ("name", b"a")],
        // The kind or the name is invalid.
        &[("type", b"job"), ("name", b"a"), ("payload", b"")],
        &[("type", b"task"), ("name", b"\xff\xfe"), ("payload", b"")],
        &[("type", b"task"), ("name", b""), ("payload", b"")],
        // A field is repeated.
        &[
            ("type", b"task"),
            ("name", b"a"),
            ("payload", b"1"),
            ("payload", b"2"),
        ],
        // A request has no reply address.
        &[("type", b"rpc"), ("name", b"a"), ("payload", b"")],
        // The name of a header is invalid.
        &[
            ("type", b"task"),
            ("name", b"a"),
            ("payload", b""),
            ("h:no name", b""),
        ],
    ];
    let scene = Scene::new(factory);
    let mut worker = scene.worker().await;
    for entry in entries {
        scene.add_raw(entry).await;
    }
    let receipt = scene.send_task("after them").await;
    // Each entry is delivered once, as undecodable, and becomes a dead letter.
    for entry in entries {
        let delivery = worker.one().await;
        let undecodable = match &delivery.content {
            Err(undecodable) => undecodable,
            Ok(message) => panic!("{entry:?} was read as a message: {message:?}"),
        };
        let raw: Vec<_> = entry
            .iter()
            .map(|(field, value)| (Bytes::from(*field), Bytes::from(*value)))
            .collect();
        assert_eq!(undecodable.fields, raw);
        assert!(!undecodable.reason.is_empty(), "no reason for {entry:?}");
        let reason = undecodable.reason.clone();
        settle(
            delivery,
            Verdict::DeadLetter {
                reason,
                answer: None,
            },
        )
        .await;
    }
    let delivery = worker.one().await;
    assert_eq!(id(&delivery), &receipt);
    done(delivery).await;
    if let Some(dead) = scene.list_dead_letters().await {
        assert_eq!(dead.len(), entries.len());
        for (letter, entry) in dead.iter().zip(entries) {
            assert!(!letter.reason.is_empty());
            for (field, value) in entry {
                let is_stored = letter.fields.iter().any(|(f, v)| f == field && v == value);
                assert!(is_stored, "the field {field} of {entry:?} was not kept");
            }
        }
    }
    worker.close().await;
}

/// Checks that the order of fields does not matter, and that unknown fields are ignored, even
/// thousands of them.
pub async fn a_message_in_any_field_order_with_unknown_fields_is_read<F: Factory>(factory: &F) {
    if !factory.capabilities().raw_entries {
        return;
    }
    let scene = Scene::new(factory);
    let mut worker = scene.worker().await;
    let unknown: Vec<_> = (0..10_000)
        .map(|number| format!("field {number}"))
        .collect();
    let mut fields: Vec<(&str, &[u8])> = vec![("payload", b"x")];
    fields.extend(unknown.iter().map(|field| (field.as_str(), &b"?"[..])));
    fields.extend([("name", &b"a"[..]), ("h:x", b"1"), ("type", b"task")]);
    scene.add_raw(&fields).await;
    let delivery = worker.one().await;
    assert_eq!(message(&delivery).name(), "a");
    assert_eq!(message(&delivery).payload(), "x");
    assert_eq!(message(&delivery).headers()["x"], "1");
    settle(delivery, redeliver_after(Duration::ZERO)).await;
    let delivery = worker.one().await;
    assert_eq!(
        message(&delivery).payload(),
        "x",
        "the second delivery differs"
    );
    done(delivery).await;
    worker.close().await;
}

/// Checks that a request can be settled even if its caller no longer waits or its reply channel is
/// not allowed.
pub async fn a_request_that_cannot_be_answered_is_settled<F: Factory>(factory: &F) {
    if !factory.capabilities().raw_entries {
        return;
    }
    let scene = Scene::new(factory);
    let mut worker = scene.worker().await;
    let stranger = Uuid::new_v4().to_string();
    for address in ["reply:nobody", "orders.events", "campanile:reply:gone"] {
        for correlation in ["host-1", &stranger, "", "\u{0}"] {
            scene
                .add_raw(&[
                    ("type", b"rpc"),
                    ("name", b"user.get"),
                    ("payload", b"{}"),
                    ("reply_to", address.as_bytes()),
                    ("correlation_id", correlation.as_bytes()),
                ])
                .await;
            let delivery = worker.one().await;
            assert_eq!(message(&delivery).kind(), Kind::Rpc);
            done(delivery).await;
        }
    }
    worker.close().await;
}
