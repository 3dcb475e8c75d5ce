//! A read that blocks, and how it is ended from another connection.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use tokio::time::sleep;

use crate::transport::redis::pipeline::{Pipeline, Retry};

/// The time between two attempts to end a blocked read.
const RETRY: Duration = Duration::from_millis(20);
/// The least time that a read may block for longer than it was told to.
const MIN_OVERRUN: Duration = Duration::from_millis(200);

/// The read that is blocked right now, if there is one.
pub(in crate::transport::redis::consumer) struct BlockedRead {
    /// The id of its connection; 0 for none.
    connection: AtomicI64,
    pipeline: Pipeline,
    overrun: Duration,
}

impl BlockedRead {
    pub(in crate::transport::redis::consumer) fn new(
        pipeline: Pipeline,
        interval: Duration,
    ) -> Self {
        Self {
            connection: AtomicI64::new(0),
            pipeline,
            overrun: interval.max(MIN_OVERRUN),
        }
    }

    /// Notes that a read blocks on the connection with this id; 0 for none.
    pub(super) fn set(&self, connection: i64) {
        self.connection.store(connection, Ordering::SeqCst);
    }

    /// Ends the read, again and again: the command may come before the read does.
    pub(in crate::transport::redis::consumer) async fn end(&self) -> Infallible {
        loop {
            self.unblock(self.connection.load(Ordering::SeqCst)).await;
            sleep(RETRY).await;
        }
    }

    /// Ends the read that is blocked right now, if there is one.
    pub(in crate::transport::redis::consumer) fn end_once(&self) {
        let connection = self.connection.load(Ordering::SeqCst);
        if connection != 0 {
            // Sent although nobody waits for the answer.
            drop(
                self.pipeline
                    .submit(unblock(connection), Retry::UntilAnswered),
            );
        }
    }

    /// Ends a read on the connection with this id when it has blocked for longer than it was told to.
    /// Never returns; the read's answer ends it.
    ///
    /// Redis 7.2.0 to 7.2.3 begin a `BLOCK` anew each time when another reader was faster
    /// (<https://github.com/redis/redis/pull/12998>). That is no lost connection: the server answers
    /// once it is told to, over the other connection.
    pub(super) async fn end_overrun(&self, connection: i64, block: Duration) -> Infallible {
        sleep(block).await;
        loop {
            sleep(self.overrun).await;
            self.unblock(connection).await;
        }
    }

    async fn unblock(&self, connection: i64) {
        if connection == 0 {
            return;
        }
        // Without the right to do so the read runs to its end.
        let _ = self
            .pipeline
            .command(unblock(connection), Retry::Never)
            .await;
    }
}

fn unblock(connection: i64) -> redis::Cmd {
    let mut cmd = redis::cmd("CLIENT");
    cmd.arg("UNBLOCK").arg(connection);
    cmd
}
