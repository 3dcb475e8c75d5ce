//! Acknowledges the deliveries of the last read, over the connection that reads, before the next
//! read.
//!
//! With one message in flight at a time, there is no demand for a read before the handler has
//! finished. The finished handler wakes the task that reads, and that task acknowledges. An
//! acknowledgement over another connection would wake two more tasks. `benches/redis.rs`, `task-1`
//! and `rpc-fast-1` at the default settings, shows the gain.

use std::time::Duration;

use tokio::time::Instant;

use super::{BlockingConnection, Fetch, GRACE};
use crate::ablation::Mechanism;

/// A read waits for at most this many deliveries. More deliveries are acknowledged while the next
/// read runs.
const MAX_DELIVERIES: usize = 4;
/// After a read has waited in vain, reads do not wait for this time.
const PAUSE: Duration = Duration::from_millis(50);

impl Fetch {
    /// Starts to collect the settlements of deliveries that are about to be handed out, unless more
    /// is to be read or done first. Returns `true` if the next read waits for them.
    pub(super) fn expect_settlements(&mut self, deliveries: usize) -> bool {
        let few = (1..=MAX_DELIVERIES).contains(&deliveries);
        let waits = few
            && !Mechanism::AcknowledgeWithRead.is_off()
            && !self.full
            && self.parts.order.is_none()
            && self.parts.woken.is_none()
            && self.ahead.is_none()
            && self.pause_until.is_none_or(|until| until <= Instant::now())
            && !self.is_busy_otherwise();
        if waits {
            self.parts.last_read.open(deliveries);
        }
        waits
    }

    /// Acknowledges the deliveries whose settlements have come. Settlements that the server does
    /// not confirm are queued like all others.
    pub(super) async fn acknowledge(&mut self) {
        let (settlements, soon) = self.parts.last_read.gather().await;
        self.pause_until = (!soon).then(|| Instant::now() + PAUSE);
        if settlements.is_empty() {
            return;
        }
        let Some(BlockingConnection { line, .. }) = &mut self.connection else {
            return self.parts.deliverer.settle.requeue(settlements);
        };
        let (commands, acknowledgements) = self.parts.settler.acknowledging(&settlements);
        let progress = line.progress();
        let answers = line.pipeline_before(commands.iter(), commands.len());
        let answers = progress.watch(GRACE, GRACE, answers).await;
        match answers {
            Ok(Ok(answers)) => {
                if (self.parts.settler).has_acknowledged(answers, acknowledgements) {
                    return self.parts.settler.confirm_done(settlements);
                }
            }
            Ok(Err(_)) | Err(_) => drop(self.lost()),
        }
        self.parts.deliverer.settle.requeue(settlements);
    }
}
