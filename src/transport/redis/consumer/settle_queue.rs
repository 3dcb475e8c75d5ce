//! Takes settlements from a queue and carries them out in batches.
//!
//! A consumer has two queues, each with a task that runs [`carry_out`]. One is for settlements with
//! [`Effect::Reply`], the other for all others. While the server refuses writes, stored replies
//! wait, and acknowledgements must not wait behind them.
//!
//! The next batch grows while earlier batches are in flight. So batches grow with the load, and a
//! single settlement is sent without delay.

use std::{mem, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::mpsc;

use super::{
    replies,
    settlement::{Effect, Settlement},
    settler::Settler,
};
use crate::sync::{LazyTimer, yield_to_all};

/// The maximum number of settlements that are taken from the queue at a time.
const MAX_TAKEN: usize = 512;
/// The maximum number of times that the task yields to running handlers before it sends a batch.
const MAX_YIELDS: usize = 16;
/// The `max_batches` of [`carry_out`] for acknowledgements. More than one: a fast reply is
/// published with its acknowledgement, and must not wait for the responses to other batches.
pub(super) const MAX_ACKNOWLEDGING_BATCHES: usize = 4;
/// The `max_batches` of [`carry_out`] for stored replies.
pub(super) const MAX_REPLYING_BATCHES: usize = 1;

/// A script call that has finished.
#[derive(PartialEq)]
enum Finished {
    /// A batch, which counts towards `max_batches`.
    Batch,
    /// The call of a fenced settlement, which does not count towards `max_batches`.
    Single,
}

/// Carries out the settlements of a queue. Returns when the queue is closed and everything in
/// flight has finished.
///
/// Takes no settlements while `max_batches` batches are in flight.
pub(super) async fn carry_out(
    settler: Arc<Settler>,
    mut queue: mpsc::UnboundedReceiver<Settlement>,
    max_batches: usize,
) {
    let settler = &*settler;
    let (mut settlements, mut timer) = (Vec::new(), LazyTimer::new(Duration::ZERO));
    let (mut batches, mut is_open) = (0, true);
    let mut running: FuturesUnordered<BoxFuture<'_, Finished>> = FuturesUnordered::new();
    while is_open || !running.is_empty() {
        tokio::select! {
            biased;
            Some(finished) = running.next() => {
                batches -= usize::from(finished == Finished::Batch);
            }
            count = queue.recv_many(&mut settlements, MAX_TAKEN),
                if is_open && batches < max_batches =>
            {
                is_open = count > 0;
                let guards = settlements.iter().map(|it| &it.delivery.guard);
                settler.in_flight.mark_settling(guards);
                // Handlers that are about to finish get time to add their settlements to this
                // batch.
                for _ in 0..MAX_YIELDS {
                    if !settler.in_flight.has_running() {
                        break;
                    }
                    yield_to_all(&mut timer).await;
                    let old_len = settlements.len();
                    while settlements.len() < MAX_TAKEN && let Ok(next) = queue.try_recv() {
                        settlements.push(next);
                    }
                    if settlements.len() == old_len {
                        break;
                    }
                    let added = settlements[old_len..].iter();
                    settler.in_flight.mark_settling(added.map(|it| &it.delivery.guard));
                }
                // Fenced settlements are single calls. All others are sent in two batches.
                let (mut acknowledgements, mut stored) = (Vec::new(), Vec::new());
                for mut settlement in settlements.drain(..) {
                    let none = Effect::Acknowledge(None);
                    match mem::replace(&mut settlement.effect, none) {
                        Effect::Acknowledge(publish) => {
                            acknowledgements.push(settlement.with(publish));
                        }
                        Effect::Reply(reply) => stored.push(settlement.with(reply)),
                        Effect::Fenced(effect) => {
                            let call = settler.carry_out(settlement.with(effect));
                            running.push(call.map(|()| Finished::Single).boxed());
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
