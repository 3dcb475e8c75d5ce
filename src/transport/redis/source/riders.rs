//! Acknowledgements and replies that ride on the reader's connection.
//!
//! While little is to be done, a delivery is handled faster than the next read is of any use. The
//! reader then waits a moment for the end of what it has just brought, and carries that out itself before it
//! reads on: no other task is woken for it, and what is sent meanwhile comes together with the next read. Where
//! they do not come in that moment it reads on without them, and does not wait for the next ones either.
//!
//! It does not read in the same breath: an answer that comes alone, long after what it
//! answers was sent, costs TCP an acknowledgement of its own.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use redis::RedisResult;
use tokio::{
    sync::Notify,
    time::{Instant, Sleep},
};

use super::{
    acks::{self, Ack},
    entry::Lane,
    replies::{self, Shipment, StoredReply},
    worker::Worker,
};
use crate::{
    sync::lock,
    transport::redis::{error, line::Line},
};

/// How long the reader waits for them: the least that a timer can measure.
const PATIENCE: Duration = Duration::from_millis(1);

/// What ends a delivery that is done.
#[derive(Debug)]
pub(super) enum Rider {
    Ack(Ack),
    Reply(StoredReply),
}

impl Rider {
    /// Whether what ends it has to be a step of its own.
    fn rides_alone(&self) -> bool {
        let delivery = match self {
            Rider::Ack(ack) => &ack.delivery,
            Rider::Reply(reply) => &reply.delivery,
        };
        delivery.grip.key.0 == Lane::Retry
    }
}

impl Worker {
    /// Ends a delivery: by the reader if it waits for that, else by the link.
    pub(super) fn finish(&self, rider: Rider) {
        if let Some(rider) = self.platform.offer(rider) {
            self.send(rider);
        }
    }

    fn send(&self, rider: Rider) {
        // A source that is closed leaves it to its lease.
        let _ = match rider {
            Rider::Ack(ack) => self.acks.send(ack).is_ok(),
            Rider::Reply(reply) => self.replies.send(reply).is_ok(),
        };
    }
}

/// Where what ends a few deliveries gathers for the reader.
#[derive(Debug, Default)]
pub(super) struct Platform {
    waiting: Mutex<Option<Waiting>>,
    complete: Notify,
}

#[derive(Debug)]
struct Waiting {
    riders: Vec<Rider>,
    expected: usize,
}

impl Waiting {
    fn is_complete(&self) -> bool {
        self.riders.len() >= self.expected
    }
}

impl Platform {
    /// From now on the reader waits for so many.
    pub(super) fn open(&self, expected: usize) {
        *lock(&self.waiting) = Some(Waiting {
            riders: Vec::with_capacity(expected),
            expected,
        });
    }

    /// Takes one if the reader waits. It comes back where it does not.
    fn offer(&self, rider: Rider) -> Option<Rider> {
        let mut waiting = lock(&self.waiting);
        let Some(waiting) = waiting.as_mut().filter(|_| !rider.rides_alone()) else {
            return Some(rider);
        };
        waiting.riders.push(rider);
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
        let is_complete = || (lock(&self.waiting).as_ref()).is_none_or(Waiting::is_complete);
        let complete = async {
            while !is_complete() {
                self.complete.notified().await;
            }
        };
        let complete = tokio::select! {
            biased;
            () = complete => true,
            () = run_out(clock, Instant::now() + PATIENCE) => false,
        };
        let waiting = lock(&self.waiting).take();
        let mut riders = Riders::none(worker);
        for rider in waiting.map_or_else(Vec::new, |waiting| waiting.riders) {
            match rider {
                Rider::Ack(ack) => riders.acks.push(ack),
                Rider::Reply(reply) => riders.replies.push(reply),
            }
        }
        (riders, complete)
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

/// Those that have come to the reader. What does not arrive is sent as any other.
pub(super) struct Riders {
    worker: Arc<Worker>,
    acks: Vec<Ack>,
    replies: Vec<StoredReply>,
}

impl Riders {
    fn none(worker: &Arc<Worker>) -> Self {
        Self {
            worker: worker.clone(),
            acks: Vec::new(),
            replies: Vec::new(),
        }
    }

    /// Carries them out over this connection, and confirms what the server has answered. An error
    /// means that the connection is lost.
    ///
    /// # Cancel safety
    /// Those that are not answered are sent again, as any other.
    pub(super) async fn carry(mut self, line: &mut Line) -> RedisResult<()> {
        let mut commands = Vec::with_capacity(self.acks.len() + 3);
        for ack in &self.acks {
            if let Some((channel, envelope)) = &ack.publish {
                commands.push(acks::publish(channel, envelope));
            }
        }
        let publishes = commands.len();
        if publishes > 0 {
            // Redis writes answers to the client first that was the last to have one. With an
            // answer of our own in front of them, those who wait for replies are written to before
            // we are.
            commands.insert(0, redis::cmd("PING"));
        }
        if !self.acks.is_empty() {
            let ids = acks::ids(&self.acks, Lane::Main);
            commands.push(acks::xack(&self.worker, &ids));
        }
        let batches = self.replies.chunks_mut(replies::BATCH);
        let shipments: Vec<_> = batches
            .map(|batch| Shipment::new(Lane::Main, batch))
            .collect();
        commands.extend(shipments.iter().map(|it| it.call(&self.worker)));

        let mut answers = line.pipeline(&commands).await?.into_iter();
        if publishes > 0 {
            answers.next();
        }
        let published: Vec<_> = answers.by_ref().take(publishes).collect();
        if !self.acks.is_empty() && answers.next().is_some_and(|it| error::code(&it).is_none()) {
            for answer in published {
                acks::published(&self.worker.counters, Ok(answer));
            }
            acks::confirm(&self.worker, self.acks.drain(..));
        }
        let mut unstored = Vec::new();
        for (shipment, answer) in shipments.into_iter().zip(answers) {
            let some = self.replies.len().min(replies::BATCH);
            let batch = self.replies.drain(..some).collect();
            if let Err((batch, _)) = shipment.stored(&self.worker, batch, error::check(answer)) {
                unstored.extend(batch);
            }
        }
        self.replies.extend(unstored);
        Ok(())
    }
}

impl Drop for Riders {
    fn drop(&mut self) {
        let acks = self.acks.drain(..).map(Rider::Ack);
        let replies = self.replies.drain(..).map(Rider::Reply);
        acks.chain(replies)
            .for_each(|rider| self.worker.send(rider));
    }
}
