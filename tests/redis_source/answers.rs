//! How requests are answered.

use campanile::{ReplyMode, RpcCode, RpcError, transport::codec};
use futures_util::StreamExt;
use redis::aio::PubSub;

use super::*;

const CLIENT: &str = "67e55044-10b1-426f-9247-bb680e5fe0c8";
const REPLIES: &str = "{s}:rpc:67e55044-10b1-426f-9247-bb680e5fe0c8";

/// Adds a request with further fields.
async fn request(server: &RedisServer, fields: &[(&str, &str)]) -> String {
    let mut all = vec![
        ("correlation_id", "vm-1"),
        ("payload", "{}"),
        ("name", "user.get"),
        ("type", "rpc"),
    ];
    all.extend(fields);
    raw::add(server, "s", &all).await
}

async fn subscribe(server: &RedisServer, channel: &str) -> PubSub {
    let mut connection = server.client().get_async_pubsub().await.unwrap();
    connection.subscribe(channel).await.unwrap();
    connection
}

async fn published(connection: &mut PubSub) -> Vec<u8> {
    let reply = within(5 * SECOND, connection.on_message().next()).await;
    reply.unwrap().get_payload_bytes().to_vec()
}

/// The replies that are stored for the client, however many an entry holds.
async fn stored(server: &RedisServer) -> Vec<Vec<u8>> {
    let entries = raw::entries(server, REPLIES).await;
    let replies = entries.into_iter().flat_map(|(_, fields)| fields);
    replies
        .flat_map(|(field, value)| {
            assert_eq!(field, b"r");
            let lines = value.split(|&byte| byte == b'\n');
            lines.map(<[u8]>::to_vec).collect::<Vec<_>>()
        })
        .collect()
}

/// Makes the stream of a client that waits.
async fn wait_for_replies(server: &RedisServer) {
    server
        .command(&["XGROUP", "CREATE", REPLIES, "x", "$", "MKSTREAM"])
        .await;
}

#[tokio::test]
async fn a_go_client_gets_its_answer_to_the_byte_on_the_channel_it_chose() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    let mut replies = subscribe(&server, "reply:vm-1").await;
    request(&server, &[("reply_to", "reply:vm-1")]).await;
    let delivery = next(&mut source).await;
    assert_eq!(message(&delivery).parts().reply_mode, ReplyMode::Fast);
    let reply = Reply::new(r#"{"id":42,"name":"Alice"}"#);
    settle(delivery, Verdict::Done(Ok(reply))).await;
    assert_eq!(
        published(&mut replies).await,
        br#"{"correlation_id":"vm-1","body":"eyJpZCI6NDIsIm5hbWUiOiJBbGljZSJ9","error":""}"#
    );
    request(&server, &[("reply_to", "reply:vm-1")]).await;
    let delivery = next(&mut source).await;
    let error = RpcError::not_found("no such user");
    settle(delivery, Verdict::Done(Err(error))).await;
    assert_eq!(
        published(&mut replies).await,
        br#"{"correlation_id":"vm-1","body":null,"error":"no such user","code":"not_found"}"#
    );
    assert_eq!(pending(&server).await, (0, 0));
    let counts = redis.counts();
    assert_eq!((counts.done, counts.unanswerable), (2, 0));
}

#[tokio::test]
async fn a_reliable_reply_is_stored_once_for_a_client_that_waits() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    wait_for_replies(&server).await;
    let mut channel = subscribe(&server, "campanile:reply:1").await;
    let fields = [("reply_to", "campanile:reply:1"), ("~c", CLIENT)];
    request(&server, &fields).await;
    let delivery = next(&mut source).await;
    assert_eq!(message(&delivery).parts().reply_mode, ReplyMode::Reliable);
    // Failed before, so that it is answered from the retry stream.
    settle(delivery, redeliver(Some(Duration::ZERO), true)).await;
    let delivery = next(&mut source).await;
    settle(delivery, Verdict::Done(Ok(Reply::new("x")))).await;
    assert_eq!(
        stored(&server).await,
        [codec::encode_reply("vm-1", &Ok(Reply::new("x")))]
    );
    assert_eq!(pending(&server).await, (0, 0));
    assert_eq!(raw::len(&server, "{s}:retry:g").await, 0);
    assert_eq!(redis.counts().done, 1);
    let spoken = tokio::time::timeout(SECOND / 4, channel.on_message().next()).await;
    assert!(spoken.is_err(), "and not on the channel");
}

