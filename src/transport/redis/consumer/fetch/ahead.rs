//! The read that is sent before what the last one brought was looked at.

use redis::RedisResult;
use tokio::{
    task::JoinHandle,
    time::{Instant, error::Elapsed},
};

use super::{BlockingConnection, Fetch, GRACE, ReadCommand};
use crate::{
    ablation::Mechanism,
    error::Error,
    transport::redis::{connection::Progress, entry::Entry, response::Value},
};

/// A read on its way, of as many deliveries as are asked for beyond those that have just come: the
/// server works on it while these are parsed and handled.
pub(super) struct Ahead {
    pub(super) asked: Instant,
    command: ReadCommand,
    progress: Progress,
    /// In a task of its own, with the connection, so that the answer is parsed beside.
    answer: JoinHandle<(BlockingConnection, Result<RedisResult<Value>, Elapsed>)>,
}

impl Fetch {
    /// Reads on, where more than what has just come is asked for and nothing else is to be looked
    /// at first. It does not block, so it is soon answered.
    pub(super) fn read_ahead(&mut self, come: usize) {
        if !self.full || Mechanism::ReadAhead.is_off() {
            return;
        }
        let busy = self.is_busy_otherwise();
        let demand = self.parts.buffer.demand().saturating_sub(come);
        if busy || demand == 0 || self.parts.buffer.is_stopped() || self.connection.is_none() {
            return;
        }
        let Some(command) = self.next_command(demand) else {
            return;
        };
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        let asked = Instant::now();
        let encoded = command.cmd.get_packed_command();
        let script = command.script();
        let progress = connection.line.progress();
        let arriving = progress.clone();
        let answer = tokio::spawn(async move {
            let answer = connection.read(&encoded, script);
            let answer = progress.watch(GRACE, GRACE, answer).await;
            (connection, answer)
        });
        self.parts.reading.begin();
        self.ahead = Some(Ahead {
            asked,
            command,
            progress: arriving,
            answer,
        });
    }

    /// What a read that was sent ahead brings.
    pub(super) async fn arrival(&mut self, ahead: Ahead) -> Result<Vec<Entry>, Error> {
        let answer = tokio::select! {
            biased;
            answer = ahead.answer => answer,
            never = self.parts.recovery.renew_arriving(&ahead.progress) => match never {},
        };
        let (connection, answer) = answer.map_err(|_| self.lost())?;
        self.connection = Some(connection);
        let entries = self.entries(&ahead.command, answer).await?;
        self.note(ahead.command.room, &entries);
        Ok(entries)
    }
}
