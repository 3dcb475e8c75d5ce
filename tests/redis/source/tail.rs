//! Tests of `tail`, which reads a stream and has no effect on it.

use campanile::{
    Client, Kind,
    transport::redis::{Tail, TailEntry, TailFrom},
};
use futures_util::FutureExt;

use super::{support::Options, *};

async fn tail(redis: &Redis, from: TailFrom) -> Tail {
    redis.tail(from).await.expect("the stream can be read")
}

async fn seen(tail: &mut Tail) -> TailEntry {
    within(20 * SECOND, tail.next()).await.expect("an entry")
}

async fn all(mut tail: Tail) -> Vec<String> {
    let mut ids = Vec::new();
    while let Some(entry) = tail.next_present().await.unwrap() {
        ids.push(entry.id);
    }
    ids
}

#[tokio::test]
async fn a_tail_begins_at_the_chosen_entry_under_both_protocols() {
    let server = RedisServer::start().await;
    for protocol in ["resp2", "resp3"] {
        server.command(&["DEL", "s"]).await;
        let url = format!("{}?protocol={protocol}", server.url());
        let redis = Redis::connect(&url).await.unwrap().stream("s");
        let mut now = tail(&redis, TailFrom::Now).await;
        assert!(
            now.next_present().await.unwrap().is_none(),
            "there is no stream"
        );
        for id in ["5-1", "5-2", "7-0", "9-0"] {
            server.command(&["XADD", "s", id, "a", "b"]).await;
        }
        for (from, expected) in [
            (TailFrom::Beginning, &["5-1", "5-2", "7-0", "9-0"][..]),
            (TailFrom::Id("5-2".into()), &["5-2", "7-0", "9-0"]),
            (TailFrom::Id("6".into()), &["7-0", "9-0"]),
            (TailFrom::Id("7".into()), &["7-0", "9-0"]),
            (TailFrom::Id("9-1".into()), &[]),
            (TailFrom::Now, &[]),
        ] {
            assert_eq!(
                all(tail(&redis, from.clone()).await).await,
                expected,
                "{from:?}"
            );
        }
        assert_eq!(
            all(now).await.len(),
            4,
            "the tail was opened before the stream existed"
        );
    }
}

#[tokio::test]
async fn a_message_is_decoded_and_keeps_its_own_id_and_what_is_none_keeps_its_fields() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let client = Client::new(redis.clone());
    let sent = client
        .enqueue("later", "p")
        .header("x-tenant", "acme")
        .delay(Duration::from_millis(20))
        .await
        .unwrap();
    let mut tail = tail(&redis, TailFrom::Beginning).await;
    let entry = seen(&mut tail).await;
    let message = entry.content.expect("a message");
    let parts = message.parts();
    assert_eq!((parts.stream.as_deref(), &parts.group), (Some("s"), &None));
    assert_eq!(
        (message.kind(), message.name().as_str()),
        (Kind::Task, "later")
    );
    assert_eq!(message.payload(), "p");
    assert_eq!(message.headers()["x-tenant"], "acme");
    assert_eq!(message.parts().id.as_ref(), sent.id());
    assert_ne!(Some(&*entry.id), sent.id().map(|id| id.as_str()));
    assert!(message.parts().accepted_at.is_some());

    raw::add(&server, "s", &[("a", "b")]).await;
    let undecodable = seen(&mut tail).await.content.unwrap_err();
    assert_eq!(undecodable.fields, [("a".into(), "b".into())]);
}

#[tokio::test]
async fn nothing_is_passed_over_when_a_look_is_dropped_or_its_connection_lost() {
    let server = RedisServer::with(Options::new().persistent()).await;
    let redis = handle(&server).await;
    let mut tail = tail(&redis, TailFrom::Now).await;
    // The future is dropped before the read is sent, and while the read blocks on the server.
    assert!(tail.next().now_or_never().is_none());
    assert!(tokio::time::timeout(SECOND / 5, tail.next()).await.is_err());
    let mut ids = Vec::new();
    for round in 0..150 {
        ids.push(task(&server, round.to_string()).await);
    }
    for id in &ids[..120] {
        assert_eq!(seen(&mut tail).await.id, *id);
    }
    server.restart().await;
    for id in &ids[120..] {
        let entry = within(20 * SECOND, async {
            loop {
                match tail.next().await {
                    Ok(entry) => return entry,
                    Err(error) => assert!(error.is_disconnected(), "{error}"),
                }
            }
        });
        assert_eq!(entry.await.id, *id);
    }
}

#[tokio::test]
async fn workers_get_what_they_would_have_got() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut tail = tail(&redis, TailFrom::Now).await;
    let mut source = open(&redis).await;
    let id = task(&server, "p").await;
    assert_eq!(seen(&mut tail).await.id, id);
    let delivery = next(&mut source).await;
    assert_eq!(message(&delivery).parts().attempt.0, 1);
    settle(delivery, done()).await;
    assert_eq!(pending(&server).await, (0, 0));
    source.close().await.unwrap();
}

#[tokio::test]
async fn a_key_that_is_no_stream_is_refused_with_what_to_do() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    server.command(&["SET", "s", "x"]).await;
    let refused = redis.tail(TailFrom::Now).await.unwrap_err();
    assert!(refused.is_refused());
    assert!(refused.to_string().contains("another type"), "{refused}");
    let refused = tail(&redis, TailFrom::Beginning)
        .await
        .next()
        .await
        .unwrap_err();
    assert!(refused.is_refused());
    let mistaken = redis.tail(TailFrom::Id("$".into())).await.unwrap_err();
    assert!(mistaken.is_invalid());
}
