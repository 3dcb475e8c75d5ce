//! Requests to a hand-written worker, which replies on the channel like a Go worker, or on the
//! reply stream.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use campanile::{
    Deadline, Error, Message, Redis, Reply, ReplyMode, Router, RpcCode,
    transport::{Interest, Source, Transport, Verdict},
};
use redis::{AsyncTypedCommands, aio::MultiplexedConnection};

use super::{
    SECOND, handle, send,
    support::{
        self, Options, RedisServer, Signal, raw,
        rights::{assert_refused, documented},
    },
    within,
};

/// The base64 of `{"id":42,"name":"Alice"}`, as recorded.
const ALICE: &str = "eyJpZCI6NDIsIm5hbWUiOiJBbGljZSJ9";

type Fields = HashMap<String, String>;

/// A worker with the group `g` on the stream `s`.
struct Worker {
    connection: MultiplexedConnection,
}

impl Worker {
    async fn start(server: &RedisServer) -> Self {
        let made = server
            .try_command(&["XGROUP", "CREATE", "s", "g", "$", "MKSTREAM"])
            .await;
        assert!(made.is_ok());
        Self {
            connection: server.connection().await,
        }
    }

    /// Reads and acknowledges the next request.
    async fn next(&mut self) -> Fields {
        loop {
            type Read = Option<Vec<(String, Vec<(String, Fields)>)>>;
            let read: Read = redis::cmd("XREADGROUP")
                .arg(&["GROUP", "g", "c", "COUNT", "1", "BLOCK", "2000"])
                .arg(&["STREAMS", "s", ">"])
                .query_async(&mut self.connection)
                .await
                .unwrap();
            let Some((_, entries)) = read.and_then(|mut read| read.pop()) else {
                continue;
            };
            let (id, fields) = entries.into_iter().next().unwrap();
            self.connection.xack("s", "g", &[id]).await.unwrap();
            return fields;
        }
    }

    /// Publishes a reply. Returns the number of subscribers.
    async fn publish(&mut self, request: &Fields, envelope: &str) -> usize {
        self.connection
            .publish(&request["reply_to"], envelope)
            .await
            .unwrap()
    }

    /// Adds a reply to the client's reply stream, if it exists.
    async fn store(&mut self, request: &Fields, envelope: &str) -> Option<String> {
        redis::cmd("XADD")
            .arg(format!("{{s}}:rpc:{}", request["~c"]))
            .arg(&["NOMKSTREAM", "*", "r", envelope])
            .query_async(&mut self.connection)
            .await
            .unwrap()
    }
}

