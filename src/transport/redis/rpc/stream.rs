//! The reader of a client's reply stream.
//!
//! The client makes the stream and keeps it alive by a time to live; workers only add to a stream
//! that exists, so that nothing is left of a client that has gone. It is read from the client's own
//! cursor, so a lost connection loses no reply.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use redis::Cmd;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Pending, Ready};
use crate::{
    error::Error,
    transport::{
        Counters,
        redis::{
            connection::Connection,
            entry,
            entry_size::EntrySize,
            error,
            pipeline::{Pipeline, Retry},
            response::{self, Value},
            server::Connector,
            server::Outage,
        },
    },
};

/// How long the stream outlives its client, and so the longest outage that loses no reply.
const TIME_TO_LIVE: Duration = Duration::from_secs(300);
/// How often the time to live is renewed at most.
const RENEW: Duration = Duration::from_secs(1);
/// How long one read waits for a reply at the server.
const BLOCK: Duration = Duration::from_secs(2);
/// How much longer than that the connection may be silent before it counts as lost.
const GRACE: Duration = Duration::from_secs(5);
/// How many replies one read takes at most.
const COUNT: usize = 256;
/// After how many replies those that were read are trimmed away.
const TRIM: usize = 512;

pub(super) struct Reader {
    connector: Connector,
    pipeline: Pipeline,
    key: String,
    pending: Arc<Pending>,
    counters: Arc<Counters>,
    ready: watch::Sender<Ready>,
    /// The last entry that was read; `None` before there is a stream.
    cursor: Option<Bytes>,
    renewed: Option<Instant>,
    /// How many entries behind the cursor were not trimmed yet.
    read: usize,
    idle: bool,
    size: EntrySize,
}

impl Reader {
    pub(super) fn new(
        connector: Connector,
        pipeline: Pipeline,
        key: String,
        pending: Arc<Pending>,
        counters: Arc<Counters>,
        ready: watch::Sender<Ready>,
    ) -> Self {
        Self {
            connector,
            pipeline,
            key,
            pending,
            counters,
            ready,
            cursor: None,
            renewed: None,
            read: 0,
            idle: false,
            size: EntrySize::default(),
        }
    }

    /// Reads until it is told to end, and removes the stream then.
    pub(super) async fn run(mut self, end: CancellationToken) {
        if end.run_until_cancelled(self.keep_reading()).await.is_some() {
            return;
        }
        let mut remove = redis::cmd("UNLINK");
        remove.arg(&self.key);
        // Where that fails, the time to live does it.
        let removed = self.pipeline.submit(remove, Retry::Never);
        let _ = timeout(Duration::from_secs(1), removed).await;
    }

    async fn keep_reading(&mut self) {
        let mut outage = Outage::default();
        loop {
            match self.connector.connection().await {
                Ok(connection) => {
                    let error = self.read(connection, &mut outage).await;
                    let what = "the connection that reads replies";
                    outage.lost(self.connector.address(), what, &error);
                    self.counters.reconnects.increment();
                }
                Err(error) => outage.refused(self.connector.address(), "read replies", &error),
            }
            sleep(outage.wait()).await;
        }
    }

    /// Reads until something fails.
    async fn read(&mut self, mut connection: Connection, outage: &mut Outage) -> redis::RedisError {
        self.renewed = None;
        loop {
            match self.step(&mut connection).await {
                Ok(()) => outage.answered(),
                Err(refusal) => {
                    // A refusal is an answer for those who wait; a lost connection is not, nor is a
                    // server that is only not ready.
                    let refuses = |code| !error::is_passing(code);
                    if self.cursor.is_none() && refusal.code().is_some_and(refuses) {
                        self.ready.send_replace(Ready::Refused(refusal.clone()));
                    }
                    return refusal;
                }
            }
        }
    }

