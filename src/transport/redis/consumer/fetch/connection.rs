//! Sends a read over the connection that may block, and decodes its response.

use std::time::Duration;

use redis::RedisResult;
use tokio::time::{error::Elapsed, timeout};

use super::{
    Fetch, GRACE,
    read::{ReadCommand, ReadKind},
};
use crate::{
    error::Error,
    transport::redis::{
        connection::Connection,
        entry::{self, Entry},
        error,
        response::{Value, array, bytes, fixed_array, integer, unexpected},
        scripts::Script,
    },
};

/// The connection of the fetch, whose reads may block.
pub(super) struct BlockingConnection {
    pub(super) inner: Connection,
    /// The connection's id, with which another connection can end a blocked read. 0 if unknown.
    pub(super) id: i64,
}

impl BlockingConnection {
    /// Sends an encoded command. If the command calls a script that the server does not know, sends
    /// it again with the script's source.
    pub(super) async fn read(
        &mut self,
        command: &Vec<u8>,
        script: Option<&'static Script>,
    ) -> RedisResult<Value> {
        let response = self.inner.command(command).await?;
        match script {
            Some(script) if error::code(&response) == Some("NOSCRIPT") => {
                self.inner.command(&script.with_text(command)).await
            }
            _ => Ok(response),
        }
    }
}

impl Fetch {
    /// Connects. Gives up when the buffer is stopped.
    async fn connect(&mut self) -> Result<BlockingConnection, Error> {
        if self.parts.order.is_some() {
            // The read of the lost connection may still be blocked on the server, and would take
            // entries that belong to the next read.
            self.parts.blocked.unblock(self.lost_connection).await;
            self.lost_connection = 0;
        }
        let connecting = async {
            let mut inner = self.parts.connector.connection().await?;
            let id = redis::cmd("CLIENT").arg("ID").to_owned();
            // Without permission for `CLIENT ID`, a blocked read runs until its `BLOCK` ends.
            let id = timeout(GRACE, inner.command(&id)).await;
            let id = id.ok().and_then(Result::ok);
            let id = id.and_then(|id| integer(&id).ok());
            Ok(BlockingConnection {
                inner,
                id: id.unwrap_or(0),
            })
        };
        tokio::select! {
            biased;
            made = connecting => made,
            () = self.parts.buffer.stopped() => Err(Error::closed()),
        }
    }

    /// Drops the connection, and returns the error. Starts a recovery, since entries of the last
    /// read may be pending for this consumer and not in flight.
    pub(super) fn lose_connection(&mut self) -> Error {
        let lost = self.connection.take();
        self.lost_connection = lost.map_or(0, |connection| connection.id);
        self.parts.recovery.begin();
        error::unanswered(&self.parts.connector.address())
    }

    /// Sends a read and returns its entries. Connects first if there is no connection.
    pub(super) async fn run_read(
        &mut self,
        command: &ReadCommand,
        block: Option<Duration>,
    ) -> Result<Vec<Entry>, Error> {
        // A connection that several slots share.
        if let Some(woken) = &self.parts.woken {
            let response = woken.read(&command.cmd, command.script());
            let response = tokio::select! {
                biased;
                response = response => response,
                never = self.parts.recovery.renew_arriving(|| true) => match never {},
            };
            if response.as_ref().is_err_and(Error::is_unknown_outcome) {
                self.parts.recovery.begin();
            }
            return self.decode_entries(command, response?).await;
        }
        if self.connection.is_none() {
            self.connection = Some(self.connect().await?);
            if std::mem::replace(&mut self.has_connected, true) {
                self.parts.report.counters.reconnects.increment();
            }
        }
        let parts = &self.parts;
        let connection = self.connection.as_mut().expect("made just above");
        let id = connection.id;
        if block.is_some() {
            parts.blocked.set(id);
            // From here on, a stop or a change ends this read. The check finds a stop or a change
            // that came before.
            let is_changed = parts.changes.as_ref().is_some_and(|it| !it.is_empty())
                || parts.pauses.change_count() != self.pause_count;
            if parts.buffer.is_stopped() || is_changed {
                parts.blocked.set(0);
                return Ok(Vec::new());
            }
            parts.buffer.set_reading(true);
        }
        // Waits for the response. `end_overrun` ends a read that blocks for too long.
        let limit = block.unwrap_or_default() + GRACE;
        let progress = connection.inner.progress();
        let encoded = command.cmd.get_packed_command();
        let response = async {
            let response = connection.read(&encoded, command.script());
            let Some(block) = block else {
                return response.await;
            };
            tokio::select! {
                biased;
                response = response => response,
                never = parts.blocked.end_overrun(id, block) => match never {},
            }
        };
        let response = tokio::select! {
            biased;
            response = progress.watch(limit, GRACE, response) => response,
            never = parts.recovery.renew_arriving(progress.watched()) => match never {},
        };
        parts.blocked.set(0);
        parts.buffer.set_reading(false);
        let response = self.check_arrival(response)?;
        self.decode_entries(command, response).await
    }

