//! A connection to a server: commands go out and answers come in over any stream of bytes.
//!
//! A connection works while its answers are polled. It has no task and no time limit of its own.

mod decode;
mod encode;
mod progress;
mod pubsub;
#[cfg(test)]
mod tests;

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use redis::{ErrorKind, RedisResult};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

use self::decode::Decoder;
pub(super) use self::{
    encode::{Commands, Encode, RespWriter, argument},
    progress::Progress,
    pubsub::{PubSub, Published},
};
use super::{error, response::Value};

/// The size of a read buffer, and the rest at which a new one is allocated. Answers are not copied: a
/// slice of one keeps its whole buffer (see [`copy_if_small`]).
const READ_BUFFER: usize = 64 << 10;
const LEAST_FREE: usize = 4 << 10;
/// Payloads of fewer bytes than this are copied out of the read buffer.
const SMALL: usize = 4 << 10;
/// The bytes of the write buffer that are kept for the next commands.
const KEPT: usize = 1 << 20;

/// Gives a small payload memory of its own. As a slice of the read buffer it would keep all of that
/// for as long as an application keeps the payload: 64 KiB, or the largest message that was near it.
pub(super) fn copy_if_small(payload: &mut Bytes) {
    if payload.len() < SMALL {
        *payload = Bytes::copy_from_slice(payload);
    }
}

/// A stream of bytes to a server: TCP, a Unix socket, TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection to a server.
///
/// # Cancel safety
/// The answer to a command whose caller has stopped waiting is passed over by the next caller.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    /// Encoded commands, and how many bytes of them were written.
    out: Vec<u8>,
    sent: usize,
    /// The bytes that were read and not decoded yet.
    read: BytesMut,
    decoder: Decoder,
    progress: Progress,
    /// The last write had to wait until the server has read something.
    blocked: bool,
    /// The number of commands without an answer.
    due: usize,
}

impl Connection {
    /// Over a stream on which the server waits for commands.
    pub(super) fn new(stream: Box<dyn Stream>) -> Self {
        Self {
            stream,
            out: Vec::new(),
            sent: 0,
            read: BytesMut::new(),
            decoder: Decoder::default(),
            progress: Progress::default(),
            blocked: false,
            due: 0,
        }
    }

    /// Counts the bytes that were read and written so far.
    pub(super) fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Queues commands. They are written in one go when an answer is polled for.
    pub(super) fn send(&mut self, commands: impl IntoIterator<Item = impl Encode>) {
        if self.sent >= KEPT {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        for command in commands {
            command.encode(&mut self.out);
            self.due += 1;
        }
    }

    /// The number of bytes of commands that are still to be written.
    pub(super) fn unsent(&self) -> usize {
        self.out.len() - self.sent
    }

    /// The answer to the oldest command without one; a refusal is an answer too. An error means that
    /// the connection is lost, also while no answer is due.
    pub(super) fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<RedisResult<Value>> {
        let answer = loop {
            match ready!(self.poll_value(cx))? {
                // It answers no command. A server pushes only what this client has subscribed to,
                // and notices that this client ignores.
                Value::Push(_) => {}
                answer => break answer,
            }
        };
        // A server writes this when it accepts a connection. It answers no command, so it settles
        // nothing.
        if let Value::ServerError(unasked) = &answer
            && unasked.details().is_some_and(error::has_too_many_clients)
        {
            return Poll::Ready(answer.refused());
        }
        self.due = (self.due.checked_sub(1))
            .ok_or((ErrorKind::Parse, "the server answered without being asked"))?;
        Poll::Ready(Ok(answer))
    }

    /// The next value that the server sends, be it an answer or a push.
    fn poll_value(&mut self, cx: &mut Context<'_>) -> Poll<RedisResult<Value>> {
        // A server that does not take a command says why and closes. That answer, and those before it,
        // come first; then the connection fails for the reader too.
        let written = self.write(cx);
        loop {
            if let Some(value) = self.decoder.decode(&mut self.read)? {
                return Poll::Ready(Ok(value));
            }
            if self.read.capacity() - self.read.len() < LEAST_FREE {
                self.read.reserve(READ_BUFFER);
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
                    // The kernel's buffer took these bytes: that shows nothing about the server,
                    // unless it was full before.
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
        // TLS encrypts into a buffer of its own, which only a flush empties.
        if let Poll::Ready(flushed) = Pin::new(&mut self.stream).poll_flush(cx) {
            flushed?;
        }
        Ok(())
    }

    /// The next answer.
    pub(super) async fn answer(&mut self) -> RedisResult<Value> {
        poll_fn(|cx| self.poll_answer(cx)).await
    }

    /// Sends a command, and returns its answer.
    pub(super) async fn command(&mut self, command: impl Encode) -> RedisResult<Value> {
        self.ask([command]).await?;
        self.answer().await
    }

    /// Sends commands in one go, and returns their answers.
    pub(super) async fn pipeline(&mut self, commands: &[impl Encode]) -> RedisResult<Vec<Value>> {
        self.pipeline_before(commands, commands.len()).await
    }

    /// Sends commands in one go, and returns the answers to the first ones. The other answers may
    /// come long after that: [`answer`](Self::answer) returns them.
    pub(super) async fn pipeline_before(
        &mut self,
        commands: impl IntoIterator<Item = impl Encode>,
        first: usize,
    ) -> RedisResult<Vec<Value>> {
        self.ask(commands).await?;
        let mut answers = Vec::with_capacity(first);
        while answers.len() < first {
            answers.push(self.answer().await?);
        }
        Ok(answers)
    }

    /// Sends commands in one go, and passes over the answers that are due before theirs.
    async fn ask(&mut self, commands: impl IntoIterator<Item = impl Encode>) -> RedisResult<()> {
        let before = self.due;
        self.send(commands);
        for _ in 0..before {
            self.answer().await?;
        }
        Ok(())
    }
}
