//! Tests a connection against the other end of its stream.

use std::{future::poll_fn, time::Duration};

use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::Instant,
};

use super::*;
use crate::transport::redis::server::Credentials;

/// A connection with buffers of this size, and the server's end of it.
fn connected(room: usize) -> (Connection, DuplexStream) {
    let (ours, servers) = duplex(room);
    (Connection::new(Box::new(ours)), servers)
}

async fn answer(connection: &mut Connection) -> RedisResult<Value> {
    poll_fn(|cx| connection.poll_value(cx)).await
}

fn text(text: &'static str) -> Value {
    Value::Text(text.into())
}

fn runs<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(work)
}

#[tokio::test]
async fn answers_are_decoded_as_the_server_sent_them() {
    let (mut connection, mut server) = connected(1024);
    let said = b"+OK\r\n:-7\r\n$-1\r\n*-1\r\n$0\r\n\r\n*2\r\n$4\r\na\r\nb\r\n*0\r\n";
    server.write_all(said).await.unwrap();
    for expected in [
        text("OK"),
        Value::Int(-7),
        Value::Nil,
        Value::Nil,
        text(""),
        Value::Array(vec![text("a\r\nb"), Value::Array(vec![])]),
    ] {
        assert_eq!(answer(&mut connection).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn a_refusal_is_an_answer_with_its_code_and_its_text() {
    let (mut connection, mut server) = connected(1024);
    let said = b"-NOGROUP No such key 's'\r\n-ERR\r\n*1\r\n-LOADING wait\r\n";
    server.write_all(said).await.unwrap();
    let Value::ServerError(refusal) = answer(&mut connection).await.unwrap() else {
        panic!("no refusal");
    };
    assert_eq!(refusal.code(), "NOGROUP");
    assert_eq!(refusal.details(), Some("No such key 's'"));
    assert!(matches!(
        answer(&mut connection).await,
        Ok(Value::ServerError(_))
    ));
    let Value::Array(list) = answer(&mut connection).await.unwrap() else {
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
        let mut heard = vec![0; expected.len()];
        server.read_exact(&mut heard).await.unwrap();
        server.write_all(b"+a\r\n+b\r\n").await.unwrap();
        heard
    };
    let asking = async { (answer(&mut connection).await, answer(&mut connection).await) };
    let (heard, answers) = tokio::join!(serving, asking);
    assert_eq!(heard, expected);
    assert_eq!(answers.0.unwrap(), text("a"));
    assert_eq!(answers.1.unwrap(), text("b"));
}

#[tokio::test]
async fn a_connection_that_ends_or_says_something_else_is_lost() {
    for said in [
        "",
        "$5\r\nab",
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "*x\r\n",
        "$-7\r\n",
    ] {
        let (mut connection, mut server) = connected(1024);
        server.write_all(said.as_bytes()).await.unwrap();
        drop(server);
        let error = answer(&mut connection).await.expect_err(said);
        assert!(error.code().is_none(), "{said}: {error}");
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

fn any_answer() -> impl Strategy<Value = Value> {
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
    fn answers_may_arrive_in_any_pieces(
        answers in prop::collection::vec(any_answer(), 1..6),
        pieces in prop::collection::vec(1..50_usize, 1..20),
    ) {
        let mut said = Vec::new();
        answers.iter().for_each(|answer| write(answer, &mut said));
        runs(async {
            let (mut connection, mut server) = connected(64);
            let saying = async {
                let (mut rest, mut pieces) = (&said[..], pieces.iter().cycle());
                while !rest.is_empty() {
                    let (piece, after) = rest.split_at(rest.len().min(*pieces.next().unwrap()));
                    server.write_all(piece).await.unwrap();
                    tokio::task::yield_now().await;
                    rest = after;
                }
            };
            let hearing = async {
                for expected in &answers {
                    assert_eq!(answer(&mut connection).await.unwrap(), *expected);
                }
            };
            tokio::join!(saying, hearing);
        });
    }

    #[test]
    fn any_bytes_are_answers_or_a_lost_connection(
        said in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..80),
            "([*$:+-][0-9-]{0,3}\r\n){0,12}".prop_map(String::into_bytes),
        ],
    ) {
        runs(async {
            let (mut connection, mut server) = connected(1024);
            server.write_all(&said).await.unwrap();
            drop(server);
            let mut answers = 0;
            while answer(&mut connection).await.is_ok() {
                answers += 1;
                assert!(answers <= said.len());
            }
        });
    }
}

#[tokio::test(start_paused = true)]
async fn no_other_caller_gets_the_answer_to_a_command_that_was_given_up() {
    let (ours, mut server) = duplex(1024);
    let mut connection = Connection::new(Box::new(ours));
    let ping = redis::cmd("PING");
    let pings = [ping.clone(), ping.clone()];
    let moment = std::time::Duration::from_secs(1);
    let given_up = tokio::time::timeout(moment, connection.command(&ping)).await;
    given_up.unwrap_err();
    let given_up = tokio::time::timeout(moment, connection.pipeline(&pings));
    given_up.await.unwrap_err();
    server
        .write_all(b":1\r\n:2\r\n:3\r\n:4\r\n:5\r\n")
        .await
        .unwrap();
    assert_eq!(connection.command(&ping).await.unwrap(), Value::Int(4));
    server.write_all(b":6\r\n").await.unwrap();
    let first = connection.pipeline_before(&pings, 1).await;
    assert_eq!(first.unwrap(), [Value::Int(5)]);
    assert_eq!(connection.answer().await.unwrap(), Value::Int(6));
    server.write_all(b":7\r\n").await.unwrap();
    connection.answer().await.expect_err("nothing was asked");
}

/// A connection whose credentials have to be renewed every three seconds.
fn renewed() -> (Connection, DuplexStream) {
    let lifetime = Duration::from_secs(4);
    let provider = move || async move { Ok(Credentials::new("me", "pw").expires_in(lifetime)) };
    let (mut connection, server) = connected(1024);
    connection.renews_with(Renewal::of(provider, lifetime));
    (connection, server)
}

const AUTH: &[u8] = b"*3\r\n$4\r\nAUTH\r\n$2\r\nme\r\n$2\r\npw\r\n";
const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

async fn reads(server: &mut DuplexStream, expected: &[u8]) {
    let mut asked = vec![0; expected.len()];
    server.read_exact(&mut asked).await.unwrap();
    assert_eq!(asked, expected);
}

#[tokio::test(start_paused = true)]
async fn credentials_are_renewed_between_commands_and_no_caller_gets_the_response() {
    let (mut connection, mut server) = renewed();
    let serving = async {
        reads(&mut server, PING).await;
        // The renewal comes behind the command without a response.
        reads(&mut server, AUTH).await;
        server.write_all(b":1\r\n+OK\r\n").await.unwrap();
        reads(&mut server, PING).await;
        server.write_all(b":2\r\n").await.unwrap();
        // The credentials are also renewed while nothing is sent.
        reads(&mut server, AUTH).await;
        server.write_all(b"+OK\r\n").await.unwrap();
    };
    let calling = async {
        let ping = redis::cmd("PING");
        for expected in [1, 2] {
            let answer = connection.command(&ping).await.unwrap();
            assert_eq!(answer, Value::Int(expected));
        }
        connection.stay().await
    };
    tokio::select! {
        () = serving => {}
        never = calling => match never {},
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_renewal_is_tried_again_and_the_connection_stays_in_use() {
    let (mut connection, mut server) = renewed();
    let started = Instant::now();
    let serving = async {
        for answer in ["-WRONGPASS no\r\n", "-WRONGPASS no\r\n", "+OK\r\n"] {
            reads(&mut server, AUTH).await;
            server.write_all(answer.as_bytes()).await.unwrap();
        }
        started.elapsed()
    };
    let took = tokio::select! {
        took = serving => took,
        never = connection.stay() => match never {},
    };
    let seconds = Duration::from_secs;
    assert!(seconds(3) < took && took < seconds(4), "{took:?}");
    let calling = connection.command(redis::cmd("PING"));
    let serving = async {
        reads(&mut server, PING).await;
        server.write_all(b":7\r\n").await.unwrap();
    };
    let (answer, ()) = tokio::join!(calling, serving);
    assert_eq!(answer.unwrap(), Value::Int(7));
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_renews_its_credentials_over_resp3_and_has_to_connect_again_over_resp2() {
    let message = b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nb\r\n";
    let (mut connection, mut server) = renewed();
    connection.set_resp3();
    let mut pubsub = PubSub::new(connection, true);
    let serving = async {
        // The first question comes before the renewal, whose response is not taken for that of a
        // question.
        reads(&mut server, b"*1\r\n$4\r\nROLE\r\n").await;
        server.write_all(b"-NOPERM no role\r\n").await.unwrap();
        for answer in ["-WRONGPASS no\r\n", "+OK\r\n"] {
            reads(&mut server, AUTH).await;
            server.write_all(answer.as_bytes()).await.unwrap();
        }
        server.write_all(message).await.unwrap();
    };
    let (published, ()) = tokio::join!(pubsub.next(), serving);
    assert_eq!(published.unwrap().payload, "b");

    let (connection, mut server) = renewed();
    let mut pubsub = PubSub::new(connection, true);
    let serving = async {
        reads(&mut server, PING).await;
        let pong = b"*2\r\n$4\r\npong\r\n$0\r\n\r\n";
        server.write_all(pong).await.unwrap();
    };
    let (ended, ()) = tokio::join!(pubsub.next(), serving);
    let error = ended.unwrap_err();
    assert!(error.to_string().contains("RESP2"), "{error}");
}
