//! Tests of dead letters on real streams.

use campanile::{
    DeadLetterId, MessageId,
    transport::{Action, Selection},
};

use super::*;

#[tokio::test]
async fn a_replay_keeps_the_id_forgets_the_attempts_and_drops_the_reserved_fields_of_the_sender() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    // A sender has set fields of the transport. They have no effect before or after the replay.
    let fields = [
        ("type", "task"),
        ("name", "n"),
        ("payload", "p"),
        ("~o", "1-1"),
        ("~t", "1000"),
        ("h:x-a", "1"),
    ];
    let id = raw::add(&server, "s", &fields).await;
    settle(next(&mut source).await, dead("no")).await;
    assert_eq!(
        redis.dead_letters().replay(Selection::All).await.unwrap(),
        1
    );
    let (_, replayed) = raw::entries(&server, "{s}:retry:g").await.remove(0);
    let replayed: Vec<_> = replayed
        .iter()
        .map(|(field, value)| {
            (
                field.escape_ascii().to_string(),
                value.escape_ascii().to_string(),
            )
        })
        .collect();
    let expected = [
        ("~o", id.as_str()),
        ("~a", "0"),
        ("type", "task"),
        ("name", "n"),
        ("payload", "p"),
        ("h:x-a", "1"),
    ];
    let expected: Vec<_> = expected.map(|(f, v)| (f.to_owned(), v.to_owned())).into();
    assert_eq!(replayed, expected);
    let delivery = next(&mut source).await;
    let parts = message(&delivery).parts();
    assert_eq!(parts.id, Some(MessageId::from(id)));
    assert_eq!((parts.attempt.0, parts.deadline), (1, None));
    settle(delivery, done()).await;
    assert_eq!(pending(&server).await, (0, 0));
    source.close().await.unwrap();
}

#[tokio::test]
async fn a_dead_letter_of_thousands_of_fields_is_replayed_whole() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    let names: Vec<_> = (0..9_000).map(|n| format!("field-{n}")).collect();
    let mut fields = vec![
        ("type", "task"),
        ("name", "n"),
        ("payload", "p"),
        ("~a", "7"),
    ];
    fields.extend(names.iter().map(|name| (name.as_str(), "v")));
    raw::add(&server, "s", &fields).await;
    for _ in 0..2 {
        settle(next(&mut source).await, dead("no")).await;
        let letters = letters(&redis).await;
        assert_eq!(letters.len(), 1);
        assert!(
            letters[0]
                .fields
                .iter()
                .any(|(field, _)| field == "field-8999")
        );
        assert_eq!(
            redis
                .dead_letters()
                .replay(Selection::named("n"))
                .await
                .unwrap(),
            1
        );
    }
    let delivery = next(&mut source).await;
    assert_eq!(message(&delivery).payload(), "p");
    settle(delivery, done()).await;
    source.close().await.unwrap();
}

#[tokio::test]
async fn entries_of_others_on_the_stream_of_dead_letters_are_purged_and_never_replayed() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let dead = redis.dead_letters();
    raw::add(&server, "{s}:dead:g", &[("name", "n")]).await;
    let facts = [
        ("~g", "other"),
        ("~o", "1-1"),
        ("~r", "x"),
        ("~a", "1"),
        ("~d", "1"),
        ("name", "n"),
    ];
    raw::add(&server, "{s}:dead:g", &facts).await;
    assert_eq!(dead.replay(Selection::All).await.unwrap(), 0);
    assert!(raw::entries(&server, "{s}:retry:g").await.is_empty());
    assert_eq!(dead.count().await.unwrap(), 2);
    assert_eq!(dead.purge(Selection::All).await.unwrap(), 2);
}

