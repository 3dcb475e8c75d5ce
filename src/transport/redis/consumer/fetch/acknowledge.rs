//! Settles the deliveries of the last read, over the connection that reads, before the next read.
//!
//! With one message in flight at a time, the next read starts only after the handler has finished.
//! The finished handler wakes the task that reads, and that task settles the delivery. A settlement
//! over another connection would wake two more tasks. The benchmarks `task-1`, `rpc-fast-1` and
//! `rpc-reliable-1` of `benches/redis.rs` show the gain at the default settings.

use std::time::Duration;

use tokio::time::Instant;

use super::{super::exchange::Exchange, Fetch, GRACE, connection::BlockingConnection};
use crate::ablation::Mechanism;

/// A read waits for the settlements of at most this many deliveries. If there are more, they are
/// settled while the next read runs.
const MAX_DELIVERIES: usize = 4;
/// After settlements came too late for a read, reads do not wait for settlements for this time.
const NO_WAITS_FOR: Duration = Duration::from_millis(50);

impl Fetch {
    /// Starts to collect the settlements of deliveries that are about to be handed out, unless
    /// there is something else to read or do first. Returns `true` if the next read waits for these
    /// settlements.
    pub(super) fn expect_settlements(&mut self, deliveries: usize) -> bool {
        let few = (1..=MAX_DELIVERIES).contains(&deliveries);
        let waits = few
            && !Mechanism::AcknowledgeWithRead.is_off()
            && !self.was_full
            && self.parts.order.is_none()
            && self.parts.woken.is_none()
            && self.ahead.is_none()
            && self
                .no_waits_until
                .is_none_or(|until| until <= Instant::now())
            && !self.is_busy_otherwise();
        if waits {
            self.parts.last_read.open(deliveries);
        }
        waits
    }

    /// Carries out the settlements that have come. Adds those that the server does not confirm to
    /// the queue of settlements.
    pub(super) async fn acknowledge(&mut self) {
        let (settlements, in_time) = self.parts.last_read.gather(&mut self.settle_timer).await;
        self.no_waits_until = (!in_time).then(|| Instant::now() + NO_WAITS_FOR);
        if settlements.is_empty() {
            return;
        }
        let settler = self.parts.settler.clone();
        let Some(BlockingConnection { inner, .. }) = &mut self.connection else {
            return self.parts.deliverer.settle_policy.enqueue(settlements);
        };
        let exchange = Exchange::new(&settler, settlements);
        let commands = exchange.commands();
        let progress = inner.progress();
        let responses = inner.pipeline_first(commands.iter(), commands.len());
        let responses = progress.watch(GRACE, GRACE, responses).await;
        let unconfirmed = match responses {
            Ok(Ok(responses)) => exchange.finish(&settler, responses),
            Ok(Err(_)) | Err(_) => {
                drop(self.lose_connection());
                exchange.into_settlements()
            }
        };
        self.parts.deliverer.settle_policy.enqueue(unconfirmed);
    }
}
