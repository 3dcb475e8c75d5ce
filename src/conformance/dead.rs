//! Checks of dead letters.

use std::time::Duration;

use super::{
    Factory,
    scene::{
        QUIET, Scene, WorkerOf, assert_same, attempt, done, id, message, must, redeliver_after,
        send, settle,
    },
};
use crate::{
    message::{Message, MessageId},
    transport::{DeadLetter, DeadLetters, Page, Selection, Source, Start, Verdict},
};

/// Sends tasks with these names, and dead-letters each. Returns their ids.
async fn send_and_dead_letter<F: Factory>(
    scene: &Scene<'_, F>,
    worker: &mut WorkerOf<F>,
    names: &[&str],
) -> Vec<MessageId> {
    let handle = scene.handle().await;
    let mut ids = Vec::new();
    for name in names {
        ids.push(send(&handle, Message::task(*name, name.to_string())).await);
        dead_letter_next(worker).await;
    }
    ids
}

/// Dead-letters the next delivery.
async fn dead_letter_next<S: Source>(worker: &mut super::scene::OpenSource<S>) {
    let verdict = Verdict::DeadLetter {
        reason: "it cannot be done".into(),
        answer: None,
    };
    settle(worker.one().await, verdict).await;
}

async fn list_letters(dead: &DeadLetters) -> Vec<DeadLetter> {
    must("listing", dead.list(Page::first(1_000))).await.letters
}

/// Lists all letters in pages of two.
pub(super) async fn list_in_pages(dead: &DeadLetters) -> Vec<DeadLetter> {
    let mut listed = Vec::new();
    let mut page = Some(Page::first(2));
    while let Some(part) = page {
        let found = must("listing", dead.list(part)).await;
        assert!(found.letters.len() <= 2, "a page has more than two letters");
        listed.extend(found.letters);
        page = found.next;
    }
    listed
}

/// Checks that the letters are listed in pages, and that a letter is found by its id.
pub async fn dead_letters_are_listed_in_pages_and_found_by_id<F: Factory>(factory: &F) {
    let scene = Scene::new(factory);
    let Some(dead) = scene.dead_letters().await else {
        return;
    };
    assert_eq!(must("counting", dead.count()).await, 0);
    assert_eq!(list_letters(&dead).await, []);
    let mut worker = scene.worker().await;
    let ids = send_and_dead_letter(&scene, &mut worker, &["a", "b", "c", "d", "e"]).await;
    assert_eq!(must("counting", dead.count()).await, 5);

    let listed = list_in_pages(&dead).await;
    let listed_ids: Vec<_> = listed.iter().map(|letter| &letter.message_id).collect();
    assert_eq!(listed_ids, ids.iter().collect::<Vec<_>>(), "oldest first");

    let letter = must("getting", dead.get(&listed[2].id)).await;
    assert_eq!(letter.as_ref(), Some(&listed[2]));
    let found = letter.expect("compared just above").message();
    let found = found.expect("it was a message");
    assert_eq!(
        (found.name().as_str(), &found.payload()[..]),
        ("c", &b"c"[..])
    );
    assert_eq!(found.parts().id.as_ref(), Some(&ids[2]));
    worker.close().await;
}

/// Checks that a replayed message starts with its first attempt, and becomes a dead letter again if
/// it fails.
pub async fn a_replayed_dead_letter_starts_from_its_first_attempt<F: Factory>(factory: &F) {
    let scene = Scene::new(factory).with(|settings| settings.max_deliveries = 2);
    let Some(dead) = scene.dead_letters().await else {
        return;
    };
    let mut worker = scene.worker().await;
    let receipt = scene.send_task("poison").await;
    for round in 0..2 {
        for expected in 1..=2 {
            let delivery = worker.one().await;
            assert_eq!((id(&delivery), attempt(&delivery)), (&receipt, expected));
            settle(delivery, redeliver_after(Duration::ZERO)).await;
        }
        worker.nothing_for(QUIET, "a dead letter came back").await;
        assert_eq!(must("counting", dead.count()).await, 1, "round {round}");
        let replayed = must("replaying", dead.replay(Selection::All)).await;
        assert_eq!(replayed, 1);
        assert_eq!(must("counting", dead.count()).await, 0);
    }
    let delivery = worker.one().await;
    assert_eq!((id(&delivery), attempt(&delivery)), (&receipt, 1));
    assert_eq!(message(&delivery).payload(), "poison");
    done(delivery).await;
    worker.close().await;
}

