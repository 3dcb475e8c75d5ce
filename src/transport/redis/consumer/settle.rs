//! Turns verdicts into settlements.

use std::{fmt, sync::Arc};

use tokio::sync::mpsc;

use super::{
    follow_ups::FollowUpContext,
    key_order::Turn,
    last_read::LastRead,
    reply_to::{ReplyRoute, ReplyTo},
    report::Report,
    settlement::{Effect, End, FencedEffect, OnSettled, Settlement, StoredReply, Unsettled},
    streams::ServedStream,
};
use crate::{
    error::{Error, RpcError},
    message::{FollowUp, Name, PartitionKey},
    reply::Reply,
    transport::{Backoff, SettleDelivery, Verdict, redis::error},
};

/// Turns the verdicts of one consumer's deliveries into settlements, and queues them.
pub(super) struct SettlePolicy {
    /// The maximum number of attempts of a message whose sender has not chosen a maximum.
    pub(super) max_deliveries: u32,
    pub(super) backoff: Backoff,
    pub(super) allowed_reply_prefixes: Vec<Name>,
    pub(super) report: Arc<Report>,
    /// The queue of all settlements except those with [`Effect::Reply`].
    pub(super) queue: mpsc::UnboundedSender<Settlement>,
    /// The queue of settlements with [`Effect::Reply`].
    pub(super) replies: mpsc::UnboundedSender<Settlement>,
    pub(super) follow_ups: Arc<FollowUpContext>,
    /// Takes acknowledgements while the fetch waits for them.
    pub(super) last_read: Arc<LastRead>,
}

/// The right to settle one delivery from Redis. If the right is dropped, the delivery stays pending
/// until its lease expires.
pub struct RedisSettler(Option<(Unsettled, Arc<SettlePolicy>)>);

impl RedisSettler {
    /// Makes the right to settle an event. Settling an event has no effect.
    pub(super) fn event() -> Self {
        Self(None)
    }

    pub(super) fn new(delivery: Unsettled, policy: &Arc<SettlePolicy>) -> Self {
        Self(Some((delivery, policy.clone())))
    }

    pub(super) fn into_parts(self) -> Option<(Unsettled, Arc<SettlePolicy>)> {
        self.0
    }

    /// Returns the delivery's place in the order of an owned partition. `None` for other
    /// deliveries.
    pub(super) fn turn_mut(&mut self) -> Option<&mut Turn> {
        self.0.as_mut()?.0.turn.as_mut()
    }

    /// Returns the delivery, if it carries a task whose status this group records.
    pub(super) fn recorded_task(&self) -> Option<&Unsettled> {
        let (delivery, _) = self.0.as_ref()?;
        delivery.task.is_some().then_some(delivery)
    }

    /// Returns the key of a delivery from an owned partition. `None` for other deliveries, and for
    /// messages without a key.
    pub(super) fn partition_key(&self) -> Option<PartitionKey> {
        self.0.as_ref()?.0.turn.as_ref()?.key().cloned()
    }

    /// Returns the stream of the delivery. `None` for an event.
    pub(super) fn stream(&self) -> Option<&ServedStream> {
        self.0.as_ref().map(|(delivery, _)| &*delivery.stream)
    }

    /// Returns `true` for a delivery from a stream, and `false` for an event.
    pub(super) fn is_from_stream(&self) -> bool {
        self.0.is_some()
    }
}

impl SettleDelivery for RedisSettler {
    fn settle(self, verdict: Verdict, on_settled: impl FnOnce(Result<(), Error>) + Send + 'static) {
        match self.0 {
            None => on_settled(Ok(())),
            Some((delivery, policy)) if delivery.turn.is_some() => {
                policy.settle_in_order(delivery, verdict, Box::new(on_settled));
            }
            Some((delivery, policy)) => policy.settle(delivery, verdict, Box::new(on_settled)),
        }
    }
}

