//! Follows the pauses of streams and of names.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::{
    blocked::BlockedRead, fetch::log_unsettled, settle::RedisSettler, streams::ServedStream,
};
use crate::{
    message::{Name, PermitRequest},
    sync::lock,
    transport::{
        Delivery, PauseTarget, Verdict,
        redis::{
            pipeline::{Pipeline, Resend},
            response::Value,
        },
    },
};

/// Counts the times that the pause of a stream has begun or ended, and wakes the fetch each time.
pub(super) struct PauseSignal {
    changes: AtomicU64,
    notify: Notify,
    blocked: Arc<BlockedRead>,
    /// The fields with pauses of unknown kinds that were logged already.
    logged_unknown: Mutex<HashSet<Bytes>>,
}

impl PauseSignal {
    pub(super) fn new(blocked: Arc<BlockedRead>) -> Self {
        Self {
            changes: AtomicU64::new(0),
            notify: Notify::new(),
            blocked,
            logged_unknown: Mutex::default(),
        }
    }

    /// Records that the pause of a stream has changed. Wakes the fetch, and ends its blocked read.
    pub(super) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.notify.notify_one();
        self.blocked.end_once();
    }

    /// Returns the number of calls of [`changed`](Self::changed) so far.
    pub(super) fn change_count(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Waits until a pause changes. Returns immediately if a pause has changed since the last call.
    pub(super) async fn wait(&self) {
        self.notify.notified().await;
    }

    /// Releases the deliveries of paused streams, and parks the deliveries with paused names.
    /// Returns all other deliveries.
    pub(super) async fn settle_paused(
        &self,
        deliveries: Vec<Delivery<RedisSettler>>,
        pipeline: &Pipeline,
    ) -> Vec<Delivery<RedisSettler>> {
        let may_be_paused = |delivery: &Delivery<RedisSettler>| {
            let stream = delivery.settle.stream();
            stream.is_some_and(ServedStream::has_pauses)
        };
        if !deliveries.iter().any(may_be_paused) {
            return deliveries;
        }
        let mut kept = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            match verdict_if_paused(&delivery, pipeline).await {
                None => kept.push(delivery),
                // One after the other, so that parked deliveries keep their order.
                Some(verdict) => log_unsettled([delivery.settle(verdict).await]),
            }
        }
        kept
    }

    /// Logs a pause of a kind that this version does not know. Logs each such pause once.
    pub(super) fn log_unknown(&self, stream: &ServedStream, field: &Bytes) {
        const MAX_REMEMBERED: usize = 100;
        let mut unknown = lock(&self.logged_unknown);
        if unknown.len() < MAX_REMEMBERED && unknown.insert(field.clone()) {
            tracing::warn!(
                stream = %stream.keys.stream,
                pause = %field.escape_ascii(),
                "a pause of an unknown kind is ignored: a newer version may have set it"
            );
        }
    }
}

/// Returns the verdict on a delivery that is paused. `None` if it is not paused.
async fn verdict_if_paused(
    delivery: &Delivery<RedisSettler>,
    pipeline: &Pipeline,
) -> Option<Verdict> {
    let stream = delivery.settle.stream()?;
    if stream.is_paused() {
        return Some(Verdict::Release);
    }
    let names = stream.paused_names()?;
    let message = delivery.content.as_ref().ok()?;
    let name = message.name();
    if !names.contains(name) {
        return None;
    }
    // The pause of the name may have ended since the last tick of the upkeep. In that case a parked
    // message would be moved back and parked again, over and over, until the next tick.
    if !is_paused(stream, name, pipeline).await {
        stream.resume(name);
        return None;
    }
    Some(Verdict::Park(PermitRequest::of_paused(message.parts())))
}

/// Asks the server whether a name is paused.
async fn is_paused(stream: &ServedStream, name: &Name, pipeline: &Pipeline) -> bool {
    let target = PauseTarget::Name(name.clone());
    let mut cmd = redis::cmd("HEXISTS");
    cmd.arg(stream.keys.pauses())
        .arg(stream.keys.pause_field(&target));
    let paused = pipeline.command(cmd, Resend::UntilAnswered).await;
    // Without an answer, the name counts as paused, as it was at the last tick.
    !matches!(paused, Ok(Value::Int(0)))
}
