//! Acknowledgements that go along with the next read.
//!
//! While little is to be done, a delivery is handled faster than the next read is of any use. The
//! reader then waits a moment for the acknowledgements of what it has just brought, and sends them
//! in front of the read: one exchange with the server in place of two. Where they do not come in
//! that moment it reads on without them, and does not wait for the next ones either.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use redis::{Pipeline, RedisResult, Value};
use tokio::{
    sync::Notify,
    time::{Instant, Sleep},
};

use super::{acks::Ack, entry::Lane, worker::Worker};
use crate::{sync::lock, transport::redis::error};

/// How long a read waits for them: the least that a timer can measure.
const PATIENCE: Duration = Duration::from_millis(1);

/// Where the acknowledgements of a few deliveries gather for a read that is about to be sent.
#[derive(Debug, Default)]
pub(super) struct Platform {
    waiting: Mutex<Option<Waiting>>,
    complete: Notify,
}

#[derive(Debug)]
struct Waiting {
    acks: Vec<Ack>,
    expected: usize,
}

impl Waiting {
    fn is_complete(&self) -> bool {
        self.acks.len() >= self.expected
    }
}

impl Platform {
    /// From now on a read waits for so many.
    pub(super) fn open(&self, expected: usize) {
        *lock(&self.waiting) = Some(Waiting {
            acks: Vec::with_capacity(expected),
            expected,
        });
    }

    /// Takes an acknowledgement for the read that waits. It comes back where none does, or where it
    /// needs a step of its own.
    pub(super) fn offer(&self, ack: Ack) -> Option<Ack> {
        let mut waiting = lock(&self.waiting);
        let Some(waiting) = waiting.as_mut() else {
            return Some(ack);
        };
        let (lane, _) = ack.delivery.grip.key;
        if lane == Lane::Retry {
            return Some(ack);
        }
        waiting.acks.push(ack);
        if waiting.is_complete() {
            self.complete.notify_one();
        }
        None
    }

    /// Those that come within a moment, and whether they are all.
    pub(super) async fn gather(
        &self,
        worker: &Arc<Worker>,
        clock: Pin<&mut Sleep>,
    ) -> (Riders, bool) {
        let complete = async {
            while !lock(&self.waiting)
                .as_ref()
                .is_none_or(Waiting::is_complete)
            {
                self.complete.notified().await;
            }
        };
        let complete = tokio::select! {
            biased;
            () = complete => true,
            () = run_out(clock, Instant::now() + PATIENCE) => false,
        };
        let waiting = lock(&self.waiting).take();
        let acks = waiting.map_or_else(Vec::new, |waiting| waiting.acks);
        let worker = worker.clone();
        (Riders { worker, acks }, complete)
    }
}

/// Waits until then. The clock is only set when it has run out: to set one that rings soon wakes
/// the thread that waits for the network, and costs more than all the rest.
async fn run_out(mut clock: Pin<&mut Sleep>, until: Instant) {
    loop {
        let now = Instant::now();
        if now >= until {
            return;
        }
        if clock.deadline() <= now {
            clock.as_mut().reset(until);
        }
        clock.as_mut().await;
    }
}

/// Acknowledgements on their way with a read. Those that do not arrive are sent as any other.
pub(super) struct Riders {
    worker: Arc<Worker>,
    acks: Vec<Ack>,
}

impl Riders {
    pub(super) fn is_empty(&self) -> bool {
        self.acks.is_empty()
    }

    /// What to send for them.
    pub(super) fn commands(&mut self) -> Pipeline {
        let mut commands = Pipeline::with_capacity(self.acks.len() + 1);
        for ack in &mut self.acks {
            if let Some((channel, envelope)) = &ack.publish {
                commands.cmd("PUBLISH").arg(&channel[..]).arg(envelope);
            }
        }
        commands.add_command(super::acks::xack(
            &self.worker,
            &super::acks::ids(&self.acks, Lane::Main),
        ));
        commands
    }

    /// What the server has answered to these commands.
    pub(super) fn arrived(mut self, answer: RedisResult<Vec<Value>>) {
        let Ok(mut answers) = answer else {
            return;
        };
        if answers
            .pop()
            .is_none_or(|acknowledged| error::code(&acknowledged).is_some())
        {
            return;
        }
        for refusal in answers {
            super::acks::published(&self.worker.counters, Ok(refusal));
        }
        super::acks::confirm(&self.worker, self.acks.drain(..));
    }
}

impl Drop for Riders {
    fn drop(&mut self) {
        for ack in self.acks.drain(..) {
            // A source that is closed leaves them to their leases.
            let _ = self.worker.acks.send(ack);
        }
    }
}