    /// Makes the stream if there is none, else reads from it once.
    async fn step(&mut self, connection: &mut Connection) -> redis::RedisResult<()> {
        let Some(cursor) = &self.cursor else {
            return self.create(connection).await;
        };
        let mut pipeline = Vec::new();
        let now = Instant::now();
        let renew = self.renewed.is_none_or(|last| now - last >= RENEW);
        if renew {
            pipeline.push(self.renewal());
        }
        if self.read >= TRIM || (self.idle && self.read > 0) {
            let mut trim = redis::cmd("XTRIM");
            trim.arg(&self.key)
                .arg("MINID")
                .arg(if self.idle { "=" } else { "~" })
                .arg(after(cursor));
            pipeline.push(trim);
            self.read = 0;
        }
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT")
            .arg(self.size.fit(COUNT))
            .arg("BLOCK")
            .arg(BLOCK.as_millis() as u64)
            .arg("STREAMS")
            .arg(&self.key)
            .arg(&cursor[..]);
        pipeline.push(read);
        let mut answers = ask(connection, &pipeline, BLOCK + GRACE).await?;
        let replies = answers.pop().unwrap_or_default().refused()?;
        if renew {
            self.renewed = Some(now);
            match answers.first() {
                // It has expired, or the server was flushed.
                Some(Value::Int(0)) => {
                    self.cursor = None;
                    self.ready.send_replace(Ready::No);
                    return Ok(());
                }
                // A replica serves reads on: this alone shows that workers reply elsewhere.
                Some(Value::ServerError(refusal)) if error::is_demoted(refusal) => {
                    return Err(refusal.clone().into());
                }
                _ => {}
            }
        }
        self.hand_out(replies)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error).into())
    }

    /// Makes the stream. The two commands are not one transaction, which would need more rights:
    /// they reach the server together.
    async fn create(&mut self, connection: &mut Connection) -> redis::RedisResult<()> {
        let mut add = redis::cmd("XADD");
        add.arg(&self.key).arg("*").arg("h").arg("");
        let made = ask(connection, &[add, self.renewal()], GRACE).await?;
        let [added, kept] = <[Value; 2]>::try_from(made).map_err(|_| unexpected())?;
        let id = response::bytes(added.refused()?).map_err(|_| unexpected())?;
        if let Err(refusal) = kept.refused() {
            // It would be there for ever.
            let mut remove = redis::cmd("UNLINK");
            remove.arg(&self.key);
            ask(connection, &[remove], GRACE).await?;
            return Err(refusal);
        }
        self.cursor = Some(id);
        self.read = 1;
        self.renewed = Some(Instant::now());
        self.ready.send_replace(Ready::Yes);
        Ok(())
    }

    fn renewal(&self) -> Cmd {
        let mut renew = redis::cmd("PEXPIRE");
        let milliseconds = TIME_TO_LIVE.as_millis() as u64;
        renew.arg(&self.key).arg(milliseconds);
        renew
    }

    fn hand_out(&mut self, answer: Value) -> Result<(), Error> {
        let before = self.read;
        let mut sizes = Vec::new();
        entry::each(answer, |_, id, list| {
            for (field, envelopes) in response::fields(list)? {
                if field == "r" {
                    sizes.push(envelopes.len());
                    let envelopes = envelopes.split(|&byte| byte == b'\n');
                    envelopes.for_each(|envelope| self.pending.resolve(envelope));
                }
            }
            self.read += 1;
            self.cursor = Some(id);
            Ok(())
        })?;
        self.size.note(sizes);
        self.idle = self.read == before;
        Ok(())
    }
}

/// Sends a pipeline, and gives up on a server that is silent.
async fn ask(
    connection: &mut Connection,
    pipeline: &[Cmd],
    limit: Duration,
) -> redis::RedisResult<Vec<Value>> {
    let progress = connection.progress();
    let answers = connection.pipeline(pipeline);
    (progress.watch(limit, GRACE, answers).await)
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}

fn unexpected() -> redis::RedisError {
    io::Error::from(io::ErrorKind::InvalidData).into()
}

/// The least id after this one.
fn after(id: &[u8]) -> String {
    let id = String::from_utf8_lossy(id);
    let next = id.split_once('-').and_then(|(milliseconds, sequence)| {
        let sequence = sequence.parse::<u64>().ok()?.checked_add(1)?;
        Some(format!("{milliseconds}-{sequence}"))
    });
    // The id itself trims one entry less.
    next.unwrap_or_else(|| id.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_id_is_one_sequence_further() {
        assert_eq!(after(b"1795430237570-0"), "1795430237570-1");
        assert_eq!(after(b"5-18446744073709551615"), "5-18446744073709551615");
    }
}