    /// Returns the response. If there is none, drops the connection and returns the error.
    /// `response` is `Elapsed` if no response came in time.
    pub(super) fn check_arrival(
        &mut self,
        response: Result<RedisResult<Value>, Elapsed>,
    ) -> Result<Value, Error> {
        match response {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(cause)) => Err(self.lose_connection().with_source(cause)),
            Err(_) => Err(self.lose_connection()),
        }
    }

    /// Decodes the entries of a response.
    pub(super) async fn decode_entries(
        &mut self,
        command: &ReadCommand,
        response: Value,
    ) -> Result<Vec<Entry>, Error> {
        // This is no failure: a key was deleted, or another client sent `CLIENT UNBLOCK`.
        if error::code(&response) == Some("UNBLOCKED") {
            self.poll_first |= !self.reads_one_stream();
            return Ok(Vec::new());
        }
        let response = match self.checked(response) {
            // One of the streams caused the error. The script finds this stream.
            Err(error) if error.is_refused() && matches!(command.kind, ReadKind::Part) => {
                self.set.note_plain(0, command.room);
                return Ok(Vec::new());
            }
            response => response?,
        };
        let read = match command.kind {
            ReadKind::Plain | ReadKind::Part => Ok((response, Vec::new(), false)),
            ReadKind::Script(_) => split_script_response(response),
        };
        let names = self.set.names();
        let read = read.and_then(|(found, failed, at_limit)| {
            let entries = entry::decode(found, |name| names.get(name))?;
            Ok((entries, failed, at_limit))
        });
        let (entries, failed, at_limit) = match read {
            Ok(read) => read,
            Err(error) => {
                // The response's entries are pending for this consumer, but could not be decoded.
                self.parts.recovery.begin();
                return Err(error);
            }
        };
        self.at_limit = at_limit;
        let order = match &command.kind {
            ReadKind::Plain => &[][..],
            ReadKind::Part => {
                self.set.note_plain(entries.len(), command.room);
                &[]
            }
            ReadKind::Script(order) => {
                self.set.note_script(entries.len());
                order
            }
        };
        if !order.is_empty() && (!failed.is_empty() || !entries.is_empty()) {
            self.finding_refused_stream = false;
        }
        for (number, error) in failed {
            if let Some(index) = order.get(number) {
                self.handle_stream_error(*index, &error).await;
            }
        }
        Ok(entries)
    }

    /// Returns the response, or the server's error as an `Err`. Drops the connection if the server
    /// was demoted.
    fn checked(&mut self, response: Value) -> Result<Value, Error> {
        if let Value::ServerError(refusal) = &response
            && error::is_demoted(refusal)
        {
            // A new connection finds the new primary.
            self.connection = None;
        }
        error::check(response)
    }
}

/// The entries in a response of the script, the streams that could not be read, and `true` if the
/// group has reached its limit.
pub(in super::super) type ScriptResponse = (Value, Vec<(usize, String)>, bool);

/// Splits the script's response. For each stream that could not be read, returns its position,
/// counted from 0, and its error.
pub(in super::super) fn split_script_response(response: Value) -> Result<ScriptResponse, Error> {
    let [found, failed, at_limit] = fixed_array(response)?;
    let at_limit = integer(&at_limit)? == 1;
    let mut parts = array(failed)?.into_iter();
    let mut failed = Vec::new();
    while let Some(number) = parts.next() {
        let number = usize::try_from(integer(&number)? - 1);
        let number = number.map_err(|_| unexpected("the number of a stream", "another number"))?;
        let [error] = fixed_array(Value::Array(parts.next().into_iter().collect()))?;
        failed.push((number, String::from_utf8_lossy(&bytes(error)?).into_owned()));
    }
    Ok((Value::Array(array(found)?), failed, at_limit))
}
