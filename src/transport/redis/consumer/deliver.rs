//! Turns entries of the streams into deliveries.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    clock::ServerClock,
    in_flight::{InFlightTable, LeaseGuard},
    key_order::KeyOrder,
    poison::{self, PoisonSlot},
    reply_to::ReplyTo,
    report::Report,
    settle::{RedisSettler, SettlePolicy},
    settlement::Unsettled,
    streams::{ServedStream, StreamSet},
    task_notes::TaskRecords,
};
use crate::{
    Message,
    error::RpcError,
    message::{Attempt, Deadline, IdempotencyKey, MessageId},
    transport::{
        Delivery, SettleDelivery, Undecodable, Verdict,
        codec::{self, Decoded},
        redis::{
            connection::copy_if_small,
            entry::{Entry, StreamEntryId, WhichStream, value_of},
            msgpack,
        },
    },
};

/// Makes deliveries from entries.
pub(super) struct Deliverer {
    pub(super) streams: Arc<StreamSet>,
    pub(super) in_flight: Arc<InFlightTable>,
    pub(super) clock: Arc<ServerClock>,
    pub(super) poison: PoisonSlot,
    pub(super) settle_policy: Arc<SettlePolicy>,
    pub(super) notes: TaskRecords,
    pub(super) report: Arc<Report>,
    /// The order of the deliveries, if this consumer owns its partition.
    pub(super) order: Option<Arc<KeyOrder>>,
}

impl Deliverer {
    /// Makes deliveries from entries, and adds them to the in-flight table. `sent_at` is the time
    /// at which the command that fetched the entries was sent. `are_inherited` is set for entries
    /// that a former owner of the partition left pending.
    pub(super) fn deliver(
        &self,
        entries: Vec<Entry>,
        sent_at: Instant,
        are_inherited: bool,
    ) -> Vec<Delivery<RedisSettler>> {
        let keys = entries.iter().map(|entry| (entry.which, entry.id));
        let guards = self.in_flight.add(keys, sent_at);
        // Reserved in one step, since growing a list of this size copies much memory.
        let mut deliveries = Vec::with_capacity(entries.len());
        let mut served: Option<Arc<ServedStream>> = None;
        for (entry, guard) in entries.into_iter().zip(guards) {
            let index = entry.which.index();
            if served.as_ref().is_none_or(|stream| stream.index != index) {
                served = self.streams.get(index);
            }
            // A stream is retired only when nothing is pending there. If an entry of a retired
            // stream still arrives, it is dropped here, and its lease expires.
            if let Some(stream) = &served {
                deliveries.extend(self.delivery(stream, entry, guard, are_inherited));
            }
        }
        deliveries
    }

    /// Makes one delivery. `None` if the message was delivered too often and becomes a dead letter.
    fn delivery(
        &self,
        stream: &Arc<ServedStream>,
        entry: Entry,
        guard: LeaseGuard,
        is_inherited: bool,
    ) -> Option<Delivery<RedisSettler>> {
        let Entry {
            which,
            id,
            text,
            deliveries,
            fields,
        } = entry;
        let (text, origin, earlier_attempts, uncounted_redeliveries) = match which {
            WhichStream::Primary(_) => (text, id, 0, 0),
            WhichStream::Retry(_) => {
                let (text, origin, earlier_attempts) = origin(&fields, text, id);
                (
                    text,
                    origin,
                    earlier_attempts,
                    number(&fields, codec::UNCOUNTED_REDELIVERIES),
                )
            }
        };
        let mut delivery = Unsettled {
            stream: stream.clone(),
            guard,
            origin,
            attempt: earlier_attempts.saturating_add(deliveries),
            uncounted_redeliveries,
            max_attempts: self.settle_policy.max_deliveries,
            reply_to: None,
            task: None,
            idempotency: None,
            turn: None,
            // An owned partition needs no slot for poison candidates: it delivers inherited entries
            // one at a time.
            _poison: (self.order.is_none() && poison::is_candidate(deliveries))
                .then(|| self.poison.guard()),
        };
        let fields = match which {
            WhichStream::Primary(_) => fields,
            WhichStream::Retry(_) => msgpack::with_unpacked_fields(fields),
        };
        // The task's id and idempotency key are read before the message is decoded. So the end of
        // the task updates its record and frees the key even if decoding fails.
        let given_id = value_of(&fields, codec::RECEIPT_ID).cloned();
        let given_id = given_id.and_then(codec::given_id);
        delivery.task = value_of(&fields, codec::RECORDING_GROUP)
            .filter(|group| *group == stream.keys.group.as_bytes())
            .and(given_id.as_deref())
            .map(Box::from);
        let id = given_id.or_else(|| MessageId::from_utf8(&text).ok());
        let key = value_of(&fields, codec::IDEMPOTENCY_KEY);
        let key = key.and_then(|key| IdempotencyKey::from_utf8(key).ok());
        delivery.idempotency = key.zip(id.clone()).map(Box::new);
        // An inherited entry's number of deliveries does not include the attempt that starts next.
        let next_attempt = delivery.attempt.saturating_add(u32::from(is_inherited));
        if let Some(max) = max_attempts(&fields) {
            delivery.max_attempts = max;
        }
        // A sender's `max_attempts` does not raise the limit for deliveries that no worker settles.
        // An owned partition has no such limit: every delivery there is an attempt, and counts
        // towards `max_attempts`.
        let is_poison = self.order.is_none() && deliveries > self.settle_policy.max_deliveries;
        if next_attempt > delivery.max_attempts || is_poison {
            delivery.attempt = next_attempt;
            // The payload is not decoded, since decoding it may have crashed the workers.
            delivery.reply_to = ReplyTo::of_fields(&fields).map(Box::new);
            self.give_up(delivery);
            return None;
        }
        Some(self.decode(fields, id, delivery))
    }

