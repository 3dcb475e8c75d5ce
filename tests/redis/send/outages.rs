//! Temporary failures of a server, and a handle's errors while they last.

use std::time::{Duration, Instant};

use campanile::{Error, Message, Redis, transport::ConnectionState};
use redis::aio::MultiplexedConnection;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use super::{
    SECOND, handle,
    logs::Logs,
    send,
    support::{Options, RedisServer, Signal, raw},
    within,
};

/// The message of an error and of its causes.
fn chain(error: &Error) -> String {
    let first: &dyn std::error::Error = error;
    let all = std::iter::successors(Some(first), |error| error.source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Runs a command over a connection that stays open.
async fn ask<T: redis::FromRedisValue>(control: &mut MultiplexedConnection, words: &[&str]) -> T {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    let answer = command.query_async(control).await;
    answer.expect("an answer")
}

/// Makes the server refuse all connections but this one.
async fn fill(control: &mut MultiplexedConnection) {
    let (): () = ask(control, &["CONFIG", "SET", "maxclients", "1"]).await;
    for kind in ["normal", "pubsub"] {
        let kill = ["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"];
        let _: usize = ask(control, &kill).await;
    }
}

#[tokio::test]
async fn a_server_with_too_many_clients_is_not_said_to_refuse_the_password() {
    let server = RedisServer::with(Options::new().password("right")).await;
    let mut control = server.connection().await;
    fill(&mut control).await;
    for login in ["", ":right@"] {
        for query in ["", "3", "?protocol=resp3"] {
            let url = format!("redis://{login}127.0.0.1:{}/{query}", server.port());
            let error = Redis::connect(&url).await.unwrap_err();
            assert!(error.is_disconnected(), "{url}: {error:?}");
            let text = chain(&error);
            assert!(text.contains("max number of clients"), "{url}: {text}");
            assert!(!text.contains("password"), "{url}: {text}");
        }
    }
}

#[tokio::test]
async fn a_message_waits_while_the_server_has_too_many_clients() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    send(&redis, Message::task("a", "")).await.unwrap();
    let mut control = server.connection().await;
    fill(&mut control).await;
    // The handle must notice the loss first. Otherwise the outcome of a message is unknown.
    let lost = || async { (!redis.state().is_ready()).then_some(()) };
    raw::eventually(lost, 5 * SECOND).await;
    for request in [false, true] {
        let message = match request {
            true => Message::rpc("a", ""),
            false => Message::task("a", ""),
        };
        let error = within(8 * SECOND, send(&redis, message)).await.unwrap_err();
        assert!(error.is_disconnected(), "{error:?}");
        let text = chain(&error);
        assert!(text.contains("max number of clients"), "{text}");
    }
    let sending = tokio::spawn({
        let redis = redis.clone();
        async move { send(&redis, Message::task("a", "")).await }
    });
    let (): () = ask(&mut control, &["CONFIG", "SET", "maxclients", "1000"]).await;
    within(8 * SECOND, sending).await.unwrap().unwrap();
    assert_eq!(raw::len(&server, "s").await, 2);
}

/// A server that responds on its first connection until `end`. It closes each later connection as
/// soon as that has sent `commands` commands. Returns the times of the later connections.
async fn closing_server(
    commands: usize,
    end: tokio::sync::oneshot::Receiver<()>,
) -> (String, tokio::sync::mpsc::UnboundedReceiver<Instant>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let (count, accepted) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (first, _) = listener.accept().await.unwrap();
        tokio::select! {
            () = answer(first, usize::MAX) => {}
            _ = end => {}
        }
        while let Ok((later, _)) = listener.accept().await {
            let _ = count.send(Instant::now());
            answer(later, commands).await;
        }
    });
    (url, accepted)
}

