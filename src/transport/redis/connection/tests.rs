//! Tests a connection over a stream in memory, with the test as the server.

use std::{future::poll_fn, time::Duration};

use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::Instant,
};

use super::*;
use crate::transport::redis::server::Credentials;

/// Returns a connection whose stream has buffers of this size, in bytes, and the server's end of
/// it.
fn connected(buffer_size: usize) -> (Connection, DuplexStream) {
    let (ours, server) = duplex(buffer_size);
    (Connection::new(Box::new(ours)), server)
}

async fn next_response(connection: &mut Connection) -> RedisResult<Value> {
    poll_fn(|cx| connection.poll_value(cx)).await
}

fn text(text: &'static str) -> Value {
    Value::Text(text.into())
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(work)
}

#[tokio::test]
async fn responses_are_decoded_in_their_order() {
    let (mut connection, mut server) = connected(1024);
    let bytes = b"+OK\r\n:-7\r\n$-1\r\n*-1\r\n$0\r\n\r\n*2\r\n$4\r\na\r\nb\r\n*0\r\n";
    server.write_all(bytes).await.unwrap();
    for expected in [
        text("OK"),
        Value::Int(-7),
        Value::Nil,
        Value::Nil,
        text(""),
        Value::Array(vec![text("a\r\nb"), Value::Array(vec![])]),
    ] {
        assert_eq!(next_response(&mut connection).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn a_server_error_is_a_response_with_its_code_and_its_text() {
    let (mut connection, mut server) = connected(1024);
    let bytes = b"-NOGROUP No such key 's'\r\n-ERR\r\n*1\r\n-LOADING wait\r\n";
    server.write_all(bytes).await.unwrap();
    let Value::ServerError(server_error) = next_response(&mut connection).await.unwrap() else {
        panic!("no server_error");
    };
    assert_eq!(server_error.code(), "NOGROUP");
    assert_eq!(server_error.details(), Some("No such key 's'"));
    assert!(matches!(
        next_response(&mut connection).await,
        Ok(Value::ServerError(_))
    ));
    let Value::Array(list) = next_response(&mut connection).await.unwrap() else {
        panic!("no list");
    };
    assert!(matches!(&list[..], [Value::ServerError(_)]));
}

#[tokio::test]
async fn bytes_that_the_stream_does_not_accept_at_once_are_sent_while_the_caller_waits() {
    let (mut connection, mut server) = connected(7);
    let mut cmd = redis::cmd("ECHO");
    cmd.arg("x".repeat(1000));
    connection.send([&cmd, &cmd]);
    let expected = [cmd.get_packed_command(), cmd.get_packed_command()].concat();
    let serving = async {
        let mut received = vec![0; expected.len()];
        server.read_exact(&mut received).await.unwrap();
        server.write_all(b"+a\r\n+b\r\n").await.unwrap();
        received
    };
    let reading = async {
        (
            next_response(&mut connection).await,
            next_response(&mut connection).await,
        )
    };
    let (received, responses) = tokio::join!(serving, reading);
    assert_eq!(received, expected);
    assert_eq!(responses.0.unwrap(), text("a"));
    assert_eq!(responses.1.unwrap(), text("b"));
}

#[tokio::test]
async fn an_end_of_the_stream_or_bytes_that_are_not_resp_are_an_error() {
    for bytes in [
        "",
        "$5\r\nab",
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "*x\r\n",
        "$-7\r\n",
    ] {
        let (mut connection, mut server) = connected(1024);
        server.write_all(bytes.as_bytes()).await.unwrap();
        drop(server);
        let error = next_response(&mut connection).await.expect_err(bytes);
        assert!(error.code().is_none(), "{bytes}: {error}");
    }
}

fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Nil => out.extend(b"$-1\r\n"),
        Value::Int(number) => out.extend(format!(":{number}\r\n").bytes()),
        Value::Text(text) => {
            out.extend(format!("${}\r\n", text.len()).bytes());
            out.extend(text);
            out.extend(b"\r\n");
        }
        Value::Array(list) => {
            out.extend(format!("*{}\r\n", list.len()).bytes());
            list.iter().for_each(|value| write(value, out));
        }
        other => panic!("not in RESP2: {other:?}"),
    }
}

fn any_response() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Nil),
        any::<i64>().prop_map(Value::Int),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(|text| Value::Text(text.into())),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop::collection::vec(inner, 0..6).prop_map(Value::Array)
    })
}

proptest! {
    #[test]
    fn responses_may_arrive_in_any_pieces(
        responses in prop::collection::vec(any_response(), 1..6),
        pieces in prop::collection::vec(1..50_usize, 1..20),
    ) {
        let mut bytes = Vec::new();
        responses.iter().for_each(|response| write(response, &mut bytes));
        block_on(async {
            let (mut connection, mut server) = connected(64);
            let writing = async {
                let (mut unsent, mut pieces) = (&bytes[..], pieces.iter().cycle());
                while !unsent.is_empty() {
                    let (piece, after) = unsent.split_at(unsent.len().min(*pieces.next().unwrap()));
                    server.write_all(piece).await.unwrap();
                    tokio::task::yield_now().await;
                    unsent = after;
                }
            };
            let reading = async {
                for expected in &responses {
                    assert_eq!(next_response(&mut connection).await.unwrap(), *expected);
                }
            };
            tokio::join!(writing, reading);
        });
    }

    #[test]
    fn any_bytes_are_responses_or_an_error(
        bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..80),
            "([*$:+-][0-9-]{0,3}\r\n){0,12}".prop_map(String::into_bytes),
        ],
    ) {
        block_on(async {
            let (mut connection, mut server) = connected(1024);
            server.write_all(&bytes).await.unwrap();
            drop(server);
            let mut count = 0;
            while next_response(&mut connection).await.is_ok() {
                count += 1;
                assert!(count <= bytes.len());
            }
        });
    }
}

