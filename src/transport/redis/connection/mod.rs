//! A connection to a server over any byte stream.
//!
//! It makes progress only while its responses are polled: it has no task and no timeout.

mod decode;
mod encode;
mod progress;
mod pubsub;
#[cfg(test)]
mod tests;

use std::{
    convert::Infallible,
    future::{pending, poll_fn},
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
    pubsub::{Notice, PubSub, Published},
};
use super::{
    error,
    response::Value,
    server::{Departure, Renewal},
};

/// The size of a read buffer. Responses are slices of it, and each slice keeps the whole buffer in
/// memory (see [`copy_if_small`]).
const READ_BUFFER: usize = 64 << 10;
/// A new read buffer is allocated when less than this is free.
const LEAST_FREE: usize = 4 << 10;
/// Payloads of fewer bytes are copied out of the read buffer.
const SMALL: usize = 4 << 10;
/// The largest write buffer that is kept for reuse.
const KEPT: usize = 1 << 20;

/// Copies a small payload. As a slice it would keep its whole read buffer in memory for as long as
/// the application keeps the payload: 64 KiB, or the size of a larger message beside it.
pub(super) fn copy_if_small(payload: &mut Bytes) {
    if payload.len() < SMALL {
        *payload = Bytes::copy_from_slice(payload);
    }
}

/// A byte stream to a server: TCP, a Unix socket, TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection to a server.
///
/// # Cancel safety
/// If a caller stops waiting for its response, the next caller skips that response.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    /// Encoded commands, of which the first `sent` bytes were written.
    out: Vec<u8>,
    /// The number of bytes of `out` that were written.
    sent: usize,
    /// Bytes that were read and not decoded yet.
    read: BytesMut,
    decoder: Decoder,
    progress: Progress,
    /// Set if the last write had to wait for the server to read.
    blocked: bool,
    /// The number of commands without a response.
    due: usize,
    /// Resolves when another server is the primary.
    departure: Option<Departure>,
    /// Renews credentials that expire.
    renewal: Option<Renewal>,
    /// The number of responses that are due before the response to a renewal. `None` if no renewal
    /// is in flight.
    before_renewal: Option<usize>,
    is_resp3: bool,
}

