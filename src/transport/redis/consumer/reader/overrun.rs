//! The end of a read that blocks for longer than it was told to.

use std::{convert::Infallible, time::Duration};

use tokio::time::sleep;

use super::Worker;
use crate::transport::redis::pipeline::Retry;

/// How much longer a read may block before it is ended, at least.
const LEAST: Duration = Duration::from_millis(200);

impl Worker {
    /// Ends a read on the connection with this id when it has blocked for longer than it was told to.
    /// Never returns; the read's answer ends it.
    ///
    /// Redis 7.2.0 to 7.2.3 begin a `BLOCK` anew each time when another reader was faster
    /// (<https://github.com/redis/redis/pull/12998>). That is no lost connection: the server answers
    /// once it is told to, over the other connection.
    pub(super) async fn end_overrun(&self, id: i64, block: Duration) -> Infallible {
        let overrun = self.interval().max(LEAST);
        sleep(block).await;
        loop {
            sleep(overrun).await;
            self.unblock(id).await;
        }
    }

    /// Ends the blocked read on the connection with this id; 0 is none.
    pub(in crate::transport::redis::consumer) async fn unblock(&self, id: i64) {
        if id == 0 {
            return;
        }
        let mut cmd = redis::cmd("CLIENT");
        cmd.arg("UNBLOCK").arg(id);
        // Without the right to do so the read runs to its end.
        let _ = self.pipeline.command(cmd, Retry::Never).await;
    }
}
