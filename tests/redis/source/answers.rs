//! Replies to requests.

use campanile::{ReplyMode, RpcCode, RpcError, transport::codec};
use futures_util::StreamExt;
use redis::aio::PubSub;

use super::*;

const CLIENT: &str = "67e55044-10b1-426f-9247-bb680e5fe0c8";
const REPLIES: &str = "{s}:rpc:67e55044-10b1-426f-9247-bb680e5fe0c8";

/// Adds a request with additional fields.
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

/// The replies stored for the client, which may be several in one entry.
async fn stored(server: &RedisServer) -> Vec<Vec<u8>> {
    stored_on(server, REPLIES).await
}

async fn stored_on(server: &RedisServer, stream: &str) -> Vec<Vec<u8>> {
    let entries = raw::entries(server, stream).await;
    let replies = entries.into_iter().flat_map(|(_, fields)| fields);
    replies
        .flat_map(|(field, value)| {
            assert_eq!(field, b"r");
            let lines = value.split(|&byte| byte == b'\n');
            lines.map(<[u8]>::to_vec).collect::<Vec<_>>()
        })
        .collect()
}

/// Creates the reply stream of a waiting client.
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
    // The request fails first, so that its reply is sent from the retry stream.
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
    assert!(spoken.is_err(), "no reply is published on the channel");
}

#[tokio::test]
async fn a_reliable_reply_is_stored_though_the_server_has_no_memory_left() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    wait_for_replies(&server).await;
    let (_, held) = ask(&server, &mut source, "1", CLIENT).await;
    server.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    settle(held, done()).await;
    assert_eq!(stored(&server).await, [reply_to("1")]);
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
        let verdict = Verdict::DeadLetter {
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
            || Verdict::DeadLetter {
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
    let verdict = Verdict::DeadLetter {
        reason: "the field `name` occurs twice".into(),
        answer: Some(RpcError::invalid("no message")),
    };
    settle(delivery, verdict).await;
    let envelope = published(&mut replies).await;
    let reply = codec::decode_reply(&envelope).unwrap();
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
async fn a_request_is_answered_by_the_first_that_has_finished_it() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    wait_for_replies(&server).await;
    let (taken, held) = ask(&server, &mut source, "taken over", CLIENT).await;
    let claim = ["XCLAIM", "s", "g", "thief", "0", &taken, "JUSTID"];
    let claimed: Vec<String> = server.query(&claim).await;
    assert_eq!(claimed, [taken]);
    settle(held, done()).await;
    assert_eq!(stored(&server).await, [reply_to("taken over")]);
    assert_eq!(pending(&server).await, (0, 0), "the request is settled");

    let (finished, held) = ask(&server, &mut source, "finished", CLIENT).await;
    server.command(&["XACK", "s", "g", &finished]).await;
    settle(held, done()).await;
    assert_eq!(stored(&server).await.len(), 1, "one reply is stored");
    let counts = redis.counts();
    assert_eq!(
        (counts.done, counts.lost_leases, counts.unanswerable),
        (2, 0, 0)
    );
}

#[tokio::test]
async fn replies_that_are_stored_together_go_each_to_its_client() {
    const GONE: &str = "00000000-0000-4000-8000-000000000000";
    const OTHER: &str = "5f1d7a46-7f0e-4d0e-9d43-1b35c1a2b3c4";
    let other = format!("{{s}}:rpc:{OTHER}");
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    wait_for_replies(&server).await;
    server
        .command(&["XGROUP", "CREATE", &other, "x", "$", "MKSTREAM"])
        .await;
    let mut settling = Vec::new();
    let mut expected = [Vec::new(), Vec::new()];
    for n in 0..60 {
        let correlation_id = n.to_string();
        let client = [CLIENT, GONE, OTHER][n % 3];
        let (id, held) = ask(&server, &mut source, &correlation_id, client).await;
        settling.push(settle(held, done()));
        if client == GONE {
            continue;
        }
        if n % 10 == 2 {
            // Another client has acknowledged this request: its caller may get a second reply.
            server.command(&["XACK", "s", "g", &id]).await;
        } else {
            expected[n % 3 / 2].push(reply_to(&correlation_id));
        }
    }
    futures_util::future::join_all(settling).await;
    for (stream, expected) in [(REPLIES, &expected[0]), (&other, &expected[1])] {
        let answered = stored_on(&server, stream).await;
        assert!(expected.iter().all(|reply| answered.contains(reply)));
        assert!(answered.len() <= 20, "each request is answered once");
    }
    assert_eq!(pending(&server).await, (0, 0));
    let counts = redis.counts();
    assert_eq!((counts.done, counts.lost_leases), (60, 0));
    assert_eq!(counts.unanswerable, 20);
}

/// Sends a reliable request by this client, and fetches it.
async fn ask(
    server: &RedisServer,
    source: &mut RedisSource,
    correlation_id: &str,
    client: &str,
) -> (String, Delivery<RedisSettler>) {
    let fields = [
        ("type", "rpc"),
        ("name", "n"),
        ("payload", ""),
        ("reply_to", "campanile:reply:1"),
        ("correlation_id", correlation_id),
        ("~c", client),
    ];
    let id = raw::add(server, "s", &fields).await;
    (id, next(source).await)
}

fn reply_to(correlation_id: &str) -> Vec<u8> {
    codec::encode_reply(correlation_id, &Ok(Reply::default()))
}

#[tokio::test]
async fn a_reply_that_goes_along_with_a_read_is_stored_although_the_server_forgot_the_script() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    wait_for_replies(&server).await;
    let asking = [("reply_to", "campanile:reply:1"), ("~c", CLIENT)];
    request(&server, &asking).await;
    let mut deliveries = source.next(8).await.unwrap();
    for round in 1..=5 {
        server.command(&["SCRIPT", "FLUSH"]).await;
        // There is demand during the settlement, so that it can be sent with a read.
        let settled = settle(deliveries.remove(0), Verdict::Done(Ok(Reply::new("1"))));
        let next = async {
            // The read blocks. The settlement that was sent with it must be confirmed at once.
            tokio::time::sleep(SECOND / 20).await;
            request(&server, &asking).await;
        };
        let more = within(10 * SECOND, source.next(8));
        let (_, more, _) = tokio::join!(settled, more, next);
        deliveries = more.unwrap();
        assert_eq!(stored(&server).await.len(), round);
        assert_eq!(redis.counts().done, round as u64);
    }
}