/// Checks that a replay and a purge affect only the selected letters: those with given ids, those
/// with a name, or all.
pub async fn only_selected_dead_letters_are_replayed_or_purged<F: Factory>(factory: &F) {
    let scene = Scene::new(factory);
    let Some(dead) = scene.dead_letters().await else {
        return;
    };
    let mut worker = scene.worker().await;
    let ids = send_and_dead_letter(&scene, &mut worker, &["a", "b", "a", "c", "b", "c"]).await;
    let all = list_letters(&dead).await;

    let second = || Selection::ids([all[1].id.clone()]);
    assert_eq!(must("replaying", dead.replay(second())).await, 1);
    assert_eq!(
        must("replaying", dead.replay(second())).await,
        0,
        "it was replayed before"
    );
    assert_eq!(must("purging", dead.purge(second())).await, 0);
    assert_eq!(must("getting", dead.get(&all[1].id)).await, None);
    let delivery = worker.one().await;
    assert_eq!(id(&delivery), &ids[1]);
    done(delivery).await;

    assert_eq!(
        must("replaying", dead.replay(Selection::named("a"))).await,
        2
    );
    let replayed = worker.exactly(2).await;
    assert_same(
        replayed.iter().map(|d| id(d).clone()),
        [ids[0].clone(), ids[2].clone()],
    );
    for delivery in replayed {
        done(delivery).await;
    }
    assert_eq!(must("purging", dead.purge(Selection::named("c"))).await, 2);
    assert_eq!(must("purging", dead.purge(Selection::named("x"))).await, 0);
    let remaining: Vec<_> = list_letters(&dead)
        .await
        .into_iter()
        .map(|letter| letter.message_id)
        .collect();
    assert_eq!(remaining, [ids[4].clone()]);
    assert_eq!(must("purging", dead.purge(Selection::All)).await, 1);
    assert_eq!(must("counting", dead.count()).await, 0);
    worker
        .nothing_for(QUIET, "a purged message came back")
        .await;
    worker.close().await;
}

/// Checks that two concurrent replays replay each letter once, even if there are too many letters
/// for one step of a replay.
pub async fn many_dead_letters_are_replayed_once_each<F: Factory>(factory: &F) {
    const LETTERS: usize = 250;
    let scene = Scene::new(factory);
    let Some(dead) = scene.dead_letters().await else {
        return;
    };
    let mut worker = scene.worker().await;
    let ids = send_and_dead_letter(&scene, &mut worker, &["a"; LETTERS]).await;
    let (one, other) = tokio::join!(dead.replay(Selection::All), dead.replay(Selection::All));
    let replayed = one.expect("it replays") + other.expect("it replays");
    assert_eq!(replayed, LETTERS as u64, "by two replays at the same time");
    let replayed = worker.exactly(LETTERS).await;
    assert_same(replayed.iter().map(|d| id(d).clone()), ids);
    for delivery in replayed {
        done(delivery).await;
    }
    worker
        .nothing_for(QUIET, "a letter was replayed twice")
        .await;
    worker.close().await;
}

/// Checks that a replayed message is delivered only to the group of its dead letter.
pub async fn a_replay_reaches_only_the_group_of_the_dead_letter<F: Factory>(factory: &F) {
    let scene = Scene::new(factory);
    if !factory.capabilities().groups {
        return;
    }
    let Some(dead) = scene.dead_letters().await else {
        return;
    };
    let other = scene.with_group("other", Start::Beginning);
    let mut own_worker = scene.worker().await;
    let mut other_worker = other.worker().await;
    send_and_dead_letter(&scene, &mut own_worker, &["a"]).await;
    done(other_worker.one().await).await;
    let others = other.dead_letters().await.expect("it is the same factory");
    assert_eq!(must("counting", others.count()).await, 0);
    assert_eq!(must("replaying", others.replay(Selection::All)).await, 0);
    assert_eq!(must("replaying", dead.replay(Selection::All)).await, 1);
    done(own_worker.one().await).await;
    other_worker
        .nothing_for(QUIET, "the other group got the replay")
        .await;
    own_worker.close().await;
    other_worker.close().await;
}

/// Checks that an edited letter is delivered once, with its new content and the original id of its
/// message.
pub async fn a_dead_letter_is_replayed_as_edited<F: Factory>(factory: &F) {
    let scene = Scene::new(factory);
    let Some(dead) = scene.dead_letters().await else {
        return;
    };
    let mut worker = scene.worker().await;
    let ids = send_and_dead_letter(&scene, &mut worker, &["a", "b"]).await;
    let all = list_letters(&dead).await;
    let mut edited = all[0].message().expect("it was a message");
    *edited.payload_mut() = "edited".into();
    edited.parts_mut().name = "c".into();
    let header = http::HeaderValue::from_static("1");
    edited.headers_mut().insert("x-edited", header);
    let replay = async || dead.replay_edited(&all[0].id, &edited).await;
    assert!(must("replaying", replay()).await);
    assert!(!must("replaying", replay()).await, "it was replayed before");
    let delivery = worker.one().await;
    assert_eq!((id(&delivery), attempt(&delivery)), (&ids[0], 1));
    let found = message(&delivery);
    assert_eq!(
        (found.name().as_str(), &found.payload()[..]),
        ("c", &b"edited"[..])
    );
    assert_eq!(
        found.headers().get("x-edited").map(|it| it.as_bytes()),
        Some(&b"1"[..])
    );
    done(delivery).await;
    worker.nothing_for(QUIET, "it was replayed twice").await;
    edited.parts_mut().name = "".into();
    let refused = dead.replay_edited(&all[1].id, &edited).await;
    assert!(refused.is_err_and(|error| error.is_invalid()));
    let of_another_kind = Message::rpc("b", "1");
    let refused = dead.replay_edited(&all[1].id, &of_another_kind).await;
    assert!(refused.is_err_and(|error| error.is_invalid()));
    assert_eq!(must("counting", dead.count()).await, 1);
    worker.close().await;
}