fn success(request: &Fields) -> String {
    let id = &request["correlation_id"];
    format!(r#"{{"correlation_id":"{id}","body":"{ALICE}","error":""}}"#)
}

fn rpc(mode: ReplyMode) -> Message {
    let mut message = Message::rpc("user.get", r#"{"id":42}"#);
    message.parts_mut().reply_mode = mode;
    message
}

fn request(redis: &Redis, mode: ReplyMode) -> tokio::task::JoinHandle<Result<String, Error>> {
    let redis = redis.clone();
    tokio::spawn(async move {
        let reply = within(20 * SECOND, send(&redis, rpc(mode))).await?;
        Ok(String::from_utf8(reply.payload.to_vec()).unwrap())
    })
}

#[tokio::test]
async fn a_request_has_the_go_librarys_fields_and_ours_beside_them() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut worker = Worker::start(&server).await;
    for mode in [ReplyMode::Fast, ReplyMode::Reliable] {
        let _request = request(&redis, mode);
        let fields = worker.next().await;
        assert_eq!(fields["type"], "rpc");
        assert_eq!(fields["name"], "user.get");
        assert_eq!(fields["payload"], r#"{"id":42}"#);
        assert!(fields["reply_to"].starts_with("campanile:reply:"));
        assert_eq!(fields["correlation_id"].len(), 36);
        let left: u64 = fields["~t"].parse().unwrap();
        assert!((25_000..=30_000).contains(&left), "{left}");
        assert_eq!(fields.contains_key("~c"), mode == ReplyMode::Reliable);
        assert_eq!(fields.len(), if fields.contains_key("~c") { 7 } else { 6 });
    }
}

#[tokio::test]
async fn a_go_worker_answers_both_modes_in_every_form() {
    for resp3 in [false, true] {
        let server = RedisServer::start().await;
        let query = if resp3 { "?protocol=resp3" } else { "" };
        let url = format!("{}{query}", server.url());
        let redis = Redis::connect(&url).await.unwrap().stream("s");
        let mut worker = Worker::start(&server).await;
        for mode in [ReplyMode::Fast, ReplyMode::Reliable] {
            let asked = request(&redis, mode);
            let fields = worker.next().await;
            assert_eq!(worker.publish(&fields, &success(&fields)).await, 1);
            let reply = asked.await.unwrap().unwrap();
            assert_eq!(reply, r#"{"id":42,"name":"Alice"}"#);

            let asked = request(&redis, mode);
            let fields = worker.next().await;
            let id = &fields["correlation_id"];
            let null = format!(r#"{{"correlation_id":"{id}","body":null,"error":""}}"#);
            worker.publish(&fields, &null).await;
            assert_eq!(asked.await.unwrap().unwrap(), "");

            let asked = request(&redis, mode);
            let fields = worker.next().await;
            let id = &fields["correlation_id"];
            let failed =
                format!(r#"{{"correlation_id":"{id}","body":null,"error":"no such user"}}"#);
            worker.publish(&fields, &failed).await;
            let error = asked.await.unwrap().unwrap_err();
            let answer = error.rpc().unwrap();
            assert_eq!(answer.message(), "no such user");
            assert_eq!(answer.code(), &RpcCode::Internal);
        }
        // All requests share one subscription.
        let channels: Vec<String> = server.query(&["PUBSUB", "CHANNELS"]).await;
        assert_eq!(channels.len(), 1, "{channels:?}");
    }
}

#[tokio::test]
async fn replies_that_make_no_sense_are_counted_and_fail_only_what_they_name() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut worker = Worker::start(&server).await;
    let asked = request(&redis, ReplyMode::Fast);
    let fields = worker.next().await;
    let id = &fields["correlation_id"];
    for nonsense in ["", "[]", "not json", r#"{"body":null}"#] {
        worker.publish(&fields, nonsense).await;
    }
    let unknown = r#"{"correlation_id":"vm-1","body":null,"error":""}"#;
    worker.publish(&fields, unknown).await;
    let other = uuid::Uuid::new_v4();
    let other = format!(r#"{{"correlation_id":"{other}","body":null,"error":""}}"#);
    worker.publish(&fields, &other).await;
    let bad = format!(r#"{{"correlation_id":"{id}","body":"%%%","error":""}}"#);
    worker.publish(&fields, &bad).await;
    // Publishes a second reply, which comes too late.
    worker.publish(&fields, &success(&fields)).await;
    let error = asked.await.unwrap().unwrap_err();
    assert!(error.is_decode(), "{error:?}");
    raw::eventually(
        || async {
            let counts = redis.counts();
            (counts.bad_replies == 5 && counts.stray_replies == 3).then_some(())
        },
        5 * SECOND,
    )
    .await;
}

#[tokio::test]
async fn a_reliable_reply_is_read_from_the_reply_stream_which_is_kept_short() {
    let server = RedisServer::start().await;
    for query in ["", "?protocol=resp3"] {
        server.command(&["FLUSHALL"]).await;
        let url = format!("{}{query}", server.url());
        let redis = Redis::connect(&url).await.unwrap().stream("s");
        let mut worker = Worker::start(&server).await;
        let mut key = String::new();
        for _ in 0..20 {
            let asked = request(&redis, ReplyMode::Reliable);
            let fields = worker.next().await;
            assert!(worker.store(&fields, &success(&fields)).await.is_some());
            assert_eq!(asked.await.unwrap().unwrap(), r#"{"id":42,"name":"Alice"}"#);
            key = format!("{{s}}:rpc:{}", fields["~c"]);
        }
        let lives: i64 = server.query(&["PTTL", &key]).await;
        assert!(lives > 60_000, "{lives}");
        raw::eventually(
            || async { (raw::len(&server, &key).await == 0).then_some(()) },
            10 * SECOND,
        )
        .await;
        // The stream is empty after a trim, and still there for the next reply.
        let asked = request(&redis, ReplyMode::Reliable);
        let fields = worker.next().await;
        assert!(worker.store(&fields, &success(&fields)).await.is_some());
        assert!(asked.await.unwrap().is_ok());
        drop(redis);
        raw::eventually(
            || async {
                let there: u8 = server.query(&["EXISTS", &key]).await;
                (there == 0).then_some(())
            },
            5 * SECOND,
        )
        .await;
    }
}

#[tokio::test]
async fn a_reliable_reply_survives_the_loss_of_every_connection() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut worker = Worker::start(&server).await;
    let asked = request(&redis, ReplyMode::Reliable);
    let fields = worker.next().await;
    server.kill_connections().await;
    let mut worker = Worker {
        connection: server.connection().await,
    };
    assert!(worker.store(&fields, &success(&fields)).await.is_some());
    assert!(asked.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_fast_request_fails_at_once_when_its_reply_would_not_be_heard() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut worker = Worker::start(&server).await;
    let asked = request(&redis, ReplyMode::Fast);
    worker.next().await;
    server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    let error = within(2 * SECOND, asked).await.unwrap().unwrap_err();
    assert!(error.is_unknown_outcome(), "{error:?}");
    // The next request waits for the new subscription.
    let asked = request(&redis, ReplyMode::Fast);
    let fields = worker.next().await;
    assert_eq!(worker.publish(&fields, &success(&fields)).await, 1);
    assert!(asked.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_request_without_a_reply_times_out_at_its_deadline() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    for mode in [ReplyMode::Fast, ReplyMode::Reliable] {
        let mut message = rpc(mode);
        message.parts_mut().deadline = Some(Deadline::after(SECOND / 2));
        let started = std::time::Instant::now();
        let error = send(&redis, message).await.unwrap_err();
        assert!(error.is_timeout(), "{error:?}");
        assert!(error.to_string().contains("user.get"), "{error}");
        assert!(started.elapsed() < 2 * SECOND);
    }
}

#[tokio::test]
async fn ten_thousand_dropped_requests_leave_nothing_behind() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    // The first request makes the connections for replies, before the others are sent.
    let mut first = rpc(ReplyMode::Reliable);
    first.parts_mut().deadline = Some(Deadline::after(SECOND / 2));
    assert!(send(&redis, first).await.unwrap_err().is_timeout());
    let connections: String = server.query(&["CLIENT", "LIST"]).await;
    for round in 0..100 {
        let mode = [ReplyMode::Fast, ReplyMode::Reliable][round % 2];
        let requests = futures_util::future::join_all((0..100).map(|_| send(&redis, rpc(mode))));
        let _ = tokio::time::timeout(Duration::from_millis(3), requests).await;
    }
    let keys: Vec<String> = server.query(&["KEYS", "*"]).await;
    assert_eq!(keys.len(), 2, "the stream and one reply stream: {keys:?}");
    let after: String = server.query(&["CLIENT", "LIST"]).await;
    assert_eq!(after.lines().count(), connections.lines().count());
    let channels: Vec<String> = server.query(&["PUBSUB", "CHANNELS"]).await;
    assert_eq!(channels.len(), 1, "{channels:?}");
}

#[tokio::test]
async fn many_requests_are_answered_over_one_connection_each_with_its_own_reply() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut worker = Worker::start(&server).await;
    let asked: Vec<_> = (0..200)
        .map(|n| {
            let redis = redis.clone();
            tokio::spawn(async move {
                let mode = [ReplyMode::Fast, ReplyMode::Reliable][n % 2];
                let mut message = rpc(mode);
                *message.payload_mut() = format!("number {n:03}").into();
                let reply = send(&redis, message).await.unwrap();
                assert_eq!(reply.payload, format!("number {n:03}"));
            })
        })
        .collect();
    for _ in 0..200 {
        let fields = worker.next().await;
        let id = &fields["correlation_id"];
        use base64::Engine as _;
        let body = base64::engine::general_purpose::STANDARD.encode(&fields["payload"]);
        let envelope = format!(r#"{{"correlation_id":"{id}","body":"{body}","error":""}}"#);
        match fields.contains_key("~c") {
            true => assert!(worker.store(&fields, &envelope).await.is_some()),
            false => assert_eq!(worker.publish(&fields, &envelope).await, 1),
        }
    }
    for asked in asked {
        asked.await.unwrap();
    }
    assert_eq!(redis.counts().stray_replies, 0);
}

#[tokio::test]
async fn the_reply_prefix_can_be_chosen() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await.reply_prefix("reply:");
    let mut worker = Worker::start(&server).await;
    let asked = request(&redis, ReplyMode::Fast);
    let fields = worker.next().await;
    assert!(fields["reply_to"].starts_with("reply:"));
    worker.publish(&fields, &success(&fields)).await;
    assert!(asked.await.unwrap().is_ok());
}

#[tokio::test]
async fn requests_work_with_few_rights_and_on_a_cluster() {
    let rights = documented(&["requests"]);
    let acl = format!("user asker on >pw resetchannels {rights}");
    let server = RedisServer::with(Options::new().acl(&acl).cluster()).await;
    let url = format!("redis://asker:pw@127.0.0.1:{}/", server.port());
    let redis = Redis::connect(&url).await.unwrap().stream("s");
    let mut worker = Worker::start(&server).await;
    for mode in [ReplyMode::Fast, ReplyMode::Reliable] {
        let asked = request(&redis, mode);
        let fields = worker.next().await;
        match mode {
            ReplyMode::Fast => drop(worker.publish(&fields, &success(&fields)).await),
            ReplyMode::Reliable => drop(worker.store(&fields, &success(&fields)).await),
        }
        assert!(asked.await.unwrap().is_ok());
    }
    let forbidden = [
        "XRANGE s - +",
        "XREAD STREAMS s 0",
        "XTRIM s MAXLEN 0",
        "UNLINK s",
    ];
    assert_refused(&url, &forbidden).await;
}

#[tokio::test]
async fn a_stream_that_joins_does_not_wait_for_the_read_of_the_others() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let app = || Router::new().rpc("user.get", async || "here");
    let streams = ["a", "b"].map(|stream| redis.clone().stream(stream));
    let workers = streams
        .clone()
        .map(|redis| support::worker::Worker::start(redis, app()));
    for redis in &streams {
        let started = Instant::now();
        let reply = request(redis, ReplyMode::Reliable).await.unwrap();
        assert_eq!(reply.unwrap(), "here");
        // The first read blocks for two seconds.
        let took = started.elapsed();
        assert!(took < SECOND, "{took:?}");
    }
    drop(workers);
}

#[tokio::test]
async fn replies_on_more_streams_than_one_read_takes_reach_their_requests() {
    const STREAMS: usize = 300;
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let name = |n| format!("tenant-{n}");
    let asked: Vec<_> = (0..STREAMS)
        .map(|n| request(&redis.clone().stream(name(n)), ReplyMode::Reliable))
        .collect();
    let mut connection = server.connection().await;
    for n in 0..STREAMS {
        let entry = || async { raw::entries(&server, &name(n)).await.into_iter().next() };
        let (_, fields) = raw::eventually(entry, 10 * SECOND).await;
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let fields = fields
            .into_iter()
            .map(|(field, value)| (text(field), text(value)));
        let fields: Fields = fields.collect();
        let stored: Option<String> = redis::cmd("XADD")
            .arg(format!("{{{}}}:rpc:{}", name(n), fields["~c"]))
            .arg(&["NOMKSTREAM", "*", "r", &success(&fields)])
            .query_async(&mut connection)
            .await
            .unwrap();
        assert!(stored.is_some(), "the reply stream of {n} exists");
    }
    let started = Instant::now();
    for asked in asked {
        assert!(asked.await.unwrap().is_ok());
    }
    assert!(started.elapsed() < 2 * SECOND, "{:?}", started.elapsed());
    let clients: String = server.query(&["CLIENT", "LIST"]).await;
    // One connection sends, one subscribes, one reads replies, and one is this test's.
    let clients = clients.lines().count();
    assert!(clients <= 5, "{clients} connections");
}

#[tokio::test]
async fn a_refused_reply_stream_disturbs_no_other() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut worker = Worker::start(&server).await;
    let asked = request(&redis, ReplyMode::Reliable);
    let fields = worker.next().await;
    let key = format!("{{broken}}:rpc:{}", fields["~c"]);
    server.command(&["SET", &key, "no stream"]).await;
    let refused = request(&redis.clone().stream("broken"), ReplyMode::Reliable);
    let error = refused.await.unwrap().unwrap_err();
    assert!(error.is_refused(), "{error:?}");
    assert!(worker.store(&fields, &success(&fields)).await.is_some());
    assert!(within(SECOND, asked).await.unwrap().is_ok());
}

#[tokio::test]
async fn the_two_halves_understand_each_other() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await.group("g");
    let mut source = redis.clone().open(Interest::stream()).await.unwrap();
    let worker = tokio::spawn(async move {
        for _ in 0..2 {
            for delivery in source.next(8).await.unwrap() {
                let message = delivery.content.as_ref().unwrap();
                let mut reply = Reply::new(message.payload().clone());
                reply.headers = message.headers().clone();
                delivery.settle(Verdict::Done(Ok(reply))).await.unwrap();
            }
        }
        source.close().await.unwrap();
    });
    for mode in [ReplyMode::Fast, ReplyMode::Reliable] {
        let mut message = rpc(mode);
        message.headers_mut().insert("x-a", "1".parse().unwrap());
        let reply = within(10 * SECOND, send(&redis, message)).await.unwrap();
        assert_eq!(reply.payload, r#"{"id":42}"#);
        assert_eq!(reply.headers["x-a"], "1");
    }
    worker.await.unwrap();
    assert_eq!(redis.counts().stray_replies, 0);
}

#[tokio::test]
async fn a_reliable_reply_survives_a_restart_of_the_server() {
    let server = RedisServer::with(Options::new().persistent()).await;
    let redis = handle(&server).await;
    let mut worker = Worker::start(&server).await;
    let asked = request(&redis, ReplyMode::Reliable);
    let fields = worker.next().await;
    server.restart().await;
    let mut worker = Worker {
        connection: server.connection().await,
    };
    assert!(worker.store(&fields, &success(&fields)).await.is_some());
    assert!(asked.await.unwrap().is_ok());
}

#[tokio::test]
async fn requests_work_again_after_everything_was_flushed() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut first = rpc(ReplyMode::Reliable);
    first.parts_mut().deadline = Some(Deadline::after(SECOND / 5));
    assert!(send(&redis, first).await.unwrap_err().is_timeout());
    server.command(&["FLUSHALL"]).await;
    raw::eventually(
        || async {
            let keys: Vec<String> = server.query(&["KEYS", "{s}:rpc:*"]).await;
            (keys.len() == 1).then_some(())
        },
        10 * SECOND,
    )
    .await;
    let mut worker = Worker::start(&server).await;
    let asked = request(&redis, ReplyMode::Reliable);
    let fields = worker.next().await;
    assert!(worker.store(&fields, &success(&fields)).await.is_some());
    assert!(asked.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_frozen_server_is_noticed_by_those_who_wait_for_replies() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut worker = Worker::start(&server).await;
    let asked = request(&redis, ReplyMode::Fast);
    worker.next().await;
    server.signal(Signal::Stop);
    // The error comes long before the request's deadline of 30 s: a ping is sent every 5 s, and its
    // response is due within 5 s.
    let error = within(15 * SECOND, asked).await.unwrap().unwrap_err();
    assert!(error.is_unknown_outcome(), "{error:?}");
    server.signal(Signal::Cont);
    let mut worker = Worker {
        connection: server.connection().await,
    };
    let asked = request(&redis, ReplyMode::Fast);
    let fields = worker.next().await;
    assert_eq!(worker.publish(&fields, &success(&fields)).await, 1);
    assert!(asked.await.unwrap().is_ok());
}
