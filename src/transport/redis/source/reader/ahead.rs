//! The read that is sent before what the last one brought was looked at.

use futures_util::{
    FutureExt,
    future::{self, BoxFuture},
};
use redis::{RedisResult, Value};
use tokio::time::{Instant, timeout};

use super::{
    super::{entry::Entry, worker::Worker},
    GRACE, Reader,
};
use crate::error::Error;

/// A read on its way, of as many deliveries as are asked for beyond those that have just come: the
/// server works on it while these are parsed and handled.
pub(super) struct Ahead {
    pub(super) asked: Instant,
    count: usize,
    answer: BoxFuture<'static, RedisResult<Value>>,
}

impl Reader {
    /// Reads on, where more than what has just come is asked for and nothing else is to be looked
    /// at first. It does not block, so it is soon answered.
    pub(super) fn read_ahead(&mut self, come: usize) {
        if !self.full {
            return;
        }
        let worker = &self.worker;
        let count = worker
            .inbox
            .demand()
            .saturating_sub(come)
            .min(worker.part());
        let other = self.retries || self.must_look() || self.scan.is_due(&self.worker);
        let on = !other && !worker.inbox.is_stopped();
        let Some(connection) = self.connection.as_ref().filter(|_| on && count > 0) else {
            return;
        };
        let streams = [(&*worker.keys.stream, ">"), (&*worker.keys.retry, ">")];
        let cmd = worker.reading(count, None, &streams);
        let mut link = connection.link.clone();
        let mut answer = async move { link.send_packed_command(&cmd).await }.boxed();
        let asked = Instant::now();
        // Polled once, it is on its way.
        let answer = match (&mut answer).now_or_never() {
            Some(answer) => future::ready(answer).boxed(),
            None => answer,
        };
        worker.reading.begin();
        self.ahead = Some(Ahead {
            asked,
            count,
            answer,
        });
    }

    /// What a read that was sent ahead brings.
    pub(super) async fn arrival(&mut self, ahead: Ahead) -> Result<Vec<Entry>, Error> {
        let answer = timeout(GRACE, ahead.answer).await;
        let entries = self.entries(answer)?;
        self.note(ahead.count, &entries);
        Ok(entries)
    }
}

impl Worker {
    /// How many entries one read asks for at most. Not all that there is room for: while one part is
    /// handled and another acknowledged, the next is fetched.
    pub(super) fn part(&self) -> usize {
        self.settings.max_in_flight.div_ceil(4).max(16)
    }
}