impl SettlePolicy {
    /// Queues the settlement of a verdict. If the lease is lost, drops a verdict whose effect is
    /// fenced.
    fn settle(&self, delivery: Unsettled, verdict: Verdict, on_settled: OnSettled) {
        let effect = self.effect(&delivery, verdict);
        if delivery.guard.lease.is_lost() && matches!(effect, Effect::Fenced(_)) {
            // Another consumer has the entry, or this consumer has claimed it again. The fence
            // cannot detect the second case, so the verdict is dropped here. A success without
            // follow-ups still counts, since the first worker to finish wins.
            return on_settled(Ok(()));
        }
        self.queue_settlement(delivery, effect, on_settled);
    }

    /// Maps a success, with the follow-ups that the handler has added, to its effect.
    fn success_effect(&self, delivery: &Unsettled, reply: Result<Reply, RpcError>) -> Effect {
        let follow_ups = delivery.guard.lease.take_follow_ups();
        // A request that is answered with an error has failed, so its follow-ups are dropped.
        if follow_ups.is_empty() || reply.is_err() {
            return self.success_without_follow_ups(delivery, reply);
        }
        match self.follow_ups.encode(&delivery.stream, follow_ups) {
            Ok(follow_ups) => Effect::Fenced(FencedEffect::Complete {
                follow_ups: Box::new(follow_ups),
                outcome: delivery.outcome(Some(&reply)),
                reply: self.routed_reply(delivery, Some(reply)),
            }),
            Err(error) => {
                let (reason, reply) = FollowUp::refusal(&error.chain());
                self.end_effect(delivery, End::DeadLetter(reason), Some(reply))
            }
        }
    }

    /// Settles a delivery of an owned partition. A delivery that is released or redelivered
    /// keeps its place in the order. All other verdicts are fenced, even a success.
    fn settle_in_order(
        self: &Arc<Self>,
        mut delivery: Unsettled,
        verdict: Verdict,
        on_settled: OnSettled,
    ) {
        let Some(turn) = &mut delivery.turn else {
            return self.settle(delivery, verdict, on_settled);
        };
        if delivery.guard.lease.is_lost() {
            return on_settled(Ok(()));
        }
        let order = turn.order();
        let attempt = delivery.attempt;
        let verdict = verdict.limited(attempt, delivery.max_attempts);
        match verdict.without_parking(attempt, &self.backoff) {
            Verdict::Release => {
                order.put_back(delivery, self);
                on_settled(Ok(()));
            }
            Verdict::Redeliver { after, counted, .. } => {
                let after = after.unwrap_or_else(|| self.backoff.after(attempt));
                order.redeliver(delivery, self, after, counted);
                on_settled(Ok(()));
            }
            Verdict::Done(reply) => {
                turn.end();
                let effect = self.success_effect(&delivery, reply);
                self.queue_settlement(delivery, effect, on_settled);
            }
            verdict => {
                turn.end();
                self.settle(delivery, verdict, on_settled);
            }
        }
    }

    fn queue_settlement(&self, mut delivery: Unsettled, effect: Effect, on_settled: OnSettled) {
        delivery.guard.give_verdict();
        let settlement = Settlement {
            delivery,
            effect,
            on_settled,
        };
        self.enqueue(self.last_read.offer(settlement));
    }

    /// Queues settlements for the tasks that carry them out.
    pub(super) fn enqueue(&self, settlements: impl IntoIterator<Item = Settlement>) {
        for settlement in settlements {
            let queue = match &settlement.effect {
                Effect::Reply(_) => &self.replies,
                _ => &self.queue,
            };
            // A send fails only if the source is closed. The lease then expires.
            let _ = queue.send(settlement);
        }
    }

