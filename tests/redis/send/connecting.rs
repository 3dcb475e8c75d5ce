//! Tests that a handle connects and reconnects, and fails clearly if it cannot.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use campanile::{Message, Redis};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
};

use super::{
    SECOND, handle, send,
    support::{Options, RedisServer, Signal, raw},
    within,
};

#[tokio::test]
async fn an_unreachable_server_is_an_error_within_seconds_that_says_what_to_do() {
    let connecting = Redis::connect("redis://user:hunter2@127.0.0.1:1/");
    let error = within(6 * SECOND, connecting).await.unwrap_err();
    assert!(error.is_disconnected());
    let text = error.to_string();
    assert!(
        text.contains("127.0.0.1:1") && text.contains("redis-server"),
        "{text}"
    );
    // `main` prints an error in this way.
    let shown = format!("{error:?}");
    assert!(
        shown.starts_with(&text) && shown.contains("refused"),
        "{shown}"
    );
    assert!(!shown.contains("hunter2"), "{shown}");
    let error = Redis::connect("redis+unix:///nowhere/redis.sock").await;
    let error = error.unwrap_err();
    assert!(error.is_disconnected());
    assert!(error.to_string().contains("/nowhere/redis.sock"), "{error}");
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing_is_an_error_within_seconds() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", silent.local_addr().unwrap());
    let error = within(7 * SECOND, Redis::connect(&url)).await.unwrap_err();
    assert!(error.is_disconnected(), "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_not_redis_is_said_to_be_none() {
    let url = fake_server(|_| "HTTP/1.1 400 Bad Request\r\n\r\n".into()).await;
    let error = within(7 * SECOND, Redis::connect(&url)).await.unwrap_err();
    assert!(
        error.to_string().contains("does not speak the Redis"),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_server_that_is_too_old_is_refused_with_its_version() {
    let url = fake_server(|command| {
        if command == "PING" {
            return "+PONG\r\n".into();
        }
        let info = "# Server\r\nredis_version:6.0.16\r\n";
        format!("${}\r\n{info}\r\n", info.len())
    })
    .await;
    let error = Redis::connect(&url).await.unwrap_err();
    assert!(error.is_config());
    let text = error.to_string();
    assert!(text.contains("6.0") && text.contains("6.2"), "{text}");
}

#[tokio::test]
async fn a_wrong_password_is_a_config_error_without_the_password() {
    let server = RedisServer::with(Options::new().password("right")).await;
    for login in [":hunter2@", "default:hunter2@", "nobody:hunter2@"] {
        for query in ["", "?protocol=resp3"] {
            let url = format!("redis://{login}127.0.0.1:{}/{query}", server.port());
            let error = Redis::connect(&url).await.unwrap_err();
            assert!(error.is_config(), "{url}: {error:?}");
            assert!(!format!("{error:?} {error}").contains("hunter2"));
        }
    }
    let error = Redis::connect(&format!("redis://127.0.0.1:{}/", server.port()))
        .await
        .unwrap_err();
    assert!(error.is_config());
    assert!(error.to_string().contains("password"), "{error}");
    let redis = Redis::connect(&server.url()).await.unwrap();
    assert!(!format!("{redis:?}").contains("right"), "{redis:?}");
}

#[tokio::test]
async fn a_user_who_may_not_read_info_can_connect() {
    let acl = "user sender on >pw ~s resetchannels -@all +xadd";
    let server = RedisServer::with(Options::new().acl(acl)).await;
    let url = format!("redis://sender:pw@127.0.0.1:{}/", server.port());
    let redis = Redis::connect(&url).await.unwrap().stream("s");
    assert!(send(&redis, Message::task("a", "")).await.is_ok());
}

#[tokio::test]
async fn a_database_that_does_not_exist_is_a_config_error() {
    let server = RedisServer::start().await;
    let error = Redis::connect(&format!("{}99", server.url()))
        .await
        .unwrap_err();
    assert!(error.is_config(), "{error:?}");
}

#[tokio::test]
async fn a_database_number_a_unix_socket_resp3_and_a_given_client_all_work() {
    let server = RedisServer::with(Options::new().unix_socket()).await;
    let client = redis::Client::open(format!("{}3", server.url())).unwrap();
    let handles = [
        Redis::connect(&format!("{}3", server.url())).await,
        Redis::connect(&format!("{}?db=3", server.unix_url())).await,
        Redis::connect(&format!("{}3?protocol=resp3", server.url())).await,
        Redis::from_client(client).await,
    ];
    for (before, redis) in handles.into_iter().enumerate() {
        let redis = redis.unwrap().stream("s");
        let reply = send(&redis, Message::task("a", "")).await.unwrap();
        assert!(reply.receipt().is_some());
        assert_eq!(redis.counts().sent, 1);
        let mut connection = server.connection().await;
        let (_, length): ((), usize) = redis::pipe()
            .cmd("SELECT")
            .arg(3)
            .cmd("XLEN")
            .arg("s")
            .query_async(&mut connection)
            .await
            .unwrap();
        assert_eq!(length, before + 1);
    }
}

#[tokio::test]
async fn a_killed_connection_is_made_again() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    for round in 1..=3 {
        send(&redis, Message::task("a", "")).await.unwrap();
        server.kill_connections().await;
        // The handle notices the loss at once, so the next message waits instead of failing.
        raw::eventually(
            || async { (redis.counts().reconnects == round).then_some(()) },
            5 * SECOND,
        )
        .await;
    }
    send(&redis, Message::task("a", "")).await.unwrap();
    assert_eq!(raw::len(&server, "s").await, 4);
}

#[tokio::test]
async fn a_message_sent_during_a_restart_waits_for_it() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    server.signal(Signal::Kill);
    let sending = tokio::spawn({
        let redis = redis.clone();
        async move {
            tokio::time::sleep(SECOND / 5).await;
            send(&redis, Message::task("a", "")).await
        }
    });
    tokio::time::sleep(SECOND).await;
    server.restart().await;
    assert!(sending.await.unwrap().is_ok());
    assert_eq!(raw::len(&server, "s").await, 1);
}

#[tokio::test]
async fn without_a_server_a_message_fails_as_disconnected_after_five_seconds() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    server.signal(Signal::Kill);
    tokio::time::sleep(SECOND / 5).await;
    let started = std::time::Instant::now();
    let error = within(8 * SECOND, send(&redis, Message::task("a", "")))
        .await
        .unwrap_err();
    assert!(error.is_disconnected(), "{error:?}");
    assert!(started.elapsed() > 4 * SECOND);
}

