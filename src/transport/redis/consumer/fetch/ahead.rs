//! The read that is sent before what the last one brought was looked at.

use redis::RedisResult;
use tokio::{
    task::JoinHandle,
    time::{Instant, error::Elapsed},
};

use super::{BlockingConnection, Fetch, GRACE};
use crate::{
    error::Error,
    transport::redis::{entry::Entry, response::Value},
};

/// A read on its way, of as many deliveries as are asked for beyond those that have just come: the
/// server works on it while these are parsed and handled.
pub(super) struct Ahead {
    pub(super) asked: Instant,
    count: usize,
    /// In a task of its own, with the connection, so that the answer is parsed beside.
    answer: JoinHandle<(BlockingConnection, Result<RedisResult<Value>, Elapsed>)>,
}

impl Fetch {
    /// Reads on, where more than what has just come is asked for and nothing else is to be looked
    /// at first. It does not block, so it is soon answered.
    pub(super) fn read_ahead(&mut self, come: usize) {
        if !self.full {
            return;
        }
        let busy = self.is_busy_otherwise();
        let parts = &self.parts;
        let demand = parts.buffer.demand().saturating_sub(come);
        let count = demand.min(self.part());
        let on = !busy && !parts.buffer.is_stopped();
        let Some(mut connection) = self.connection.take_if(|_| on && count > 0) else {
            return;
        };
        let streams = [
            (&*parts.member.keys.stream, ">"),
            (&*parts.member.keys.retry, ">"),
        ];
        let cmd = parts.member.read_group(count, None, &streams);
        let asked = Instant::now();
        let answer = tokio::spawn(async move {
            let progress = connection.line.progress();
            let answer = connection.line.command(&cmd);
            let answer = progress.watch(GRACE, GRACE, answer).await;
            (connection, answer)
        });
        self.parts.reading.begin();
        self.ahead = Some(Ahead {
            asked,
            count,
            answer,
        });
    }

    /// What a read that was sent ahead brings.
    pub(super) async fn arrival(&mut self, ahead: Ahead) -> Result<Vec<Entry>, Error> {
        let (connection, answer) = ahead.answer.await.map_err(|_| self.lost())?;
        self.connection = Some(connection);
        let entries = self.entries(answer)?;
        self.note(ahead.count, &entries);
        Ok(entries)
    }
}