    /// Maps a verdict to its effect on the server.
    fn effect(&self, delivery: &Unsettled, verdict: Verdict) -> Effect {
        let attempt = delivery.attempt;
        match verdict.limited(attempt, delivery.max_attempts) {
            Verdict::Done(reply) => self.success_effect(delivery, reply),
            Verdict::Redeliver {
                after,
                counted,
                reason,
            } => {
                // Uncounted redeliveries in a row lengthen the wait, too, so that a message that is
                // put off again and again costs little.
                let failures = attempt.saturating_add(delivery.uncounted_redeliveries);
                let after = after.unwrap_or_else(|| self.backoff.after(failures));
                Effect::Fenced(FencedEffect::Redeliver {
                    after: (!after.is_zero()).then_some(after),
                    attempts: attempt - u32::from(!counted),
                    uncounted_redeliveries: if counted {
                        0
                    } else {
                        delivery.uncounted_redeliveries + 1
                    },
                    released: false,
                    reason,
                })
            }
            Verdict::DeadLetter { reason, answer } => {
                self.end_effect(delivery, End::DeadLetter(reason), answer)
            }
            Verdict::Discard { reason, answer } => {
                self.end_effect(delivery, End::Discarded(reason), answer)
            }
            Verdict::Park(park) => Effect::Fenced(FencedEffect::Park(park)),
            Verdict::Release => Effect::Fenced(FencedEffect::Redeliver {
                after: None,
                attempts: attempt - 1,
                uncounted_redeliveries: delivery.uncounted_redeliveries,
                released: true,
                reason: String::new(),
            }),
        }
    }

    /// Maps a success without follow-ups to its effect, which depends on the route of the reply.
    fn success_without_follow_ups(
        &self,
        delivery: &Unsettled,
        reply: Result<Reply, RpcError>,
    ) -> Effect {
        if delivery.task.is_some() || delivery.turn.is_some() {
            return self.end_effect_with_reply(delivery, End::Done, Some(reply));
        }
        let Some((reply_to, route)) = self.route(delivery) else {
            return Effect::Acknowledge(None);
        };
        match route {
            ReplyRoute::Store(stream) => {
                let envelope = reply_to.envelope(&reply);
                let fallback = (envelope.len() >= error::LEAST_SIZE_LIMIT).then(|| {
                    let text = "the reply is too large for the Redis server of the worker";
                    reply_to.envelope(&Err(RpcError::internal(text)))
                });
                Effect::Reply(StoredReply {
                    stream,
                    envelope,
                    fallback,
                })
            }
            ReplyRoute::Publish(channel) => {
                Effect::Acknowledge(Some((channel, reply_to.envelope(&reply))))
            }
            ReplyRoute::Nowhere => {
                self.report.unanswerable(delivery.origin);
                Effect::Acknowledge(None)
            }
        }
    }

    fn end_effect(&self, delivery: &Unsettled, end: End, error: Option<RpcError>) -> Effect {
        self.end_effect_with_reply(delivery, end, error.map(Err))
    }

    fn end_effect_with_reply(
        &self,
        delivery: &Unsettled,
        end: End,
        reply: Option<Result<Reply, RpcError>>,
    ) -> Effect {
        let outcome = delivery.outcome(reply.as_ref());
        let reply = self.routed_reply(delivery, reply);
        Effect::Fenced(FencedEffect::End {
            end,
            outcome,
            reply,
        })
    }

    /// Returns the route and the envelope of a reply. `None` if there is no request or no reply.
    fn routed_reply(
        &self,
        delivery: &Unsettled,
        reply: Option<Result<Reply, RpcError>>,
    ) -> Option<(ReplyRoute, Vec<u8>)> {
        let (reply_to, route) = self.route(delivery)?;
        Some((route, reply_to.envelope(&reply?)))
    }

    /// Returns the reply address of a request, and the route of its reply. `None` for other
    /// messages.
    fn route<'a>(&self, delivery: &'a Unsettled) -> Option<(&'a ReplyTo, ReplyRoute)> {
        let reply_to = delivery.reply_to.as_deref()?;
        let route = reply_to.route(&delivery.stream.keys, &self.allowed_reply_prefixes);
        Some((reply_to, route))
    }
}

impl fmt::Debug for RedisSettler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let delivery = self.0.as_ref().map(|(delivery, _)| delivery);
        f.debug_tuple("RedisSettler").field(&delivery).finish()
    }
}