#[tokio::test]
async fn a_reliable_reply_waits_until_the_server_has_memory_for_it() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    wait_for_replies(&server).await;
    request(&server, &[("reply_to", "reply:1"), ("~c", CLIENT)]).await;
    let delivery = next(&mut source).await;
    server.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let settling = tokio::spawn(settle(delivery, done()));
    tokio::time::sleep(SECOND / 2).await;
    assert_eq!(pending(&server).await, (1, 0), "it is not given up");
    server.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    settling.await.unwrap();
    assert_eq!(stored(&server).await.len(), 1);
    let counts = redis.counts();
    assert_eq!((counts.done, counts.unanswerable), (1, 0));
    assert_eq!(pending(&server).await, (0, 0));
}

#[tokio::test]
async fn a_client_that_is_gone_gets_no_stream_and_its_request_is_settled() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    let fields = [("reply_to", "campanile:reply:1"), ("~c", CLIENT)];
    request(&server, &fields).await;
    let delivery = next(&mut source).await;
    settle(delivery, done()).await;
    assert!(stored(&server).await.is_empty());
    assert_eq!(pending(&server).await, (0, 0));
    let counts = redis.counts();
    assert_eq!((counts.done, counts.unanswerable), (1, 1));
}

#[tokio::test]
async fn nothing_is_published_or_stored_where_it_is_not_allowed() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    let mut everything = server.client().get_async_pubsub().await.unwrap();
    everything.psubscribe("*").await.unwrap();
    server.command(&["XADD", "{s}:rpc:x", "*", "a", "b"]).await;
    for fields in [
        &[("reply_to", "orders.created")][..],
        &[("reply_to", "orders.created"), ("~c", "x")],
    ] {
        request(&server, fields).await;
        let delivery = next(&mut source).await;
        settle(delivery, done()).await;
        request(&server, fields).await;
        let delivery = next(&mut source).await;
        let verdict = Verdict::Dead {
            reason: "x".into(),
            answer: Some(RpcError::internal("")),
        };
        settle(delivery, verdict).await;
    }
    assert_eq!(pending(&server).await, (0, 0));
    assert_eq!(redis.counts().unanswerable, 4);
    assert_eq!(raw::len(&server, "{s}:rpc:x").await, 1);
    let spoken = tokio::time::timeout(SECOND / 4, everything.on_message().next()).await;
    assert!(spoken.is_err(), "nothing was published");

    let redis = redis.allowed_reply_prefixes(["orders."]);
    source.close().await.unwrap();
    let mut source = open(&redis).await;
    request(&server, &[("reply_to", "orders.created")]).await;
    let delivery = next(&mut source).await;
    settle(delivery, done()).await;
    published(&mut everything).await;
}

#[tokio::test]
async fn dead_and_discarded_requests_are_answered_with_their_errors() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await.max_deliveries(1);
    let mut source = open(&redis).await;
    wait_for_replies(&server).await;
    let mut channel = subscribe(&server, "reply:vm-1").await;
    let stored_fields = [("reply_to", "reply:other"), ("~c", CLIENT)];
    let verdicts: [(fn() -> Verdict, RpcCode); 3] = [
        (
            || Verdict::Dead {
                reason: "x".into(),
                answer: Some(RpcError::invalid("what?")),
            },
            RpcCode::Invalid,
        ),
        (
            || Verdict::Discard {
                reason: campanile::transport::Discarded::Expired,
                answer: Some(RpcError::deadline("late")),
            },
            RpcCode::Deadline,
        ),
        (|| redeliver(None, true), RpcCode::Unavailable),
    ];
    for (index, (verdict, code)) in verdicts.into_iter().enumerate() {
        let answer = |bytes: &[u8]| codec::decode_reply(bytes).unwrap().answer.unwrap();
        request(&server, &[("reply_to", "reply:vm-1")]).await;
        let delivery = next(&mut source).await;
        settle(delivery, verdict()).await;
        let error = answer(&published(&mut channel).await).unwrap_err();
        assert_eq!(*error.code(), code);

        request(&server, &stored_fields).await;
        let delivery = next(&mut source).await;
        settle(delivery, verdict()).await;
        let error = answer(&stored(&server).await[index]).unwrap_err();
        assert_eq!(*error.code(), code);
    }
    assert_eq!(letters(&redis).await.len(), 4);
    assert_eq!(redis.counts().unanswerable, 0);
}

