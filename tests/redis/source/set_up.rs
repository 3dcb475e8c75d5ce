//! The errors of opening a source on a server that is not ready for it.

use campanile::{
    Error,
    transport::{Start, UnknownNames},
};
use support::{Options, rights::documented};

use super::*;

/// The error of a source that does not open.
async fn refusal(redis: &Redis) -> Error {
    let opened = within(10 * SECOND, redis.clone().open(Interest::stream())).await;
    opened.expect_err("the source cannot open")
}

fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[tokio::test]
async fn a_key_that_is_no_stream_is_named() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    for key in ["s", "{s}:retry:g"] {
        server.command(&["SET", key, "1"]).await;
        let error = refusal(&redis).await;
        assert!(error.is_config());
        let expected = format!("the key `{key}` holds a string and not a stream");
        assert!(error.to_string().starts_with(&expected), "{error}");
        server.command(&["DEL", key]).await;
    }
    drop(open(&redis).await);
}

#[tokio::test]
async fn a_new_group_beside_others_must_say_where_it_starts() {
    let server = RedisServer::start().await;
    let first = task(&server, "1").await;
    task(&server, "2").await;
    let create = ["XGROUP", "CREATE", "s", "other", "0"];
    server.command(&create).await;
    let redis = handle(&server).await.unknown_names(UnknownNames::Ignore);
    let error = refusal(&redis).await;
    assert!(error.is_config());
    let text = error.to_string();
    assert!(
        text.contains("(other)") && text.contains(".start(Start::Beginning)"),
        "{text}"
    );

    let text = refusal(&redis.clone().start(Start::After("soon".into())))
        .await
        .to_string();
    assert!(text.contains("`soon`: that is no entry id"), "{text}");

    for (group, start, payload) in [
        ("a", Start::Beginning, Some("1")),
        ("b", Start::After(first), Some("2")),
        ("c", Start::End, None),
    ] {
        let redis = redis.clone().group(group).start(start);
        let mut source = open(&redis).await;
        match payload {
            Some(payload) => assert_eq!(message(&next(&mut source).await).payload(), payload),
            None => nothing(&mut source, SECOND / 2).await,
        }
    }
}

#[tokio::test]
async fn with_several_groups_the_fate_of_unknown_names_must_be_chosen() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    drop(open(&redis).await);
    server
        .command(&["XGROUP", "CREATE", "s", "other", "0"])
        .await;
    let error = refusal(&redis).await;
    assert!(error.is_config());
    let text = error.to_string();
    assert!(
        text.contains(".unknown_names(UnknownNames::Ignore)"),
        "{text}"
    );
    drop(open(&redis.unknown_names(UnknownNames::Fail)).await);
}

#[tokio::test]
async fn a_stream_name_that_no_key_can_stand_beside_is_refused() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let error = refusal(&redis.clone().stream("a}b")).await;
    assert!(error.is_config(), "{error}");
    for stream in ["{a}b", "a b*?", "a{b"] {
        let redis = redis.clone().stream(stream);
        let mut source = open(&redis).await;
        let fields = [("type", "task"), ("name", "n"), ("payload", "x")];
        raw::add(&server, stream, &fields).await;
        let delivery = next(&mut source).await;
        settle(delivery, redeliver(Some(Duration::ZERO), true)).await;
        let delivery = next(&mut source).await;
        settle(delivery, dead("x")).await;
        assert_eq!(letters(&redis).await.len(), 1, "{stream}");
    }
}

#[tokio::test]
async fn a_missing_right_is_an_error_at_once_that_names_it() {
    for (rights, missing) in [
        ("~* &* +@all -xreadgroup", "xreadgroup"),
        ("~* &* +@all -xack", "xack"),
        ("~* &* +@all -evalsha", "evalsha"),
        ("~s ~{s}:retry:g resetchannels +@all", ""),
        ("~x &* +@all", ""),
    ] {
        let acl = format!("user worker on >pw {rights}\nuser default on nopass ~* &* +@all");
        let server = RedisServer::with(Options::new().acl(&acl)).await;
        let url = format!("redis://worker:pw@127.0.0.1:{}/", server.port());
        let redis = Redis::connect(&url).await.unwrap().stream("s").group("g");
        if rights.starts_with("~s") {
            // These rights are enough to open the source. The missing ones are needed later.
            drop(open(&redis).await);
            continue;
        }
        let error = refusal(&redis).await;
        assert!(error.is_refused(), "{rights}: {error:?}");
        let text = chain(&error);
        assert!(
            text.contains(missing) && text.contains("ACL SETUSER"),
            "{text}"
        );
        assert!(!text.contains("pw"), "{text}");
    }
}

