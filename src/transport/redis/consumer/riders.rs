//! Acknowledgements and replies that go along with the next read.
//!
//! While little is to be done, a delivery is handled faster than the next read is of any use. The
//! reader then waits for the end of what it has just brought, and sends that in front of the read: one
//! exchange with the server in place of two. Where they do not come in a moment the next read, and
//! then more and more of them, does not wait; where they do not come at all it reads on without them.

use std::{
    future::poll_fn,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::{Cmd, RedisResult};
use tokio::{sync::Notify, time::Instant};

use super::{
    acks::{self, Ack},
    entry::Lane,
    queued::Queued,
    replies::{self, Shipment, StoredReply},
    worker::Worker,
};
use crate::{
    sync::{Clock, lock},
    transport::redis::{connection::Commands, connection::Connection, error, response::Value},
};

/// After how long they come too late for another read to wait for them.
const MOMENT: Duration = Duration::from_millis(1);
/// How long a read waits for them at most. A clock that rings in every moment would be felt.
const PATIENCE: Duration = Duration::from_millis(5);

/// With how many at most the read is not sent before they are answered. An answer that comes alone,
/// long after what it answers was sent, costs TCP an acknowledgement of its own, and what comes to
/// the stream meanwhile is read together. With more of them the server has so much to do that
/// reading should not wait for it.
const FEW: usize = 4;

/// What ends a delivery that is done.
#[derive(Debug)]
pub(super) enum Rider {
    Ack(Ack),
    Reply(StoredReply),
}

impl Rider {
    /// Whether what ends it has to be a step of its own.
    fn rides_alone(&self) -> bool {
        let (delivery, bytes) = match self {
            Rider::Ack(ack) => {
                let published = ack.publish.as_ref();
                (&ack.delivery, published.map_or(0, |(_, it)| it.len()))
            }
            Rider::Reply(reply) => (&reply.delivery, reply.envelope.len()),
        };
        // One that the server does not take would cost the read its connection.
        delivery.grip.key.0 == Lane::Retry || bytes > replies::SMALL
    }
}

impl Worker {
    /// Ends a delivery: with the next read if one waits for that, else at once.
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

/// Where what ends a few deliveries gathers for a read that is about to be sent.
#[derive(Debug, Default)]
pub(super) struct Platform {
    waiting: Mutex<Option<Waiting>>,
    /// Whether there is something in it: most deliveries end while no read waits.
    open: AtomicBool,
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
    /// From now on a read waits for so many.
    pub(super) fn open(&self, expected: usize) {
        *lock(&self.waiting) = Some(Waiting {
            riders: Vec::with_capacity(expected),
            expected,
        });
        self.open.store(true, Ordering::SeqCst);
    }

    /// Takes one for the read that waits. It comes back where none does.
    fn offer(&self, rider: Rider) -> Option<Rider> {
        if !self.open.load(Ordering::SeqCst) {
            return Some(rider);
        }
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

    /// Those that come, and whether all did so within a moment.
    pub(super) async fn gather(&self, worker: &Arc<Worker>, clock: &mut Clock) -> (Riders, bool) {
        let is_complete = || (lock(&self.waiting).as_ref()).is_none_or(Waiting::is_complete);
        let complete = async {
            while !is_complete() {
                self.complete.notified().await;
            }
        };
        let began = Instant::now();
        let complete = tokio::select! {
            biased;
            () = complete => began.elapsed() <= MOMENT,
            () = poll_fn(|cx| clock.poll_until(cx, began + PATIENCE)) => false,
        };
        self.open.store(false, Ordering::SeqCst);
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

/// Those on their way with a read. What does not arrive is sent as any other.
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

    pub(super) fn is_empty(&self) -> bool {
        self.acks.is_empty() && self.replies.is_empty()
    }

    /// Carries them out over this connection, and the read with them. The answer is the read's; an
    /// error means that the connection is lost.
    ///
    /// # Cancel safety
    /// Those that are not answered are sent again, as any other.
    pub(super) async fn carry(mut self, line: &mut Connection, read: &Cmd) -> RedisResult<Value> {
        let few = self.acks.len() + self.replies.len() <= FEW;
        let batches = self.replies.chunks_mut(replies::BATCH);
        let shipments = batches.map(|batch| Shipment::new(Lane::Main, batch));
        let shipments: Vec<_> = shipments.collect();
        let mut commands = self.commands(&shipments);
        let before = commands.len();
        if !few {
            commands.push(read);
        }
        let answers = line.pipeline_before(commands.iter(), before).await?;
        self.answered(answers, shipments);
        match few {
            true => line.command(read).await,
            false => line.answer().await,
        }
    }

    fn commands(&self, shipments: &[Shipment]) -> Commands {
        let mut commands = Commands::default();
        if self.publishes() > 0 {
            // Redis writes first to the client that was the last to get an answer. With one of our
            // own before them, those who wait for the replies come before us.
            commands.push(redis::cmd("PING"));
        }
        let published = self.acks.iter().filter_map(|ack| ack.publish.as_ref());
        published.for_each(|reply| commands.push(acks::publish(reply)));
        if !self.acks.is_empty() {
            let ids = acks::ids(&self.acks, Lane::Main);
            commands.push(acks::xack(&self.worker, &ids));
        }
        let calls = shipments.iter().map(|it| it.call(&self.worker));
        calls.for_each(|call| commands.push(call));
        commands
    }

    fn publishes(&self) -> usize {
        let published = self.acks.iter().filter(|ack| ack.publish.is_some());
        published.count()
    }

    /// Confirms what the server has answered; the rest stays.
    fn answered(&mut self, answers: Vec<Value>, shipments: Vec<Shipment>) {
        let mut answers = answers.into_iter();
        let publishes = self.publishes();
        if publishes > 0 {
            answers.next();
        }
        let published: Vec<_> = answers.by_ref().take(publishes).collect();
        if !self.acks.is_empty() && answers.next().is_some_and(|it| error::code(&it).is_none()) {
            for answer in published {
                acks::published(&self.worker.counters, Ok(answer));
            }
            let batch = self.acks.drain(..).map(|ack| ack.delivery);
            Queued::confirm(&self.worker, batch.collect());
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
