//! Ends a blocked read by `CLIENT UNBLOCK` on another connection.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use tokio::time::sleep;

use crate::transport::redis::pipeline::{Pipeline, Resend};

/// The time between two attempts to end a blocked read.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// The minimum of [`BlockedRead::overrun`].
const MIN_OVERRUN: Duration = Duration::from_millis(200);

/// The connection whose read is blocked now, and the pipeline that can end the read.
pub(super) struct BlockedRead {
    /// The id of the connection on which a read blocks; 0 if no read blocks.
    connection: AtomicI64,
    pipeline: Pipeline,
    /// The time from the end of a read's `BLOCK` to the first `CLIENT UNBLOCK`. Also the time
    /// between two repetitions of `CLIENT UNBLOCK`.
    overrun: Duration,
}

impl BlockedRead {
    pub(super) fn new(pipeline: Pipeline, interval: Duration) -> Self {
        Self {
            connection: AtomicI64::new(0),
            pipeline,
            overrun: interval.max(MIN_OVERRUN),
        }
    }

    /// Sets the id of the connection on which a read blocks; 0 if no read blocks.
    pub(super) fn set(&self, connection: i64) {
        self.connection.store(connection, Ordering::SeqCst);
    }

    /// Ends the blocked read. Repeats `CLIENT UNBLOCK` until the caller drops this future, since
    /// the command may arrive before the read.
    pub(super) async fn end(&self) -> Infallible {
        loop {
            self.unblock(self.connection.load(Ordering::SeqCst)).await;
            sleep(RETRY_INTERVAL).await;
        }
    }

    /// Sends one `CLIENT UNBLOCK` for the read that is blocked now. Does not wait for the response.
    pub(super) fn end_once(&self) {
        let connection = self.connection.load(Ordering::SeqCst);
        if connection != 0 {
            // The command is sent even if its response is dropped.
            drop(
                self.pipeline
                    .submit(unblock(connection), Resend::UntilAnswered),
            );
        }
    }

    /// Ends the read on the connection with this id if it blocks for longer than `block`. Never
    /// returns: the caller drops the future when the read has its response.
    ///
    /// Redis 7.2.0 to 7.2.3 restart the `BLOCK` whenever another reader takes the awaited entry
    /// (<https://github.com/redis/redis/pull/12998>). In that case the connection is not lost: the
    /// server responds after a `CLIENT UNBLOCK`.
    pub(super) async fn end_overrun(&self, connection: i64, block: Duration) -> Infallible {
        sleep(block).await;
        loop {
            sleep(self.overrun).await;
            self.unblock(connection).await;
        }
    }

    /// Ends the read that is blocked on the connection with this id. 0 stands for no connection.
    pub(super) async fn unblock(&self, connection: i64) {
        if connection == 0 {
            return;
        }
        // An error is ignored: without permission for `CLIENT UNBLOCK`, the read blocks until its
        // `BLOCK` ends.
        let _ = self
            .pipeline
            .command(unblock(connection), Resend::Never)
            .await;
    }
}

fn unblock(connection: i64) -> redis::Cmd {
    let mut cmd = redis::cmd("CLIENT");
    cmd.arg("UNBLOCK").arg(connection);
    cmd
}
