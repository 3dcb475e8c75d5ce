//! The read that is sent before the entries of the last read are handled.

use redis::RedisResult;
use tokio::{
    task::JoinHandle,
    time::{Instant, error::Elapsed},
};

use super::{Fetch, GRACE, connection::BlockingConnection, read::ReadCommand};
use crate::{
    ablation::Mechanism,
    error::Error,
    transport::redis::{connection::ByteProgress, entry::Entry, response::Value},
};

/// A read in flight for the remaining demand. The server runs it while the entries of the last read
/// are parsed and handled.
pub(super) struct AheadRead {
    /// The time at which the read was sent.
    pub(super) sent_at: Instant,
    command: ReadCommand,
    progress: ByteProgress,
    /// Runs in a task that owns the connection, so that the response is parsed concurrently.
    response: JoinHandle<(BlockingConnection, Result<RedisResult<Value>, Elapsed>)>,
}

impl Fetch {
    /// Sends the next read if the demand exceeds the number of entries just read, and nothing else
    /// is due first. The read does not block, so its response comes soon. A task that shares the
    /// demand with others sends no read ahead, so that each task has its turn.
    pub(super) fn read_ahead(&mut self, just_read: usize) {
        let is_alone = self.parts.buffer.is_alone()
            && self.parts.order.is_none()
            && self.parts.group_limit.is_none();
        if !self.was_full || !is_alone || Mechanism::ReadAhead.is_off() {
            return;
        }
        let busy = self.is_busy_otherwise();
        let demand = self.parts.buffer.demand().saturating_sub(just_read);
        if busy || demand == 0 || self.parts.buffer.is_stopped() || self.connection.is_none() {
            return;
        }
        let Some(command) = self.next_command(demand) else {
            return;
        };
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        let sent_at = Instant::now();
        let encoded = command.cmd.get_packed_command();
        let script = command.script();
        let progress = connection.inner.progress();
        let arriving = progress.clone();
        let response = tokio::spawn(async move {
            let response = connection.read(&encoded, script);
            let response = progress.watch(GRACE, GRACE, response).await;
            (connection, response)
        });
        self.parts.reading.begin();
        self.ahead = Some(AheadRead {
            sent_at,
            command,
            progress: arriving,
            response,
        });
    }

    /// Waits for the entries of a read that was sent ahead.
    pub(super) async fn finish_ahead(&mut self, ahead: AheadRead) -> Result<Vec<Entry>, Error> {
        let response = tokio::select! {
            biased;
            response = ahead.response => response,
            never = self.parts.recovery.renew_arriving(ahead.progress.watched()) => match never {},
        };
        let (connection, response) = response.map_err(|_| self.lose_connection())?;
        self.connection = Some(connection);
        let response = self.check_arrival(response)?;
        let entries = self.decode_entries(&ahead.command, response).await?;
        self.note_read(ahead.command.room, &entries);
        Ok(entries)
    }
}
