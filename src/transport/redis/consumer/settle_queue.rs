//! Takes settlements from a queue and carries them out in batches.
//!
//! Settlements that store a reply have a separate queue and task. They wait while the server
//! refuses writes, and acknowledgements must not wait with them. The next batch grows while earlier
//! batches are in flight. So batches grow with the load, and a single settlement is sent without
//! delay.

use std::{mem, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::mpsc;

use super::{
    replies,
    settlement::{Effect, Settlement},
    settler::Settler,
};
use crate::sync::{Clock, yield_to_all};

/// The most settlements of one batch.
const MAX_TAKEN: usize = 512;
/// The most times that the task yields to running handlers before it sends a batch.
const MAX_YIELDS: usize = 16;
/// The most batches of acknowledgements in flight. Several, since a fast reply is published with
/// its acknowledgement and should not wait until other batches are confirmed.
pub(super) const MAX_ACKNOWLEDGING: usize = 4;
/// The most batches of stored replies in flight.
pub(super) const MAX_REPLYING: usize = 1;

/// The kind of work that has finished.
#[derive(PartialEq)]
enum Finished {
    /// A batch, which counts towards `max_batches`.
    Batch,
    /// A settlement by a script call of its settlement alone.
    Single,
}

/// Carries out settlements from a queue, with at most `max_batches` batches in flight. Returns when
/// the queue is closed and everything in flight has finished.
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
            // With `max_batches` in flight, new settlements do not wake this task.
            count = queue.recv_many(&mut taken, MAX_TAKEN), if open && batches < max_batches => {
                open = count > 0;
                settler.in_flight.mark_settling(taken.iter().map(|it| &it.delivery.guard));
                // Yields to running handlers, so that those about to finish join this batch.
                for _ in 0..MAX_YIELDS {
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