    /// Decodes the message, and completes the delivery with what only the decoded message tells.
    fn decode(
        &self,
        fields: Vec<(Bytes, Bytes)>,
        id: Option<MessageId>,
        mut delivery: Unsettled,
    ) -> Delivery<RedisSettler> {
        match codec::decode(fields) {
            Ok(mut decoded) => {
                delivery.reply_to = ReplyTo::from_decoded(&mut decoded).map(Box::new);
                let lease = delivery.guard.lease.clone();
                let attempt = delivery.attempt;
                if let Some(task) = &delivery.task {
                    delivery.guard.set_task(task);
                    lease.set_record(self.notes.record(&delivery, task));
                }
                let mut message = self.with_times(decoded, delivery.origin);
                copy_if_small(message.payload_mut());
                let parts = message.parts_mut();
                parts.stream = Some(delivery.stream.keys.stream.clone());
                parts.group = Some(delivery.stream.keys.group.clone());
                parts.id = id;
                parts.attempt = Attempt(attempt);
                parts.lease = Some(lease);
                if let Some(order) = &self.order {
                    message.extensions_mut().insert(order.term);
                }
                self.with_turn(Ok(message), delivery)
            }
            Err(mut undecodable) => {
                self.report.counters.undecodable.increment();
                undecodable.id = id;
                undecodable.stream = Some(delivery.stream.keys.stream.clone());
                delivery.reply_to = ReplyTo::of_fields(&undecodable.fields).map(Box::new);
                self.with_turn(Err(undecodable), delivery)
            }
        }
    }

    fn settle(&self, delivery: Unsettled) -> RedisSettler {
        RedisSettler::new(delivery, &self.settle_policy)
    }

    /// Makes a delivery. In an owned partition the delivery gets its turn in the order.
    fn with_turn(
        &self,
        content: Result<Message, Undecodable>,
        mut delivery: Unsettled,
    ) -> Delivery<RedisSettler> {
        let order = self.order.as_ref();
        delivery.turn = order.map(|order| order.turn(&content));
        Delivery::new(content, self.settle(delivery))
    }

    /// Sets the times of a message that are measured on Redis's clock: its acceptance and its
    /// deadline.
    fn with_times(&self, decoded: Decoded, origin: StreamEntryId) -> Message {
        let mut message = decoded.message;
        let parts = message.parts_mut();
        let accepted = Duration::from_millis(origin.milliseconds);
        parts.accepted_at = SystemTime::UNIX_EPOCH.checked_add(accepted);
        parts.deadline = decoded.time_to_live.map(|life| {
            // The time to live starts when Redis stores the message, on Redis's clock.
            Deadline::after(life.saturating_sub(self.clock.since(origin.milliseconds)))
        });
        message
    }

    /// Makes a dead letter from a message that was delivered too often.
    fn give_up(&self, delivery: Unsettled) {
        let attempts = delivery.attempt - 1;
        let reason = format!("delivered {attempts} times and never settled");
        self.report
            .never_settled(&delivery.stream, delivery.origin, attempts, &reason);
        let verdict = Verdict::DeadLetter {
            reason,
            answer: Some(RpcError::unavailable("the request could not be handled")),
        };
        let id = delivery.origin;
        self.settle(delivery).settle(verdict, move |settled| {
            if let Err(error) = settled {
                tracing::warn!(%id, error = error.chain(), "a message could not be made a dead letter");
            }
        });
    }
}

/// Returns the maximum number of attempts that the sender of a task has chosen.
fn max_attempts(fields: &[(Bytes, Bytes)]) -> Option<u32> {
    let max = value_of(fields, codec::MAX_ATTEMPTS)?;
    std::str::from_utf8(max).ok()?.parse().ok()
}

/// Decodes the transport's fields of an entry on the retry stream. Returns the id of the message's
/// first entry, as text and decoded, and the number of attempts before this entry. If the fields
/// contain no valid id, returns the id of this entry.
pub(super) fn origin(
    fields: &[(Bytes, Bytes)],
    text: Bytes,
    id: StreamEntryId,
) -> (Bytes, StreamEntryId, u32) {
    let earlier_attempts = number(fields, codec::ATTEMPTS);
    let origin = value_of(fields, codec::ORIGIN)
        .and_then(|origin| Some((origin.clone(), StreamEntryId::parse(origin)?)));
    let (text, id) = origin.unwrap_or((text, id));
    (text, id, earlier_attempts)
}

/// Decodes the number in a field. Zero if there is no such field, or no number in it.
fn number(fields: &[(Bytes, Bytes)], field: &str) -> u32 {
    value_of(fields, field)
        .and_then(|number| std::str::from_utf8(number).ok()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_malformed_origin_is_replaced_by_the_entrys_own_id(
            fields in prop::collection::vec(("~[oax]", "[-0-9a]{0,24}"), 0..4),
        ) {
            let own = StreamEntryId::parse(b"7-1").unwrap();
            let fields = fields.into_iter().map(|(field, value)| (field.into(), value.into()));
            let fields: Vec<(Bytes, Bytes)> = fields.collect();
            let (text, id, earlier_attempts) = origin(&fields, "7-1".into(), own);
            prop_assert_eq!(StreamEntryId::parse(&text), Some(id));
            let first = |field| value_of(&fields, field).map(|value| std::str::from_utf8(value).unwrap());
            if first("~o").is_none_or(|origin| StreamEntryId::parse(origin.as_bytes()).is_none()) {
                prop_assert_eq!(id, own);
            }
            let expected = first("~a").and_then(|number| number.parse().ok());
            prop_assert_eq!(earlier_attempts, expected.unwrap_or(0));
        }
    }
}
