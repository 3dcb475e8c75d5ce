//! Acknowledges the deliveries of the last read, over the connection that reads, before the next
//! read.
//!
//! With one message at a time the next read is useless before the handler has finished. The task of
//! this connection is awake already, so two tasks fewer are woken than by an exchange over another
//! connection. `benches/redis.rs`, `task-1` and `rpc-fast-1` at the default settings, shows the
//! gain.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use super::{BlockingConnection, Fetch, GRACE};
use crate::{ablation::Mechanism, sync::lock, transport::redis::consumer::settle::Settlement};

/// The most deliveries that a read waits for. It is better to acknowledge more of them during the
/// read.
const MAX_DELIVERIES: usize = 4;
/// The longest wait.
const MAX_WAIT: Duration = Duration::from_millis(1);
/// If handling took longer than this, reads stop waiting: other messages should not wait for a slow
/// handler.
const MAX_HANDLING: Duration = Duration::from_micros(200);
/// The time for which reads do not wait after one has waited in vain.
const PAUSE: Duration = Duration::from_millis(50);

/// The deliveries of the last read, while the fetch waits for their settlements.
#[derive(Default)]
pub(in crate::transport::redis::consumer) struct LastRead {
    is_open: AtomicBool,
    waiting: Mutex<Option<Waiting>>,
    complete: Notify,
}

struct Waiting {
    settlements: Vec<Settlement>,
    missing: usize,
}

impl LastRead {
    /// Takes a settlement that is only an acknowledgement, if the fetch waits for it.
    pub(in crate::transport::redis::consumer) fn offer(
        &self,
        settlement: Settlement,
    ) -> Option<Settlement> {
        if !self.is_open.load(Ordering::SeqCst) {
            return Some(settlement);
        }
        let mut waiting = lock(&self.waiting);
        let Some(waiting) = waiting.as_mut() else {
            return Some(settlement);
        };
        waiting.missing = waiting.missing.saturating_sub(1);
        if waiting.missing == 0 {
            self.complete.notify_one();
        }
        if !settlement.is_acknowledgement() {
            return Some(settlement);
        }
        waiting.settlements.push(settlement);
        None
    }

    fn open(&self, deliveries: usize) {
        *lock(&self.waiting) = Some(Waiting {
            settlements: Vec::with_capacity(deliveries),
            missing: deliveries,
        });
        self.is_open.store(true, Ordering::SeqCst);
    }

    /// Waits for the settlements. Returns those that came, and whether all of them came soon.
    async fn gather(&self) -> (Vec<Settlement>, bool) {
        let began = Instant::now();
        let all = timeout(MAX_WAIT, self.complete.notified()).await.is_ok();
        let soon = began.elapsed() <= MAX_HANDLING;
        self.is_open.store(false, Ordering::SeqCst);
        let waiting = lock(&self.waiting).take();
        let settlements = waiting.map_or_else(Vec::new, |waiting| waiting.settlements);
        (settlements, all && soon)
    }
}

impl Fetch {
    /// Starts to wait for the settlements of deliveries that are about to be handed out, unless
    /// more is to be read. Returns `true` if it does.
    pub(super) fn expect_settlements(&mut self, deliveries: usize) -> bool {
        let few = (1..=MAX_DELIVERIES).contains(&deliveries);
        let waits = few
            && !Mechanism::AcknowledgeWithRead.is_off()
            && !self.full
            && self.ahead.is_none()
            && self.pause_until.is_none_or(|until| until <= Instant::now())
            && !self.is_busy_otherwise();
        if waits {
            self.parts.last_read.open(deliveries);
        }
        waits
    }

    /// Acknowledges the deliveries whose settlements have come. If the server does not confirm one
    /// it is settled like any other delivery.
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
