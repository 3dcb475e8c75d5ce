//! A connection to a server over any byte stream.
//!
//! The connection has no task and no timeout. It reads and writes only while a response is polled.

mod decode;
mod encode;
mod progress;
mod pubsub;
#[cfg(test)]
mod tests;
mod tracking;

use std::{
    convert::Infallible,
    future::{pending, poll_fn},
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use redis::{ErrorKind, RedisResult};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

use self::decode::Decoder;
pub(super) use self::{
    encode::{Commands, Encode, RespWriter, append_argument},
    progress::ByteProgress,
    pubsub::{Notice, PubSub, Published},
    tracking::{TrackedKeys, WriteSignal},
};
use super::{
    error,
    response::Value,
    server::{PrimaryChange, Renewal},
};

/// The size of a read buffer, in bytes. Responses are slices of it. Each slice keeps the whole
/// buffer in memory (see [`copy_if_small`]).
const READ_BUFFER: usize = 64 << 10;
/// A new read buffer is allocated when fewer bytes than this are free.
const MIN_FREE: usize = 4 << 10;
/// Payloads of fewer bytes are copied out of the read buffer.
const SMALL: usize = 4 << 10;
/// The maximum capacity of a write buffer that is kept for reuse, in bytes.
const MAX_REUSED: usize = 1 << 20;

/// Copies a small payload. Without the copy, an application that keeps the payload would keep the
/// whole read buffer: 64 KiB, or more if a larger response is in the same buffer.
pub(super) fn copy_if_small(payload: &mut Bytes) {
    if payload.len() < SMALL {
        *payload = Bytes::copy_from_slice(payload);
    }
}

/// A byte stream to a server: TCP, a Unix socket, TLS.
pub(super) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

/// A connection to a server.
///
/// # Cancel safety
/// If a caller stops waiting for its response, the response is skipped before the next caller gets
/// its own.
pub(super) struct Connection {
    stream: Box<dyn ByteStream>,
    /// Encoded commands.
    write_buffer: Vec<u8>,
    /// The number of bytes of `write_buffer` that were written.
    written: usize,
    /// Bytes that were read and not decoded yet.
    read_buffer: BytesMut,
    decoder: Decoder,
    progress: ByteProgress,
    /// Set if the last write was pending, because the server has not read the earlier bytes.
    write_blocked: bool,
    /// The number of commands whose responses are outstanding.
    outstanding: usize,
    /// Resolves when a look-up names another server as the primary. The connection then ends.
    primary_change: Option<PrimaryChange>,
    /// Renews credentials that expire.
    renewal: Option<Renewal>,
    /// The number of outstanding responses before the response to the renewal. `None` if no
    /// renewal is in flight.
    outstanding_before_renewal: Option<usize>,
    is_resp3: bool,
    /// Takes the server's notices about written keys. `None` if the server tracks no keys for the
    /// connection.
    tracked: Option<Arc<TrackedKeys>>,
}

impl Connection {
    /// Makes a connection from a stream on which the server waits for commands.
    pub(super) fn new(stream: Box<dyn ByteStream>) -> Self {
        Self {
            stream,
            write_buffer: Vec::new(),
            written: 0,
            read_buffer: BytesMut::new(),
            decoder: Decoder::default(),
            progress: ByteProgress::default(),
            write_blocked: false,
            outstanding: 0,
            primary_change: None,
            renewal: None,
            outstanding_before_renewal: None,
            is_resp3: false,
            tracked: None,
        }
    }

    /// Records that the server has changed to RESP3.
    pub(super) fn set_resp3(&mut self) {
        self.is_resp3 = true;
    }

    /// Hands the server's notices about written keys to `tracked`. The server tracks the keys that
    /// the connection reads.
    pub(super) fn set_tracked(&mut self, tracked: Arc<TrackedKeys>) {
        self.tracked = Some(tracked);
    }

    fn speaks_resp3(&self) -> bool {
        self.is_resp3
    }

    /// Ends the connection with an error when `primary_change` resolves, even if the server still
    /// responds.
    pub(super) fn set_primary_change(&mut self, primary_change: PrimaryChange) {
        self.primary_change = Some(primary_change);
    }

    /// Sends the command of this renewal when it is due, between the commands of callers. The
    /// response goes to the renewal, not to a caller.
    pub(super) fn set_renewal(&mut self, renewal: Renewal) {
        self.renewal = Some(renewal);
    }

    /// Returns the counter of the bytes that show progress.
    pub(super) fn progress(&self) -> ByteProgress {
        self.progress.clone()
    }

    /// Adds commands to the write buffer. They are written together when a response is polled.
    pub(super) fn send(&mut self, commands: impl IntoIterator<Item = impl Encode>) {
        if self.written >= MAX_REUSED {
            self.write_buffer.drain(..self.written);
            self.written = 0;
        }
        for command in commands {
            command.encode(&mut self.write_buffer);
            self.outstanding += 1;
        }
    }

    /// Returns the number of bytes in the write buffer that are not written.
    pub(super) fn unsent(&self) -> usize {
        self.write_buffer.len() - self.written
    }

    /// Polls the response to the oldest command without a response. An error of the server is an
    /// `Ok` response. An `Err` means that the connection is lost, and may come even if no response
    /// is due.
    pub(super) fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<RedisResult<Value>> {
        let response = loop {
            self.poll_renewal(cx);
            match ready!(self.poll_value(cx))? {
                // A push is not a response to a command.
                Value::Push(push) => self.tracked.iter().for_each(|it| it.handle_push(&push)),
                response if self.outstanding_before_renewal == Some(0) => {
                    self.end_renewal(response)
                }
                response => break response,
            }
        };
        // A server with too many clients accepts the connection, writes this error, and closes the
        // connection. The error is not a response to a command.
        if let Value::ServerError(error) = &response
            && error.details().is_some_and(error::is_too_many_clients)
        {
            return Poll::Ready(response.into_result());
        }
        self.outstanding = (self.outstanding.checked_sub(1)).ok_or((
            ErrorKind::Parse,
            "the server sent a response without a command",
        ))?;
        self.outstanding_before_renewal = self.outstanding_before_renewal.map(|count| count - 1);
        Poll::Ready(Ok(response))
    }

    /// If a renewal is due, adds its command to the write buffer.
    fn poll_renewal(&mut self, cx: &mut Context<'_>) {
        if let Some(renewal) = &mut self.renewal
            && let Poll::Ready(auth) = renewal.poll_command(cx)
        {
            auth.encode(&mut self.write_buffer);
            self.outstanding_before_renewal = Some(self.outstanding);
        }
    }

    /// Passes the response to the renewal.
    fn end_renewal(&mut self, response: Value) {
        self.outstanding_before_renewal = None;
        if let Some(renewal) = &mut self.renewal {
            renewal.handle_response(response.into_result());
        }
    }

    /// Renews the credentials while callers send no commands. Never returns, even if the connection
    /// is lost: the next command then fails.
    ///
    /// # Cancel safety
    /// If the future is dropped, callers still get all their responses.
    pub(super) async fn keep_authenticated(&mut self) -> Infallible {
        if self.renewal.is_some() {
            let _ = self.response().await;
        }
        pending().await
    }

    /// Polls the next value: a response or a push.
    fn poll_value(&mut self, cx: &mut Context<'_>) -> Poll<RedisResult<Value>> {
        // If a server writes an error and closes the connection, further writes fail. So all values
        // that can be read, such as that error, are returned before the error of the write.
        let write_result = self.write(cx);
        loop {
            if let Some(value) = self.decoder.decode(&mut self.read_buffer)? {
                return Poll::Ready(Ok(value));
            }
            if self.read_buffer.capacity() - self.read_buffer.len() < MIN_FREE {
                self.read_buffer.reserve(READ_BUFFER);
            }
            let stream = Pin::new(&mut self.stream);
            let Poll::Ready(read) = poll_read_buf(stream, cx, &mut self.read_buffer) else {
                return self.poll_primary_change(cx);
            };
            let read = match read {
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                read => read,
            };
            match read {
                Ok(read) => self.progress.add(read),
                Err(lost) => return Poll::Ready(Err(write_result.err().unwrap_or(lost).into())),
            }
        }
    }

    /// Polls for the change of the primary. Pending until a look-up names another server.
    fn poll_primary_change(&mut self, cx: &mut Context<'_>) -> Poll<RedisResult<Value>> {
        let Some(primary_change) = &mut self.primary_change else {
            return Poll::Pending;
        };
        ready!(primary_change.as_mut().poll(cx));
        // A completed future must not be polled again.
        self.primary_change = Some(Box::pin(std::future::ready(())));
        let error = io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "another server is the primary now",
        );
        Poll::Ready(Err(error.into()))
    }

    /// Writes as much as the stream accepts.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.written < self.write_buffer.len() {
            let unsent = &self.write_buffer[self.written..];
            match Pin::new(&mut self.stream).poll_write(cx, unsent)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => {
                    self.written += written;
                    // If the kernel's buffer was full and accepts bytes now, the server has read
                    // some of the earlier bytes.
                    if std::mem::take(&mut self.write_blocked) {
                        self.progress.add(written);
                    }
                }
                Poll::Pending => {
                    self.write_blocked = true;
                    return Ok(());
                }
            }
        }
        self.write_buffer.clear();
        self.write_buffer.shrink_to(MAX_REUSED);
        self.written = 0;
        // TLS has a write buffer that only a flush empties.
        if let Poll::Ready(flushed) = Pin::new(&mut self.stream).poll_flush(cx) {
            flushed?;
        }
        Ok(())
    }

    /// Waits for the next response.
    pub(super) async fn response(&mut self) -> RedisResult<Value> {
        poll_fn(|cx| self.poll_response(cx)).await
    }

    /// Sends a command and returns its response.
    pub(super) async fn command(&mut self, command: impl Encode) -> RedisResult<Value> {
        self.send_and_skip_outstanding([command]).await?;
        self.response().await
    }

    /// Sends commands together and returns their responses.
    pub(super) async fn pipeline(&mut self, commands: &[impl Encode]) -> RedisResult<Vec<Value>> {
        self.pipeline_first(commands, commands.len()).await
    }

    /// Sends commands together, and returns the responses to the first `count` commands. The other
    /// responses may come much later, and [`response`](Self::response) returns them.
    pub(super) async fn pipeline_first(
        &mut self,
        commands: impl IntoIterator<Item = impl Encode>,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        self.send_and_skip_outstanding(commands).await?;
        let mut responses = Vec::with_capacity(count);
        while responses.len() < count {
            responses.push(self.response().await?);
        }
        Ok(responses)
    }

    /// Sends commands together, and skips the responses of earlier callers that stopped waiting.
    async fn send_and_skip_outstanding(
        &mut self,
        commands: impl IntoIterator<Item = impl Encode>,
    ) -> RedisResult<()> {
        let skipped = self.outstanding;
        self.send(commands);
        for _ in 0..skipped {
            self.response().await?;
        }
        Ok(())
    }
}

impl Drop for Connection {
    /// Fires the signals of tracked keys, since the server forgets the keys with the connection.
    fn drop(&mut self) {
        if let Some(tracked) = &self.tracked {
            tracked.connection_lost();
        }
    }
}
