//! A byte stream on which commands are written and answers read here.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use redis::RedisResult;
use tokio::io::AsyncWrite;
use tokio_util::io::poll_read_buf;

use super::{decode::Answers, progress::Progress};
use crate::transport::redis::{connection::Encode, response::Value, server::Stream};

/// How much room there is for what comes, and from which rest on there is new room. What was read is
/// not copied: a part of it holds all of the room that it came in (see [`copy_if_small`]).
const ROOM: usize = 64 << 10;
const LITTLE: usize = 4 << 10;
/// Payloads of fewer bytes than this are copied out of the room that they came in.
const SMALL: usize = 4 << 10;
/// What is kept of the room for what is sent.
const KEPT: usize = 1 << 20;

/// Gives a small payload memory of its own. As a part of what was read, it would hold all of that for
/// as long as an application keeps it: 64 KiB, or the largest message that was near it.
pub(in crate::transport::redis) fn copy_if_small(payload: &mut Bytes) {
    if payload.len() < SMALL {
        *payload = Bytes::copy_from_slice(payload);
    }
}

pub(in crate::transport::redis) struct Direct {
    stream: Box<dyn Stream>,
    /// What is to be sent, and how much of that has been.
    out: Vec<u8>,
    sent: usize,
    /// What has come and is not taken apart yet.
    read: BytesMut,
    answers: Answers,
    progress: Progress,
    /// The last write had to wait until the server has read something.
    blocked: bool,
}

impl Direct {
    /// Over a stream on which the server waits for commands.
    pub(in crate::transport::redis) fn new(stream: Box<dyn Stream>) -> Self {
        Self {
            stream,
            out: Vec::new(),
            sent: 0,
            read: BytesMut::new(),
            answers: Answers::default(),
            progress: Progress::default(),
            blocked: false,
        }
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress.clone()
    }

    pub(in crate::transport::redis) fn send(
        &mut self,
        commands: impl IntoIterator<Item = impl Encode>,
    ) {
        for command in commands {
            command.encode(&mut self.out);
        }
    }

    pub(in crate::transport::redis) fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<RedisResult<Value>> {
        // A server that does not take a command says why and closes. That answer, and those before it,
        // come first; then the connection fails for the reader too.
        let written = self.write(cx);
        loop {
            if let Some(answer) = self.answers.take(&mut self.read)? {
                return Poll::Ready(Ok(answer));
            }
            if self.read.capacity() - self.read.len() < LITTLE {
                self.read.reserve(ROOM);
            }
            let stream = Pin::new(&mut self.stream);
            let read = match ready!(poll_read_buf(stream, cx, &mut self.read)) {
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                read => read,
            };
            match read {
                Ok(read) => self.progress.add(read),
                Err(lost) => return Poll::Ready(Err(written.err().unwrap_or(lost).into())),
            }
        }
    }

    /// Writes as much as the stream takes.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.sent < self.out.len() {
            let rest = &self.out[self.sent..];
            match Pin::new(&mut self.stream).poll_write(cx, rest)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => {
                    self.sent += written;
                    // What the system takes at once shows nothing about the server.
                    if std::mem::take(&mut self.blocked) {
                        self.progress.add(written);
                    }
                }
                Poll::Pending => {
                    self.blocked = true;
                    return Ok(());
                }
            }
        }
        self.out.clear();
        self.out.shrink_to(KEPT);
        self.sent = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// A connection with this much room on its way, and the server's end of it.
    fn connected(room: usize) -> (Direct, DuplexStream) {
        let (ours, servers) = duplex(room);
        (Direct::new(Box::new(ours)), servers)
    }

    async fn answer(direct: &mut Direct) -> RedisResult<Value> {
        poll_fn(|cx| direct.poll_answer(cx)).await
    }

    fn text(text: &'static str) -> Value {
        Value::Text(text.into())
    }

    fn runs<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(work)
    }

    #[tokio::test]
    async fn answers_are_what_the_server_said() {
        let (mut direct, mut server) = connected(1024);
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
            assert_eq!(answer(&mut direct).await.unwrap(), expected);
        }
    }

    #[tokio::test]
    async fn a_refusal_is_an_answer_with_its_code_and_its_text() {
        let (mut direct, mut server) = connected(1024);
        let said = b"-NOGROUP No such key 's'\r\n-ERR\r\n*1\r\n-LOADING wait\r\n";
        server.write_all(said).await.unwrap();
        let Value::ServerError(refusal) = answer(&mut direct).await.unwrap() else {
            panic!("no refusal");
        };
        assert_eq!(refusal.code(), "NOGROUP");
        assert_eq!(refusal.details(), Some("No such key 's'"));
        assert!(matches!(
            answer(&mut direct).await,
            Ok(Value::ServerError(_))
        ));
        let Value::Array(list) = answer(&mut direct).await.unwrap() else {
            panic!("no list");
        };
        assert!(matches!(&list[..], [Value::ServerError(_)]));
    }

    #[tokio::test]
    async fn what_the_stream_does_not_take_at_once_is_sent_while_the_answer_is_waited_for() {
        let (mut direct, mut server) = connected(7);
        let mut cmd = redis::cmd("ECHO");
        cmd.arg("x".repeat(1000));
        direct.send([&cmd, &cmd]);
        let expected = [cmd.get_packed_command(), cmd.get_packed_command()].concat();
        let serving = async {
            let mut heard = vec![0; expected.len()];
            server.read_exact(&mut heard).await.unwrap();
            server.write_all(b"+a\r\n+b\r\n").await.unwrap();
            heard
        };
        let asking = async { (answer(&mut direct).await, answer(&mut direct).await) };
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
            let (mut direct, mut server) = connected(1024);
            server.write_all(said.as_bytes()).await.unwrap();
            drop(server);
            let error = answer(&mut direct).await.expect_err(said);
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
        fn answers_arrive_in_whatever_pieces_they_come(
            answers in prop::collection::vec(any_answer(), 1..6),
            pieces in prop::collection::vec(1..50_usize, 1..20),
        ) {
            let mut said = Vec::new();
            answers.iter().for_each(|answer| write(answer, &mut said));
            runs(async {
                let (mut direct, mut server) = connected(64);
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
                        assert_eq!(answer(&mut direct).await.unwrap(), *expected);
                    }
                };
                tokio::join!(saying, hearing);
            });
        }

        #[test]
        fn whatever_comes_is_an_answer_or_a_lost_connection(
            said in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..80),
                "([*$:+-][0-9-]{0,3}\r\n){0,12}".prop_map(String::into_bytes),
            ],
        ) {
            runs(async {
                let (mut direct, mut server) = connected(1024);
                server.write_all(&said).await.unwrap();
                drop(server);
                let mut answers = 0;
                while answer(&mut direct).await.is_ok() {
                    answers += 1;
                    assert!(answers <= said.len());
                }
            });
        }
    }
}