#[tokio::test]
async fn a_request_that_is_no_message_can_still_be_answered() {
    let server = RedisServer::start().await;
    let mut source = open(&handle(&server).await).await;
    let mut replies = subscribe(&server, "reply:1").await;
    request(&server, &[("reply_to", "reply:1"), ("name", "twice")]).await;
    let delivery = next(&mut source).await;
    assert!(delivery.content.is_err());
    let verdict = Verdict::Dead {
        reason: "the field `name` stands in the entry twice".into(),
        answer: Some(RpcError::invalid("no message")),
    };
    settle(delivery, verdict).await;
    let reply = codec::decode_reply(&published(&mut replies).await).unwrap();
    assert_eq!(reply.correlation_id, "vm-1");
}

#[tokio::test]
async fn a_request_that_outlived_its_workers_is_answered_unavailable() {
    let server = RedisServer::start().await;
    wait_for_replies(&server).await;
    let mut channel = subscribe(&server, "reply:vm-1").await;
    request(&server, &[("reply_to", "reply:vm-1")]).await;
    request(&server, &[("reply_to", "reply:other"), ("~c", CLIENT)]).await;
    server.command(&["XGROUP", "CREATE", "s", "g", "0"]).await;
    let read = [
        "XREADGROUP",
        "GROUP",
        "g",
        "campanile-gone",
        "STREAMS",
        "s",
        ">",
    ];
    server.command(&read).await;
    let redis = handle(&server).await.lease(SECOND).max_deliveries(1);
    let mut source = open(&redis).await;
    nothing(&mut source, 4 * SECOND).await;
    let unavailable = |bytes: &[u8]| {
        let answer = codec::decode_reply(bytes).unwrap().answer.unwrap();
        assert_eq!(*answer.unwrap_err().code(), RpcCode::Unavailable);
    };
    unavailable(&published(&mut channel).await);
    unavailable(&stored(&server).await[0]);
    assert_eq!(letters(&redis).await.len(), 2);
    assert_eq!(pending(&server).await, (0, 0));
}

#[tokio::test]
async fn replies_that_are_stored_together_are_fenced_and_answered_each_on_its_own() {
    const GONE: &str = "00000000-0000-4000-8000-000000000000";
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    wait_for_replies(&server).await;
    let (mut ids, mut deliveries) = (Vec::new(), Vec::new());
    for n in 0..40 {
        let client = if n % 4 == 1 { GONE } else { CLIENT };
        let id = n.to_string();
        let fields = [
            ("type", "rpc"),
            ("name", "n"),
            ("payload", ""),
            ("reply_to", "campanile:reply:1"),
            ("correlation_id", &id),
            ("~c", client),
        ];
        ids.push(raw::add(&server, "s", &fields).await);
        deliveries.push(next(&mut source).await);
    }
    let stolen = |n: usize| n % 5 == 2;
    for (n, id) in ids.iter().enumerate().filter(|(n, _)| stolen(*n)) {
        let claim = ["XCLAIM", "s", "g", "thief", "0", id, "JUSTID"];
        let claimed: Vec<String> = server.query(&claim).await;
        assert_eq!(claimed.len(), 1, "{n}");
    }
    // Two that span a crowd of others, then all the rest.
    let last = deliveries.pop().unwrap();
    let first = deliveries.remove(0);
    tokio::join!(settle(first, done()), settle(last, done()));
    let rest = deliveries
        .into_iter()
        .map(|delivery| settle(delivery, done()));
    futures_util::future::join_all(rest).await;

    let mut answered: Vec<_> = stored(&server).await;
    let mut expected: Vec<_> = (0..40)
        .filter(|n| !stolen(*n) && n % 4 != 1)
        .map(|n| codec::encode_reply(&n.to_string(), &Ok(Reply::default())))
        .collect();
    answered.sort();
    expected.sort();
    assert_eq!(answered, expected);
    assert_eq!(pending(&server).await, (8, 0));
    let counts = redis.counts();
    assert_eq!((counts.done, counts.lost_leases), (32, 8));
    let unanswered = (0..40).filter(|n| !stolen(*n) && n % 4 == 1).count() as u64;
    assert_eq!(counts.unanswerable, unanswered);
}