#[tokio::test]
async fn a_server_that_answers_no_more_is_an_unknown_outcome_and_comes_back() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    server.signal(Signal::Stop);
    let error = within(8 * SECOND, send(&redis, Message::task("a", "")))
        .await
        .unwrap_err();
    assert!(error.is_unknown_outcome(), "{error:?}");
    server.signal(Signal::Cont);
    within(8 * SECOND, send(&redis, Message::task("a", "")))
        .await
        .unwrap();
}

#[tokio::test]
async fn the_connection_ends_with_the_last_handle() {
    let server = RedisServer::start().await;
    let clients = || async {
        let list: String = server.query(&["CLIENT", "LIST"]).await;
        list.lines().count()
    };
    let before = clients().await;
    let redis = handle(&server).await;
    let clone = redis.clone();
    drop(redis);
    send(&clone, Message::task("a", "")).await.unwrap();
    assert_eq!(clients().await, before + 1);
    drop(clone);
    raw::eventually(
        || async { (clients().await == before).then_some(()) },
        5 * SECOND,
    )
    .await;
}

#[tokio::test]
async fn a_handle_that_waits_connects_to_a_server_that_starts_later() {
    let server = RedisServer::start().await;
    let url = server.url();
    server.signal(Signal::Kill);
    let connecting = tokio::spawn(async move { Redis::connect_when_ready(&url).await });
    tokio::time::sleep(SECOND).await;
    assert!(!connecting.is_finished());
    server.restart().await;
    let redis = within(10 * SECOND, connecting).await.unwrap().unwrap();
    let redis = redis.stream("s");
    send(&redis, Message::task("a", "")).await.unwrap();
    assert_eq!(raw::len(&server, "s").await, 1);
}

#[tokio::test]
async fn a_handle_that_waits_connects_to_a_server_that_has_loaded_its_data() {
    let commands = Arc::<AtomicUsize>::default();
    let count = commands.clone();
    let url = fake_server(move |command| {
        // Three connections are refused, each with the answers to a handshake and to `INFO`.
        if count.fetch_add(1, Ordering::SeqCst) < 6 {
            return "-LOADING Redis is loading the dataset in memory\r\n".into();
        }
        match command {
            "PING" => "+PONG\r\n".into(),
            _ => "$22\r\nredis_version:7.0.15\r\n\r\n".into(),
        }
    })
    .await;
    let error = Redis::connect(&url).await.unwrap_err();
    assert!(error.is_disconnected(), "{error:?}");
    within(10 * SECOND, Redis::connect_when_ready(&url))
        .await
        .unwrap();
    assert_eq!(commands.load(Ordering::SeqCst), 8);
}

#[tokio::test]
async fn a_handle_that_waits_does_not_wait_for_a_password_to_become_right() {
    let server = RedisServer::with(Options::new().password("right")).await;
    for login in ["", ":hunter2@"] {
        let url = format!("redis://{login}127.0.0.1:{}/", server.port());
        let connecting = Redis::connect_when_ready(&url);
        let error = within(2 * SECOND, connecting).await.unwrap_err();
        assert!(error.is_config(), "{url}: {error:?}");
        assert!(error.to_string().contains("password"), "{error}");
    }
    let connecting = Redis::connect_when_ready("redis://127.0.0.1:port/");
    let error = within(SECOND, connecting).await.unwrap_err();
    assert!(error.is_config(), "{error:?}");
}

#[tokio::test]
async fn a_handle_that_waits_gives_up_when_its_future_is_dropped() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let attempts = Arc::<AtomicUsize>::default();
    let count = attempts.clone();
    tokio::spawn(async move {
        while let Ok(accepted) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            drop(accepted);
        }
    });
    let connecting = Redis::connect_when_ready(&url);
    let elapsed = tokio::time::timeout(2 * SECOND, connecting).await;
    elapsed.expect_err("nobody answers there");
    let before = attempts.load(Ordering::SeqCst);
    assert!(before >= 3, "{before} attempts");
    // This wait is longer than the longest back-off between two attempts.
    tokio::time::sleep(3 * SECOND).await;
    assert_eq!(attempts.load(Ordering::SeqCst), before);
}

/// A server that responds to every command with `answer` of the command's name.
async fn fake_server(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut lines = BufReader::new(stream).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                // A command's name and each of its arguments are on separate lines. Only the name
                // is needed.
                if line == "INFO" || line == "PING" {
                    let text = answer(&line);
                    lines.get_mut().write_all(text.as_bytes()).await.unwrap();
                }
            }
        }
    });
    url
}