#[tokio::test]
async fn the_rights_that_the_docs_name_are_enough_for_a_worker() {
    let rights = documented(&["serves tasks", "… and handles", "listens"]);
    let rights = rights.replace("&<event names and patterns>", "&news &sport.*");
    let users =
        format!("user worker on >pw resetchannels {rights}\nuser default on nopass ~* &* +@all");
    let server = RedisServer::with(Options::new().acl(&users)).await;
    let url = format!("redis://worker:pw@127.0.0.1:{}/", server.port());
    let redis = Redis::connect(&url).await.unwrap().stream("s").group("g");
    let redis = redis.lease(SECOND);
    let mut interest = Interest::stream();
    interest.events.push("news".into());
    interest.patterns.push("sport.*".into());
    let mut source = redis.clone().open(interest).await.unwrap();

    let discard = Verdict::Discard {
        reason: campanile::transport::Discarded::Requested,
        answer: None,
    };
    for (verdict, comes_again) in [
        (done(), false),
        (dead("x"), false),
        (discard, false),
        (redeliver(Some(Duration::ZERO), true), true),
        (redeliver(Some(SECOND / 10), true), true),
        (Verdict::Release, true),
    ] {
        task(&server, "x").await;
        let delivery = next(&mut source).await;
        settle(delivery, verdict).await;
        if comes_again {
            settle(next(&mut source).await, done()).await;
        }
    }
    let client = "67e55044-10b1-426f-9247-bb680e5fe0c8";
    let replies = format!("{{s}}:rpc:{client}");
    server.command(&["XADD", &replies, "*", "x", "y"]).await;
    for reliable in [false, true] {
        let mut fields = vec![("type", "rpc"), ("name", "n"), ("payload", "")];
        fields.extend([("reply_to", "reply:1"), ("correlation_id", "1")]);
        fields.extend(reliable.then_some(("~c", client)));
        for verdict in [done(), dead("x")] {
            raw::add(&server, "s", &fields).await;
            settle(next(&mut source).await, verdict).await;
        }
    }
    assert_eq!(raw::len(&server, &replies).await, 2);
    let letters = redis.dead_letters();
    let page = letters.list(Page::first(10)).await.unwrap();
    assert_eq!(page.letters.len(), 3);
    assert!(letters.get(&page.letters[0].id).await.unwrap().is_some());
    let all = || campanile::transport::Selection::All;
    assert_eq!(letters.replay(all()).await.unwrap(), 3);
    for _ in 0..3 {
        settle(next(&mut source).await, dead("again")).await;
    }
    assert_eq!(letters.purge(all()).await.unwrap(), 3);
    for channel in ["news", "sport.rowing"] {
        server.command(&["PUBLISH", channel, "x"]).await;
        assert_eq!(message(&next(&mut source).await).payload(), "x");
    }
    // The task is claimed, and then the upkeep has time to run each of its steps.
    task(&server, "x").await;
    drop(next(&mut source).await);
    settle(next(&mut source).await, done()).await;
    nothing(&mut source, 2 * SECOND).await;
    source.stop().await;
    within(5 * SECOND, source.close()).await.unwrap();

    // A denied `INFO` is no fault: the version is read only if that is permitted.
    let log: Vec<Vec<redis::Value>> = server.query(&["ACL", "LOG"]).await;
    let denied: Vec<String> = log
        .into_iter()
        .filter_map(|mut entry| {
            let object = entry.iter().position(|field| match field {
                redis::Value::BulkString(name) => name == b"object",
                _ => false,
            })?;
            redis::from_redis_value(entry.swap_remove(object + 1)).ok()
        })
        .filter(|object| object != "info")
        .collect();
    assert!(denied.is_empty(), "{denied:?}");
}

#[tokio::test]
async fn a_source_without_interest_in_the_stream_leaves_it_alone() {
    let server = RedisServer::start().await;
    task(&server, "x").await;
    let redis = handle(&server).await;
    let mut source = redis.clone().open(Interest::default()).await.unwrap();
    nothing(&mut source, SECOND / 2).await;
    assert!(
        server.try_command(&["XPENDING", "s", "g"]).await.is_err(),
        "no group"
    );
    within(SECOND, source.close()).await.unwrap();
}