/// Responds to the handshake and this many commands, each of which begins with a line of letters.
async fn answer(stream: TcpStream, commands: usize) {
    let mut lines = BufReader::new(stream).lines();
    let mut left = commands;
    while left > 0
        && let Ok(Some(line)) = lines.next_line().await
    {
        let said = match &*line {
            "PING" => "+PONG\r\n".to_owned(),
            "INFO" => "$22\r\nredis_version:7.0.15\r\n\r\n".to_owned(),
            _ => continue,
        };
        left -= 1;
        if lines.get_mut().write_all(said.as_bytes()).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_server_that_accepts_and_closes_is_tried_with_back_off_and_logged_seldom() {
    // The handshake is one command. So the connection is lost before the handshake, or after it.
    for commands in [0, 1] {
        let logs = Logs::start();
        let (end, ended) = tokio::sync::oneshot::channel();
        let (url, mut accepted) = closing_server(commands, ended).await;
        let redis = Redis::connect(&url).await.unwrap();
        end.send(()).unwrap();
        let mut times = Vec::new();
        for _ in 0..8 {
            times.push(within(20 * SECOND, accepted.recv()).await.unwrap());
        }
        let took = times[7] - times[0];
        // The back-off is at least half of 50, 100, 200, 400, 800, 1600 and 2000 ms.
        let least = Duration::from_millis(2000);
        assert!(took > least, "8 attempts in {took:?}");
        let warnings = logs.lines(&["WARN"]).len();
        let most = 2 + 2 * (took.as_secs() as usize / 5 + 1);
        assert!(
            (1..=most).contains(&warnings),
            "{:?}",
            logs.lines(&["WARN"])
        );
        drop(redis);
    }
}

#[tokio::test]
async fn the_reason_of_an_outage_is_logged_once_and_part_of_the_error() {
    let server = RedisServer::with(Options::new().password("right")).await;
    let redis = handle(&server).await;
    send(&redis, Message::task("a", "")).await.unwrap();
    let mut control = server.connection().await;
    let logs = Logs::start();
    let (): () = ask(&mut control, &["CONFIG", "SET", "requirepass", "new"]).await;
    let kill = ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"];
    let _: usize = ask(&mut control, &kill).await;
    let lost = || async { (!redis.state().is_ready()).then_some(()) };
    raw::eventually(lost, 5 * SECOND).await;
    for message in [Message::task("a", ""), Message::rpc("a", "")] {
        let error = within(8 * SECOND, send(&redis, message)).await.unwrap_err();
        assert!(error.is_disconnected(), "{error:?}");
        let text = chain(&error);
        assert!(text.contains("WRONGPASS"), "{text}");
        assert!(!text.contains("right"), "{text}");
    }
    let cause = "does not accept the user name or the password (WRONGPASS)";
    let said = logs.lines(&["WARN", "cannot connect to Redis: ", cause]);
    assert!((1..=4).contains(&said.len()), "{said:?}");
    assert!(logs.lines(&["right"]).is_empty());
    // The handle goes on when the password is valid again.
    let (): () = ask(&mut control, &["CONFIG", "SET", "requirepass", "right"]).await;
    let sent = within(8 * SECOND, send(&redis, Message::task("a", ""))).await;
    sent.unwrap();
    let back = logs.lines(&["INFO", "a connection to Redis is back after "]);
    assert_eq!(back.len(), 1, "{}", logs.text());
}

#[tokio::test]
async fn a_lost_connection_is_logged_once_and_once_when_it_is_back() {
    let server = RedisServer::with(Options::new().persistent()).await;
    let redis = handle(&server).await;
    send(&redis, Message::task("a", "")).await.unwrap();
    let logs = Logs::start();
    server.signal(Signal::Kill);
    let down = || async { (!redis.state().is_ready()).then_some(()) };
    raw::eventually(down, 5 * SECOND).await;
    tokio::time::sleep(SECOND).await;
    server.restart().await;
    // No command is sent: an idle handle logs this, too.
    let back = || async {
        let lines = logs.lines(&["INFO", "a connection to Redis is back after "]);
        (!lines.is_empty()).then_some(lines)
    };
    let back = raw::eventually(back, 10 * SECOND).await;
    assert_eq!(back.len(), 1, "{back:?}");
    let lost = logs.lines(&["WARN", "lost a connection to Redis: it was closed"]);
    assert_eq!(lost.len(), 1, "{}", logs.text());
    let refused = logs.lines(&["WARN", "cannot connect to Redis: nothing listens there"]);
    assert_eq!(refused.len(), 1, "{}", logs.text());
    assert_eq!(logs.lines(&["WARN"]).len(), 2, "{}", logs.text());
}

#[tokio::test]
async fn a_host_name_that_cannot_be_resolved_is_logged_as_such() {
    let logs = Logs::start();
    let connecting = Redis::connect_when_ready("redis://no-such-host.invalid/");
    let waited = tokio::time::timeout(10 * SECOND, async {
        tokio::select! {
            _ = connecting => panic!("there is no such host"),
            () = async {
                while logs.lines(&["WARN", "the host name cannot be resolved (DNS)"]).is_empty() {
                    tokio::time::sleep(SECOND / 20).await;
                }
            } => {}
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{}", logs.text()));
}

#[tokio::test]
async fn a_handle_whose_runtime_has_ended_says_so() {
    let server = RedisServer::start().await;
    let url = server.url();
    let redis = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let redis = Redis::connect(&url).await.unwrap().stream("s");
            // The connections for replies are made on this runtime too.
            let request = Message::rpc("a", "");
            let answer = tokio::time::timeout(SECOND / 2, send(&redis, request)).await;
            answer.expect_err("no worker replies");
            redis
        })
    });
    let redis = redis.join().unwrap();
    assert_eq!(redis.state(), ConnectionState::Closed);
    for message in [
        Message::task("a", ""),
        Message::event("a", ""),
        Message::rpc("a", ""),
    ] {
        let error = within(SECOND, send(&redis, message)).await.unwrap_err();
        assert!(error.is_closed(), "{error:?}");
        assert!(error.to_string().contains("runtime"), "{error}");
    }
}