#[tokio::test]
async fn an_invalid_id_of_a_dead_letter_is_refused_with_an_example() {
    let server = RedisServer::start().await;
    let dead = handle(&server).await.dead_letters();
    for id in ["", "-", "7", "x-1", "(7-1"] {
        let error = dead.get(&DeadLetterId::from(id)).await.unwrap_err();
        assert!(error.is_invalid(), "{error}");
        let error = dead.purge(Selection::ids([id])).await.unwrap_err();
        assert!(error.to_string().contains("1795430237570-0"), "{error}");
    }
}

#[tokio::test]
async fn steps_are_of_a_hundred_at_most_and_leave_what_dies_meanwhile() {
    let server = RedisServer::start().await;
    let dead = handle(&server).await.dead_letters();
    let facts = [
        ("~g", "g"),
        ("~o", "1-1"),
        ("~r", "x"),
        ("~a", "1"),
        ("~d", "1"),
        ("name", "n"),
    ];
    for _ in 0..250 {
        raw::add(&server, "{s}:dead:g", &facts).await;
    }
    let mut steps = dead.steps(Action::Replay, Selection::All);
    assert_eq!(dead.count().await.unwrap(), 250, "no step runs by itself");
    let mut done = vec![steps.next().await.unwrap()];
    raw::add(&server, "{s}:dead:g", &facts).await;
    while done.last().is_some_and(Option::is_some) {
        done.push(steps.next().await.unwrap());
    }
    assert_eq!(done, [Some(100), Some(100), Some(50), None]);
    assert_eq!(steps.next().await.unwrap(), None);
    assert_eq!(dead.count().await.unwrap(), 1);

    let ids = dead.list(Page::default()).await.unwrap().letters;
    let ids = ids.iter().map(|letter| letter.id.clone());
    let ids = ids.chain((1..=100).map(|n| DeadLetterId::from(format!("1-{n}"))));
    let mut steps = dead.steps(Action::Purge, Selection::ids(ids));
    assert_eq!(steps.next().await.unwrap(), Some(1));
    assert_eq!(steps.next().await.unwrap(), Some(0));
    assert_eq!(steps.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_step_ends_after_the_letter_that_exceeds_its_size() {
    let server = RedisServer::start().await;
    let dead = handle(&server).await.dead_letters();
    let body = vec![b'x'; 3 << 20];
    let facts = [
        ("~g", &b"g"[..]),
        ("~o", b"1-1"),
        ("~r", b"x"),
        ("~a", b"1"),
    ];
    let letter = [
        &facts[..],
        &[("~d", b"1"), ("name", b"n"), ("payload", &body)],
    ]
    .concat();
    for _ in 0..5 {
        raw::add(&server, "{s}:dead:g", &letter).await;
    }
    for action in [Action::Replay, Action::Purge] {
        let letters = dead.count().await.unwrap();
        let mut steps = dead.steps(action, Selection::All);
        assert_eq!(steps.next().await.unwrap(), Some(2), "{action:?}");
        assert_eq!(dead.count().await.unwrap(), letters - 2);
        if action == Action::Purge {
            assert_eq!(steps.next().await.unwrap(), Some(1));
        }
    }
    assert_eq!(dead.count().await.unwrap(), 0);
    assert_eq!(raw::len(&server, "{s}:retry:g").await, 2);
}

#[tokio::test]
async fn a_step_that_failed_comes_again() {
    let server = RedisServer::start().await;
    let dead = handle(&server).await.dead_letters();
    raw::add(&server, "{s}:dead:g", &[("a", "b")]).await;
    server.command(&["RENAME", "{s}:dead:g", "aside"]).await;
    server.command(&["SET", "{s}:dead:g", "no stream"]).await;
    let mut steps = dead.steps(Action::Purge, Selection::All);
    for _ in 0..2 {
        assert!(steps.next().await.unwrap_err().is_refused());
    }
    server.command(&["RENAME", "aside", "{s}:dead:g"]).await;
    assert_eq!(steps.next().await.unwrap(), Some(1));
    assert_eq!(steps.next().await.unwrap(), None);
}