impl Connection {
    /// Makes a connection from a stream on which the server waits for commands.
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
            departure: None,
            renewal: None,
            before_renewal: None,
            is_resp3: false,
        }
    }

    /// Records that the server has changed to RESP3.
    pub(super) fn set_resp3(&mut self) {
        self.is_resp3 = true;
    }

    fn speaks_resp3(&self) -> bool {
        self.is_resp3
    }

    /// Ends the connection with an error when `departure` resolves, although the server may still
    /// respond.
    pub(super) fn ends_with(&mut self, departure: Departure) {
        self.departure = Some(departure);
    }

    /// Sends the command of this renewal, between the commands of callers, when it is due. The
    /// renewal gets the response, and callers do not.
    pub(super) fn renews_with(&mut self, renewal: Renewal) {
        self.renewal = Some(renewal);
    }

    /// Returns the counter of the bytes that show progress.
    pub(super) fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Queues commands. They are written together when a response is polled.
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

    /// Returns the number of bytes that are queued and not written.
    pub(super) fn unsent(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Polls the response to the oldest command that has none yet. It may be an error of the
    /// server. An `Err` means that the connection is lost, even if no response is due.
    pub(super) fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<RedisResult<Value>> {
        let answer = loop {
            self.poll_renewal(cx);
            match ready!(self.poll_value(cx))? {
                // A push is a notice or a message of a subscription, and no response to a command.
                Value::Push(_) => {}
                answer if self.before_renewal == Some(0) => self.renewed(answer),
                answer => break answer,
            }
        };
        // A server writes this error when it accepts a connection. It is no response to a command.
        if let Value::ServerError(unasked) = &answer
            && unasked.details().is_some_and(error::has_too_many_clients)
        {
            return Poll::Ready(answer.refused());
        }
        self.due = (self.due.checked_sub(1))
            .ok_or((ErrorKind::Parse, "the server answered without being asked"))?;
        self.before_renewal = self.before_renewal.map(|before| before - 1);
        Poll::Ready(Ok(answer))
    }

    /// Queues the command of a renewal that is due, behind all commands so far.
    fn poll_renewal(&mut self, cx: &mut Context<'_>) {
        if let Some(renewal) = &mut self.renewal
            && let Poll::Ready(auth) = renewal.poll_command(cx)
        {
            auth.encode(&mut self.out);
            self.before_renewal = Some(self.due);
        }
    }

    fn renewed(&mut self, answer: Value) {
        self.before_renewal = None;
        if let Some(renewal) = &mut self.renewal {
            renewal.answered(answer.refused());
        }
    }

    /// Renews the credentials while no command is sent. Never returns: if the connection is lost,
    /// the next command fails.
    ///
    /// # Cancel safety
    /// Dropping the future loses no response to a caller.
    pub(super) async fn stay(&mut self) -> Infallible {
        if self.renewal.is_some() {
            let _ = self.answer().await;
        }
        pending().await
    }

    /// Polls the next value: a response or a push.
    fn poll_value(&mut self, cx: &mut Context<'_>) -> Poll<RedisResult<Value>> {
        // A server that refuses a command writes an error and closes. Read that error and all
        // responses before it, then report the failed write.
        let written = self.write(cx);
        loop {
            if let Some(value) = self.decoder.decode(&mut self.read)? {
                return Poll::Ready(Ok(value));
            }
            if self.read.capacity() - self.read.len() < LEAST_FREE {
                self.read.reserve(READ_BUFFER);
            }
            let stream = Pin::new(&mut self.stream);
            let Poll::Ready(read) = poll_read_buf(stream, cx, &mut self.read) else {
                return self.poll_departure(cx);
            };
            let read = match read {
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                read => read,
            };
            match read {
                Ok(read) => self.progress.add(read),
                Err(lost) => return Poll::Ready(Err(written.err().unwrap_or(lost).into())),
            }
        }
    }

    /// Polls for the departure. Pending until another server is the primary.
    fn poll_departure(&mut self, cx: &mut Context<'_>) -> Poll<RedisResult<Value>> {
        let Some(departure) = &mut self.departure else {
            return Poll::Pending;
        };
        ready!(departure.as_mut().poll(cx));
        // A completed future must not be polled again.
        self.departure = Some(Box::pin(std::future::ready(())));
        let error = io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "another server is the primary now",
        );
        Poll::Ready(Err(error.into()))
    }

    /// Writes as much as the stream accepts.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.sent < self.out.len() {
            let rest = &self.out[self.sent..];
            match Pin::new(&mut self.stream).poll_write(cx, rest)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => {
                    self.sent += written;
                    // The kernel's buffer accepted these bytes. That says nothing about the server
                    // unless the buffer was full before.
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
        // TLS has a write buffer that only a flush empties.
        if let Poll::Ready(flushed) = Pin::new(&mut self.stream).poll_flush(cx) {
            flushed?;
        }
        Ok(())
    }

    /// Waits for the next response.
    pub(super) async fn answer(&mut self) -> RedisResult<Value> {
        poll_fn(|cx| self.poll_answer(cx)).await
    }

    /// Sends a command and returns its response.
    pub(super) async fn command(&mut self, command: impl Encode) -> RedisResult<Value> {
        self.ask([command]).await?;
        self.answer().await
    }

    /// Sends commands together and returns their responses.
    pub(super) async fn pipeline(&mut self, commands: &[impl Encode]) -> RedisResult<Vec<Value>> {
        self.pipeline_before(commands, commands.len()).await
    }

    /// Sends commands together and returns the responses to the first `first` commands. The other
    /// responses may come much later: [`answer`](Self::answer) returns them.
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

    /// Sends commands together, and skips the responses that are due before theirs.
    async fn ask(&mut self, commands: impl IntoIterator<Item = impl Encode>) -> RedisResult<()> {
        let before = self.due;
        self.send(commands);
        for _ in 0..before {
            self.answer().await?;
        }
        Ok(())
    }
}