#[tokio::test(start_paused = true)]
async fn no_other_caller_gets_the_response_to_a_cancelled_command() {
    let (ours, mut server) = duplex(1024);
    let mut connection = Connection::new(Box::new(ours));
    let ping = redis::cmd("PING");
    let pings = [ping.clone(), ping.clone()];
    let timeout_after = Duration::from_secs(1);
    let cancelled = tokio::time::timeout(timeout_after, connection.command(&ping)).await;
    cancelled.unwrap_err();
    let cancelled = tokio::time::timeout(timeout_after, connection.pipeline(&pings));
    cancelled.await.unwrap_err();
    server
        .write_all(b":1\r\n:2\r\n:3\r\n:4\r\n:5\r\n")
        .await
        .unwrap();
    assert_eq!(connection.command(&ping).await.unwrap(), Value::Int(4));
    server.write_all(b":6\r\n").await.unwrap();
    let first = connection.pipeline_first(&pings, 1).await;
    assert_eq!(first.unwrap(), [Value::Int(5)]);
    assert_eq!(connection.response().await.unwrap(), Value::Int(6));
    server.write_all(b":7\r\n").await.unwrap();
    connection
        .response()
        .await
        .expect_err("no command was sent");
}

/// Returns a connection whose credentials expire after four seconds. It renews them after three.
fn connected_with_credentials() -> (Connection, DuplexStream) {
    let lifetime = Duration::from_secs(4);
    let provider = move || async move { Ok(Credentials::new("me", "pw").expires_in(lifetime)) };
    let (mut connection, server) = connected(1024);
    connection.set_renewal(Renewal::of(provider, lifetime));
    (connection, server)
}

const AUTH: &[u8] = b"*3\r\n$4\r\nAUTH\r\n$2\r\nme\r\n$2\r\npw\r\n";
const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

/// Asserts that the server receives these bytes next.
async fn expect_bytes(server: &mut DuplexStream, expected: &[u8]) {
    let mut received = vec![0; expected.len()];
    server.read_exact(&mut received).await.unwrap();
    assert_eq!(received, expected);
}

#[tokio::test(start_paused = true)]
async fn credentials_are_renewed_between_commands_and_no_caller_gets_the_response() {
    let (mut connection, mut server) = connected_with_credentials();
    let serving = async {
        expect_bytes(&mut server, PING).await;
        // The renewal is due while the command waits for its response.
        expect_bytes(&mut server, AUTH).await;
        server.write_all(b":1\r\n+OK\r\n").await.unwrap();
        expect_bytes(&mut server, PING).await;
        server.write_all(b":2\r\n").await.unwrap();
        // The connection also renews the credentials while it has no command.
        expect_bytes(&mut server, AUTH).await;
        server.write_all(b"+OK\r\n").await.unwrap();
    };
    let calling = async {
        let ping = redis::cmd("PING");
        for expected in [1, 2] {
            let response = connection.command(&ping).await.unwrap();
            assert_eq!(response, Value::Int(expected));
        }
        connection.keep_authenticated().await
    };
    tokio::select! {
        () = serving => {}
        never = calling => match never {},
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_is_repeated_and_the_connection_stays_in_use() {
    let (mut connection, mut server) = connected_with_credentials();
    let started = Instant::now();
    let serving = async {
        for response in ["-WRONGPASS no\r\n", "-WRONGPASS no\r\n", "+OK\r\n"] {
            expect_bytes(&mut server, AUTH).await;
            server.write_all(response.as_bytes()).await.unwrap();
        }
        started.elapsed()
    };
    let took = tokio::select! {
        took = serving => took,
        never = connection.keep_authenticated() => match never {},
    };
    let seconds = Duration::from_secs;
    assert!(seconds(3) < took && took < seconds(4), "{took:?}");
    let calling = connection.command(redis::cmd("PING"));
    let serving = async {
        expect_bytes(&mut server, PING).await;
        server.write_all(b":7\r\n").await.unwrap();
    };
    let (response, ()) = tokio::join!(calling, serving);
    assert_eq!(response.unwrap(), Value::Int(7));
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_renews_its_credentials_over_resp3_and_has_to_connect_again_over_resp2() {
    let message = b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nb\r\n";
    let (mut connection, mut server) = connected_with_credentials();
    connection.set_resp3();
    let mut pubsub = PubSub::new(connection, true);
    let serving = async {
        // The subscriber checks the role of the server first. Then it renews its credentials, and
        // must not take the response to `AUTH` for the response to a later check.
        expect_bytes(&mut server, b"*1\r\n$4\r\nROLE\r\n").await;
        server.write_all(b"-NOPERM no role\r\n").await.unwrap();
        for response in ["-WRONGPASS no\r\n", "+OK\r\n"] {
            expect_bytes(&mut server, AUTH).await;
            server.write_all(response.as_bytes()).await.unwrap();
        }
        server.write_all(message).await.unwrap();
    };
    let (published, ()) = tokio::join!(pubsub.next(), serving);
    assert_eq!(published.unwrap().payload, "b");

    let (connection, mut server) = connected_with_credentials();
    let mut pubsub = PubSub::new(connection, true);
    let serving = async {
        expect_bytes(&mut server, PING).await;
        let pong = b"*2\r\n$4\r\npong\r\n$0\r\n\r\n";
        server.write_all(pong).await.unwrap();
    };
    let (result, ()) = tokio::join!(pubsub.next(), serving);
    let error = result.unwrap_err();
    assert!(error.to_string().contains("RESP2"), "{error}");
}
