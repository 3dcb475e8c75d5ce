//! Checks of verdicts and redelivery.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Factory,
    scene::{QUIET, Scene, attempt, done, id, message, redeliver_after, settle},
};
use crate::transport::{Discarded, Verdict};

/// Checks that a failed message is delivered again, as the next attempt.
pub async fn a_failed_message_is_delivered_again_as_the_next_attempt<F: Factory>(factory: &F) {
    let scene = Scene::new(factory);
    let mut worker = scene.worker().await;
    let receipt = scene.send_task("again").await;
    for expected in 1..=4 {
        let delivery = worker.one().await;
        assert_eq!(attempt(&delivery), expected);
        assert_eq!(id(&delivery), &receipt, "the redelivery has another id");
        assert_eq!(message(&delivery).payload(), "again");
        settle(delivery, redeliver_after(Duration::ZERO)).await;
    }
    done(worker.one().await).await;
    worker
        .nothing_for(QUIET, "a handled message came back")
        .await;
    worker.close().await;
}

/// Checks that a redelivery without a delay uses the back-off.
pub async fn a_failed_message_is_delivered_again_after_the_back_off<F: Factory>(factory: &F) {
    let scene = Scene::new(factory);
    let mut worker = scene.worker().await;
    scene.send_task("again").await;
    let delivery = worker.one().await;
    let verdict = Verdict::Redeliver {
        after: None,
        counted: true,
        reason: "it failed in a check".into(),
    };
    settle(delivery, verdict).await;
    let delivery = worker.one().await;
    assert_eq!(attempt(&delivery), 2);
    done(delivery).await;
    worker.close().await;
}

/// Checks that a delayed redelivery waits, does not delay other messages, and happens even if the
/// worker that asked for it has ended.
pub async fn a_delayed_redelivery_waits_and_outlives_its_worker<F: Factory>(factory: &F) {
    const DELAY: Duration = Duration::from_secs(2);
    if !factory.capabilities().delayed_redelivery {
        return;
    }
    let scene = Scene::new(factory);
    let mut worker = scene.worker().await;
    let delayed = scene.send_task("later").await;
    let delivery = worker.one().await;
    let start = Instant::now();
    settle(delivery, redeliver_after(DELAY)).await;
    worker.close().await;

    let mut worker = scene.worker().await;
    let other = scene.send_task("meanwhile").await;
    let delivery = worker.one().await;
    assert_eq!(id(&delivery), &other, "a delayed message came at once");
    done(delivery).await;
    let delivery = worker.one().await;
    // Both clocks count whole milliseconds, so the measured wait may be up to two milliseconds too
    // short.
    assert!(
        start.elapsed() >= DELAY - Duration::from_millis(5),
        "it came back after {:?} instead of {DELAY:?}",
        start.elapsed()
    );
    assert_eq!((id(&delivery), attempt(&delivery)), (&delayed, 2));
    done(delivery).await;
    worker.close().await;
}

/// Checks that the attempt number stays the same after an uncounted redelivery.
pub async fn an_uncounted_redelivery_is_no_attempt<F: Factory>(factory: &F) {
    let scene = Scene::new(factory).with(|settings| settings.max_deliveries = 2);
    let mut worker = scene.worker().await;
    scene.send_task("again").await;
    for _ in 0..5 {
        let delivery = worker.one().await;
        assert_eq!(attempt(&delivery), 1);
        let verdict = Verdict::Redeliver {
            after: Some(Duration::ZERO),
            counted: false,
            reason: "overloaded".into(),
        };
        settle(delivery, verdict).await;
    }
    done(worker.one().await).await;
    worker.close().await;
}

/// Checks that another worker immediately gets a released delivery, with the same attempt number.
pub async fn a_released_delivery_goes_to_another_worker_at_once<F: Factory>(factory: &F) {
    let scene = Scene::new(factory);
    let mut one = scene.worker().await;
    let mut other = scene.worker().await;
    let receipt = scene.send_task("take it").await;
    let delivery = one.one().await;
    settle(delivery, Verdict::Release).await;
    let delivery = other.one().await;
    assert_eq!((id(&delivery), attempt(&delivery)), (&receipt, 1));
    done(delivery).await;
    one.close().await;
    other.close().await;
}

/// Checks that a message that has used up its deliveries becomes a dead letter, and is not
/// delivered again.
pub async fn a_message_whose_deliveries_are_used_up_becomes_a_dead_letter<F: Factory>(factory: &F) {
    let scene = Scene::new(factory).with(|settings| settings.max_deliveries = 2);
    let mut worker = scene.worker().await;
    let receipt = scene.send_task("poison").await;
    for _ in 0..2 {
        settle(worker.one().await, redeliver_after(Duration::ZERO)).await;
    }
    worker
        .nothing_for(QUIET, "the message was delivered a third time")
        .await;
    if let Some(dead) = scene.list_dead_letters().await {
        assert_eq!(dead.len(), 1);
        assert_eq!((&dead[0].message_id, dead[0].attempts), (&receipt, 2));
        assert!(
            dead[0].reason.contains("it failed in a check"),
            "{}",
            dead[0].reason
        );
    }
    worker.close().await;
}

/// Checks that a dead letter keeps its fields and its reason, and is not delivered again.
pub async fn a_dead_letter_keeps_its_fields_and_the_reason<F: Factory>(factory: &F) {
    let scene = Scene::new(factory);
    let mut worker = scene.worker().await;
    let receipt = scene.send_task("bad payload").await;
    let verdict = Verdict::DeadLetter {
        reason: "no JSON".into(),
        answer: None,
    };
    settle(worker.one().await, verdict).await;
    worker.nothing_for(QUIET, "a dead letter came back").await;
    if let Some(dead) = scene.list_dead_letters().await {
        assert_eq!(dead.len(), 1);
        assert_eq!((&dead[0].message_id, dead[0].attempts), (&receipt, 1));
        assert!(dead[0].reason.contains("no JSON"), "{}", dead[0].reason);
        let has_field = |field, value| dead[0].fields.iter().any(|(f, v)| f == field && v == value);
        assert!(
            has_field("type", "task")
                && has_field("name", "task")
                && has_field("payload", "bad payload")
        );
    }
    worker.close().await;
}

/// Checks that a discarded message is not delivered again and does not become a dead letter.
pub async fn a_discarded_message_is_not_delivered_again<F: Factory>(factory: &F) {
    let scene = Scene::new(factory);
    let mut worker = scene.worker().await;
    for reason in [Discarded::Requested, Discarded::Expired, Discarded::Ignored] {
        scene.send_task("unwanted").await;
        let answer = None;
        settle(worker.one().await, Verdict::Discard { reason, answer }).await;
    }
    worker
        .nothing_for(QUIET, "a discarded message came back")
        .await;
    assert!(
        scene
            .list_dead_letters()
            .await
            .is_none_or(|dead| dead.is_empty())
    );
    worker.close().await;
}
