//! Takes settlements from the queues, and carries them out in batches.
//!
//! Settlements that store a reply have a separate queue and task: they wait while the server
//! refuses writes, and acknowledgements must not wait with them. While some batches are in flight
//! the next one grows, so a batch is as large as the load requires, and a single settlement is not
//! delayed.

use std::{mem, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::mpsc;

use super::{
    replies,
    settlement::{Effect, Settlement},
    settler::Settler,
};
use crate::sync::{Clock, yield_to_all};

/// The most settlements that are taken from a queue at once.
const MAX_TAKEN: usize = 512;
/// The most times that the task yields to handlers that are about to finish.
const MAX_TURNS: usize = 16;
/// The most batches of acknowledgements in flight. A fast reply is published with its
/// acknowledgement, and should not wait for the confirmation of other batches.
pub(super) const MAX_ACKNOWLEDGING: usize = 4;
/// The most batches of stored replies in flight.
pub(super) const MAX_REPLYING: usize = 1;

/// The kind of a settler's future that has finished.
#[derive(PartialEq)]
enum Finished {
    Batch,
    Single,
}

/// Carries out settlements from a queue, with at most `max_batches` in flight, until the queue
/// is closed.
pub(super) async fn carry_out(
    settler: Arc<Settler>,
    mut queue: mpsc::UnboundedReceiver<Settlement>,
    max_batches: usize,
) {
    let settler = &*settler;
    let (mut taken, mut timer) = (Vec::new(), Clock::new(Duration::ZERO));
    let (mut batches, mut open) = (0, true);
    let mut running: FuturesUnordered<BoxFuture<'_, Finished>> = FuturesUnordered::new();
    while open || !running.is_empty() {
        tokio::select! {
            biased;
            Some(finished) = running.next() => {
                batches -= usize::from(finished == Finished::Batch);
            }
            // With enough batches in flight, new settlements need not wake this task.
            count = queue.recv_many(&mut taken, MAX_TAKEN), if open && batches < max_batches => {
                open = count > 0;
                settler.in_flight.mark_settling(taken.iter().map(|it| &it.delivery.guard));
                // Lets handlers run that are about to finish, so that their settlements join
                // this batch.
                for _ in 0..MAX_TURNS {
                    if !settler.in_flight.has_running() {
                        break;
                    }
                    yield_to_all(&mut timer).await;
                    let marked = taken.len();
                    while taken.len() < MAX_TAKEN && let Ok(next) = queue.try_recv() {
                        taken.push(next);
                    }
                    if taken.len() == marked {
                        break;
                    }
                    let rest = taken[marked..].iter();
                    settler.in_flight.mark_settling(rest.map(|it| &it.delivery.guard));
                }
                let (mut acknowledgements, mut stored) = (Vec::new(), Vec::new());
                for mut settlement in taken.drain(..) {
                    let none = Effect::Acknowledge(None);
                    match mem::replace(&mut settlement.effect, none) {
                        Effect::Acknowledge(publish) => {
                            acknowledgements.push(settlement.with(publish));
                        }
                        Effect::Reply(reply) => stored.push(settlement.with(reply)),
                        Effect::Fenced(effect) => {
                            let carry_out = settler.carry_out(settlement.with(effect));
                            running.push(carry_out.map(|()| Finished::Single).boxed());
                        }
                    }
                }
                if !acknowledgements.is_empty() {
                    batches += 1;
                    let acknowledge = settler.acknowledge(acknowledgements);
                    running.push(acknowledge.map(|()| Finished::Batch).boxed());
                }
                if !stored.is_empty() {
                    batches += 1;
                    let store = replies::store(settler, stored);
                    running.push(store.map(|()| Finished::Batch).boxed());
                }
            }
        }
    }
}
