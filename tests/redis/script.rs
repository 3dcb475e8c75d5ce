//! Scripts of applications.

use std::time::Duration;

use campanile::{
    Error, Redis,
    transport::redis::{Script, ScriptResponse},
};

use crate::{
    SECOND,
    support::{Options, RedisServer, Signal},
};

static SET: Script =
    Script::new("redis.call('SET', KEYS[1], ARGV[1]) return redis.status_reply('OK')");
static GET: Script = Script::new("return redis.call('GET', KEYS[1])");

async fn start() -> (RedisServer, Redis) {
    let server = RedisServer::with(Options::new().persistent()).await;
    let redis = Redis::connect(&server.url()).await;
    (server, redis.expect("the server is there"))
}

async fn get(redis: &Redis) -> ScriptResponse {
    let call = GET.key("k").timeout(20 * SECOND);
    call.run(redis).await.expect("the server answers")
}

fn bytes(text: &'static [u8]) -> ScriptResponse {
    ScriptResponse::Bytes(text.into())
}

#[tokio::test]
async fn a_script_gets_its_key_and_its_arguments_and_returns_a_value_of_any_form() {
    static ALL: Script = Script::new(
        "return { KEYS[1], ARGV[1], ARGV[2], #KEYS, #ARGV, 3.7, false, true, { redis.status_reply('S') } }",
    );
    let (server, redis) = start().await;
    let resp3 = Redis::connect(&format!("{}?protocol=resp3", server.url())).await;
    for redis in [redis, resp3.unwrap()] {
        let call = ALL.key("k \u{fc}").arg("a").arg(b"\x00\xff\r\n");
        let list = [
            bytes("k \u{fc}".as_bytes()),
            bytes(b"a"),
            bytes(b"\x00\xff\r\n"),
            ScriptResponse::Int(1),
            ScriptResponse::Int(2),
            ScriptResponse::Int(3),
            ScriptResponse::Nil,
            ScriptResponse::Int(1),
            ScriptResponse::List(vec![bytes(b"S")]),
        ];
        let expected = ScriptResponse::List(list.to_vec());
        assert_eq!(call.run(&redis).await.unwrap(), expected);
        assert_eq!(get(&redis).await, ScriptResponse::Nil);
    }
}

#[tokio::test]
async fn a_script_that_the_server_has_forgotten_is_sent_with_its_source() {
    let (server, redis) = start().await;
    for value in ["1", "2"] {
        assert_eq!(
            SET.key("k").arg(value).run(&redis).await.unwrap(),
            bytes(b"OK")
        );
        server.command(&["SCRIPT", "FLUSH"]).await;
    }
    assert_eq!(get(&redis).await, bytes(b"2"));
}

#[tokio::test]
async fn a_script_whose_connection_was_lost_is_sent_again_within_its_time_limit() {
    let (server, redis) = start().await;
    server.signal(Signal::Stop);
    let call = SET.key("k").arg("1").timeout(30 * SECOND);
    let sent = tokio::spawn({
        let redis = redis.clone();
        async move { call.run(&redis).await }
    });
    // It was sent, and the server does not read it.
    tokio::time::sleep(SECOND / 5).await;
    server.signal(Signal::Kill);
    tokio::time::sleep(SECOND / 5).await;
    assert!(!sent.is_finished());
    server.restart().await;
    assert_eq!(sent.await.unwrap().unwrap(), bytes(b"OK"));
    assert_eq!(get(&redis).await, bytes(b"1"));
}

#[tokio::test]
async fn a_script_without_a_response_fails_at_its_time_limit_and_is_not_sent_later() {
    const LIMIT: Duration = Duration::from_millis(300);
    let (server, redis) = start().await;
    server.signal(Signal::Kill);
    let started = std::time::Instant::now();
    let error = SET.key("k").arg("1").timeout(LIMIT).run(&redis).await;
    let error = error.unwrap_err();
    assert!(started.elapsed() >= LIMIT && started.elapsed() < 20 * LIMIT);
    assert!(error.is_timeout(), "{error:?}");
    let address = format!("127.0.0.1:{}", server.port());
    assert!(error.to_string().contains(&address), "{error}");
    let cause = std::error::Error::source(&error).expect("the reason");
    assert!(cause.to_string().contains("cannot reach"), "{cause}");
    server.restart().await;
    assert_eq!(get(&redis).await, ScriptResponse::Nil);
}

#[tokio::test]
async fn an_error_of_a_script_and_a_server_that_takes_no_writes_are_errors_at_once() {
    static FAULT: Script = Script::new("return redis.call('LPUSH', KEYS[1], 'x')");
    static RAISED: Script = Script::new("return redis.error_reply('MINE the limit is reached')");
    let (server, redis) = start().await;
    let set = SET.key("k").arg("1");
    set.run(&redis).await.unwrap();
    let text = |answer: Result<ScriptResponse, Error>| {
        let error = answer.unwrap_err();
        assert!(error.is_refused(), "{error:?}");
        format!(
            "{error}: {}",
            std::error::Error::source(&error).expect("the server's")
        )
    };
    let other_type = text(FAULT.key("k").run(&redis).await);
    assert!(other_type.contains("another type"), "{other_type}");
    let raised = text(RAISED.key("k").run(&redis).await);
    assert!(raised.contains("the limit is reached"), "{raised}");
    server.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let full = text(set.run(&redis).await);
    assert!(full.contains("maxmemory"), "{full}");
    server.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    server
        .command(&["CONFIG", "SET", "min-replicas-to-write", "1"])
        .await;
    let alone = text(set.run(&redis).await);
    assert!(alone.contains("NOREPLICAS"), "{alone}");
}

#[tokio::test]
#[should_panic(expected = "a timeout must be above zero")]
async fn a_time_limit_of_zero_is_a_mistake() {
    let _ = GET.key("k").timeout(Duration::ZERO);
}
